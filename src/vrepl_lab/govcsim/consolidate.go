package main

import (
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// release notes that no snapshot needs this link any more: it may be merged with its child.
func (l *Lab) release(at *link) {
	l.mu.Lock()
	at.released = true
	l.mu.Unlock()
}

func (l *Lab) flagConsolidation(ctx *simulator.Context, vm *simulator.VirtualMachine, needed bool) {
	ctx.WithLock(vm, func() {
		if vm.Runtime.ConsolidationNeeded != needed {
			ctx.Update(vm, []types.PropertyChange{
				{Name: "runtime.consolidationNeeded", Val: needed},
				{Name: "summary.runtime.consolidationNeeded", Val: needed},
			})
		}
	})
}

// consolidate merges every released link with its only child, or deletes it when nothing of the VM stands on it. Links
// that a handle or another running VM reads stay: the VM then needs consolidation, and the name of such a link is
// returned. A linked clone that is off is not seen, as no host sees it: what it stood on is changed or gone, and it
// cannot be opened again; with the setting clone_guard its parents stay.
// The caller holds st.data but not the VM's lock: reading the VM's properties goes on while data is copied.
func (l *Lab) consolidate(ctx *simulator.Context, vm *simulator.VirtualMachine, st *vmState) (string, types.BaseMethodFault) {
	blocked := map[*link]bool{}
	locked := ""
	changed := false
	var leaves map[int32]*link
	ctx.WithLock(vm, func() { leaves = l.leafs(vm) })
	for {
		at := l.nextReleased(st, leaves, vm.Self.Value, blocked)
		if at == nil {
			break
		}
		var child *link
		for _, over := range l.children(at) {
			if over.owner == vm.Self.Value {
				child = over
			}
		}
		if l.held(at, vm.Self.Value) || (child != nil && l.held(child, vm.Self.Value)) {
			blocked[at] = true
			locked = at.dsPath
			continue
		}
		changed = true
		if clones := l.foreignChildren(at, vm.Self.Value); len(clones) > 0 {
			l.orphan(clones, "The parent virtual disk has been modified since the child was created. "+
				"The content ID of the parent virtual disk does not match the corresponding parent content ID in the child")
		}
		if child != nil {
			l.orphan(l.foreignChildren(child, vm.Self.Value),
				"The parent of this virtual disk, "+child.dsPath+", could not be opened: file not found")
		}
		if child == nil {
			if at.parent != nil && !frozen(st, at.parent) && at.parent.owner == vm.Self.Value {
				l.release(at.parent)
			}
			if err := l.dropLink(at); err != nil {
				return "", systemError(err)
			}
			continue
		}
		if err := mergeInto(at, child); err != nil {
			return "", systemError(err)
		}
		l.replace(st, leaves, child, at)
		if err := l.dropLink(child); err != nil {
			return "", systemError(err)
		}
	}
	if changed {
		ctx.WithLock(vm, func() { l.refreshLinks(ctx, vm, st, leaves) })
	}
	l.flagConsolidation(ctx, vm, locked != "")
	return locked, nil
}

// frozen tells whether a snapshot of the VM holds this link.
func frozen(st *vmState, at *link) bool {
	for _, s := range st.snapshots {
		for _, d := range s.disks {
			if d.frozen == at {
				return true
			}
		}
	}
	return false
}

// nextReleased finds a link of the VM that can be merged with its only child or deleted.
func (l *Lab) nextReleased(st *vmState, leaves map[int32]*link, owner string, blocked map[*link]bool) *link {
	guard := l.config().CloneGuard
	isLeaf := map[*link]bool{}
	for _, leaf := range leaves {
		isLeaf[leaf] = true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var best *link
	for _, at := range l.links {
		if !at.released || at.owner != owner || blocked[at] || isLeaf[at] || frozen(st, at) {
			continue
		}
		own, foreign := 0, false
		for _, over := range l.links {
			if over.parent == at && over.owner == owner {
				own++
			} else if over.parent == at {
				foreign = true
			}
		}
		if own > 1 || (foreign && guard) {
			continue
		}
		if best == nil || at.dsPath < best.dsPath {
			best = at
		}
	}
	return best
}

// replace makes everything that pointed at a merged child point at the link that took its content.
func (l *Lab) replace(st *vmState, leaves map[int32]*link, child, by *link) {
	for _, s := range st.snapshots {
		for _, d := range s.disks {
			if d.frozen == child {
				d.frozen = by
			}
		}
	}
	for key, leaf := range leaves {
		if leaf == child {
			leaves[key] = by
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	by.released = child.released
	for _, over := range l.links {
		if over.parent == child {
			over.parent = by
		}
	}
}
