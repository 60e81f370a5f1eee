package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"
)

// stateKey is the line of a .vmx (and of a .vmsd) that holds what the lab needs to bring a VM back; the other lines are
// the ones that people look for in such a file.
const stateKey = "lab.state"

// savedVM is what a .vmx holds. Paths are as they were, Folder is where the .vmx lay then.
type savedVM struct {
	Folder    string
	Config    string // XML of VirtualMachineConfigInfo
	Tools     bool
	NoTools   bool
	GuestHost string
	GuestIP   string
	Tracked   map[int32]bool
	LostPower bool
	Trackers  map[int32]savedTracker
}

type savedTracker struct {
	File      string
	BlockSize int64
	Capacity  int64
	UUID      []byte
}

// savedSnapshots is what a .vmsd holds.
type savedSnapshots struct {
	Info string // XML of VirtualMachineSnapshotInfo
	All  map[string]savedSnapshot
}

type savedSnapshot struct {
	Config string
	File   string
	Disks  map[int32]savedDisk
}

type savedDisk struct{ Frozen, ChangeID, Table string }

func asXML(v any) (string, error) {
	raw, err := xml.Marshal(v)
	return string(raw), err
}

func fromXML(text string, dst any) error {
	dec := xml.NewDecoder(strings.NewReader(text))
	dec.TypeFunc = types.TypeFunc()
	return dec.Decode(dst)
}

// writeVMX writes a VM's .vmx, and its .vmsd if it has snapshots. The caller holds the VM's lock.
func (l *Lab) writeVMX(ctx *simulator.Context, vm *simulator.VirtualMachine, st *vmState) types.BaseMethodFault {
	saved := savedVM{
		Folder: vmFolder(vm), Tools: st.tools, NoTools: st.noTools, GuestHost: st.guestHost, GuestIP: st.guestIP,
		Tracked: st.ctk, LostPower: st.lostPower, Trackers: map[int32]savedTracker{},
	}
	var err error
	if saved.Config, err = asXML(*vm.Config); err != nil {
		return systemError(err)
	}
	for key, t := range st.trackers {
		saved.Trackers[key] = savedTracker{t.file, t.blockSize, t.capacity, t.uuid[:]}
	}
	if err := l.writeState(vm.Config.Files.VmPathName, vmxLines(vm), saved); err != nil {
		return systemError(err)
	}
	if vm.Snapshot == nil {
		return nil
	}
	snapshots := savedSnapshots{All: map[string]savedSnapshot{}}
	if snapshots.Info, err = asXML(*vm.Snapshot); err != nil {
		return systemError(err)
	}
	for value, s := range st.snapshots {
		snap, ok := ctx.Map.Get(types.ManagedObjectReference{Type: "VirtualMachineSnapshot", Value: value}).(*simulator.VirtualMachineSnapshot)
		if !ok {
			continue
		}
		one := savedSnapshot{File: s.file, Disks: map[int32]savedDisk{}}
		if one.Config, err = asXML(snap.Config); err != nil {
			return systemError(err)
		}
		for key, d := range s.disks {
			one.Disks[key] = savedDisk{d.frozen.dsPath, d.changeID, d.table}
		}
		snapshots.All[value] = one
	}
	list := strings.TrimSuffix(vm.Config.Files.VmPathName, ".vmx") + ".vmsd"
	if err := l.writeState(list, []string{`.encoding = "UTF-8"`}, snapshots); err != nil {
		return systemError(err)
	}
	return nil
}

func (l *Lab) writeState(dsPath string, lines []string, state any) error {
	file, fault := l.folderFile(dsPath)
	if fault != nil {
		return fmt.Errorf("%s: %s", dsPath, faultText(fault))
	}
	raw, err := json.Marshal(state)
	if err != nil {
		return err
	}
	lines = append(lines, fmt.Sprintf("%s = %q", stateKey, base64.StdEncoding.EncodeToString(raw)))
	return os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600)
}

// readState reads what writeState wrote; false if the file holds no such line.
func (l *Lab) readState(dsPath string, state any) (bool, error) {
	file, fault := l.folderFile(dsPath)
	if fault != nil {
		return false, nil
	}
	raw, err := os.ReadFile(file)
	if os.IsNotExist(err) {
		return false, nil
	}
	for _, line := range bytes.Split(raw, []byte("\n")) {
		if text, ok := strings.CutPrefix(string(line), stateKey+` = "`); ok {
			decoded, err := base64.StdEncoding.DecodeString(strings.TrimSuffix(text, `"`))
			if err != nil {
				return false, err
			}
			return true, json.Unmarshal(decoded, state)
		}
	}
	return false, err
}

