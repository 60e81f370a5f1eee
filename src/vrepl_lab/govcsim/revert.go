package main

import (
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// RevertToSnapshotTask is RevertToSnapshot_Task.
func (m *snapshotMethods) RevertToSnapshotTask(ctx *simulator.Context, req *types.RevertToSnapshot_Task) soap.HasFault {
	vm, fault := m.lab.vmOfSnapshot(req.This)
	if fault != nil {
		return &methods.RevertToSnapshot_TaskBody{Fault_: simulator.Fault("", fault)}
	}
	ref := m.lab.vmTask(vm, "RevertToSnapshot_Task", true,
		func(ctx *simulator.Context, _ *Task, st *vmState) (types.AnyType, types.BaseMethodFault) {
			return nil, m.lab.revert(ctx, vm, st, req.This)
		})
	return &methods.RevertToSnapshot_TaskBody{Res: &types.RevertToSnapshot_TaskResponse{Returnval: ref}}
}

// RevertToCurrentSnapshotTask is RevertToCurrentSnapshot_Task.
func (m *vmMethods) RevertToCurrentSnapshotTask(
	ctx *simulator.Context, req *types.RevertToCurrentSnapshot_Task,
) soap.HasFault {
	vm := m.lab.vm(req.This)
	var current *types.ManagedObjectReference
	own := m.lab.context()
	own.WithLock(vm, func() {
		if vm.Snapshot != nil && vm.Snapshot.CurrentSnapshot != nil {
			ref := *vm.Snapshot.CurrentSnapshot
			current = &ref
		}
	})
	if current == nil {
		return &methods.RevertToCurrentSnapshot_TaskBody{Fault_: simulator.Fault("no snapshot", &types.NotFound{})}
	}
	ref := m.lab.vmTask(vm, "RevertToCurrentSnapshot_Task", true,
		func(ctx *simulator.Context, _ *Task, st *vmState) (types.AnyType, types.BaseMethodFault) {
			return nil, m.lab.revert(ctx, vm, st, *current)
		})
	return &methods.RevertToCurrentSnapshot_TaskBody{Res: &types.RevertToCurrentSnapshot_TaskResponse{Returnval: ref}}
}

// revert brings a VM back to a snapshot: its disks stand on new empty leaves over the frozen links, its settings are
// the snapshot's except for its name, and change tracking starts anew, so that older change IDs are worth nothing.
func (l *Lab) revert(
	ctx *simulator.Context, vm *simulator.VirtualMachine, st *vmState, ref types.ManagedObjectReference,
) types.BaseMethodFault {
	st.data.Lock()
	defer st.data.Unlock()
	var fault types.BaseMethodFault
	ctx.WithLock(vm, func() { fault = l.revertLocked(ctx, vm, st, ref) })
	if fault != nil {
		return fault
	}
	_, fault = l.consolidate(ctx, vm, st) // what the old leaf kept from being merged before
	return fault
}

func (l *Lab) revertLocked(
	ctx *simulator.Context, vm *simulator.VirtualMachine, st *vmState, ref types.ManagedObjectReference,
) types.BaseMethodFault {
	snap, ok := ctx.Map.Get(ref).(*simulator.VirtualMachineSnapshot)
	state := st.snapshots[ref.Value]
	if !ok || state == nil || vm.Snapshot == nil {
		return &types.ManagedObjectNotFound{Obj: ref}
	}
	old := l.leafs(vm)
	if file := l.openForWriting(old); file != "" {
		return fileLocked(file)
	}
	for key, leaf := range old {
		if state.disks[key] != nil && l.held(leaf, vm.Self.Value) {
			return fileLocked(leaf.dsPath)
		}
	}
	config := copyConfig(&snap.Config)
	now := map[int32]*types.VirtualDisk{}
	for _, disk := range disks(vm.Config.Hardware.Device) {
		now[disk.Key] = disk
	}
	leaves := map[int32]*link{}
	for _, disk := range disks(config.Hardware.Device) {
		if d := state.disks[disk.Key]; d != nil {
			leaf, err := l.newChild(d.frozen, vm.Self.Value)
			if err != nil {
				return systemError(err)
			}
			leaves[disk.Key] = leaf
		} else if is := now[disk.Key]; is != nil {
			disk.Backing, disk.CapacityInBytes, disk.CapacityInKB = is.Backing, is.CapacityInBytes, is.CapacityInKB
		}
	}
	for key, leaf := range old {
		if state.disks[key] == nil || frozen(st, leaf) || len(l.children(leaf)) > 0 {
			continue
		}
		if err := l.dropLink(leaf); err != nil {
			return systemError(err)
		}
	}
	keep := vm.Config
	config.Name, config.Files, config.InstanceUuid = keep.Name, keep.Files, keep.InstanceUuid
	config.Template, config.ManagedBy, config.CreateDate = keep.Template, keep.ManagedBy, keep.CreateDate
	config.Modified, config.ChangeVersion = time.Now(), keep.ChangeVersion+"r"
	if config.ChangeTrackingEnabled == nil || !*config.ChangeTrackingEnabled {
		l.stopTracking(st)
	}
	for key, t := range st.trackers {
		if leaves[key] == nil {
			delete(st.trackers, key)
			continue
		}
		t.capacity = leaves[key].capacity
		if err := t.reset(l.identifier("ctk")); err != nil {
			return systemError(err)
		}
	}
	st.identity, st.customize = state.identity, state.customize
	power := types.VirtualMachinePowerStatePoweredOff
	if node := find(vm.Snapshot.RootSnapshotList, ref); node != nil {
		power = node.State
	}
	ctx.Update(vm, []types.PropertyChange{
		{Name: "config", Val: config},
		{Name: "snapshot.currentSnapshot", Val: ref},
	})
	if power != vm.Runtime.PowerState {
		setPower(ctx, vm, power)
		l.noteUses(vm)
		l.setTools(ctx, vm, power == types.VirtualMachinePowerStatePoweredOn && st.tools)
	}
	l.summarize(ctx, vm)
	l.refreshLinks(ctx, vm, st, leaves)
	return nil
}

func setPower(ctx *simulator.Context, vm *simulator.VirtualMachine, state types.VirtualMachinePowerState) {
	ctx.Update(vm, []types.PropertyChange{
		{Name: "runtime.powerState", Val: state},
		{Name: "summary.runtime.powerState", Val: state},
	})
}

// summarize derives the fields that repeat the configuration: summary.config, network, guest.net.
// The caller holds the VM's lock.
func (l *Lab) summarize(ctx *simulator.Context, vm *simulator.VirtualMachine) {
	var networks []types.ManagedObjectReference
	var nDisks, nCards int32
	for _, device := range vm.Config.Hardware.Device {
		if _, ok := device.(*types.VirtualDisk); ok {
			nDisks++
		}
		nic, ok := device.(types.BaseVirtualEthernetCard)
		if !ok {
			continue
		}
		nCards++
		card := nic.GetVirtualEthernetCard()
		if b, ok := card.Backing.(*types.VirtualEthernetCardNetworkBackingInfo); ok {
			if b.Network != nil && !contains(networks, *b.Network) {
				networks = append(networks, *b.Network)
			}
		} else if ref := networkRef(ctx, card); ref != nil && !contains(networks, *ref) {
			networks = append(networks, *ref)
		}
	}
	if vm.Guest.ToolsRunningStatus == string(types.VirtualMachineToolsRunningStatusGuestToolsRunning) {
		l.setTools(ctx, vm, true) // guest.net tells of the adapters
	}
	c := vm.Summary.Config
	c.NumVirtualDisks, c.NumEthernetCards = nDisks, nCards
	c.NumCpu, c.MemorySizeMB = vm.Config.Hardware.NumCPU, vm.Config.Hardware.MemoryMB
	c.Annotation, c.GuestId, c.GuestFullName = vm.Config.Annotation, vm.Config.GuestId, vm.Config.GuestFullName
	c.Uuid, c.InstanceUuid = vm.Config.Uuid, vm.Config.InstanceUuid
	ctx.Update(vm, []types.PropertyChange{{Name: "network", Val: networks}, {Name: "summary.config", Val: c}})
}

// shadow is the base of the objects that Registry.Handler sends calls to instead of govcsim's own objects.
// It locks nothing: the methods take the locks that they need. See docs/lab-internals.md.
type shadow struct {
	mo.ExtensibleManagedObject
}

// Lock does nothing: see sync.Locker in govcsim's registry.
func (*shadow) Lock() {}

// Unlock does nothing.
func (*shadow) Unlock() {}
