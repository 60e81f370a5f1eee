package main

import (
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// mayChange refuses what vSphere refuses before it looks at devices: a specification made from an older configuration,
// and what cannot change while the VM runs. The caller holds the VM's lock.
func (l *Lab) mayChange(vm *simulator.VirtualMachine, spec *types.VirtualMachineConfigSpec) types.BaseMethodFault {
	if spec.ChangeVersion != "" && spec.ChangeVersion != vm.Config.ChangeVersion {
		return &types.ConcurrentAccess{}
	}
	if vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOff {
		return nil
	}
	c := vm.Config
	cpus, memory := c.Hardware.NumCPU, int64(c.Hardware.MemoryMB)
	on := func(flag *bool) bool { return flag != nil && *flag }
	switch {
	case spec.NumCPUs > cpus && !on(c.CpuHotAddEnabled), spec.NumCPUs != 0 && spec.NumCPUs < cpus && !on(c.CpuHotRemoveEnabled):
		return hotPlug(&types.CpuHotPlugNotSupported{}, "CPU hot plug is not supported for this virtual machine.")
	case spec.MemoryMB != 0 && spec.MemoryMB != memory && (!on(c.MemoryHotAddEnabled) || spec.MemoryMB < memory):
		return hotPlug(&types.MemoryHotPlugNotSupported{}, "Memory hot plug is not supported for this virtual machine.")
	}
	differs := func(wish, is string) bool { return wish != "" && !strings.EqualFold(wish, is) }
	flips := func(wish, is *bool) bool { return wish != nil && on(wish) != on(is) }
	secure := func(o *types.VirtualMachineBootOptions) *bool {
		if o == nil {
			return nil
		}
		return o.EfiSecureBootEnabled
	}
	if differs(spec.Firmware, c.Firmware) || differs(spec.Uuid, c.Uuid) || differs(spec.Version, c.Version) ||
		differs(spec.GuestId, c.GuestId) || flips(spec.CpuHotAddEnabled, c.CpuHotAddEnabled) ||
		flips(spec.CpuHotRemoveEnabled, c.CpuHotRemoveEnabled) || flips(spec.MemoryHotAddEnabled, c.MemoryHotAddEnabled) ||
		flips(spec.NestedHVEnabled, c.NestedHVEnabled) || flips(secure(spec.BootOptions), secure(c.BootOptions)) ||
		(spec.NumCoresPerSocket != nil && c.Hardware.NumCoresPerSocket != nil &&
			*spec.NumCoresPerSocket != *c.Hardware.NumCoresPerSocket) {
		return mustBeOff(vm)
	}
	for _, change := range spec.DeviceChange {
		d := change.GetVirtualDeviceConfigSpec()
		_, cdrom := d.Device.(*types.VirtualCdrom)
		key := d.Device.GetVirtualDevice().ControllerKey
		ide := key == 200 || key == 201
		if ide && (!cdrom || d.Operation != types.VirtualDeviceConfigSpecOperationEdit) {
			return mustBeOff(vm) // nothing is plugged into an IDE bus that runs; a drive's medium changes
		}
	}
	return nil
}

func hotPlug(fault types.BaseMethodFault, text string) types.BaseMethodFault {
	fault.GetMethodFault().FaultMessage = localized(text)
	return fault
}

func mustBeOff(vm *simulator.VirtualMachine) types.BaseMethodFault {
	return &types.InvalidPowerState{
		RequestedState: types.VirtualMachinePowerStatePoweredOff, ExistingState: vm.Runtime.PowerState,
	}
}

// mayResize refuses what vSphere does not do to a disk: shrink it, or grow it over a parent. The texts are those that
// clients' bug reports quote from both power states.
func (l *Lab) mayResize(
	vm *simulator.VirtualMachine, st *vmState, leaf *link, size int64, index int,
) types.BaseMethodFault {
	if size > leaf.capacity && size%512 == 0 && leaf.parent == nil && !frozen(st, leaf) {
		return nil
	}
	text := "Disks with parents cannot be expanded."
	if size <= leaf.capacity || size%512 != 0 {
		text = "Disks cannot be shrunk."
	} else if vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff {
		f := &types.GenericVmConfigFault{Reason: "The disk extend operation failed"}
		f.FaultMessage = []types.LocalizableMessage{message("msg.disk.hotExtend", // the key is a guess
			"The disk extend operation failed: The virtual disk requires a feature not supported by this program. "+
				"Hot-extend is currently supported only for VMFS flat virtual disks without snapshots opened in persistent mode.")}
		return f
	}
	f := &types.InvalidDeviceOperation{BadOp: types.VirtualDeviceConfigSpecOperationEdit}
	f.DeviceIndex, f.Property = int32(index), "virtualDeviceSpec.device.capacityInKB"
	f.FaultMessage = localized("Invalid operation for device '" + decimal(int32(index)) + "'. " + text)
	return f
}

// plugged tells whether a device has something to sit on: a controller that is there, or one that the same
// specification adds. Every VM has its IDE, PCI, PS/2 and SIO controllers. Keys are those that assignKeys gave.
func plugged(vm *simulator.VirtualMachine, changes []types.BaseVirtualDeviceConfigSpec, device types.BaseVirtualDevice) bool {
	key := device.GetVirtualDevice().ControllerKey
	if _, disk := device.(*types.VirtualDisk); key == 0 && !disk {
		return true // vSphere finds one for what is no disk
	}
	if isDefaultDevice(key) && key < 600 {
		return true
	}
	isController := func(d types.BaseVirtualDevice) bool {
		_, is := d.(types.BaseVirtualController)
		return is && d.GetVirtualDevice().Key == key
	}
	for _, change := range changes {
		c := change.GetVirtualDeviceConfigSpec()
		if isController(c.Device) {
			return c.Operation != types.VirtualDeviceConfigSpecOperationRemove
		}
	}
	if vm != nil {
		for _, d := range vm.Config.Hardware.Device {
			if isController(d) {
				return true
			}
		}
	}
	return false
}

// mayLeave refuses to change or remove a device that is not there, and to remove a controller that others sit on. (That
// the latter is InvalidDeviceSpec is a guess.)
func mayLeave(
	vm *simulator.VirtualMachine, changes []types.BaseVirtualDeviceConfigSpec, spec *types.VirtualDeviceConfigSpec, index int,
) types.BaseMethodFault {
	key := spec.Device.GetVirtualDevice().Key
	goes := map[int32]bool{}
	for _, change := range changes {
		if c := change.GetVirtualDeviceConfigSpec(); c.Operation == types.VirtualDeviceConfigSpecOperationRemove {
			goes[c.Device.GetVirtualDevice().Key] = true
		}
	}
	there := false
	for _, device := range vm.Config.Hardware.Device {
		d := device.GetVirtualDevice()
		there = there || d.Key == key
		if spec.Operation == types.VirtualDeviceConfigSpecOperationRemove && d.ControllerKey == key && !goes[d.Key] {
			return badDevice(index, "key")
		}
	}
	if !there {
		return badDevice(index, "key")
	}
	return nil
}
