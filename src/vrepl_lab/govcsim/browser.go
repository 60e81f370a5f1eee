package main

import (
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// browserMethods are those of HostDatastoreBrowser: what only the lab has on a datastore is not shown.
type browserMethods struct {
	shadow
	lab *Lab
}

type searchTask = types.ManagedObjectReference

func ofTheLab(name string) bool {
	return strings.HasSuffix(name, "-grains.map") ||
		(strings.HasSuffix(name, ".bin") && strings.Contains(name, "-ctk"))
}

func (m *browserMethods) search(
	this types.ManagedObjectReference,
	start func(*simulator.HostDatastoreBrowser, *simulator.Context) searchTask, method string,
) types.ManagedObjectReference {
	return m.lab.run(m.lab.datastoreOf(this), "", method, func(ctx *simulator.Context, _ *Task) (types.AnyType, types.BaseMethodFault) {
		browser, ok := ctx.Map.Get(this).(*simulator.HostDatastoreBrowser)
		if !ok {
			return nil, &types.ManagedObjectNotFound{Obj: this}
		}
		var ref searchTask
		ctx.WithLock(browser, func() { ref = start(browser, ctx) })
		result, fault := inner(ctx, ref)
		if fault != nil {
			return nil, fault
		}
		switch found := result.(type) {
		case types.HostDatastoreBrowserSearchResults:
			return shown(found), nil
		case types.ArrayOfHostDatastoreBrowserSearchResults:
			for i := range found.HostDatastoreBrowserSearchResults {
				found.HostDatastoreBrowserSearchResults[i] = shown(found.HostDatastoreBrowserSearchResults[i])
			}
			return found, nil
		}
		return result, nil
	})
}

func shown(found types.HostDatastoreBrowserSearchResults) types.HostDatastoreBrowserSearchResults {
	var files []types.BaseFileInfo
	for _, file := range found.File {
		if !ofTheLab(file.GetFileInfo().Path) {
			files = append(files, file)
		}
	}
	found.File = files
	return found
}

// datastoreOf is the datastore that a browser is for.
func (l *Lab) datastoreOf(browser types.ManagedObjectReference) types.ManagedObjectReference {
	for _, entity := range l.svc.Context.Map.All("Datastore") {
		if ds, ok := entity.(*simulator.Datastore); ok && ds.Browser == browser {
			return ds.Self
		}
	}
	return l.datacenter // a host's or a cluster's: it looks at several
}

// SearchDatastoreTask is SearchDatastore_Task.
func (m *browserMethods) SearchDatastoreTask(ctx *simulator.Context, req *types.SearchDatastore_Task) soap.HasFault {
	ref := m.search(req.This, func(b *simulator.HostDatastoreBrowser, ctx *simulator.Context) searchTask {
		return b.SearchDatastoreTask(ctx, req).(*methods.SearchDatastore_TaskBody).Res.Returnval
	}, "SearchDatastore_Task")
	return &methods.SearchDatastore_TaskBody{Res: &types.SearchDatastore_TaskResponse{Returnval: ref}}
}

// SearchDatastoreSubFoldersTask is SearchDatastoreSubFolders_Task.
func (m *browserMethods) SearchDatastoreSubFoldersTask(
	ctx *simulator.Context, req *types.SearchDatastoreSubFolders_Task,
) soap.HasFault {
	ref := m.search(req.This, func(b *simulator.HostDatastoreBrowser, ctx *simulator.Context) searchTask {
		return b.SearchDatastoreSubFoldersTask(ctx, req).(*methods.SearchDatastoreSubFolders_TaskBody).Res.Returnval
	}, "SearchDatastoreSubFolders_Task")
	return &methods.SearchDatastoreSubFolders_TaskBody{
		Res: &types.SearchDatastoreSubFolders_TaskResponse{Returnval: ref},
	}
}
