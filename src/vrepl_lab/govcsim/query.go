package main

import (
	"os"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// QueryChangedDiskAreas answers in pages, with the faults that vSphere has for what it cannot answer.
func (m *vmMethods) QueryChangedDiskAreas(ctx *simulator.Context, req *types.QueryChangedDiskAreas) soap.HasFault {
	body := &methods.QueryChangedDiskAreasBody{}
	info, fault := m.lab.changedAreas(req)
	if fault != nil {
		body.Fault_ = simulator.Fault(faultText(fault), fault)
		return body
	}
	body.Res = &types.QueryChangedDiskAreasResponse{Returnval: *info}
	return body
}

func (l *Lab) changedAreas(req *types.QueryChangedDiskAreas) (*types.DiskChangeInfo, types.BaseMethodFault) {
	vm := l.vm(req.This)
	if vm == nil {
		return nil, &types.ManagedObjectNotFound{Obj: req.This}
	}
	st := l.state(vm.Self)
	ctx := l.context()
	st.data.Lock()
	defer st.data.Unlock()
	var at *link
	var table string
	var fault types.BaseMethodFault
	ctx.WithLock(vm, func() { at, table, fault = l.diskToQuery(ctx, vm, st, req) })
	if fault != nil {
		return nil, fault
	}
	if req.StartOffset < 0 || req.StartOffset >= at.capacity {
		return nil, invalidArgument("startOffset")
	}
	areas, fault := l.areasSince(at, table, req.ChangeId)
	if fault != nil {
		return nil, fault
	}
	s := l.config()
	return page(areas, req.StartOffset, at.capacity, s.CBTPage, s.CBTEmptyPage), nil
}

// diskToQuery finds the link and the change-tracking table that a query is about. The caller holds the VM's lock.
func (l *Lab) diskToQuery(
	ctx *simulator.Context, vm *simulator.VirtualMachine, st *vmState, req *types.QueryChangedDiskAreas,
) (*link, string, types.BaseMethodFault) {
	if req.Snapshot != nil {
		snap, ok := ctx.Map.Get(*req.Snapshot).(*simulator.VirtualMachineSnapshot)
		state := st.snapshots[req.Snapshot.Value]
		if !ok || state == nil || snap.Vm != vm.Self {
			return nil, "", &types.ManagedObjectNotFound{Obj: *req.Snapshot}
		}
		d := state.disks[req.DeviceKey]
		if d == nil {
			return nil, "", invalidArgument("deviceKey")
		}
		return d.frozen, d.table, nil
	}
	at := l.leafs(vm)[req.DeviceKey]
	if at == nil {
		return nil, "", invalidArgument("deviceKey")
	}
	if vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff {
		return nil, "", invalidArgument("snapshot")
	}
	if t := st.trackers[req.DeviceKey]; t != nil {
		return at, t.file, nil
	}
	return at, "", nil
}

func (l *Lab) areasSince(at *link, table, changeID string) ([]extent, types.BaseMethodFault) {
	if table == "" {
		return nil, fileFault(at.dsPath, "Change tracking is not enabled or was not in effect when the snapshot was made.")
	}
	var areas []extent
	if l.config().CBTWholeDisk {
		return []extent{{0, at.capacity}}, nil
	}
	if changeID == "*" {
		err := eachAllocated(at, func(_ *os.File, offset, length int64) error {
			areas = appendExtent(areas, extent{offset, length})
			return nil
		})
		if err != nil {
			return nil, fileFault(at.dsPath, err.Error())
		}
		return areas, nil
	}
	uuid, epoch, ok := parseChangeID(changeID)
	if !ok {
		return nil, invalidArgument("changeId")
	}
	areas, err := changedSince(table, uuid, epoch)
	if err != nil {
		return nil, fileFault(at.dsPath, "Error caused by file "+at.dsPath+": "+err.Error())
	}
	return l.told(areas, table, epoch)
}

// page is one reply: at most limit areas from start on (areas are sorted and do not touch). With empty set, a reply that
// starts in an unchanged gap covers that gap alone and holds no area.
func page(areas []extent, start, capacity int64, limit int, empty bool) *types.DiskChangeInfo {
	info := &types.DiskChangeInfo{StartOffset: start, Length: capacity - start}
	for _, a := range areas {
		end := min(a.start+a.length, capacity)
		if end <= start {
			continue
		}
		from := max(a.start, start)
		if empty && from > start && len(info.ChangedArea) == 0 {
			info.Length = from - start
			return info
		}
		info.ChangedArea = append(info.ChangedArea, types.DiskChangeExtent{Start: from, Length: end - from})
		if limit > 0 && len(info.ChangedArea) == limit {
			info.Length = end - start
			return info
		}
	}
	return info
}
