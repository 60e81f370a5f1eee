package main

import (
	"path"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// datastoreFileMethods are the methods of FileManager that the lab does in govcsim's place: what touches disks.
type datastoreFileMethods struct {
	shadow
	lab *Lab
}

// diskMethods are those of VirtualDiskManager.
type diskMethods struct {
	shadow
	lab *Lab
}

// DeleteDatastoreFileTask is DeleteDatastoreFile_Task: files that somebody has open stay.
func (m *datastoreFileMethods) DeleteDatastoreFileTask(
	ctx *simulator.Context, req *types.DeleteDatastoreFile_Task,
) soap.HasFault {
	l := m.lab
	ref := l.run(l.datacenter, "", "DeleteDatastoreFile_Task",
		func(ctx *simulator.Context, _ *Task) (types.AnyType, types.BaseMethodFault) {
			if _, fault := l.ownPath(req.Name); fault != nil {
				return nil, fault
			}
			links := l.linksUnder(req.Name)
			if fault := l.mayTouch(links); fault != nil {
				return nil, fault
			}
			fault := l.alone(ctx, func(files *simulator.FileManager) (types.ManagedObjectReference, types.BaseMethodFault) {
				return files.DeleteDatastoreFileTask(ctx, req).(*methods.DeleteDatastoreFile_TaskBody).Res.Returnval, nil
			})
			if fault != nil {
				return nil, fault
			}
			for _, at := range links {
				if exists(at.descriptor()) {
					continue // only its extent was named: the disk is damaged, not gone
				}
				if err := l.dropLink(at); err != nil {
					return nil, systemError(err)
				}
			}
			return nil, nil
		})
	return &methods.DeleteDatastoreFile_TaskBody{Res: &types.DeleteDatastoreFile_TaskResponse{Returnval: ref}}
}

// MoveDatastoreFileTask is MoveDatastoreFile_Task, of a file or a folder: disks in it are found in the new place.
func (m *datastoreFileMethods) MoveDatastoreFileTask(ctx *simulator.Context, req *types.MoveDatastoreFile_Task) soap.HasFault {
	l := m.lab
	ref := l.run(l.datacenter, "", "MoveDatastoreFile_Task",
		func(ctx *simulator.Context, _ *Task) (types.AnyType, types.BaseMethodFault) {
			for _, name := range []string{req.SourceName, req.DestinationName} {
				if _, fault := l.ownPath(name); fault != nil {
					return nil, fault
				}
			}
			links := l.linksUnder(req.SourceName)
			if fault := l.mayTouch(links); fault != nil {
				return nil, fault
			}
			if req.DestinationDatacenter == nil {
				req.DestinationDatacenter = req.SourceDatacenter
			}
			if len(links) == 1 && links[0].dsPath == req.SourceName {
				return nil, l.moveDisk(links[0], req.DestinationName)
			}
			fault := l.alone(ctx, func(files *simulator.FileManager) (types.ManagedObjectReference, types.BaseMethodFault) {
				return files.MoveDatastoreFileTask(ctx, req).(*methods.MoveDatastoreFile_TaskBody).Res.Returnval, nil
			})
			if fault != nil {
				return nil, fault
			}
			return nil, l.moved(links, req.SourceName, req.DestinationName)
		})
	return &methods.MoveDatastoreFile_TaskBody{Res: &types.MoveDatastoreFile_TaskResponse{Returnval: ref}}
}

// MakeDirectory is govcsim's own, within the datastore.
func (m *datastoreFileMethods) MakeDirectory(ctx *simulator.Context, req *types.MakeDirectory) soap.HasFault {
	if _, fault := m.lab.folderFile(req.Name); fault != nil {
		return &methods.MakeDirectoryBody{Fault_: simulator.Fault(faultText(fault), fault)}
	}
	own := m.lab.context()
	files := own.Map.FileManager()
	var res soap.HasFault
	own.WithLock(files, func() { res = files.MakeDirectory(own, req) })
	return res
}

// ownPath is the file of a path that may be removed, moved or written: within a datastore, and not its root.
func (l *Lab) ownPath(name string) (string, types.BaseMethodFault) {
	file, fault := l.folderFile(name)
	if fault == nil && isRoot(name) {
		f := &types.CannotDeleteFile{}
		f.File = name
		return "", f
	}
	return file, fault
}

// CopyDatastoreFileTask is CopyDatastoreFile_Task; a disk that it is asked to copy becomes one.
func (m *datastoreFileMethods) CopyDatastoreFileTask(ctx *simulator.Context, req *types.CopyDatastoreFile_Task) soap.HasFault {
	l := m.lab
	ref := l.run(l.datacenter, "", "CopyDatastoreFile_Task",
		func(ctx *simulator.Context, _ *Task) (types.AnyType, types.BaseMethodFault) {
			for _, name := range []string{req.SourceName, req.DestinationName} {
				if _, fault := l.ownPath(name); fault != nil {
					return nil, fault
				}
			}
			if at := l.link(req.SourceName); at != nil {
				return nil, l.copyDisk(at, req.DestinationName, at.thin)
			}
			if req.DestinationDatacenter == nil {
				req.DestinationDatacenter = req.SourceDatacenter
			}
			return nil, l.alone(ctx, func(files *simulator.FileManager) (types.ManagedObjectReference, types.BaseMethodFault) {
				return files.CopyDatastoreFileTask(ctx, req).(*methods.CopyDatastoreFile_TaskBody).Res.Returnval, nil
			})
		})
	return &methods.CopyDatastoreFile_TaskBody{Res: &types.CopyDatastoreFile_TaskResponse{Returnval: ref}}
}

// copyDisk makes a full disk of what a link shows.
func (l *Lab) copyDisk(at *link, to string, thin bool) types.BaseMethodFault {
	if l.anyWriter(at, "") {
		return fileLocked(at.dsPath)
	}
	copied, fault := l.newDisk(to, at.capacity, thin)
	if fault != nil {
		return fault
	}
	if err := copyChain(copied, at); err != nil {
		return systemError(err)
	}
	return nil
}

// alone runs one of FileManager's own tasks to its end.
func (l *Lab) alone(
	ctx *simulator.Context, start func(*simulator.FileManager) (types.ManagedObjectReference, types.BaseMethodFault),
) types.BaseMethodFault {
	var ref types.ManagedObjectReference
	var fault types.BaseMethodFault
	files := ctx.Map.FileManager()
	ctx.WithLock(files, func() { ref, fault = start(files) })
	if fault != nil {
		return fault
	}
	_, fault = inner(ctx, ref)
	return fault
}

// moved follows a folder that was renamed.
func (l *Lab) moved(links []*link, from, to string) types.BaseMethodFault {
	from, to = strings.TrimSuffix(from, "/"), strings.TrimSuffix(to, "/")
	dir, fault := l.folderFile(to)
	if fault != nil {
		return fault
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, at := range links {
		rest, ok := strings.CutPrefix(at.dsPath, from+"/")
		if !ok {
			continue
		}
		delete(l.links, at.dsPath)
		at.dsPath = to + "/" + rest
		at.stem = path.Join(dir, strings.TrimSuffix(rest, ".vmdk"))
		l.links[at.dsPath] = at
	}
	return nil
}

func (l *Lab) moveDisk(at *link, to string) types.BaseMethodFault {
	if _, there := l.sizeOf(to); there || l.taken(to) {
		f := &types.FileAlreadyExists{}
		f.File = to
		return f
	}
	if err := l.renameLink(at, to); err != nil {
		return fileFault(at.dsPath, err.Error())
	}
	return nil
}

// onDisk runs a method of VirtualDiskManager on a disk that must be there and that nobody may have open.
func (m *diskMethods) onDisk(
	method, name string,
	do func(ctx *simulator.Context, at *link) types.BaseMethodFault,
) types.ManagedObjectReference {
	return m.lab.run(m.lab.datacenter, "", method,
		func(ctx *simulator.Context, _ *Task) (types.AnyType, types.BaseMethodFault) {
			at := m.lab.link(name)
			if at == nil {
				f := &types.FileNotFound{}
				f.File = name
				return nil, f
			}
			return nil, do(ctx, at)
		})
}

// DeleteVirtualDiskTask is DeleteVirtualDisk_Task.
func (m *diskMethods) DeleteVirtualDiskTask(ctx *simulator.Context, req *types.DeleteVirtualDisk_Task) soap.HasFault {
	ref := m.onDisk("DeleteVirtualDisk_Task", req.Name,
		func(ctx *simulator.Context, at *link) types.BaseMethodFault {
			if fault := m.lab.mayTouch([]*link{at}); fault != nil {
				return fault
			}
			m.lab.orphan(m.lab.children(at),
				"The parent of this virtual disk, "+at.dsPath+", could not be opened: file not found")
			if err := m.lab.dropLink(at); err != nil {
				return systemError(err)
			}
			return nil
		})
	return &methods.DeleteVirtualDisk_TaskBody{Res: &types.DeleteVirtualDisk_TaskResponse{Returnval: ref}}
}

// MoveVirtualDiskTask is MoveVirtualDisk_Task.
func (m *diskMethods) MoveVirtualDiskTask(ctx *simulator.Context, req *types.MoveVirtualDisk_Task) soap.HasFault {
	ref := m.onDisk("MoveVirtualDisk_Task", req.SourceName,
		func(ctx *simulator.Context, at *link) types.BaseMethodFault {
			if fault := m.lab.mayTouch([]*link{at}); fault != nil {
				return fault
			}
			return m.lab.moveDisk(at, req.DestName)
		})
	return &methods.MoveVirtualDisk_TaskBody{Res: &types.MoveVirtualDisk_TaskResponse{Returnval: ref}}
}

// ExtendVirtualDiskTask is ExtendVirtualDisk_Task.
func (m *diskMethods) ExtendVirtualDiskTask(ctx *simulator.Context, req *types.ExtendVirtualDisk_Task) soap.HasFault {
	ref := m.onDisk("ExtendVirtualDisk_Task", req.Name,
		func(ctx *simulator.Context, at *link) types.BaseMethodFault {
			if fault := m.lab.mayTouch([]*link{at}); fault != nil {
				return fault
			}
			if size := req.NewCapacityKb * 1024; size < at.capacity || at.parent != nil || len(m.lab.children(at)) > 0 {
				return invalidArgument("newCapacityKb")
			}
			if err := at.extend(req.NewCapacityKb * 1024); err != nil {
				return systemError(err)
			}
			return nil
		})
	return &methods.ExtendVirtualDisk_TaskBody{Res: &types.ExtendVirtualDisk_TaskResponse{Returnval: ref}}
}

// CopyVirtualDiskTask is CopyVirtualDisk_Task: the copy is one full disk, whatever chain the source is.
func (m *diskMethods) CopyVirtualDiskTask(ctx *simulator.Context, req *types.CopyVirtualDisk_Task) soap.HasFault {
	ref := m.onDisk("CopyVirtualDisk_Task", req.SourceName,
		func(ctx *simulator.Context, at *link) types.BaseMethodFault {
			thin := true
			if spec, ok := req.DestSpec.(types.BaseVirtualDiskSpec); ok {
				thin = spec.GetVirtualDiskSpec().DiskType == string(types.VirtualDiskTypeThin)
			}
			return m.lab.copyDisk(at, req.DestName, thin)
		})
	return &methods.CopyVirtualDisk_TaskBody{Res: &types.CopyVirtualDisk_TaskResponse{Returnval: ref}}
}

// CreateVirtualDiskTask is CreateVirtualDisk_Task: an empty disk that no VM has yet.
func (m *diskMethods) CreateVirtualDiskTask(ctx *simulator.Context, req *types.CreateVirtualDisk_Task) soap.HasFault {
	ref := m.lab.run(m.lab.datacenter, "", "CreateVirtualDisk_Task",
		func(ctx *simulator.Context, _ *Task) (types.AnyType, types.BaseMethodFault) {
			spec, ok := req.Spec.(types.BaseFileBackedVirtualDiskSpec)
			if !ok {
				return nil, invalidArgument("spec")
			}
			file := spec.GetFileBackedVirtualDiskSpec()
			_, fault := m.lab.newDisk(req.Name, file.CapacityKb*1024, file.DiskType == string(types.VirtualDiskTypeThin))
			if fault != nil {
				return nil, fault
			}
			return req.Name, nil
		})
	return &methods.CreateVirtualDisk_TaskBody{Res: &types.CreateVirtualDisk_TaskResponse{Returnval: ref}}
}

// newDisk makes an empty disk of no VM. Its folder must be there.
func (l *Lab) newDisk(name string, capacity int64, thin bool) (*link, types.BaseMethodFault) {
	file, fault := l.folderFile(name)
	if fault != nil {
		return nil, fault
	}
	if capacity <= 0 || !strings.HasSuffix(name, ".vmdk") {
		return nil, invalidArgument("name")
	}
	if exists(file) || l.taken(name) {
		f := &types.FileAlreadyExists{}
		f.File = name
		return nil, f
	}
	if !exists(path.Dir(file)) {
		f := &types.FileNotFound{}
		f.File = path.Dir(name)
		return nil, f
	}
	need := int64(1)
	if !thin {
		need = capacity
	}
	if !l.take(storeOf(name), need) {
		f := &types.NoDiskSpace{Datastore: storeOf(name)}
		f.File = name
		return nil, f
	}
	at := &link{dsPath: name, stem: strings.TrimSuffix(file, ".vmdk"), capacity: capacity, thin: thin, uuid: l.newUUID("disk")}
	if err := at.create(); err != nil {
		return nil, systemError(err)
	}
	l.putLink(at)
	return at, nil
}

// QueryVirtualDiskUuid answers with the uuid that a VM's configuration shows, too.
func (m *diskMethods) QueryVirtualDiskUuid(ctx *simulator.Context, req *types.QueryVirtualDiskUuid) soap.HasFault {
	at := m.lab.link(req.Name)
	if at == nil {
		f := &types.FileNotFound{}
		f.File = req.Name
		return &methods.QueryVirtualDiskUuidBody{Fault_: simulator.Fault("File "+req.Name+" was not found", f)}
	}
	return &methods.QueryVirtualDiskUuidBody{Res: &types.QueryVirtualDiskUuidResponse{Returnval: spacedUUID(at.uuid)}}
}

// spacedUUID is a uuid as VirtualDiskManager writes it: "60 00 c2 9f 6d …-…".
func spacedUUID(uuid string) string {
	hex := strings.ToLower(strings.ReplaceAll(uuid, "-", ""))
	var pairs []string
	for i := 0; i+2 <= len(hex); i += 2 {
		pairs = append(pairs, hex[i:i+2])
	}
	if len(pairs) != 16 {
		return uuid
	}
	return strings.Join(pairs[:8], " ") + "-" + strings.Join(pairs[8:], " ")
}
