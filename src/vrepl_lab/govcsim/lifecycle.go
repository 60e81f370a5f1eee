package main

import (
	"os"
	"path"
	"strings"

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

// destroy takes a VM off the inventory and deletes its own files. Strangers' files in its folder stay, and the folder with
// them. The caller holds the locks.
func (l *Lab) destroy(ctx *simulator.Context, vm *simulator.VirtualMachine, st *vmState) types.BaseMethodFault {
	if vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff {
		return &types.InvalidPowerState{
			RequestedState: types.VirtualMachinePowerStatePoweredOff, ExistingState: vm.Runtime.PowerState,
		}
	}
	mine := l.owned(vm.Self.Value)
	if fault := l.vmLocked(vm, mine); fault != nil {
		return fault
	}
	for _, disk := range disks(vm.Config.Hardware.Device) { // disks of other VMs that HotAdd left here stay
		if at := l.link(diskPath(disk)); at != nil && at.owner != vm.Self.Value {
			l.detached(at, vm.Self)
		}
	}
	files := append(homeFiles(vm), snapshotFiles(st)...)
	if len(mine) > 0 && l.isVSAN(storeOf(vmFolder(vm))) { // there a folder is one object, under another name
		defer os.RemoveAll(path.Dir(mine[0].stem))
	}
	home := vmFolder(vm)
	if fault := l.unregister(ctx, vm, st); fault != nil {
		return fault
	}
	for _, t := range st.trackers {
		t.remove()
	}
	for _, s := range st.snapshots {
		for _, d := range s.disks {
			if d.table != "" {
				_ = os.Remove(d.table)
			}
		}
	}
	for _, at := range mine {
		clones := l.foreignChildren(at, vm.Self.Value)
		if len(clones) > 0 && l.config().CloneGuard {
			at.owner = clones[0].owner
			continue
		}
		l.orphan(clones, "The parent of this virtual disk, "+at.dsPath+", could not be opened: file not found")
		if err := l.dropLink(at); err != nil {
			return systemError(err)
		}
	}
	for _, at := range mine {
		if folder := path.Dir(at.dsPath); folder != home && !strings.HasSuffix(folder, "]") {
			_ = l.removeFiles(nil, folder)
		}
	}
	if err := l.removeFiles(files, home); err != nil {
		return systemError(err)
	}
	return nil
}

// unregister takes a VM and its snapshots off the inventory.
func (l *Lab) unregister(ctx *simulator.Context, vm *simulator.VirtualMachine, st *vmState) types.BaseMethodFault {
	if res := vm.UnregisterVM(ctx, &types.UnregisterVM{This: vm.Self}); res.Fault() != nil {
		return res.Fault().VimFault().(types.BaseMethodFault)
	}
	for value := range st.snapshots {
		ctx.Map.Remove(ctx, types.ManagedObjectReference{Type: "VirtualMachineSnapshot", Value: value})
	}
	l.mu.Lock()
	delete(l.vms, vm.Self.Value)
	delete(l.prepared, vm.Self.Value)
	delete(l.uses, vm.Self.Value)
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

// UnregisterVM takes a VM off the inventory. Its files stay: its disks can be attached to another VM, and RegisterVM_Task
// brings it back from its .vmx as it was.
func (m *vmMethods) UnregisterVM(ctx *simulator.Context, req *types.UnregisterVM) soap.HasFault {
	l, vm := m.lab, m.lab.vm(req.This)
	own := l.context()
	st := l.state(vm.Self)
	st.data.Lock()
	defer st.data.Unlock()
	var fault types.BaseMethodFault
	own.WithLock(vm, func() {
		if vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff {
			fault = mustBeOff(vm)
		} else if fault = l.writeVMX(own, vm, st); fault == nil {
			fault = l.unregister(own, vm, st)
		}
	})
	if fault != nil {
		return &methods.UnregisterVMBody{Fault_: simulator.Fault(faultText(fault), fault)}
	}
	for _, at := range l.owned(vm.Self.Value) {
		at.owner = ""
	}
	return &methods.UnregisterVMBody{Res: new(types.UnregisterVMResponse)}
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

// DestroyTask is Destroy_Task of a folder: with all that is in it. A VM that runs, or whose disks somebody has open, stays,
// and so does the folder. (govcsim's own leaves the VMs behind without a parent, and panics when somebody looks for it.)
func (m *folderMethods) DestroyTask(ctx *simulator.Context, req *types.Destroy_Task) soap.HasFault {
	l := m.lab
	name := ""
	if folder, ok := l.svc.Context.Map.Get(req.This).(*simulator.Folder); ok {
		name = folder.Name
	}
	ref := l.run(req.This, name, "Destroy_Task",
		func(ctx *simulator.Context, _ *Task) (types.AnyType, types.BaseMethodFault) {
			return nil, l.destroyFolder(ctx, req.This)
		})
	return &methods.Destroy_TaskBody{Res: &types.Destroy_TaskResponse{Returnval: ref}}
}

func (l *Lab) destroyFolder(ctx *simulator.Context, ref types.ManagedObjectReference) types.BaseMethodFault {
	folder, ok := ctx.Map.Get(ref).(*simulator.Folder)
	if !ok {
		return &types.ManagedObjectNotFound{Obj: ref}
	}
	var children []types.ManagedObjectReference
	ctx.WithLock(folder, func() { children = append(children, folder.ChildEntity...) })
	for _, child := range children {
		var fault types.BaseMethodFault
		switch obj := ctx.Map.Get(child).(type) {
		case *simulator.Folder:
			fault = l.destroyFolder(ctx, child)
		case *simulator.VirtualMachine:
			st := l.state(child)
			st.data.Lock()
			ctx.WithLock(obj, func() { fault = l.destroy(ctx, obj, st) })
			st.data.Unlock()
		default:
			fault = &types.ResourceInUse{Type: child.Type, Name: child.Value}
		}
		if fault != nil {
			return fault
		}
	}
	var res soap.HasFault
	ctx.WithLock(folder, func() { res = folder.DestroyTask(ctx, &types.Destroy_Task{This: ref}) })
	_, fault := inner(ctx, res.(*methods.Destroy_TaskBody).Res.Returnval)
	return fault
}
