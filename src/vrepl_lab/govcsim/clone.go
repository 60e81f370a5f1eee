package main

import (
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// linkedClone is the diskMoveType that makes a clone stand on the source's disks.
const linkedClone = string(types.VirtualMachineRelocateDiskMoveOptionsCreateNewChildDiskBacking)

// CloneVMTask is CloneVM_Task: a full clone, or a linked one of a snapshot.
func (m *vmMethods) CloneVMTask(ctx *simulator.Context, req *types.CloneVM_Task) soap.HasFault {
	l, vm := m.lab, m.lab.vm(req.This)
	ref := l.vmTask(vm, "CloneVM_Task", false,
		func(ctx *simulator.Context, _ *Task, st *vmState) (types.AnyType, types.BaseMethodFault) {
			st.data.Lock()
			defer st.data.Unlock()
			clone, fault := l.clone(ctx, vm, st, req)
			if fault != nil {
				return nil, fault
			}
			return clone.Self, nil
		})
	return &methods.CloneVM_TaskBody{Res: &types.CloneVM_TaskResponse{Returnval: ref}}
}

// clone copies configuration and disks of a VM, or of one of its snapshots. The caller holds st.data, so that the source's
// disks stand still.
func (l *Lab) clone(
	ctx *simulator.Context, vm *simulator.VirtualMachine, st *vmState, req *types.CloneVM_Task,
) (*simulator.VirtualMachine, types.BaseMethodFault) {
	linked := req.Spec.Location.DiskMoveType == linkedClone
	if linked && req.Spec.Snapshot == nil {
		return nil, invalidArgument("spec.snapshot")
	}
	var config types.VirtualMachineConfigInfo
	sources := map[int32]*link{}
	var fault types.BaseMethodFault
	var pool, host *types.ManagedObjectReference
	ctx.WithLock(vm, func() {
		config = copyConfig(vm.Config)
		pool, host = vm.ResourcePool, vm.Runtime.Host
		if ref := req.Spec.Snapshot; ref != nil {
			snap, ok := ctx.Map.Get(*ref).(*simulator.VirtualMachineSnapshot)
			if !ok || snap.Vm != vm.Self {
				fault = invalidArgument("spec.snapshot")
				return
			}
			config = copyConfig(&snap.Config)
		}
		for _, disk := range disks(config.Hardware.Device) {
			sources[disk.Key] = l.link(diskPath(disk))
		}
	})
	if fault != nil {
		return nil, fault
	}
	place := &req.Spec.Location
	if place.Pool != nil {
		pool = place.Pool
	}
	if place.Host != nil {
		host = place.Host
	}
	if pool == nil {
		return nil, invalidArgument("spec.location.pool")
	}
	store := storeOf(config.Files.VmPathName)
	if place.Datastore != nil {
		ds, ok := ctx.Map.Get(*place.Datastore).(*simulator.Datastore)
		if !ok {
			return nil, invalidArgument("spec.location.datastore")
		}
		store = ds.Name
	}
	spec, order := cloneSpec(&config, req, store)
	made, fault := l.createVM(ctx, &types.CreateVM_Task{This: req.Folder, Config: spec, Pool: *pool, Host: host})
	if fault != nil {
		return nil, fault
	}
	if fault := l.cloneDisks(ctx, made, order, sources, linked); fault != nil {
		return nil, fault
	}
	changes := append([]types.BaseVirtualDeviceConfigSpec{}, place.DeviceChange...)
	if req.Spec.Config != nil {
		changes = append(changes, req.Spec.Config.DeviceChange...)
	}
	if len(changes) > 0 {
		state := l.state(made.Self)
		state.data.Lock()
		defer state.data.Unlock()
		ctx.WithLock(made, func() {
			fault = l.reconfigure(ctx, made, state, &types.ReconfigVM_Task{
				This: made.Self, Spec: types.VirtualMachineConfigSpec{DeviceChange: changes},
			})
		})
		if fault != nil {
			return nil, fault
		}
	}
	mine := l.state(made.Self)
	mine.toolsSeen = st.toolsSeen
	mine.tools, mine.guestHost, mine.identity = st.tools, st.guestHost, st.identity
	ctx.WithLock(made, func() {
		made.Config.Template, made.Summary.Config.Template = req.Spec.Template, req.Spec.Template
		l.setTools(ctx, made, false)
	})
	if req.Spec.Customization != nil {
		ctx.WithLock(made, func() { fault = l.customizeNext(ctx, made, mine, req.Spec.Customization) })
		if fault != nil {
			mine.data.Lock()
			defer mine.data.Unlock()
			ctx.WithLock(made, func() { _ = l.destroy(ctx, made, mine) })
			return nil, fault
		}
	}
	if req.Spec.PowerOn {
		return made, l.powerOn(ctx, made, mine)
	}
	return made, nil
}

// cloneSpec describes a VM like the one that config is of. order holds the source's device keys of the disks in it.
func cloneSpec(
	config *types.VirtualMachineConfigInfo, req *types.CloneVM_Task, store string,
) (types.VirtualMachineConfigSpec, []int32) {
	cores := config.Hardware.NumCoresPerSocket
	spec := types.VirtualMachineConfigSpec{
		Name: req.Name, Version: config.Version, GuestId: config.GuestId, Firmware: config.Firmware,
		Annotation: config.Annotation, Files: &types.VirtualMachineFileInfo{VmPathName: "[" + store + "]"},
		NumCPUs: config.Hardware.NumCPU, MemoryMB: int64(config.Hardware.MemoryMB), NumCoresPerSocket: cores,
		BootOptions: config.BootOptions, Flags: &config.Flags, ExtraConfig: config.ExtraConfig,
		CpuHotAddEnabled: config.CpuHotAddEnabled, MemoryHotAddEnabled: config.MemoryHotAddEnabled,
	}
	if c := req.Spec.Config; c != nil {
		spec.Uuid, spec.InstanceUuid = c.Uuid, c.InstanceUuid
		spec.ExtraConfig = append(spec.ExtraConfig, c.ExtraConfig...)
		if c.NumCPUs != 0 {
			spec.NumCPUs = c.NumCPUs
		}
		if c.MemoryMB != 0 {
			spec.MemoryMB = c.MemoryMB
		}
		if c.Annotation != "" {
			spec.Annotation = c.Annotation
		}
	}
	var order []int32
	for _, device := range config.Hardware.Device {
		d := device.GetVirtualDevice()
		if isDefaultDevice(d.Key) {
			continue
		}
		change := &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: device}
		switch x := device.(type) {
		case types.BaseVirtualEthernetCard:
			x.GetVirtualEthernetCard().MacAddress = ""
			x.GetVirtualEthernetCard().AddressType = string(types.VirtualEthernetCardMacTypeAssigned)
		case *types.VirtualDisk:
			order = append(order, d.Key)
			change.FileOperation = types.VirtualDeviceConfigSpecFileOperationCreate
			switch b := x.Backing.(type) {
			case *types.VirtualDiskFlatVer2BackingInfo:
				b.FileName, b.Parent, b.Uuid, b.ChangeId, b.Datastore = "", nil, "", "", nil
			case *types.VirtualDiskRawDiskMappingVer1BackingInfo:
				b.FileName, b.Parent, b.Uuid, b.ChangeId, b.Datastore = "", nil, "", "", nil
			}
		}
		spec.DeviceChange = append(spec.DeviceChange, change)
	}
	return spec, order
}