// RegisterVMTask is RegisterVM_Task: from a .vmx of the lab a VM comes back as it was, snapshots and change tracking
// included; from any other one, with the hardware that it names.
func (m *folderMethods) RegisterVMTask(ctx *simulator.Context, req *types.RegisterVM_Task) soap.HasFault {
	l := m.lab
	ref := l.run(req.This, req.Name, "RegisterVM_Task",
		func(ctx *simulator.Context, _ *Task) (types.AnyType, types.BaseMethodFault) {
			vm, fault := l.register(ctx, req)
			if fault != nil {
				return nil, fault
			}
			return vm.Self, nil
		})
	return &methods.RegisterVM_TaskBody{Res: &types.RegisterVM_TaskResponse{Returnval: ref}}
}

func (l *Lab) register(
	ctx *simulator.Context, req *types.RegisterVM_Task,
) (*simulator.VirtualMachine, types.BaseMethodFault) {
	folder, ok := ctx.Map.Get(req.This).(*simulator.Folder)
	if !ok {
		return nil, &types.ManagedObjectNotFound{Obj: req.This}
	}
	store := storeOf(req.Path)
	if store == "" || !strings.HasSuffix(req.Path, ".vmx") {
		return nil, invalidArgument("path")
	}
	if req.Host == nil && !req.AsTemplate {
		host, fault := l.pickHost(ctx, store)
		if fault != nil {
			return nil, fault
		}
		req.Host = host
	}
	if req.Host != nil {
		if fault := l.mounted(ctx, *req.Host, store); fault != nil {
			return nil, fault
		}
	}
	if _, there := l.sizeOf(req.Path); !there && !l.isVSAN(store) {
		return nil, &types.NotFound{}
	}
	var saved *savedVM
	var state savedVM
	var config types.VirtualMachineConfigInfo
	found, err := l.readState(req.Path, &state)
	if err == nil && found {
		saved = &state
		err = fromXML(saved.Config, &config)
	}
	if err != nil {
		return nil, &types.InvalidVmConfig{Property: req.Path + ": " + err.Error()}
	}
	lines := l.readVMX(req.Path)
	name := storedName(req.Name)
	switch {
	case name == "" && saved != nil:
		name = config.Name
	case name == "" && lines["displayname"] != "":
		name = storedName(lines["displayname"])
	case name == "":
		name = storedName(strings.TrimSuffix(path.Base(req.Path), ".vmx"))
	}
	var twin mo.Entity
	ctx.WithLock(folder, func() { twin = ctx.Map.FindByName(name, folder.ChildEntity) })
	if twin != nil {
		return nil, &types.DuplicateName{Name: name, Object: twin.Reference()}
	}
	req.Name = fileName(name)
	extra := l.touched(path.Dir(req.Path), req.Name+".nvram", "vmware.log") // govcsim wants them
	res := folder.RegisterVMTask(ctx, req).(*methods.RegisterVM_TaskBody)
	result, fault := inner(ctx, res.Res.Returnval)
	for _, file := range extra {
		if path.Base(file) != strings.TrimSuffix(path.Base(req.Path), ".vmx")+".nvram" && strings.HasSuffix(file, ".nvram") {
			_ = os.Remove(file)
		}
	}
	if fault != nil {
		return nil, fault
	}
	vm := l.vm(result.(types.ManagedObjectReference))
	st := l.state(vm.Self)
	st.data.Lock()
	defer st.data.Unlock()
	ctx.WithLock(vm, func() {
		if saved != nil {
			fault = l.restore(ctx, vm, st, saved, &config)
		} else {
			fault = l.configureFrom(ctx, vm, st, lines)
		}
		named(ctx, vm, name)
	})
	return vm, fault
}

// touched makes files that are not there, empty, and returns those that it made.
func (l *Lab) touched(folder string, names ...string) []string {
	var made []string
	for _, name := range names {
		file, fault := l.folderFile(joined(folder, name))
		if fault != nil || exists(file) {
			continue
		}
		if f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600); err == nil {
			_ = f.Close()
			made = append(made, file)
		}
	}
	return made
}

