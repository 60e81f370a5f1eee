package main

import (
	"fmt"
	"os"
	"slices"
	"sort"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// folderMethods are the methods of Folder that the lab does in govcsim's place.
type folderMethods struct {
	shadow
	lab *Lab
}

// CreateVMTask is CreateVM_Task.
func (m *folderMethods) CreateVMTask(ctx *simulator.Context, req *types.CreateVM_Task) soap.HasFault {
	ref := m.lab.run(req.This, req.Config.Name, "CreateVM_Task",
		func(ctx *simulator.Context, _ *Task) (types.AnyType, types.BaseMethodFault) {
			vm, fault := m.lab.createVM(ctx, req)
			if fault != nil {
				return nil, fault
			}
			return vm.Self, nil
		})
	return &methods.CreateVM_TaskBody{Res: &types.CreateVM_TaskResponse{Returnval: ref}}
}

// createVM lets govcsim make the VM and gives its disks flat files and maps.
func (l *Lab) createVM(
	ctx *simulator.Context, req *types.CreateVM_Task,
) (*simulator.VirtualMachine, types.BaseMethodFault) {
	folder, ok := ctx.Map.Get(req.This).(*simulator.Folder)
	if !ok {
		return nil, &types.ManagedObjectNotFound{Obj: req.This}
	}
	if !slices.Contains(folder.ChildType, "VirtualMachine") {
		return nil, &types.NotSupported{}
	}
	config := &req.Config
	if config.Name == "" {
		return nil, &types.InvalidName{}
	}
	name := storedName(config.Name)
	config.Name = fileName(config.Name)
	var twin mo.Entity
	ctx.WithLock(folder, func() { twin = ctx.Map.FindByName(name, folder.ChildEntity) })
	if twin != nil {
		return nil, &types.DuplicateName{Name: name, Object: twin.Reference()}
	}
	if config.Files == nil || storeOf(config.Files.VmPathName) == "" {
		return nil, &types.InvalidVmConfig{Property: "configSpec.files.vmPathName"}
	}
	store := storeOf(config.Files.VmPathName)
	if _, fault := l.folderFile(config.Files.VmPathName); fault != nil {
		return nil, fault
	}
	if req.Host == nil {
		host, fault := l.pickHost(ctx, store)
		if fault != nil {
			return nil, fault
		}
		req.Host = host
	}
	if fault := l.mounted(ctx, *req.Host, store); fault != nil {
		return nil, fault
	}
	if _, ok := ctx.Map.Get(req.Pool).(mo.Entity); !ok {
		return nil, &types.ManagedObjectNotFound{Obj: req.Pool}
	}
	if fault := l.checkDevices(ctx, nil, *req.Host, config.DeviceChange, config.Files.VmPathName); fault != nil {
		return nil, fault
	}
	if config.InstanceUuid == "" {
		config.InstanceUuid = l.newUUID("instance")
	}
	if config.Uuid == "" {
		config.Uuid = l.newUUID("bios")
	}
	if config.Version == "" {
		config.Version = "vmx-19"
	}
	if fault := l.unknownTo(ctx, *req.Host, config.Version, config.GuestId); fault != nil {
		return nil, fault
	}
	l.nameDisks(config)
	fresh := "" // the folder that is made for it: what fails leaves none
	if dir, fault := l.folderFile("[" + store + "] " + config.Name); fault == nil && !exists(dir) {
		fresh = dir
	}
	res := folder.CreateVMTask(ctx, req).(*methods.CreateVM_TaskBody)
	result, fault := inner(ctx, res.Res.Returnval)
	if fault != nil {
		if fresh != "" {
			_ = os.RemoveAll(fresh)
		}
		return nil, fault
	}
	vm := l.vm(result.(types.ManagedObjectReference))
	st := l.state(vm.Self)
	ctx.WithLock(vm, func() {
		vm.Config.VPMCEnabled = config.VPMCEnabled
		for _, flag := range []**bool{
			&vm.Config.ChangeTrackingEnabled, &vm.Config.CpuHotAddEnabled, &vm.Config.CpuHotRemoveEnabled,
			&vm.Config.MemoryHotAddEnabled, &vm.Config.BootOptions.EfiSecureBootEnabled,
		} {
			if *flag == nil {
				*flag = types.NewBool(false)
			}
		}
		if fault = l.adopt(ctx, vm, st, nil); fault != nil {
			return
		}
		l.trackDisks(vm, st, config, false)
		ctx.Update(vm, []types.PropertyChange{
			{Name: "capability.changeTrackingSupported", Val: true},
			{Name: "runtime.consolidationNeeded", Val: false},
		})
		if name != config.Name {
			named(ctx, vm, name)
		}
	})
	if fault != nil {
		return nil, fault
	}
	return vm, nil
}

// nameDisks names the files of new disks where the VM's folder is known beforehand, as vSphere does: NAME.vmdk,
// NAME_1.vmdk, … govcsim would find the same names by making and deleting files.
func (l *Lab) nameDisks(config *types.VirtualMachineConfigSpec) {
	store := storeOf(config.Files.VmPathName)
	home := "[" + store + "] " + config.Name
	dir, fault := l.folderFile(home)
	if fault != nil || l.isVSAN(store) || config.Files.VmPathName != "["+store+"]" || exists(dir) {
		return
	}
	n := 0
	for _, change := range config.DeviceChange {
		disk, ok := change.GetVirtualDeviceConfigSpec().Device.(*types.VirtualDisk)
		if !ok || diskPath(disk) != "" {
			continue
		}
		name := home + "/" + config.Name
		if n > 0 {
			name += fmt.Sprintf("_%d", n)
		}
		n++
		disk.Backing.(types.BaseVirtualDeviceFileBackingInfo).GetVirtualDeviceFileBackingInfo().FileName = name + ".vmdk"
	}
}

// pickHost takes the first host by name that mounts a datastore: the same one each time.
func (l *Lab) pickHost(ctx *simulator.Context, store string) (*types.ManagedObjectReference, types.BaseMethodFault) {
	hosts := ctx.Map.All("HostSystem")
	sort.Slice(hosts, func(i, j int) bool { return hosts[i].Entity().Name < hosts[j].Entity().Name })
	for _, host := range hosts {
		ref := host.Reference()
		if !l.inFirst(host.Entity().Name) {
			continue
		}
		if l.mounted(ctx, ref, store) == nil {
			return &ref, nil
		}
	}
	return nil, &types.InvalidDatastore{Name: store}
}
