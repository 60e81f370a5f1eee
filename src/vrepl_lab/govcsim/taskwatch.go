package main

import (
	"slices"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// taskWatch stands between the registry and a property collector that follows what is in list views: tasks, and single
// properties of the VMs beside them. govcsim (v0.55.0) collects everything that a filter selects for each change of any
// object of the inventory: a hundred VMs that are reverted at once kept news of their tasks back for seconds.
type taskWatch struct {
	*simulator.PropertyCollector
	// properties of VMs that its filters ask for; those of tasks are all forwarded.
	ofVMs []string
}

// UpdateObject forwards what can matter. A property that was assigned as part of another one is told of by itself, too
// (watched.tellLeaves).
func (w *taskWatch) UpdateObject(ctx *simulator.Context, obj mo.Reference, changes []types.PropertyChange) {
	switch obj.Reference().Type {
	case "Task", "ListView":
	case "VirtualMachine":
		if !slices.ContainsFunc(changes, w.follows) {
			return
		}
	default:
		return
	}
	w.PropertyCollector.UpdateObject(ctx, obj, changes)
}

func (w *taskWatch) follows(change types.PropertyChange) bool {
	return slices.ContainsFunc(w.ofVMs, func(path string) bool { return strings.HasPrefix(change.Name, path) })
}

// PutObject does nothing: a new task is in no view before that is changed.
func (*taskWatch) PutObject(*simulator.Context, mo.Reference) {}

// RemoveObject forwards the end of tasks and VMs.
func (w *taskWatch) RemoveObject(ctx *simulator.Context, ref types.ManagedObjectReference) {
	if ref.Type == "Task" || ref.Type == "VirtualMachine" {
		w.PropertyCollector.RemoveObject(ctx, ref)
	}
}

// watchViewsOnly takes the place of a property collector among those who hear of changes, if it follows nothing but what
// is in list views. Its first WaitForUpdatesEx puts it there, so this is for the later ones.
func (l *Lab) watchViewsOnly(ctx *simulator.Context, registry *simulator.Registry, req *types.WaitForUpdatesEx) {
	pc, ok := ctx.Session.Get(req.This).(*simulator.PropertyCollector)
	if !ok || req.Version == "" {
		return
	}
	var ofVMs []string
	for _, ref := range pc.Filter {
		if filter, ok := ctx.Session.Get(ref).(*simulator.PropertyFilter); !ok || !onlyViews(&filter.Spec, &ofVMs) {
			registry.AddHandler(pc) // again, if it followed only views until now
			return
		}
	}
	registry.AddHandler(&taskWatch{pc, ofVMs})
}

// onlyViews notes which properties of VMs a filter follows, if it follows tasks and VMs of list views only.
func onlyViews(spec *types.PropertyFilterSpec, ofVMs *[]string) bool {
	for _, set := range spec.PropSet {
		switch {
		case set.Type == "Task":
		case set.Type == "VirtualMachine" && !(set.All != nil && *set.All):
			for _, path := range set.PathSet {
				if strings.Contains(path, "[") {
					return false
				}
				*ofVMs = append(*ofVMs, path)
			}
		default:
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
