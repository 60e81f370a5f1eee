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

// RelocateVMTask is RelocateVM_Task: to another host, other datastores, or both. Change tracking survives.
func (m *vmMethods) RelocateVMTask(ctx *simulator.Context, req *types.RelocateVM_Task) soap.HasFault {
	l, vm := m.lab, m.lab.vm(req.This)
	ref := l.vmTask(vm, "RelocateVM_Task", true,
		func(ctx *simulator.Context, _ *Task, st *vmState) (types.AnyType, types.BaseMethodFault) {
			st.data.Lock()
			defer st.data.Unlock()
			var fault types.BaseMethodFault
			ctx.WithLock(vm, func() { fault = l.relocate(ctx, vm, st, &req.Spec) })
			return nil, fault
		})
	return &methods.RelocateVM_TaskBody{Res: &types.RelocateVM_TaskResponse{Returnval: ref}}
}

// move is where a relocation brings a VM: its home, and each of its links, to a datastore.
type move struct {
	home  string // datastore
	links map[*link]string
}

// stores are all datastores that a move ends at.
func (m *move) stores() map[string]bool {
	all := map[string]bool{m.home: true}
	for _, store := range m.links {
		all[store] = true
	}
	return all
}

// planMove finds the datastore of each link: the locator's of its disk, else the specification's, else the one it has.
func (l *Lab) planMove(
	ctx *simulator.Context, vm *simulator.VirtualMachine, st *vmState, spec *types.VirtualMachineRelocateSpec,
) (*move, types.BaseMethodFault) {
	name := func(ref types.ManagedObjectReference, property string) (string, types.BaseMethodFault) {
		if ds, ok := ctx.Map.Get(ref).(*simulator.Datastore); ok {
			return ds.Name, nil
		}
		return "", invalidArgument(property)
	}
	m := &move{home: storeOf(vm.Config.Files.VmPathName), links: map[*link]string{}}
	all := ""
	if spec.Datastore != nil {
		var fault types.BaseMethodFault
		if all, fault = name(*spec.Datastore, "spec.datastore"); fault != nil {
			return nil, fault
		}
		m.home = all
	}
	for _, at := range l.owned(vm.Self.Value) {
		m.links[at] = storeOf(at.dsPath)
		if all != "" {
			m.links[at] = all
		}
	}
	for _, locator := range spec.Disk {
		store, fault := name(locator.Datastore, "spec.disk.datastore")
		if fault != nil {
			return nil, fault
		}
		leaf := l.leafs(vm)[locator.DiskId]
		if leaf == nil {
			return nil, invalidArgument("spec.disk.diskId")
		}
		chains := []*link{leaf}
		for _, s := range st.snapshots {
			if d := s.disks[locator.DiskId]; d != nil {
				chains = append(chains, d.frozen)
			}
		}
		for _, top := range chains {
			for _, at := range top.chain() {
				if _, mine := m.links[at]; mine {
					m.links[at] = store
				}
			}
		}
	}
	return m, nil
}

// relocate moves the files and what names them. The caller holds st.data and the VM's lock.
func (l *Lab) relocate(
	ctx *simulator.Context, vm *simulator.VirtualMachine, st *vmState, spec *types.VirtualMachineRelocateSpec,
) types.BaseMethodFault {
	host := *vm.Runtime.Host
	if spec.Host != nil {
		host = *spec.Host
	}
	m, fault := l.planMove(ctx, vm, st, spec)
	if fault != nil {
		return fault
	}
	for _, store := range sortedKeys(m.stores()) {
		if fault := l.mounted(ctx, host, store); fault != nil {
			return fault
		}
	}
	moves := m.home != storeOf(vm.Config.Files.VmPathName)
	for at, store := range m.links {
		if store == storeOf(at.dsPath) {
			continue
		}
		moves = true
		if l.isVSAN(store) || l.isVSAN(storeOf(at.dsPath)) {
			return &types.NotSupported{} // its folders have other names on disk, which only govcsim knows
		}
		if l.held(at, vm.Self.Value) {
			return fileLocked(at.dsPath)
		}
		if len(l.foreignChildren(at, vm.Self.Value)) > 0 {
			return &types.ResourceInUse{Type: "VirtualDisk", Name: at.dsPath}
		}
	}
	if moves && (l.isVSAN(m.home) || l.isVSAN(storeOf(vm.Config.Files.VmPathName))) {
		return &types.NotSupported{}
	}
	if fault := l.relocateReferences(ctx, vm, spec); fault != nil {
		return fault
	}
	if !moves {
		return nil
	}
	if shares := spec.DiskMoveType; shares != "moveAllDiskBackingsAndAllowSharing" && shares != "moveChildMostDiskBacking" {
		for at, store := range m.links { // the default: what moves stands on nothing of another VM afterwards
			if store != storeOf(at.dsPath) && at.parent != nil && at.parent.owner != vm.Self.Value {
				if err := l.flatten(at); err != nil {
					return systemError(err)
				}
			}
		}
	}
	return l.moveFiles(ctx, vm, st, m)
}

