package main

import (
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
			at := l.link(diskPath(disk))
			sources[disk.Key] = at
			if at != nil && l.anyWriter(at, vm.Self.Value) {
				fault = fileLocked(at.dsPath)
				return
			}
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
	if ref := req.Spec.Snapshot; ref != nil && st.snapshots[ref.Value] != nil {
		mine.identity = st.snapshots[ref.Value].identity
	}
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