// isDefaultDevice knows the devices that every VM has: IDE, PS/2, PCI and SIO controllers, keyboard, mouse, video, VMCI.
func isDefaultDevice(key int32) bool {
	switch key {
	case 100, 200, 201, 300, 400, 500, 600, 700, 12000:
		return true
	}
	return false
}

// cloneDisks fills the empty disks of a clone: with the content of the sources, or (linked) by standing on them.
func (l *Lab) cloneDisks(
	ctx *simulator.Context, made *simulator.VirtualMachine, order []int32, sources map[int32]*link, linked bool,
) types.BaseMethodFault {
	var fresh []*link
	var keys []int32
	ctx.WithLock(made, func() {
		for _, disk := range disks(made.Config.Hardware.Device) {
			fresh = append(fresh, l.link(diskPath(disk)))
			keys = append(keys, disk.Key)
		}
	})
	for i, at := range fresh {
		source := sources[order[i]]
		if source == nil {
			continue
		}
		if !linked {
			if err := copyChain(at, source); err != nil {
				return systemError(err)
			}
			continue
		}
		l.mu.Lock()
		at.parent, at.thin = source, true
		l.mu.Unlock()
		if err := at.writeDescriptor(); err != nil {
			return systemError(err)
		}
	}
	st := l.state(made.Self)
	leaves := map[int32]*link{}
	for i, key := range keys {
		leaves[key] = fresh[i]
	}
	ctx.WithLock(made, func() { l.refreshLinks(ctx, made, st, leaves) })
	return nil
}