// moveFiles brings a VM's own files to their datastores and gives every path its new name. Strangers' files stay.
func (l *Lab) moveFiles(
	ctx *simulator.Context, vm *simulator.VirtualMachine, st *vmState, m *move,
) types.BaseMethodFault {
	home := vmFolder(vm)
	name := path.Base(strings.TrimSpace(home[strings.Index(home, "]")+1:]))
	folders := map[string]string{}
	var fault types.BaseMethodFault
	folder := func(store string) string {
		if _, ok := folders[store]; !ok && store == storeOf(home) {
			folders[store] = home
		} else if !ok {
			folders[store], fault = l.freeFolder(store, name)
		}
		return folders[store]
	}
	target := folder(m.home)
	if fault != nil {
		return fault
	}
	leaves := l.leafs(vm)
	left := map[string]bool{home: true}
	for _, at := range l.owned(vm.Self.Value) {
		to := m.links[at]
		if to == "" || to == storeOf(at.dsPath) {
			continue
		}
		into := folder(to)
		if fault != nil {
			return fault
		}
		left[path.Dir(at.dsPath)] = true
		if err := l.renameLink(at, l.freeLink(into, path.Base(at.dsPath))); err != nil {
			return fileFault(at.dsPath, err.Error())
		}
	}
	if err := l.moveTables(st, leaves, vm.Self.Value); err != nil {
		return systemError(err)
	}
	if target != home {
		for _, file := range append(homeFiles(vm), snapshotFiles(st)...) {
			if err := l.moveFile(file, target+strings.TrimPrefix(file, home)); err != nil {
				return fileFault(file, err.Error())
			}
		}
		renamed := func(dsPath string) string {
			if dsPath == home || strings.HasPrefix(dsPath, home+"/") {
				return target + strings.TrimPrefix(dsPath, home)
			}
			return dsPath
		}
		for value, s := range st.snapshots {
			s.file = renamed(s.file)
			ref := types.ManagedObjectReference{Type: "VirtualMachineSnapshot", Value: value}
			if snap, ok := ctx.Map.Get(ref).(*simulator.VirtualMachineSnapshot); ok {
				ctx.WithLock(snap, func() { renameFiles(&snap.Config.Files, renamed) })
			}
		}
		renameFiles(&vm.Config.Files, renamed)
		ctx.Update(vm, []types.PropertyChange{
			{Name: "config.files", Val: vm.Config.Files},
			{Name: "summary.config.vmPathName", Val: vm.Config.Files.VmPathName},
		})
	}
	for folder := range left {
		_ = l.removeFiles(nil, folder)
	}
	l.refreshLinks(ctx, vm, st, leaves)
	return nil
}

// moveTables brings change-tracking tables beside the links that they belong to.
func (l *Lab) moveTables(st *vmState, leaves map[int32]*link, owner string) error {
	move := func(from, to string) error {
		if err := os.Rename(from, to); err != nil && !os.IsNotExist(err) {
			return err
		}
		return nil
	}
	for key, leaf := range leaves {
		beside := trackerFile(leaf, owner)
		if t := st.trackers[key]; t != nil && t.file != beside {
			was := *t
			t.file = beside
			if err := move(was.file, t.file); err != nil {
				return err
			}
			if err := move(was.kept(), t.kept()); err != nil {
				return err
			}
		}
		for value, s := range st.snapshots {
			d := s.disks[key]
			if d == nil || d.table == "" {
				continue
			}
			to := strings.TrimSuffix(beside, ".bin") + "-" + value + ".bin"
			if to == d.table {
				continue
			}
			if err := move(d.table, to); err != nil {
				return err
			}
			d.table = to
		}
	}
	return nil
}

func (l *Lab) isVSAN(store string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stores[store] != nil && l.stores[store].Type == "vsan"
}

func (l *Lab) relocateReferences(
	ctx *simulator.Context, vm *simulator.VirtualMachine, spec *types.VirtualMachineRelocateSpec,
) types.BaseMethodFault {
	old := *vm.Runtime.Host
	res := vm.RelocateVMTask(ctx, &types.RelocateVM_Task{This: vm.Self, Spec: *spec}).(*methods.RelocateVM_TaskBody)
	if _, fault := inner(ctx, res.Res.Returnval); fault != nil {
		return fault
	}
	if spec.Host != nil && *spec.Host != old {
		for ref, add := range map[types.ManagedObjectReference]bool{old: false, *spec.Host: true} {
			h := ctx.Map.Get(ref).(*simulator.HostSystem)
			if add {
				ctx.Map.AddReference(ctx, h, &h.Vm, vm.Self)
			} else {
				ctx.Map.RemoveReference(ctx, h, &h.Vm, vm.Self)
			}
		}
	}
	return nil
}

func renameFiles(files *types.VirtualMachineFileInfo, renamed func(string) string) {
	for _, field := range []*string{
		&files.VmPathName, &files.SnapshotDirectory, &files.SuspendDirectory, &files.LogDirectory,
	} {
		if *field != "" {
			*field = renamed(*field)
		}
	}
}
