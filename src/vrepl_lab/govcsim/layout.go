package main

import (
	"path"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// homeFiles are the files that a VM has in its home folder beside its disks and snapshots, whether they are there or not.
// They are called after the .vmx, which keeps its name when the VM is renamed.
func homeFiles(vm *simulator.VirtualMachine) []string {
	stem := strings.TrimSuffix(vm.Config.Files.VmPathName, ".vmx")
	logs := vm.Config.Files.LogDirectory
	if logs == "" {
		logs = vmFolder(vm)
	}
	return []string{stem + ".vmx", stem + ".nvram", stem + ".vmsd", path.Join(logs, "vmware.log")}
}

// snapshotFiles are the .vmsn files of a VM.
func snapshotFiles(st *vmState) []string {
	var all []string
	for _, s := range st.snapshots {
		if s.file != "" {
			all = append(all, s.file)
		}
	}
	return all
}

// diskFiles are the two files of a link that vSphere knows: descriptor and extent.
func diskFiles(at *link) []string { return []string{at.dsPath, flatName(at.dsPath)} }

func flatName(dsPath string) string { return dsPath[:len(dsPath)-len(".vmdk")] + "-flat.vmdk" }

// fileKind is the type that layoutEx gives a file.
func fileKind(name string) types.VirtualMachineFileLayoutExFileType {
	switch {
	case strings.HasSuffix(name, "-flat.vmdk"):
		return types.VirtualMachineFileLayoutExFileTypeDiskExtent
	case strings.HasSuffix(name, ".vmdk"):
		return types.VirtualMachineFileLayoutExFileTypeDiskDescriptor
	case strings.HasSuffix(name, ".vmx"):
		return types.VirtualMachineFileLayoutExFileTypeConfig
	case strings.HasSuffix(name, ".nvram"):
		return types.VirtualMachineFileLayoutExFileTypeNvram
	case strings.HasSuffix(name, ".vmsd"):
		return types.VirtualMachineFileLayoutExFileTypeSnapshotList
	case strings.HasSuffix(name, ".vmsn"):
		return types.VirtualMachineFileLayoutExFileTypeSnapshotData
	}
	return types.VirtualMachineFileLayoutExFileTypeLog
}

// layoutBuilder collects the files of a VM. A file keeps the key that it had.
type layoutBuilder struct {
	lab  *Lab
	ctx  *simulator.Context
	keys map[string]int32
	next int32
	ex   types.VirtualMachineFileLayoutEx
	seen map[string]int32
	took map[*link]int64 // bytes allocated: reading a map is the cost of all this
}

func (b *layoutBuilder) allocated(at *link) int64 {
	n, ok := b.took[at]
	if !ok {
		n = at.allocated()
		b.took[at] = n
	}
	return n
}

func (l *Lab) layoutBuilder(ctx *simulator.Context, old *types.VirtualMachineFileLayoutEx) *layoutBuilder {
	b := &layoutBuilder{lab: l, ctx: ctx, keys: map[string]int32{}, seen: map[string]int32{}, took: map[*link]int64{}}
	if old != nil {
		for _, file := range old.File {
			b.keys[file.Name] = file.Key
			b.next = max(b.next, file.Key+1)
		}
	}
	b.ex.Timestamp = time.Now()
	return b
}

// file adds a file, size in bytes as it takes from the datastore, and returns its key.
func (b *layoutBuilder) file(name string, size int64) int32 {
	if key, ok := b.seen[name]; ok {
		return key
	}
	key, ok := b.keys[name]
	if !ok {
		key = b.next
		b.next++
	}
	b.seen[name] = key
	b.ex.File = append(b.ex.File, types.VirtualMachineFileLayoutExFileInfo{
		Key: key, Name: name, Type: string(fileKind(name)), Size: size, UniqueSize: size, Accessible: types.NewBool(true),
	})
	return key
}

// disk adds a disk's links, from the base up to the leaf.
func (b *layoutBuilder) disk(key int32, leaf *link) types.VirtualMachineFileLayoutExDiskLayout {
	layout := types.VirtualMachineFileLayoutExDiskLayout{Key: key}
	chain := leaf.chain()
	for i := len(chain) - 1; i >= 0; i-- {
		at := chain[i]
		descriptor := b.file(at.dsPath, 0)
		extent := b.file(flatName(at.dsPath), b.allocated(at))
		layout.Chain = append(layout.Chain, types.VirtualMachineFileLayoutExDiskUnit{FileKey: []int32{descriptor, extent}})
	}
	return layout
}

// refreshLayout brings layout, layoutEx and the storage summary up to the files as they are: those that are the VM's, not
// whatever lies in its folder; sizes are what is allocated. The caller holds the VM's lock.
func (l *Lab) refreshLayout(ctx *simulator.Context, vm *simulator.VirtualMachine, st *vmState) {
	b := l.layoutBuilder(ctx, vm.LayoutEx)
	for _, name := range homeFiles(vm) {
		if size, ok := l.sizeOf(name); ok {
			b.file(name, size)
		}
	}
	old := types.VirtualMachineFileLayout{}
	for _, disk := range disks(vm.Config.Hardware.Device) {
		leaf := l.link(diskPath(disk))
		if leaf == nil {
			continue
		}
		b.ex.Disk = append(b.ex.Disk, b.disk(disk.Key, leaf))
		one := types.VirtualMachineFileLayoutDiskLayout{Key: disk.Key}
		chain := leaf.chain()
		for i := len(chain) - 1; i >= 0; i-- {
			one.DiskFile = append(one.DiskFile, chain[i].dsPath)
		}
		old.Disk = append(old.Disk, one)
	}
	if vm.Snapshot != nil {
		for _, ref := range refsOf(vm.Snapshot.RootSnapshotList) {
			s := st.snapshots[ref.Value]
			if s == nil {
				continue
			}
			one := types.VirtualMachineFileLayoutExSnapshotLayout{Key: ref, DataKey: -1, MemoryKey: -1}
			files := []string{}
			if s.file != "" {
				size, _ := l.sizeOf(s.file)
				one.DataKey = b.file(s.file, size)
				files = append(files, s.file)
			}
			for _, key := range sortedKeys(s.disks) {
				one.Disk = append(one.Disk, b.disk(key, s.disks[key].frozen))
				files = append(files, s.disks[key].frozen.dsPath)
			}
			b.ex.Snapshot = append(b.ex.Snapshot, one)
			old.Snapshot = append(old.Snapshot, types.VirtualMachineFileLayoutSnapshotLayout{Key: ref, SnapshotFile: files})
		}
	}
	for _, file := range b.ex.File {
		switch types.VirtualMachineFileLayoutExFileType(file.Type) {
		case types.VirtualMachineFileLayoutExFileTypeNvram, types.VirtualMachineFileLayoutExFileTypeSnapshotList:
			old.ConfigFile = append(old.ConfigFile, path.Base(file.Name))
		case types.VirtualMachineFileLayoutExFileTypeLog:
			old.LogFile = append(old.LogFile, path.Base(file.Name))
		}
	}
	vm.Layout = &old
	b.publish(vm)
}

// publish sets layoutEx and what is summed up from it. Shared is what another VM made: a linked clone's parents.
func (b *layoutBuilder) publish(vm *simulator.VirtualMachine) {
	l, ex := b.lab, b.ex
	type sums struct{ committed, unshared, uncommitted int64 }
	by := map[string]*sums{}
	at := func(store string) *sums {
		if by[store] == nil {
			by[store] = &sums{}
		}
		return by[store]
	}
	at(storeOf(vm.Config.Files.VmPathName))
	for i := range ex.File {
		file := &ex.File[i]
		s := at(storeOf(file.Name))
		s.committed += file.Size
		if owner := l.ownerOf(file.Name); owner == "" || owner == vm.Self.Value {
			s.unshared += file.Size
		} else {
			file.UniqueSize = 0
		}
	}
	for _, disk := range disks(vm.Config.Hardware.Device) {
		if leaf := l.link(diskPath(disk)); leaf != nil {
			s := at(storeOf(leaf.dsPath))
			s.uncommitted += max(leaf.capacity-b.allocated(leaf), 0)
		}
	}
	now := time.Now()
	summary := types.VirtualMachineStorageSummary{Timestamp: now}
	storage := types.VirtualMachineStorageInfo{Timestamp: now}
	var stores []types.ManagedObjectReference
	l.mu.Lock()
	for _, name := range sortedKeys(by) {
		s := by[name]
		summary.Committed += s.committed
		summary.Unshared += s.unshared
		summary.Uncommitted += s.uncommitted
		if ds := l.stores[name]; ds != nil {
			stores = append(stores, ds.ref)
			storage.PerDatastoreUsage = append(storage.PerDatastoreUsage, types.VirtualMachineUsageOnDatastore{
				Datastore: ds.ref, Committed: s.committed, Unshared: s.unshared, Uncommitted: s.uncommitted,
			})
		}
	}
	l.mu.Unlock()
	l.onDatastores(b.ctx, vm, stores)
	b.ctx.Update(vm, []types.PropertyChange{
		{Name: "layoutEx", Val: ex}, {Name: "storage", Val: storage}, {Name: "summary.storage", Val: summary},
	})
}

// ownerOf is the VM that made the disk link which a file belongs to, or "".
func (l *Lab) ownerOf(name string) string {
	at := l.link(strings.TrimSuffix(strings.TrimSuffix(name, ".vmdk"), "-flat") + ".vmdk")
	if at == nil {
		return ""
	}
	return at.owner
}

// onDatastores makes a VM's list of datastores, and theirs of VMs, those that hold its files.
func (l *Lab) onDatastores(
	ctx *simulator.Context, vm *simulator.VirtualMachine, stores []types.ManagedObjectReference,
) {
	if len(stores) == 0 || sameRefs(stores, vm.Datastore) {
		return
	}
	for _, ref := range append(append([]types.ManagedObjectReference{}, stores...), vm.Datastore...) {
		ds, ok := ctx.Map.Get(ref).(*simulator.Datastore)
		if !ok || contains(stores, ref) == contains(ds.Vm, vm.Self) {
			continue
		}
		if contains(stores, ref) {
			ctx.Map.AddReference(ctx, ds, &ds.Vm, vm.Self)
		} else {
			ctx.Map.RemoveReference(ctx, ds, &ds.Vm, vm.Self)
		}
	}
	ctx.Update(vm, []types.PropertyChange{{Name: "datastore", Val: stores}})
}

func sameRefs(a, b []types.ManagedObjectReference) bool {
	if len(a) != len(b) {
		return false
	}
	for _, ref := range a {
		if !contains(b, ref) {
			return false
		}
	}
	return true
}
