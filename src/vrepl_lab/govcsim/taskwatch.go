package main

import (
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// taskWatch stands between the registry and a property collector that follows nothing but tasks of list views. govcsim
// (v0.55.0) collects everything that a filter selects for each change of any object of the inventory: a hundred VMs that
// are reverted at once kept news of their tasks back for seconds.
type taskWatch struct {
	*simulator.PropertyCollector
}

// UpdateObject forwards what can matter.
func (w *taskWatch) UpdateObject(ctx *simulator.Context, obj mo.Reference, changes []types.PropertyChange) {
	if kind := obj.Reference().Type; kind == "Task" || kind == "ListView" {
		w.PropertyCollector.UpdateObject(ctx, obj, changes)
	}
}

// PutObject does nothing: a new task is in no view before that is changed.
func (*taskWatch) PutObject(*simulator.Context, mo.Reference) {}

// RemoveObject forwards the end of tasks.
func (w *taskWatch) RemoveObject(ctx *simulator.Context, ref types.ManagedObjectReference) {
	if ref.Type == "Task" {
		w.PropertyCollector.RemoveObject(ctx, ref)
	}
}

// watchTasksOnly takes the place of a property collector among those who hear of changes, if it follows tasks only. Its
// first WaitForUpdatesEx puts it there, so this is for the later ones.
func (l *Lab) watchTasksOnly(ctx *simulator.Context, registry *simulator.Registry, req *types.WaitForUpdatesEx) {
	pc, ok := ctx.Session.Get(req.This).(*simulator.PropertyCollector)
	if !ok || req.Version == "" {
		return
	}
	for _, ref := range pc.Filter {
		if filter, ok := ctx.Session.Get(ref).(*simulator.PropertyFilter); !ok || !onlyTasks(&filter.Spec) {
			registry.AddHandler(pc) // again, if it followed tasks only until now
			return
		}
	}
	registry.AddHandler(&taskWatch{pc})
}

func onlyTasks(spec *types.PropertyFilterSpec) bool {
	for _, set := range spec.PropSet {
		if set.Type != "Task" {
			return false
		}
	}
	for _, set := range spec.ObjectSet {
		if set.Obj.Type != "ListView" {
			return false
		}
		for _, walk := range set.SelectSet {
			if traversal, ok := walk.(*types.TraversalSpec); !ok || traversal.Type != "ListView" || traversal.SelectSet != nil {
				return false
			}
		}
	}
	return true
}
