package main

import (
	"slices"
	"sync"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// listViewMethods are the methods of ListView that the lab does in govcsim's place.
type listViewMethods struct {
	shadow
	telling sync.Mutex
}

// ModifyListView tells filters of the change once the view is free again. govcsim (v0.55.0) tells them while it holds the
// view, and its WaitForUpdatesEx reads the view while it holds the filter: where both meet, both wait for ever, and so
// does whoever has a task.
func (m *listViewMethods) ModifyListView(ctx *simulator.Context, req *types.ModifyListView) soap.HasFault {
	view, ok := ctx.Session.Get(req.This).(*simulator.ListView)
	if !ok {
		return &methods.ModifyListViewBody{Fault_: simulator.Fault("", &types.ManagedObjectNotFound{Obj: req.This})}
	}
	res := &types.ModifyListViewResponse{}
	m.telling.Lock() // filters hear of changes in their order
	defer m.telling.Unlock()
	var list []types.ManagedObjectReference
	ctx.WithLock(view, func() {
		list = slices.Clone(view.View)
		for _, ref := range req.Add {
			if ctx.Session.Get(ref) == nil {
				res.Returnval = append(res.Returnval, ref)
			}
			list = append(list, ref)
		}
		for _, ref := range req.Remove {
			simulator.RemoveReference(&list, ref)
		}
		view.View = list
	})
	if len(req.Add) != 0 || len(req.Remove) != 0 {
		ctx.Update(view, []types.PropertyChange{{Name: "view", Val: list}})
	}
	return &methods.ModifyListViewBody{Res: res}
}
