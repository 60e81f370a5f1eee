package main

import (
	"context"
	"reflect"
	"strings"
	"sync"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// watched are the property paths that clients' filters ask for, by type of object. govcsim tells a filter on
// "guest.ipAddress" nothing when "guest" is assigned as a whole; vCenter tells it the leaf.
type watched struct {
	sync.Mutex
	paths map[string]map[string]bool
}

// note remembers the paths of a filter that a client makes. They stay: there are as many as clients' code has words.
func (w *watched) note(spec *types.PropertyFilterSpec) {
	w.Lock()
	defer w.Unlock()
	for _, set := range spec.PropSet {
		for _, path := range set.PathSet {
			if !strings.Contains(path, ".") || strings.Contains(path, "[") {
				continue
			}
			if w.paths == nil {
				w.paths = map[string]map[string]bool{}
			}
			if w.paths[set.Type] == nil {
				w.paths[set.Type] = map[string]bool{}
			}
			w.paths[set.Type][path] = true
		}
	}
}

// below lists the paths that somebody watches under a property that was assigned.
func (w *watched) below(kind, name string) []string {
	w.Lock()
	defer w.Unlock()
	var found []string
	for _, of := range []string{kind, "ManagedEntity"} {
		for path := range w.paths[of] {
			if strings.HasPrefix(path, name+".") {
				found = append(found, path)
			}
		}
	}
	return found
}

type leafUpdate struct{}

// tellLeaves follows an update of an object with one of each leaf that a filter watches under what was assigned.
func (w *watched) tellLeaves(ctx *simulator.Context, obj mo.Reference, changes []types.PropertyChange) {
	if ctx == nil || (ctx.Context != nil && ctx.Value(leafUpdate{}) != nil) {
		return // these are the leaves
	}
	var leaves []types.PropertyChange
	for _, change := range changes {
		for _, path := range w.below(obj.Reference().Type, change.Name) {
			value, known := property(reflect.ValueOf(obj), path)
			if !known {
				continue
			}
			op := types.PropertyChangeOpAssign
			if value == nil {
				op = types.PropertyChangeOpIndirectRemove // its parent is unset now
			}
			leaves = append(leaves, types.PropertyChange{Name: path, Op: op, Val: value})
		}
	}
	if len(leaves) == 0 {
		return
	}
	own := *ctx
	if own.Context == nil {
		own.Context = context.Background()
	}
	own.Context = context.WithValue(own.Context, leafUpdate{}, true)
	for _, leaf := range leaves {
		if leaf.Val != nil {
			own.Map.Update(&own, obj, []types.PropertyChange{leaf})
		} else {
			l := leaf
			unsetLeaf(&own, obj, l)
		}
	}
}

// unsetLeaf tells of a leaf that is unset. Its parent is, too, so that applying it would make an empty parent: the parent
// is put back.
func unsetLeaf(ctx *simulator.Context, obj mo.Reference, leaf types.PropertyChange) {
	top, _, _ := strings.Cut(leaf.Name, ".")
	field := reflect.ValueOf(obj).Elem().FieldByName(strings.ToUpper(top[:1]) + top[1:])
	empty := field.IsValid() && field.Kind() == reflect.Pointer && field.IsNil()
	ctx.Map.Update(ctx, obj, []types.PropertyChange{leaf})
	if empty {
		field.SetZero()
	}
}

// property reads a property path of an object. An unset one is nil; known is false for a path that the type does not have
// or that leads through a list.
func property(at reflect.Value, path string) (value any, known bool) {
	for _, name := range strings.Split(path, ".") {
		for at.Kind() == reflect.Pointer || at.Kind() == reflect.Interface {
			if at.IsNil() {
				return nil, true
			}
			at = at.Elem()
		}
		if at.Kind() != reflect.Struct {
			return nil, false
		}
		if at = at.FieldByName(strings.ToUpper(name[:1]) + name[1:]); !at.IsValid() {
			return nil, false
		}
	}
	switch at.Kind() {
	case reflect.Pointer, reflect.Interface, reflect.Slice:
		if at.IsNil() {
			return nil, true
		}
	case reflect.String:
		if at.Len() == 0 {
			return nil, true
		}
	}
	if at.Kind() == reflect.Pointer {
		at = at.Elem()
	}
	return at.Interface(), true
}

// asked looks at a call of the property collector: its paths must be there, and a filter's are remembered.
func (l *Lab) asked(method *simulator.Method) types.BaseMethodFault {
	switch req := method.Body.(type) {
	case *types.CreateFilter:
		l.watched.note(&req.Spec)
		return l.checkPaths([]types.PropertyFilterSpec{req.Spec})
	case *types.RetrieveProperties:
		return l.checkPaths(req.SpecSet)
	case *types.RetrievePropertiesEx:
		return l.checkPaths(req.SpecSet)
	}
	return nil
}

// checkPaths refuses property paths that an object does not have, as vCenter does; govcsim leaves them out of its answer.
func (l *Lab) checkPaths(specs []types.PropertyFilterSpec) types.BaseMethodFault {
	for _, spec := range specs {
		for _, set := range spec.PropSet {
			kind, ok := checkedTypes[set.Type]
			if !ok {
				continue
			}
			for _, path := range set.PathSet {
				if !strings.Contains(path, "[") && !hasProperty(kind, path) {
					return &types.InvalidProperty{Name: path}
				}
			}
		}
	}
	return nil
}

// checkedTypes are those whose objects govcsim keeps as the API has them.
var checkedTypes = map[string]reflect.Type{
	"VirtualMachine": reflect.TypeOf(mo.VirtualMachine{}), "HostSystem": reflect.TypeOf(mo.HostSystem{}),
	"Datastore": reflect.TypeOf(mo.Datastore{}), "Datacenter": reflect.TypeOf(mo.Datacenter{}),
	"VirtualMachineSnapshot": reflect.TypeOf(mo.VirtualMachineSnapshot{}),
}

// hasProperty tells whether a type has a property path. What lies under a base type that others extend is not known.
func hasProperty(kind reflect.Type, path string) bool {
	for _, name := range strings.Split(path, ".") {
		if kind.Kind() == reflect.Pointer {
			kind = kind.Elem()
		}
		if kind.Kind() == reflect.Interface {
			return true
		}
		if kind.Kind() != reflect.Struct || name == "" {
			return false
		}
		field, ok := kind.FieldByName(strings.ToUpper(name[:1]) + name[1:])
		if !ok {
			return false
		}
		kind = field.Type
	}
	return true
}
