package main

import (
	"slices"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// ReconfigVMTask is ReconfigVM_Task.
func (m *vmMethods) ReconfigVMTask(ctx *simulator.Context, req *types.ReconfigVM_Task) soap.HasFault {
	vm := m.lab.vm(req.This)
	ref := m.lab.vmTask(vm, "ReconfigVM_Task", false,
		func(ctx *simulator.Context, _ *Task, st *vmState) (types.AnyType, types.BaseMethodFault) {
			st.data.Lock()
			defer st.data.Unlock()
			var fault types.BaseMethodFault
			ctx.WithLock(vm, func() { fault = m.lab.reconfigure(ctx, vm, st, req) })
			return nil, fault
		})
	return &methods.ReconfigVM_TaskBody{Res: &types.ReconfigVM_TaskResponse{Returnval: ref}}
}

// reconfigure checks a change, lets govcsim apply it, and does to the disk files what it asks for.
// The caller holds st.data and the VM's lock.
func (l *Lab) reconfigure(
	ctx *simulator.Context, vm *simulator.VirtualMachine, st *vmState, req *types.ReconfigVM_Task,
) types.BaseMethodFault {
	spec := &req.Spec
	if fault := l.mayChange(vm, spec); fault != nil {
		return fault
	}
	if track := spec.ChangeTrackingEnabled; track != nil && *track && hardwareVersion(vm.Config.Version) < 7 {
		return &types.NotSupported{}
	}
	if fault := l.checkDevices(ctx, vm, *vm.Runtime.Host, spec.DeviceChange, vm.Config.Files.VmPathName); fault != nil {
		return fault
	}
	before := slices.Clone(vm.Config.Hardware.Device) // govcsim shifts the devices within its own
	was := l.leafs(vm)
	soon := map[string]bool{}
	grow := map[int32]int64{}
	destroy := map[int32]bool{}
	gone := map[int32]bool{}
	for i, change := range spec.DeviceChange {
		c := change.GetVirtualDeviceConfigSpec()
		disk, ok := c.Device.(*types.VirtualDisk)
		if !ok {
			continue
		}
		leaf := was[disk.Key]
		switch c.Operation {
		case types.VirtualDeviceConfigSpecOperationAdd:
			if b := disk.Backing.(types.BaseVirtualDeviceFileBackingInfo).GetVirtualDeviceFileBackingInfo(); b.FileName == "" {
				b.FileName = l.nextVmdk(ctx, vmFolder(vm), vm.Config.Name, soon)
				soon[b.FileName] = true
			}
		case types.VirtualDeviceConfigSpecOperationRemove:
			if leaf != nil && !l.hotAdded(leaf, vm.Self) && l.anyHandle(leaf) {
				return fileLocked(leaf.dsPath)
			}
			gone[disk.Key] = true
			destroy[disk.Key] = c.FileOperation == types.VirtualDeviceConfigSpecFileOperationDestroy
			c.FileOperation = "" // the lab deletes the files
		case types.VirtualDeviceConfigSpecOperationEdit:
			if leaf == nil {
				return badDevice(i, "key")
			}
			size := newCapacity(leaf.capacity, disk)
			if size == leaf.capacity {
				break
			}
			if fault := l.mayResize(vm, st, leaf, size, i); fault != nil {
				return fault
			}
			if l.anyHandle(leaf) {
				return fileLocked(leaf.dsPath)
			}
			if !leaf.thin && l.freeSpace(storeOf(leaf.dsPath)) < size-leaf.capacity {
				return &types.NoDiskSpace{Datastore: storeOf(leaf.dsPath)}
			}
			grow[disk.Key] = size
		}
	}
	if fault := l.unknownTo(ctx, *vm.Runtime.Host, "", spec.GuestId); fault != nil {
		return fault
	}
	tracked := vm.Config.ChangeTrackingEnabled != nil && *vm.Config.ChangeTrackingEnabled
	res := vm.ReconfigVMTask(ctx, req).(*methods.ReconfigVM_TaskBody)
	if _, fault := inner(ctx, res.Res.Returnval); fault != nil {
		return fault
	}
	if spec.VPMCEnabled != nil { // govcsim passes it over
		vm.Config.VPMCEnabled = spec.VPMCEnabled
	}
	if track := spec.ChangeTrackingEnabled; track != nil && !*track {
		l.stopTracking(st)
	}
	l.trackDisks(vm, st, spec, tracked)
	for key, size := range grow {
		if err := was[key].extend(size); err != nil {
			return systemError(err)
		}
		if t := st.trackers[key]; t != nil {
			t.capacity = size
			if err := t.reset(l.identifier("ctk")); err != nil {
				return systemError(err)
			}
		}
	}
	for key := range gone {
		if t := st.trackers[key]; t != nil {
			t.remove()
			delete(st.trackers, key)
		}
		leaf := was[key]
		if leaf == nil {
			continue
		}
		l.detached(leaf, vm.Self)
		if destroy[key] {
			if fault := l.destroyChain(st, leaf, vm.Self.Value); fault != nil {
				return fault
			}
		}
	}
	if err := l.replug(vm); err != nil { // before others may open what the VM has let go
		return systemError(err)
	}
	return l.adopt(ctx, vm, st, before)
}

// newCapacity is the size that an edited disk asks for: clients set bytes, or KiB, or both.
func newCapacity(old int64, disk *types.VirtualDisk) int64 {
	if disk.CapacityInBytes > 0 && disk.CapacityInBytes != old {
		return disk.CapacityInBytes
	}
	if disk.CapacityInKB > 0 && disk.CapacityInKB != old/1024 {
		return disk.CapacityInKB * 1024
	}
	return old
}

// destroyChain deletes a leaf and what it alone stands on, as far as no snapshot and no other disk needs it.
func (l *Lab) destroyChain(st *vmState, leaf *link, owner string) types.BaseMethodFault {
	for at := leaf; at != nil; {
		below := at.parent
		if at.owner != owner || frozen(st, at) || len(l.children(at)) > 0 {
			return nil
		}
		if err := l.dropLink(at); err != nil {
			return systemError(err)
		}
		at = below
	}
	return nil
}
