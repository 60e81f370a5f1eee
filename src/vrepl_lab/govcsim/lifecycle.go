package main

import (
	"os"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// DestroyTask is Destroy_Task: the VM and all its files.
func (m *vmMethods) DestroyTask(ctx *simulator.Context, req *types.Destroy_Task) soap.HasFault {
	l, vm := m.lab, m.lab.vm(req.This)
	ref := l.vmTask(vm, "Destroy_Task", true,
		func(ctx *simulator.Context, _ *Task, st *vmState) (types.AnyType, types.BaseMethodFault) {
			st.data.Lock()
			defer st.data.Unlock()
			var fault types.BaseMethodFault
			ctx.WithLock(vm, func() { fault = l.destroy(ctx, vm, st) })
			return nil, fault
		})
	return &methods.Destroy_TaskBody{Res: &types.Destroy_TaskResponse{Returnval: ref}}
}

func (l *Lab) destroy(ctx *simulator.Context, vm *simulator.VirtualMachine, st *vmState) types.BaseMethodFault {
	if vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff {
		return &types.InvalidPowerState{
			RequestedState: types.VirtualMachinePowerStatePoweredOff, ExistingState: vm.Runtime.PowerState,
		}
	}
	mine := l.owned(vm.Self.Value)
	for _, at := range mine {
		if l.anyHandle(at) {
			return fileLocked(at.dsPath)
		}
		for _, over := range l.children(at) {
			if over.owner != vm.Self.Value {
				return &types.ResourceInUse{Type: "VirtualDisk", Name: at.dsPath}
			}
		}
	}
	hot := map[string]bool{} // disks of other VMs that HotAdd left here are not this VM's to delete
	for _, disk := range disks(vm.Config.Hardware.Device) {
		if at := l.link(diskPath(disk)); at != nil && at.owner != vm.Self.Value {
			hot[at.dsPath] = true
			l.detached(at, vm.Self)
		}
	}
	for value := range st.snapshots {
		ctx.Map.Remove(ctx, types.ManagedObjectReference{Type: "VirtualMachineSnapshot", Value: value})
	}
	for _, t := range st.trackers {
		_ = os.Remove(t.file)
	}
	res := vm.DestroyTask(ctx, &types.Destroy_Task{This: vm.Self}).(*methods.Destroy_TaskBody)
	if _, fault := inner(ctx, res.Res.Returnval); fault != nil {
		return fault
	}
	for _, at := range mine {
		if err := l.dropLink(at); err != nil {
			return systemError(err)
		}
	}
	l.mu.Lock()
	delete(l.vms, vm.Self.Value)
	delete(l.prepared, vm.Self.Value)
	l.mu.Unlock()
	return nil
}

// owned are the links that a VM made.
func (l *Lab) owned(owner string) []*link {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []*link
	for _, at := range l.links {
		if at.owner == owner {
			all = append(all, at)
		}
	}
	return all
}

// UnregisterVM takes a VM off the inventory; its files stay and can be attached to another one.
func (m *vmMethods) UnregisterVM(ctx *simulator.Context, req *types.UnregisterVM) soap.HasFault {
	l, vm := m.lab, m.lab.vm(req.This)
	own := l.context()
	var res soap.HasFault
	own.WithLock(vm, func() { res = vm.UnregisterVM(own, req) })
	if res.Fault() == nil {
		for _, at := range l.owned(vm.Self.Value) {
			at.owner = ""
		}
		st := l.state(vm.Self)
		for value := range st.snapshots {
			own.Map.Remove(own, types.ManagedObjectReference{Type: "VirtualMachineSnapshot", Value: value})
		}
		l.mu.Lock()
		delete(l.vms, vm.Self.Value)
		l.mu.Unlock()
	}
	return res
}

// RenameTask is Rename_Task: the name changes in the inventory and in the configuration, files keep theirs.
func (m *vmMethods) RenameTask(ctx *simulator.Context, req *types.Rename_Task) soap.HasFault {
	l, vm, name := m.lab, m.lab.vm(req.This), storedName(req.NewName)
	ref := l.vmTask(vm, "Rename_Task", false,
		func(ctx *simulator.Context, _ *Task, _ *vmState) (types.AnyType, types.BaseMethodFault) {
			folder, ok := ctx.Map.Get(*vm.Parent).(*simulator.Folder)
			if ok {
				var taken bool
				ctx.WithLock(folder, func() { taken = ctx.Map.FindByName(name, folder.ChildEntity) != nil })
				if taken {
					return nil, &types.DuplicateName{Name: name, Object: vm.Self}
				}
			}
			ctx.WithLock(vm, func() { named(ctx, vm, name) })
			return nil, nil
		})
	return &methods.Rename_TaskBody{Res: &types.Rename_TaskResponse{Returnval: ref}}
}

// named gives a VM its name, as vSphere holds it. The caller holds the VM's lock.
func named(ctx *simulator.Context, vm *simulator.VirtualMachine, name string) {
	ctx.Update(vm, []types.PropertyChange{
		{Name: "name", Val: name},
		{Name: "config.name", Val: name},
		{Name: "summary.config.name", Val: name},
	})
}

// RefreshStorageInfo recomputes sizes from the files.
func (m *vmMethods) RefreshStorageInfo(ctx *simulator.Context, req *types.RefreshStorageInfo) soap.HasFault {
	l, vm := m.lab, m.lab.vm(req.This)
	own := l.context()
	own.WithLock(vm, func() { l.refreshLayout(own, vm, l.state(vm.Self)) })
	return &methods.RefreshStorageInfoBody{Res: new(types.RefreshStorageInfoResponse)}
}
