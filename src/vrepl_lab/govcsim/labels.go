package main

import (
	"strconv"

	"github.com/vmware/govmomi/vim25/types"
)

func decimal(n int32) string { return strconv.Itoa(int(n)) }

// labelKind is how vSphere labels a device: a name and a number, counted over the VM ("Hard disk 1") or a controller's
// bus ("SCSI controller 0"); and a summary, where it says the same of all of a kind.
func labelKind(device types.BaseVirtualDevice) (name string, bus int32, summary string) {
	controller := func(name, summary string) (string, int32, string) {
		return name, device.(types.BaseVirtualController).GetVirtualController().BusNumber, summary
	}
	switch device.(type) {
	case *types.VirtualDisk:
		return "Hard disk", -1, ""
	case types.BaseVirtualEthernetCard:
		return "Network adapter", -1, ""
	case *types.VirtualCdrom:
		return "CD/DVD drive", -1, ""
	case *types.VirtualFloppy:
		return "Floppy drive", -1, ""
	case *types.VirtualSerialPort:
		return "Serial port", -1, ""
	case *types.VirtualParallelPort:
		return "Parallel port", -1, ""
	case *types.ParaVirtualSCSIController:
		return controller("SCSI controller", "VMware paravirtual SCSI")
	case *types.VirtualLsiLogicSASController:
		return controller("SCSI controller", "LSI Logic SAS")
	case *types.VirtualLsiLogicController:
		return controller("SCSI controller", "LSI Logic")
	case *types.VirtualBusLogicController:
		return controller("SCSI controller", "BusLogic")
	case types.BaseVirtualSATAController:
		return controller("SATA controller", "AHCI")
	case *types.VirtualNVMEController:
		return controller("NVME controller", "NVME Controller")
	case *types.VirtualUSBXHCIController:
		return "USB xHCI controller", -2, ""
	case *types.VirtualUSBController:
		return "USB controller", -2, ""
	}
	return "", 0, ""
}

// labelDevices gives devices the labels that vSphere gives them, whatever the client wrote: those that were there keep
// theirs, new ones get the first free number.
func labelDevices(devices, before []types.BaseVirtualDevice) {
	old := map[int32]string{}
	for _, device := range before {
		if d := device.GetVirtualDevice(); d.DeviceInfo != nil {
			old[d.Key] = d.DeviceInfo.GetDescription().Label
		}
	}
	used := map[string]bool{}
	for _, device := range devices {
		used[old[device.GetVirtualDevice().Key]] = true
	}
	for _, device := range devices {
		name, bus, summary := labelKind(device)
		if name == "" {
			continue
		}
		d := device.GetVirtualDevice()
		description := &types.Description{}
		if d.DeviceInfo != nil {
			*description = *d.DeviceInfo.GetDescription()
		}
		d.DeviceInfo = description
		if summary != "" {
			description.Summary = summary
		}
		if label := old[d.Key]; label != "" {
			description.Label = label
			continue
		}
		switch {
		case bus >= 0:
			description.Label = name + " " + decimal(bus)
		case bus == -2:
			description.Label = name
		default:
			for n := int32(1); ; n++ {
				if label := name + " " + decimal(n); !used[label] {
					description.Label, used[label] = label, true
					break
				}
			}
		}
	}
}
