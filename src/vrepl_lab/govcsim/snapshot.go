package main

import (
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// maxSnapshots is vSphere's limit of snapshots in one chain.
const maxSnapshots = 32

// vmMethods are the methods of VirtualMachine that the lab does in govcsim's place. Registry.Handler sends calls here.
type vmMethods struct {
	shadow
	lab *Lab
}

// snapshotMethods are those of VirtualMachineSnapshot.
type snapshotMethods struct {
	shadow
	lab *Lab
}

// CreateSnapshotTask is CreateSnapshot_Task.
func (m *vmMethods) CreateSnapshotTask(ctx *simulator.Context, req *types.CreateSnapshot_Task) soap.HasFault {
	ref, fault := m.lab.createSnapshot(req.This, "CreateSnapshot_Task", req.Name, req.Description, req.Memory, req.Quiesce)
	body := &methods.CreateSnapshot_TaskBody{}
	if fault != nil {
		body.Fault_ = simulator.Fault("", fault)
	} else {
		body.Res = &types.CreateSnapshot_TaskResponse{Returnval: ref}
	}
	return body
}

// CreateSnapshotExTask is CreateSnapshotEx_Task.
func (m *vmMethods) CreateSnapshotExTask(ctx *simulator.Context, req *types.CreateSnapshotEx_Task) soap.HasFault {
	ref, fault := m.lab.createSnapshot(
		req.This, "CreateSnapshotEx_Task", req.Name, req.Description, req.Memory, req.QuiesceSpec != nil)
	body := &methods.CreateSnapshotEx_TaskBody{}
	if fault != nil {
		body.Fault_ = simulator.Fault("", fault)
	} else {
		body.Res = &types.CreateSnapshotEx_TaskResponse{Returnval: ref}
	}
	return body
}

func (l *Lab) createSnapshot(
	this types.ManagedObjectReference, method, name, description string, memory, quiesce bool,
) (types.ManagedObjectReference, types.BaseMethodFault) {
	vm := l.vm(this)
	if vm == nil {
		return this, &types.ManagedObjectNotFound{Obj: this}
	}
	if name == "" {
		return this, &types.InvalidName{}
	}
	body := func(ctx *simulator.Context, _ *Task, st *vmState) (types.AnyType, types.BaseMethodFault) {
		st.data.Lock()
		defer st.data.Unlock()
		var ref types.ManagedObjectReference
		var fault types.BaseMethodFault
		ctx.WithLock(vm, func() {
			if fault = l.maySnapshot(vm, &memory, &quiesce); fault != nil {
				return
			}
			if fault = l.stunned(st, quiesce); fault == nil {
				ref, fault = l.splitDisks(ctx, vm, st, name, description, memory, quiesce)
			}
		})
		if fault != nil {
			return nil, fault
		}
		return ref, nil
	}
	return l.vmTask(vm, method, true, body), nil
}

// maySnapshot checks what vSphere checks, and drops what it ignores on a VM that does not run.
func (l *Lab) maySnapshot(vm *simulator.VirtualMachine, memory, quiesce *bool) types.BaseMethodFault {
	if vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOn {
		*memory, *quiesce = false, false
	}
	if vm.Config.Template {
		return &types.NotSupported{}
	}
	if file := l.openForWriting(l.leafs(vm)); file != "" {
		return fileLocked(file)
	}
	for _, u := range l.usesOf(vm.Config.Hardware.Device) {
		if file := l.usedByOther(u, vm.Self.Value); file != "" {
			return fileLocked(file)
		}
	}
	for _, disk := range disks(vm.Config.Hardware.Device) {
		if _, sharing, _ := backingFacts(disk); sharing == string(types.VirtualDiskSharingSharingMultiWriter) {
			return genericConfig("Snapshots are not supported for a virtual machine with a multi-writer disk: " + diskPath(disk))
		}
	}
	for _, device := range vm.Config.Hardware.Device {
		c, ok := device.(types.BaseVirtualSCSIController)
		if !ok {
			continue
		}
		if shared := c.GetVirtualSCSIController().SharedBus; shared != "" && shared != types.VirtualSCSISharingNoSharing {
			return genericConfig("Snapshots are not supported for a virtual machine with bus sharing.")
		}
	}
	if vm.Snapshot != nil && vm.Snapshot.CurrentSnapshot != nil {
		if depth(vm.Snapshot.RootSnapshotList, *vm.Snapshot.CurrentSnapshot) >= maxSnapshots {
			return &types.TooManySnapshotLevels{}
		}
	}
	if *quiesce {
		if vm.Guest.ToolsRunningStatus != string(types.VirtualMachineToolsRunningStatusGuestToolsRunning) {
			if l.config().QuiesceWithoutTools == "refused" {
				return &types.ToolsUnavailable{}
			}
			*quiesce = false
			return nil
		}
		if l.config().Quiesce == "fail" {
			f := &types.ApplicationQuiesceFault{}
			f.FaultMessage = localized("An error occurred while quiescing the virtual machine.")
			return f
		}
	}
	return nil
}

// splitDisks lets govcsim make the snapshot, then freezes each disk's leaf under a new one. The caller holds the locks.
func (l *Lab) splitDisks(
	ctx *simulator.Context, vm *simulator.VirtualMachine, st *vmState, name, description string, memory, quiesce bool,
) (types.ManagedObjectReference, types.BaseMethodFault) {
	if err := l.startTracking(vm, st); err != nil {
		return vm.Self, systemError(err)
	}
	description = l.kept(description)
	req := &types.CreateSnapshotEx_Task{This: vm.Self, Name: name, Description: description, Memory: memory}
	if quiesce {
		req.QuiesceSpec = &types.VirtualMachineGuestQuiesceSpec{}
	}
	res := vm.CreateSnapshotExTask(ctx, req).(*methods.CreateSnapshotEx_TaskBody)
	result, fault := inner(ctx, res.Res.Returnval)
	if fault != nil {
		return vm.Self, fault
	}
	ref := result.(types.ManagedObjectReference)
	state := &snapshotState{
		disks: map[int32]*snapshotDisk{}, file: snapshotFile(vm, ref), identity: st.identity, customize: st.customize,
	}
	leaves := map[int32]*link{}
	for _, disk := range disks(vm.Config.Hardware.Device) {
		frozen := l.link(diskPath(disk))
		if frozen == nil || !snapshotted(disk) {
			continue
		}
		d := &snapshotDisk{frozen: frozen}
		if t := st.trackers[disk.Key]; t != nil {
			d.table = strings.TrimSuffix(t.file, ".bin") + "-" + ref.Value + ".bin"
			var err error
			if d.changeID, err = t.freeze(d.table); err != nil {
				return ref, systemError(err)
			}
		}
		leaf, err := l.newChild(frozen, vm.Self.Value)
		if err != nil {
			return ref, systemError(err)
		}
		state.disks[disk.Key], leaves[disk.Key] = d, leaf
	}
	st.snapshots[ref.Value] = state
	l.refreshLinks(ctx, vm, st, leaves)
	return ref, nil
}

// newChild makes an empty delta over a link.
func (l *Lab) newChild(parent *link, owner string) (*link, error) {
	dsPath, stem := parent.childName(l.taken)
	child := &link{
		dsPath: dsPath, stem: stem, capacity: parent.capacity, thin: true, parent: parent, owner: owner, uuid: parent.uuid,
	}
	if err := child.create(); err != nil {
		return nil, err
	}
	l.putLink(child)
	return child, nil
}

// startTracking makes the change-tracking table of every disk that should have one and has none. It is called where
// a VM is stunned: at a snapshot or at power-on.
func (l *Lab) startTracking(vm *simulator.VirtualMachine, st *vmState) error {
	if vm.Config.ChangeTrackingEnabled == nil || !*vm.Config.ChangeTrackingEnabled {
		return nil
	}
	size := l.config().CBTBlockSize
	for _, disk := range disks(vm.Config.Hardware.Device) {
		leaf := l.link(diskPath(disk))
		if leaf == nil || !snapshotted(disk) || st.trackers[disk.Key] != nil || !l.tracks(st, disk.Key) {
			continue
		}
		t, err := startTracker(trackerFile(leaf, vm.Self.Value), leaf.capacity, size, l.identifier("ctk"))
		if err != nil {
			return err
		}
		st.trackers[disk.Key] = t
	}
	return nil
}

// stopTracking forgets the tables of a VM.
func (l *Lab) stopTracking(st *vmState) {
	for key, t := range st.trackers {
		t.remove()
		delete(st.trackers, key)
	}
}

// RemoveSnapshotTask is RemoveSnapshot_Task.
func (m *snapshotMethods) RemoveSnapshotTask(ctx *simulator.Context, req *types.RemoveSnapshot_Task) soap.HasFault {
	vm, fault := m.lab.vmOfSnapshot(req.This)
	if fault != nil {
		return &methods.RemoveSnapshot_TaskBody{Fault_: simulator.Fault("", fault)}
	}
	consolidate := req.Consolidate == nil || *req.Consolidate
	ref := m.lab.vmTask(vm, "RemoveSnapshot_Task", true,
		func(ctx *simulator.Context, _ *Task, st *vmState) (types.AnyType, types.BaseMethodFault) {
			return nil, m.lab.removeSnapshots(ctx, vm, st, &req.This, req.RemoveChildren, consolidate)
		})
	return &methods.RemoveSnapshot_TaskBody{Res: &types.RemoveSnapshot_TaskResponse{Returnval: ref}}
}

// RenameSnapshot changes name or description, as the API does.
func (m *snapshotMethods) RenameSnapshot(ctx *simulator.Context, req *types.RenameSnapshot) soap.HasFault {
	body := &methods.RenameSnapshotBody{}
	vm, fault := m.lab.vmOfSnapshot(req.This)
	if fault != nil {
		body.Fault_ = simulator.Fault("", fault)
		return body
	}
	own := m.lab.context()
	own.WithLock(vm, func() {
		info := copySnapshots(vm.Snapshot)
		if node := find(info.RootSnapshotList, req.This); node != nil {
			if req.Name != "" {
				node.Name = req.Name
			}
			if req.Description != "" {
				node.Description = m.lab.kept(req.Description)
			}
		}
		publishSnapshots(own, vm, info)
	})
	body.Res = new(types.RenameSnapshotResponse)
	return body
}

// RemoveAllSnapshotsTask is RemoveAllSnapshots_Task.
func (m *vmMethods) RemoveAllSnapshotsTask(ctx *simulator.Context, req *types.RemoveAllSnapshots_Task) soap.HasFault {
	vm := m.lab.vm(req.This)
	consolidate := req.Consolidate == nil || *req.Consolidate
	ref := m.lab.vmTask(vm, "RemoveAllSnapshots_Task", true,
		func(ctx *simulator.Context, _ *Task, st *vmState) (types.AnyType, types.BaseMethodFault) {
			return nil, m.lab.removeSnapshots(ctx, vm, st, nil, true, consolidate)
		})
	return &methods.RemoveAllSnapshots_TaskBody{Res: &types.RemoveAllSnapshots_TaskResponse{Returnval: ref}}
}

// ConsolidateVMDisksTask is ConsolidateVMDisks_Task.
func (m *vmMethods) ConsolidateVMDisksTask(ctx *simulator.Context, req *types.ConsolidateVMDisks_Task) soap.HasFault {
	vm := m.lab.vm(req.This)
	ref := m.lab.vmTask(vm, "ConsolidateVMDisks_Task", true,
		func(ctx *simulator.Context, _ *Task, st *vmState) (types.AnyType, types.BaseMethodFault) {
			st.data.Lock()
			defer st.data.Unlock()
			locked, fault := m.lab.consolidate(ctx, vm, st)
			if fault == nil && locked != "" {
				fault = fileLocked(locked)
			}
			return nil, fault
		})
	return &methods.ConsolidateVMDisks_TaskBody{Res: &types.ConsolidateVMDisks_TaskResponse{Returnval: ref}}
}

func (l *Lab) vmOfSnapshot(ref types.ManagedObjectReference) (*simulator.VirtualMachine, types.BaseMethodFault) {
	snap, ok := l.svc.Context.Map.Get(ref).(*simulator.VirtualMachineSnapshot)
	if !ok {
		return nil, &types.ManagedObjectNotFound{Obj: ref}
	}
	vm := l.vm(snap.Vm)
	if vm == nil {
		return nil, &types.ManagedObjectNotFound{Obj: snap.Vm}
	}
	return vm, nil
}

// removeSnapshots takes snapshots off the tree (target nil: all of them), then consolidates the disks.
func (l *Lab) removeSnapshots(
	ctx *simulator.Context, vm *simulator.VirtualMachine, st *vmState,
	target *types.ManagedObjectReference, children, consolidate bool,
) types.BaseMethodFault {
	st.data.Lock()
	defer st.data.Unlock()
	var fault types.BaseMethodFault
	ctx.WithLock(vm, func() {
		if file := l.openForWriting(l.leafs(vm)); file != "" {
			fault = fileLocked(file)
			return
		}
		if vm.Snapshot == nil {
			if target != nil {
				fault = &types.ManagedObjectNotFound{Obj: *target}
			}
			return
		}
		info := copySnapshots(vm.Snapshot)
		var gone []types.ManagedObjectReference
		if target == nil {
			gone = refsOf(info.RootSnapshotList)
			info = nil
		} else {
			node := find(info.RootSnapshotList, *target)
			if node == nil {
				fault = &types.ManagedObjectNotFound{Obj: *target}
				return
			}
			gone = append(gone, *target)
			if children {
				gone = append(gone, refsOf(node.ChildSnapshotList)...)
			}
			parent := parentOf(info.RootSnapshotList, *target)
			if info.CurrentSnapshot != nil && contains(gone, *info.CurrentSnapshot) {
				info.CurrentSnapshot = parent
			}
			info.RootSnapshotList = without(info.RootSnapshotList, *target, children)
		}
		publishSnapshots(ctx, vm, info)
		for _, ref := range gone {
			if state := st.snapshots[ref.Value]; state != nil {
				for _, d := range state.disks {
					l.release(d.frozen)
					if d.table != "" {
						_ = os.Remove(d.table)
					}
				}
				if file, fault := l.folderFile(state.file); fault == nil {
					_ = os.Remove(file)
				}
				delete(st.snapshots, ref.Value)
			}
			ctx.Map.Remove(ctx, ref)
		}
		l.refreshLayout(ctx, vm, st)
	})
	if fault != nil || !consolidate {
		if fault == nil {
			l.flagConsolidation(ctx, vm, true)
		}
		return fault
	}
	_, fault = l.consolidate(ctx, vm, st)
	return fault
}

// snapshotFile is the datastore path of a snapshot's .vmsn file. govcsim renumbers layoutEx at each refresh, so this must be
// asked right after the snapshot was made.
func snapshotFile(vm *simulator.VirtualMachine, ref types.ManagedObjectReference) string {
	for _, s := range vm.LayoutEx.Snapshot {
		for _, file := range vm.LayoutEx.File {
			if s.Key == ref && file.Key == s.DataKey && strings.HasSuffix(file.Name, ".vmsn") {
				return file.Name
			}
		}
	}
	return ""
}

// folderFile is the file behind "[ds] folder/file" of a datastore whose folders have their own names. It lies in the
// datastore, whatever a client writes.
func (l *Lab) folderFile(dsPath string) (string, types.BaseMethodFault) {
	name := storeOf(dsPath)
	l.mu.Lock()
	known := l.stores[name] != nil
	l.mu.Unlock()
	if !known {
		return "", &types.InvalidDatastore{Name: name}
	}
	rest := strings.TrimSpace(strings.TrimPrefix(dsPath, "["+name+"]"))
	if slices.Contains(strings.Split(rest, "/"), "..") {
		return "", &types.InvalidDatastorePath{InvalidDatastore: types.InvalidDatastore{Name: name}, DatastorePath: dsPath}
	}
	return path.Join(l.dir, "datastores", name, rest), nil
}

// hardwareVersion is the number in "vmx-19".
func hardwareVersion(version string) int {
	n, _ := strconv.Atoi(strings.TrimPrefix(version, "vmx-"))
	return n
}