// restore gives a VM that govcsim registered what its files hold. The caller holds the locks.
func (l *Lab) restore(
	ctx *simulator.Context, vm *simulator.VirtualMachine, st *vmState, saved *savedVM, config *types.VirtualMachineConfigInfo,
) types.BaseMethodFault {
	home := vmFolder(vm)
	oldDir, fault := l.folderFile(saved.Folder)
	if fault != nil {
		oldDir = "" // of another datastore that is gone: paths into it lead nowhere
	}
	newDir, fault := l.folderFile(home)
	if fault != nil {
		return fault
	}
	moved := func(name string) string { // by its datastore path or by its file
		if rest, ok := strings.CutPrefix(name, saved.Folder+"/"); ok {
			return joined(home, rest)
		}
		if rest, ok := strings.CutPrefix(name, oldDir+"/"); ok && oldDir != "" {
			return path.Join(newDir, rest)
		}
		return name
	}
	renameFiles(&config.Files, moved)
	if l.instanceTaken(ctx, vm.Self, config.InstanceUuid) {
		config.InstanceUuid = l.newUUID("instance") // vCenter gives a second one its own
	}
	config.Files.VmPathName = vm.Config.Files.VmPathName
	adoptPaths(config, moved)
	st.tools, st.noTools, st.guestHost, st.guestIP = saved.Tools, saved.NoTools, saved.GuestHost, saved.GuestIP
	st.ctk, st.lostPower = saved.Tracked, saved.LostPower
	for key, t := range saved.Trackers {
		one := &tracker{file: moved(t.File), blockSize: t.BlockSize, capacity: t.Capacity}
		copy(one.uuid[:], t.UUID)
		if exists(one.file) {
			st.trackers[key] = one
		}
	}
	ctx.Update(vm, []types.PropertyChange{
		{Name: "config", Val: *config}, {Name: "summary.config.template", Val: config.Template},
		{Name: "summary.config.hwVersion", Val: config.Version},
		{Name: "capability.changeTrackingSupported", Val: true},
		{Name: "runtime.consolidationNeeded", Val: false},
	})
	if fault := l.restoreSnapshots(ctx, vm, st, moved); fault != nil {
		return fault
	}
	for _, u := range l.usesOf(vm.Config.Hardware.Device) {
		l.own(u.leaf, vm.Self.Value)
	}
	for _, s := range st.snapshots {
		for _, d := range s.disks {
			l.own(d.frozen, vm.Self.Value)
		}
	}
	l.summarize(ctx, vm)
	l.setTools(ctx, vm, false)
	l.refreshLinks(ctx, vm, st, nil)
	return nil
}

// own makes a VM the owner of a chain as far as it has none.
func (l *Lab) own(leaf *link, owner string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for at := leaf; at != nil && (at.owner == "" || at.owner == owner); at = at.parent {
		at.owner = owner
	}
}

func adoptPaths(config *types.VirtualMachineConfigInfo, moved func(string) string) {
	for _, disk := range disks(config.Hardware.Device) {
		if b, ok := disk.Backing.(types.BaseVirtualDeviceFileBackingInfo); ok {
			info := b.GetVirtualDeviceFileBackingInfo()
			info.FileName = moved(info.FileName)
		}
	}
}

func (l *Lab) instanceTaken(ctx *simulator.Context, self types.ManagedObjectReference, uuid string) bool {
	for _, entity := range ctx.Map.All("VirtualMachine") {
		other, ok := entity.(*simulator.VirtualMachine)
		if ok && other.Self != self && other.Config != nil && other.Config.InstanceUuid == uuid {
			return true
		}
	}
	return false
}

// restoreSnapshots makes the snapshots that the .vmsd lists, under new references.
func (l *Lab) restoreSnapshots(
	ctx *simulator.Context, vm *simulator.VirtualMachine, st *vmState, moved func(string) string,
) types.BaseMethodFault {
	var saved savedSnapshots
	found, err := l.readState(strings.TrimSuffix(vm.Config.Files.VmPathName, ".vmx")+".vmsd", &saved)
	if err != nil {
		return systemError(err)
	}
	if !found {
		return nil
	}
	var info types.VirtualMachineSnapshotInfo
	if err := fromXML(saved.Info, &info); err != nil {
		return systemError(err)
	}
	renamed := map[types.ManagedObjectReference]types.ManagedObjectReference{}
	for _, value := range sortedKeys(saved.All) {
		one := saved.All[value]
		snap := &simulator.VirtualMachineSnapshot{DataSets: map[string]*simulator.DataSet{}}
		snap.Vm = vm.Self
		if err := fromXML(one.Config, &snap.Config); err != nil {
			return systemError(err)
		}
		renameFiles(&snap.Config.Files, moved)
		adoptPaths(&snap.Config, moved)
		ctx.Map.Put(snap)
		renamed[types.ManagedObjectReference{Type: "VirtualMachineSnapshot", Value: value}] = snap.Self
		state := &snapshotState{disks: map[int32]*snapshotDisk{}, file: moved(one.File)}
		for key, d := range one.Disks {
			if at := l.link(moved(d.Frozen)); at != nil {
				state.disks[key] = &snapshotDisk{frozen: at, changeID: d.ChangeID, table: moved(d.Table)}
			}
		}
		st.snapshots[snap.Self.Value] = state
	}
	var walk func(tree []types.VirtualMachineSnapshotTree)
	walk = func(tree []types.VirtualMachineSnapshotTree) {
		for i := range tree {
			tree[i].Snapshot, tree[i].Vm = renamed[tree[i].Snapshot], vm.Self
			walk(tree[i].ChildSnapshotList)
		}
	}
	walk(info.RootSnapshotList)
	if info.CurrentSnapshot != nil {
		current := renamed[*info.CurrentSnapshot]
		info.CurrentSnapshot = &current
	}
	publishSnapshots(ctx, vm, &info)
	return nil
}
