package main

import (
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// datastoreMethods are the methods of Datastore that the lab does in govcsim's place.
type datastoreMethods struct {
	shadow
	lab *Lab
}

// RefreshDatastore brings the free space up to date.
func (m *datastoreMethods) RefreshDatastore(ctx *simulator.Context, req *types.RefreshDatastore) soap.HasFault {
	m.lab.refreshSpace(true)
	return &methods.RefreshDatastoreBody{Res: new(types.RefreshDatastoreResponse)}
}

// RefreshDatastoreStorageInfo does the same.
func (m *datastoreMethods) RefreshDatastoreStorageInfo(
	ctx *simulator.Context, req *types.RefreshDatastoreStorageInfo,
) soap.HasFault {
	m.lab.refreshSpace(true)
	return &methods.RefreshDatastoreStorageInfoBody{Res: new(types.RefreshDatastoreStorageInfoResponse)}
}

// freeSpace is a datastore's capacity without what its links take, in bytes; the setting free_bytes replaces it.
func (l *Lab) freeSpace(store string) int64 {
	l.mu.Lock()
	ds := l.stores[store]
	forced, set := l.settings.FreeBytes[store]
	var here []*link
	for _, at := range l.links {
		if storeOf(at.dsPath) == store {
			here = append(here, at)
		}
	}
	l.mu.Unlock()
	if ds == nil {
		return 0
	}
	if set {
		return forced
	}
	free := ds.Capacity
	for _, at := range here {
		free -= at.allocated()
	}
	return max(free, 0)
}

// refreshSpace publishes the free space of every datastore; without force at most every two seconds, because it reads
// all maps.
func (l *Lab) refreshSpace(force bool) {
	l.mu.Lock()
	if !force && time.Since(l.spaceAt) < 2*time.Second {
		l.mu.Unlock()
		return
	}
	l.spaceAt = time.Now()
	var all []*datastore
	for _, ds := range l.stores {
		all = append(all, ds)
	}
	l.mu.Unlock()
	ctx := l.context()
	for _, ds := range all {
		obj, ok := ctx.Map.Get(ds.ref).(*simulator.Datastore)
		if !ok {
			continue
		}
		free := l.freeSpace(ds.Name)
		ctx.WithLock(obj, func() {
			if obj.Summary.FreeSpace == free && obj.Summary.Capacity == ds.Capacity {
				return
			}
			info := obj.Info.GetDatastoreInfo()
			info.FreeSpace, info.MaxFileSize, info.MaxMemoryFileSize = free, ds.Capacity, ds.Capacity
			now := time.Now()
			info.Timestamp = &now
			ctx.Update(obj, []types.PropertyChange{
				{Name: "summary.capacity", Val: ds.Capacity},
				{Name: "summary.freeSpace", Val: free},
			})
		})
	}
}
