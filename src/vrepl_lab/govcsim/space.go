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

// freeSpace is a datastore's capacity without what its links take, in bytes; the setting free_bytes replaces it. What
// the maps say is read again after a second: thousands of VMs would read thousands of maps for each disk.
func (l *Lab) freeSpace(store string) int64 {
	l.mu.Lock()
	ds := l.stores[store]
	forced, set := l.settings.FreeBytes[store]
	if ds == nil || set {
		l.mu.Unlock()
		return forced
	}
	if time.Since(ds.measured) < time.Second {
		defer l.mu.Unlock()
		return ds.free
	}
	var here []*link
	for _, at := range l.links {
		if storeOf(at.dsPath) == store {
			here = append(here, at)
		}
	}
	l.mu.Unlock()
	free := ds.Capacity
	for _, at := range here {
		free -= at.allocated()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	ds.free, ds.measured = max(free, 0), time.Now()
	return ds.free
}

// take reserves room for a new disk, thick ones all of it; false if it does not fit.
func (l *Lab) take(store string, need int64) bool {
	if l.freeSpace(store) < need {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if ds := l.stores[store]; ds != nil && need > 1 {
		ds.free -= need
	}
	return true
}

// manyLinks is from where on reading all maps takes too long to let a caller wait for it.
const manyLinks = 500

// refreshSpace publishes the free space of every datastore; without force at most every two seconds, because it reads
// all maps, and in the background where there are many.
func (l *Lab) refreshSpace(force bool) {
	l.mu.Lock()
	if !force && time.Since(l.spaceAt) < 2*time.Second {
		l.mu.Unlock()
		return
	}
	l.spaceAt = time.Now()
	var all []*datastore
	for _, ds := range l.stores {
		ds.measured = time.Time{}
		all = append(all, ds)
	}
	background := !force && len(l.links) > manyLinks
	l.mu.Unlock()
	if background {
		go l.publishSpace(all)
	} else {
		l.publishSpace(all)
	}
}

func (l *Lab) publishSpace(all []*datastore) {
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
