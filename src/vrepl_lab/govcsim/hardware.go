package main

import (
	"fmt"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"
)

// devices are the additions that make up a VM's hardware.
func (v *inventoryVM) devices() ([]types.BaseVirtualDeviceConfigSpec, error) {
	var changes []types.BaseVirtualDeviceConfigSpec
	add := func(device types.BaseVirtualDevice, file types.VirtualDeviceConfigSpecFileOperation) {
		changes = append(changes, &types.VirtualDeviceConfigSpec{
			Operation: types.VirtualDeviceConfigSpecOperationAdd, FileOperation: file, Device: device,
		})
	}
	controllers := map[string]int32{}
	for _, d := range v.Disks {
		kind := d.Controller
		if kind == "" {
			kind = "pvscsi"
		}
		id := fmt.Sprintf("%s/%d", kind, d.Bus)
		if _, ok := controllers[id]; ok {
			continue
		}
		device, key, err := controller(kind, d)
		if err != nil {
			return nil, err
		}
		controllers[id] = key
		if device != nil {
			add(device, "")
		}
	}
	for i, n := range v.NICs {
		device, err := object.EthernetCardTypes().CreateEthernetCard(n.Type, &types.VirtualEthernetCardNetworkBackingInfo{
			VirtualDeviceDeviceBackingInfo: types.VirtualDeviceDeviceBackingInfo{DeviceName: n.Network},
		})
		if err != nil {
			return nil, err
		}
		card := device.(types.BaseVirtualEthernetCard).GetVirtualEthernetCard()
		card.Key, card.ControllerKey, card.UnitNumber = int32(4000+i), 100, types.NewInt32(int32(7+i))
		card.AddressType = string(types.VirtualEthernetCardMacTypeAssigned)
		card.Connectable = &types.VirtualDeviceConnectInfo{StartConnected: true, AllowGuestControl: true, Connected: true}
		card.WakeOnLanEnabled = types.NewBool(true)
		add(device, "")
	}
	if v.CDROM {
		cd := &types.VirtualCdrom{}
		cd.Key, cd.ControllerKey, cd.UnitNumber = -1, 201, types.NewInt32(0)
		cd.Backing = &types.VirtualCdromIsoBackingInfo{VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{
			FileName: fmt.Sprintf("[%s] iso/install.iso", v.Datastore),
		}}
		cd.Connectable = &types.VirtualDeviceConnectInfo{StartConnected: true, AllowGuestControl: true, Connected: true}
		add(cd, "")
	}
	for i, d := range v.Disks {
		kind := d.Controller
		if kind == "" {
			kind = "pvscsi"
		}
		disk := &types.VirtualDisk{CapacityInBytes: d.Capacity, CapacityInKB: d.Capacity / 1024}
		disk.Key, disk.ControllerKey = int32(2000+i), controllers[fmt.Sprintf("%s/%d", kind, d.Bus)]
		disk.UnitNumber = types.NewInt32(d.Unit)
		mode, sharing := d.Mode, d.Sharing
		if mode == "" {
			mode = string(types.VirtualDiskModePersistent)
		}
		if sharing == "" {
			sharing = string(types.VirtualDiskSharingSharingNone)
		}
		if d.RDM != nil {
			disk.Backing = &types.VirtualDiskRawDiskMappingVer1BackingInfo{
				CompatibilityMode: *d.RDM, DiskMode: mode, Sharing: sharing,
				LunUuid: "0200000000600508b1001c0000000000000000", DeviceName: "vml.0200000000600508b1001c",
			}
		} else {
			disk.Backing = &types.VirtualDiskFlatVer2BackingInfo{
				DiskMode: mode, Sharing: sharing, ThinProvisioned: types.NewBool(d.Thin), EagerlyScrub: types.NewBool(false),
			}
		}
		add(disk, types.VirtualDeviceConfigSpecFileOperationCreate)
	}
	return changes, nil
}

// controller makes a storage controller with the key that vSphere gives it. IDE controllers are always there already.
func controller(kind string, d inventoryDisk) (types.BaseVirtualDevice, int32, error) {
	base := types.VirtualController{BusNumber: d.Bus}
	shared := types.VirtualSCSISharing(d.SharedBus)
	if shared == "" {
		shared = types.VirtualSCSISharingNoSharing
	}
	base.ControllerKey = 100
	scsi := types.VirtualSCSIController{VirtualController: base, SharedBus: shared, ScsiCtlrUnitNumber: 7}
	scsi.Key = 1000 + d.Bus
	scsi.UnitNumber = types.NewInt32(3 + d.Bus)
	switch kind {
	case "pvscsi":
		return &types.ParaVirtualSCSIController{VirtualSCSIController: scsi}, scsi.Key, nil
	case "lsilogic":
		return &types.VirtualLsiLogicController{VirtualSCSIController: scsi}, scsi.Key, nil
	case "lsilogic-sas":
		return &types.VirtualLsiLogicSASController{VirtualSCSIController: scsi}, scsi.Key, nil
	case "buslogic":
		return &types.VirtualBusLogicController{VirtualSCSIController: scsi}, scsi.Key, nil
	case "sata":
		sata := &types.VirtualAHCIController{VirtualSATAController: types.VirtualSATAController{VirtualController: base}}
		sata.Key, sata.UnitNumber = 15000+d.Bus, types.NewInt32(24+d.Bus)
		return sata, sata.Key, nil
	case "nvme":
		nvme := &types.VirtualNVMEController{VirtualController: base}
		nvme.Key, nvme.UnitNumber = 31000+d.Bus, types.NewInt32(30+d.Bus)
		return nvme, nvme.Key, nil
	case "ide":
		return nil, 200 + d.Bus, nil
	}
	return nil, 0, fmt.Errorf("unknown controller %q", kind)
}
