package main

import (
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// assignKeys gives added devices the keys that vSphere gives them: the SCSI controller of bus 1 is 1001, the disk in its
// slot 2 is 2018, and so on. Keys in a specification are temporary; references to them are carried over.
func assignKeys(vm *simulator.VirtualMachine, changes []types.BaseVirtualDeviceConfigSpec) {
	used := map[int32]bool{}
	if vm != nil {
		for _, device := range vm.Config.Hardware.Device {
			used[device.GetVirtualDevice().Key] = true
		}
	}
	moved := map[int32]int32{}
	give := func(d *types.VirtualDevice, want int32) {
		for used[want] {
			want++
		}
		used[want] = true
		if _, known := moved[d.Key]; !known && d.Key != 0 {
			moved[d.Key] = want
		}
		d.Key = want
	}
	added := func(call func(device types.BaseVirtualDevice)) {
		for _, change := range changes {
			if c := change.GetVirtualDeviceConfigSpec(); c.Operation == types.VirtualDeviceConfigSpecOperationAdd {
				call(c.Device)
			}
		}
	}
	added(func(device types.BaseVirtualDevice) {
		if c, ok := device.(types.BaseVirtualController); ok {
			if want := controllerKey(device, c.GetVirtualController().BusNumber); want != 0 {
				d := device.GetVirtualDevice()
				if isDefaultDevice(want) { // there already, or made by govcsim: the same one is meant
					moved[d.Key], d.Key = want, want
				} else {
					give(d, want)
				}
			}
		}
	})
	added(func(device types.BaseVirtualDevice) {
		d := device.GetVirtualDevice()
		if key, ok := moved[d.ControllerKey]; ok {
			d.ControllerKey = key
		}
		if _, ok := device.(types.BaseVirtualController); ok {
			return
		}
		if want := deviceKey(device); want != 0 {
			give(d, want)
		}
	})
}

func controllerKey(device types.BaseVirtualDevice, bus int32) int32 {
	switch device.(type) {
	case types.BaseVirtualSCSIController:
		return 1000 + bus
	case types.BaseVirtualSATAController:
		return 15000 + bus
	case *types.VirtualNVMEController:
		return 31000 + bus
	case *types.VirtualIDEController:
		return 200 + bus
	case *types.VirtualPCIController:
		return 100
	case *types.VirtualPS2Controller:
		return 300
	case *types.VirtualSIOController:
		return 400
	}
	return 0
}

func deviceKey(device types.BaseVirtualDevice) int32 {
	d := device.GetVirtualDevice()
	var unit int32
	if d.UnitNumber != nil {
		unit = *d.UnitNumber
	}
	switch device.(type) {
	case types.BaseVirtualEthernetCard:
		return 4000
	case *types.VirtualDisk, *types.VirtualCdrom:
		switch at := d.ControllerKey; {
		case at >= 31000:
			return 32000 + 15*(at-31000) + unit
		case at >= 15000:
			return 16000 + 30*(at-15000) + unit
		case at >= 1000:
			return 2000 + 16*(at-1000) + unit
		case at >= 200:
			return 3000 + 2*(at-200) + unit
		}
	}
	return 0
}