// RelocateVMTask is RelocateVM_Task: to another host, another datastore, or both. Change tracking survives.
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

// relocate moves the files first: govcsim only changes references. The caller holds st.data and the VM's lock.
func (l *Lab) relocate(
	ctx *simulator.Context, vm *simulator.VirtualMachine, st *vmState, spec *types.VirtualMachineRelocateSpec,
) types.BaseMethodFault {
	host := *vm.Runtime.Host
	if spec.Host != nil {
		host = *spec.Host
	}
	from := storeOf(vm.Config.Files.VmPathName)
	to := from
	if spec.Datastore != nil {
		ds, ok := ctx.Map.Get(*spec.Datastore).(*simulator.Datastore)
		if !ok {
			return invalidArgument("spec.datastore")
		}
		to = ds.Name
	}
	if fault := l.mounted(ctx, host, to); fault != nil {
		return fault
	}
	if to == from {
		return l.relocateReferences(ctx, vm, spec)
	}
	if l.isVSAN(from) || l.isVSAN(to) {
		return &types.NotSupported{} // its folders have other names on disk, which only govcsim knows
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
	if fault := l.relocateReferences(ctx, vm, spec); fault != nil {
		return fault
	}
	return l.moveFiles(ctx, vm, st, mine, from, to)
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

// moveFiles brings a VM's folder to another datastore and gives every path its new name.
func (l *Lab) moveFiles(
	ctx *simulator.Context, vm *simulator.VirtualMachine, st *vmState, mine []*link, from, to string,
) types.BaseMethodFault {
	folder := vmFolder(vm)
	target := "[" + to + "]" + strings.TrimPrefix(folder, "["+from+"]")
	oldDir, fault := l.folderFile(folder)
	if fault != nil {
		return fault
	}
	newDir, fault := l.folderFile(target)
	if fault != nil {
		return fault
	}
	if err := moveFolder(oldDir, newDir); err != nil {
		return fileFault(target, err.Error())
	}
	renamed := func(dsPath string) string { return target + strings.TrimPrefix(dsPath, folder) }
	movedFile := func(file string) string { return newDir + strings.TrimPrefix(file, oldDir) }
	leaves := l.leafs(vm)
	l.mu.Lock()
	for _, at := range mine {
		if !strings.HasPrefix(at.dsPath, folder+"/") {
			continue
		}
		delete(l.links, at.dsPath)
		at.dsPath, at.stem = renamed(at.dsPath), movedFile(at.stem)
		l.links[at.dsPath] = at
	}
	l.mu.Unlock()
	for _, t := range st.trackers {
		t.file = movedFile(t.file)
	}
	for value, s := range st.snapshots {
		s.file = renamed(s.file)
		for _, d := range s.disks {
			if d.table != "" {
				d.table = movedFile(d.table)
			}
		}
		ref := types.ManagedObjectReference{Type: "VirtualMachineSnapshot", Value: value}
		if snap, ok := ctx.Map.Get(ref).(*simulator.VirtualMachineSnapshot); ok {
			ctx.WithLock(snap, func() { renameFiles(&snap.Config.Files, renamed) })
		}
	}
	renameFiles(&vm.Config.Files, renamed)
	l.mu.Lock()
	oldRef, newRef := l.stores[from].ref, l.stores[to].ref
	l.mu.Unlock()
	for ref, add := range map[types.ManagedObjectReference]bool{oldRef: false, newRef: true} {
		ds := ctx.Map.Get(ref).(*simulator.Datastore)
		if add {
			ctx.Map.AddReference(ctx, ds, &ds.Vm, vm.Self)
		} else {
			ctx.Map.RemoveReference(ctx, ds, &ds.Vm, vm.Self)
		}
	}
	ctx.Update(vm, []types.PropertyChange{
		{Name: "config.files", Val: vm.Config.Files},
		{Name: "summary.config.vmPathName", Val: vm.Config.Files.VmPathName},
		{Name: "datastore", Val: []types.ManagedObjectReference{newRef}},
	})
	vm.LayoutEx.File = nil
	l.refreshLinks(ctx, vm, st, leaves)
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
