package main

import (
	"bytes"
	"fmt"
	"net"
	"path"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// checkDevices refuses what govcsim would take, or would fall over, in a list of device changes, and completes what
// clients may leave out. vm is nil when it is about to be created.
func (l *Lab) checkDevices(
	ctx *simulator.Context, vm *simulator.VirtualMachine, host types.ManagedObjectReference,
	changes []types.BaseVirtualDeviceConfigSpec, home string,
) types.BaseMethodFault {
	assignKeys(vm, changes)
	taken := map[[2]int32]bool{}
	if vm != nil {
		for _, device := range vm.Config.Hardware.Device {
			if d := device.GetVirtualDevice(); d.UnitNumber != nil {
				taken[[2]int32{d.ControllerKey, *d.UnitNumber}] = true
			}
		}
	}
	for _, change := range changes {
		spec := change.GetVirtualDeviceConfigSpec()
		if d := spec.Device.GetVirtualDevice(); spec.Operation == types.VirtualDeviceConfigSpecOperationRemove {
			if d.UnitNumber != nil {
				delete(taken, [2]int32{d.ControllerKey, *d.UnitNumber})
			}
		}
	}
	for i, change := range changes {
		spec := change.GetVirtualDeviceConfigSpec()
		if vm != nil && spec.Operation != types.VirtualDeviceConfigSpecOperationAdd {
			if fault := mayLeave(vm, changes, spec, i); fault != nil {
				return fault
			}
		}
		if spec.Operation == types.VirtualDeviceConfigSpecOperationRemove {
			continue
		}
		d := spec.Device.GetVirtualDevice()
		add := spec.Operation == types.VirtualDeviceConfigSpecOperationAdd
		if _, controller := spec.Device.(types.BaseVirtualController); add && !controller && !plugged(vm, changes, spec.Device) {
			return badDevice(i, "controllerKey")
		}
		switch device := spec.Device.(type) {
		case types.BaseVirtualEthernetCard:
			if fault := l.checkNIC(ctx, device.GetVirtualEthernetCard(), add); fault != nil {
				return fault
			}
		case *types.VirtualDisk:
			if d.UnitNumber == nil && add {
				return badDevice(i, "unitNumber")
			}
			if fault := l.checkDisk(ctx, vm, host, device, spec, i, home); fault != nil {
				return fault
			}
		}
		if !add || d.UnitNumber == nil || d.ControllerKey == 0 {
			continue
		}
		slot := [2]int32{d.ControllerKey, *d.UnitNumber}
		_, isDisk := spec.Device.(*types.VirtualDisk)
		if taken[slot] || (isDisk && !validUnit(vm, changes, d.ControllerKey, *d.UnitNumber)) {
			return badDevice(i, "unitNumber")
		}
		taken[slot] = true
	}
	return nil
}

func badDevice(index int, property string) types.BaseMethodFault {
	f := &types.InvalidDeviceSpec{DeviceIndex: int32(index)}
	f.Property = fmt.Sprintf("virtualDeviceSpec.device.%s", property)
	f.FaultMessage = localized(fmt.Sprintf("Invalid configuration for device '%d' (%s).", index, property))
	return f
}

// validUnit knows how many disks each kind of controller takes; SCSI unit 7 is the controller's own.
func validUnit(
	vm *simulator.VirtualMachine, changes []types.BaseVirtualDeviceConfigSpec, controller, unit int32,
) bool {
	var all []types.BaseVirtualDevice
	if vm != nil {
		all = append(all, vm.Config.Hardware.Device...)
	}
	for _, c := range changes {
		all = append(all, c.GetVirtualDeviceConfigSpec().Device)
	}
	limit := int32(1)
	for _, device := range all {
		if device.GetVirtualDevice().Key != controller {
			continue
		}
		switch device.(type) {
		case types.BaseVirtualSCSIController:
			return unit >= 0 && unit != 7 && unit < 64
		case types.BaseVirtualSATAController:
			limit = 30
		case *types.VirtualNVMEController:
			limit = 15
		case *types.VirtualIDEController:
			limit = 2
		}
	}
	if controller == 200 || controller == 201 {
		limit = 2
	}
	return unit >= 0 && unit < limit
}

// staticMACs is the range that vSphere allows for addresses set by hand: 00:50:56:00:00:00 to 00:50:56:3f:ff:ff.
var staticMACs = [2]net.HardwareAddr{{0, 0x50, 0x56, 0, 0, 0}, {0, 0x50, 0x56, 0x3f, 0xff, 0xff}}

func (l *Lab) checkNIC(ctx *simulator.Context, card *types.VirtualEthernetCard, add bool) types.BaseMethodFault {
	if fault := l.checkOpaque(ctx, card); fault != nil {
		return fault
	}
	if b, ok := card.Backing.(*types.VirtualEthernetCardNetworkBackingInfo); ok {
		dc := ctx.Map.Get(l.datacenter).(*simulator.Datacenter)
		if ctx.Map.FindByName(b.DeviceName, dc.Network) == nil {
			f := &types.InvalidDeviceBacking{}
			f.Property = "virtualDeviceSpec.device.backing"
			f.FaultMessage = localized("There is no network named " + b.DeviceName)
			return f
		}
	}
	manual := card.AddressType == string(types.VirtualEthernetCardMacTypeManual)
	if manual {
		mac, err := net.ParseMAC(card.MacAddress)
		vmware := err == nil && (bytes.HasPrefix(mac, []byte{0, 0x50, 0x56}) || bytes.HasPrefix(mac, []byte{0, 0x0c, 0x29}))
		if err != nil || (vmware && (bytes.Compare(mac, staticMACs[0]) < 0 || bytes.Compare(mac, staticMACs[1]) > 0)) {
			f := &types.InvalidDeviceSpec{}
			f.Property = "virtualDeviceSpec.device.macAddress"
			f.FaultMessage = localized(card.MacAddress + " is not an allowed static Ethernet address.")
			return f
		}
		return nil
	}
	if add {
		sum := []byte(l.newUUID("mac"))
		var b [3]byte
		_, _ = fmt.Sscanf(string(sum[:6]), "%02x%02x%02x", &b[0], &b[1], &b[2])
		card.MacAddress = fmt.Sprintf("00:50:56:%02x:%02x:%02x", 0x80|b[0]&0x3f, b[1], b[2])
		card.AddressType = string(types.VirtualEthernetCardMacTypeAssigned)
	}
	return nil
}

func (l *Lab) checkDisk(
	ctx *simulator.Context, vm *simulator.VirtualMachine, host types.ManagedObjectReference, disk *types.VirtualDisk,
	spec *types.VirtualDeviceConfigSpec, index int, home string,
) types.BaseMethodFault {
	b, ok := disk.Backing.(types.BaseVirtualDeviceFileBackingInfo)
	if !ok {
		return badDevice(index, "backing")
	}
	info := b.GetVirtualDeviceFileBackingInfo()
	var p object.DatastorePath
	p.FromString(info.FileName)
	store := p.Datastore
	if store == "" {
		store = storeOf(home)
	}
	if fault := l.mounted(ctx, host, store); fault != nil {
		return fault
	}
	if p.Datastore != "" {
		if _, fault := l.folderFile(info.FileName); fault != nil {
			return fault
		}
	}
	if p.Path == "" && p.Datastore == storeOf(home) {
		info.FileName = "" // govcsim then names the file in the VM's own folder
	}
	flat, _ := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
	if spec.Operation == types.VirtualDeviceConfigSpecOperationEdit {
		return nil
	}
	if spec.FileOperation == "" {
		at := l.link(info.FileName)
		if at == nil {
			f := &types.FileNotFound{}
			f.File = info.FileName
			return f
		}
		if vm != nil && vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff {
			if fault := l.mayHotAdd(disk, at, vm.Self.Value); fault != nil {
				return fault
			}
			if fault := l.meetHotAdd(at); fault != nil {
				return fault
			}
		}
		if file := l.openForWriting(map[int32]*link{0: at}); file != "" {
			return fileLocked(file)
		}
		disk.CapacityInBytes, disk.CapacityInKB = at.capacity, at.capacity/1024
		if flat != nil {
			flat.Parent = nil // filled in from the chain afterwards
		}
		return nil
	}
	if flat != nil && flat.Parent != nil && flat.Parent.FileName != "" {
		return l.checkChild(ctx, host, disk, flat)
	}
	if disk.CapacityInBytes == 0 {
		disk.CapacityInBytes = disk.CapacityInKB * 1024
	}
	if disk.CapacityInBytes <= 0 || disk.CapacityInBytes%512 != 0 {
		return badDevice(index, "capacityInBytes")
	}
	need := int64(1)
	if flat == nil || flat.ThinProvisioned == nil || !*flat.ThinProvisioned {
		need = disk.CapacityInBytes
	}
	if !l.take(store, need) {
		f := &types.NoDiskSpace{Datastore: store}
		f.File = info.FileName
		f.FaultMessage = localized(fmt.Sprintf("Insufficient disk space on datastore '%s'.", store))
		return f
	}
	if flat != nil && flat.Uuid == "" {
		flat.Uuid = l.newUUID("disk")
	}
	if rdm, ok := disk.Backing.(*types.VirtualDiskRawDiskMappingVer1BackingInfo); ok && rdm.Uuid == "" {
		rdm.Uuid = l.newUUID("disk")
	}
	return nil
}

// checkChild checks a new disk that is to stand on one that is there, whosever that is: its capacity is the parent's.
func (l *Lab) checkChild(
	ctx *simulator.Context, host types.ManagedObjectReference, disk *types.VirtualDisk,
	flat *types.VirtualDiskFlatVer2BackingInfo,
) types.BaseMethodFault {
	parent := l.link(flat.Parent.FileName)
	if parent == nil {
		f := &types.FileNotFound{}
		f.File = flat.Parent.FileName
		return f
	}
	if fault := l.mounted(ctx, host, storeOf(parent.dsPath)); fault != nil {
		return fault
	}
	if l.anyWriter(parent, "") {
		return fileLocked(parent.dsPath)
	}
	disk.CapacityInBytes, disk.CapacityInKB = parent.capacity, parent.capacity/1024
	flat.ThinProvisioned, flat.Uuid = types.NewBool(true), parent.uuid
	return nil
}

// mounted refuses a datastore that the host does not mount.
func (l *Lab) mounted(ctx *simulator.Context, host types.ManagedObjectReference, store string) types.BaseMethodFault {
	h, ok := ctx.Map.Get(host).(*simulator.HostSystem)
	if ok && ctx.Map.FindByName(store, h.Datastore) != nil {
		return nil
	}
	f := &types.InvalidDatastore{Name: store}
	f.FaultMessage = localized(fmt.Sprintf("The host does not see the datastore '%s'.", store))
	return f
}

// adopt takes over the devices of a VM after govcsim has configured it: order and capacities as they should be, links
// and backings for disks that are new. owner made the new files. The caller holds the VM's lock.
func (l *Lab) adopt(
	ctx *simulator.Context, vm *simulator.VirtualMachine, st *vmState, order []types.BaseVirtualDevice,
) types.BaseMethodFault {
	devices := sortLike(copyDevices(vm.Config.Hardware.Device), order)
	opaqueAgain(ctx, devices)
	for _, disk := range disks(devices) {
		name := diskPath(disk)
		at := l.link(name)
		if at == nil {
			file, fault := l.resolve(ctx, name)
			if fault != nil {
				return fault
			}
			at = &link{
				dsPath: name, stem: strings.TrimSuffix(file, ".vmdk"), capacity: disk.CapacityInBytes, owner: vm.Self.Value,
			}
			switch b := disk.Backing.(type) {
			case *types.VirtualDiskFlatVer2BackingInfo:
				at.uuid, at.thin = b.Uuid, b.ThinProvisioned != nil && *b.ThinProvisioned
				if b.Parent != nil {
					at.parent = l.link(b.Parent.FileName)
				}
				if b.DiskMode == "" {
					b.DiskMode = string(types.VirtualDiskModePersistent)
				}
				if b.Sharing == "" {
					b.Sharing = string(types.VirtualDiskSharingSharingNone)
				}
			case *types.VirtualDiskRawDiskMappingVer1BackingInfo:
				at.uuid = b.Uuid
			}
			if err := at.create(); err != nil {
				return systemError(err)
			}
			l.putLink(at)
		} else if !l.usedElsewhere(at, vm.Self) {
			for low := at; low != nil && low.owner == ""; low = low.parent {
				low.owner = vm.Self.Value
			}
		}
		id := ""
		if t := st.trackers[disk.Key]; t != nil {
			id, _ = t.changeID()
		}
		l.setBacking(disk, at, id)
	}
	var config []types.BaseOptionValue
	for _, option := range vm.Config.ExtraConfig {
		if option.GetOptionValue().Key != "govcsim" {
			config = append(config, option)
		}
	}
	vm.Config.ExtraConfig = config
	labelDevices(devices, order)
	l.setDevices(ctx, vm, devices)
	l.summarize(ctx, vm)
	l.refreshLayout(ctx, vm, st)
	return nil
}

// usedElsewhere tells whether another VM has made the link.
func (l *Lab) usedElsewhere(at *link, self types.ManagedObjectReference) bool {
	return at.owner != "" && at.owner != self.Value
}

// sortLike keeps devices in the order that they had: govcsim moves an edited device to the end.
func sortLike(devices, order []types.BaseVirtualDevice) []types.BaseVirtualDevice {
	byKey := map[int32]types.BaseVirtualDevice{}
	for _, device := range devices {
		byKey[device.GetVirtualDevice().Key] = device
	}
	var sorted []types.BaseVirtualDevice
	for _, device := range order {
		key := device.GetVirtualDevice().Key
		if d := byKey[key]; d != nil {
			sorted = append(sorted, d)
			delete(byKey, key)
		}
	}
	for _, device := range devices {
		if d := byKey[device.GetVirtualDevice().Key]; d != nil {
			sorted = append(sorted, d)
		}
	}
	return sorted
}

// nextVmdk is the first free "[ds] folder/NAME.vmdk", "NAME_1.vmdk", … in a VM's folder; soon are names that are given away.
func (l *Lab) nextVmdk(ctx *simulator.Context, folder, name string, soon map[string]bool) string {
	for n := 0; ; n++ {
		file := name + ".vmdk"
		if n > 0 {
			file = fmt.Sprintf("%s_%d.vmdk", name, n)
		}
		at := path.Join(folder, file)
		if l.link(at) != nil || soon[at] {
			continue
		}
		if _, fault := l.resolve(ctx, at); fault != nil {
			return at
		}
	}
}
