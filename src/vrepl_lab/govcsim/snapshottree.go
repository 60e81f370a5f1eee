package main

import (
	"fmt"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

func depth(tree []types.VirtualMachineSnapshotTree, ref types.ManagedObjectReference) int {
	for i := range tree {
		if tree[i].Snapshot == ref {
			return 1
		}
		if n := depth(tree[i].ChildSnapshotList, ref); n > 0 {
			return n + 1
		}
	}
	return 0
}

func find(tree []types.VirtualMachineSnapshotTree, ref types.ManagedObjectReference) *types.VirtualMachineSnapshotTree {
	for i := range tree {
		if tree[i].Snapshot == ref {
			return &tree[i]
		}
		if node := find(tree[i].ChildSnapshotList, ref); node != nil {
			return node
		}
	}
	return nil
}

func parentOf(tree []types.VirtualMachineSnapshotTree, ref types.ManagedObjectReference) *types.ManagedObjectReference {
	for i := range tree {
		for _, child := range tree[i].ChildSnapshotList {
			if child.Snapshot == ref {
				parent := tree[i].Snapshot
				return &parent
			}
		}
		if parent := parentOf(tree[i].ChildSnapshotList, ref); parent != nil {
			return parent
		}
	}
	return nil
}

func without(
	tree []types.VirtualMachineSnapshotTree, ref types.ManagedObjectReference, children bool,
) []types.VirtualMachineSnapshotTree {
	var left []types.VirtualMachineSnapshotTree
	for _, node := range tree {
		if node.Snapshot != ref {
			node.ChildSnapshotList = without(node.ChildSnapshotList, ref, children)
			left = append(left, node)
		} else if !children {
			left = append(left, node.ChildSnapshotList...)
		}
	}
	return left
}

func refsOf(tree []types.VirtualMachineSnapshotTree) []types.ManagedObjectReference {
	var refs []types.ManagedObjectReference
	for _, node := range tree {
		refs = append(append(refs, node.Snapshot), refsOf(node.ChildSnapshotList)...)
	}
	return refs
}

func contains(refs []types.ManagedObjectReference, ref types.ManagedObjectReference) bool {
	for _, r := range refs {
		if r == ref {
			return true
		}
	}
	return false
}

func copySnapshots(info *types.VirtualMachineSnapshotInfo) *types.VirtualMachineSnapshotInfo {
	if info == nil {
		return &types.VirtualMachineSnapshotInfo{}
	}
	var dst types.VirtualMachineSnapshotInfo
	deepCopy(*info, &dst)
	return &dst
}

// publishSnapshots sets a VM's snapshot tree; an empty one leaves the property unset. The caller holds the VM's lock.
func publishSnapshots(ctx *simulator.Context, vm *simulator.VirtualMachine, info *types.VirtualMachineSnapshotInfo) {
	if info == nil || len(info.RootSnapshotList) == 0 {
		ctx.Update(vm, []types.PropertyChange{{Name: "snapshot", Val: nil}, {Name: "rootSnapshot", Val: nil}})
		return
	}
	var roots []types.ManagedObjectReference
	for _, node := range info.RootSnapshotList {
		roots = append(roots, node.Snapshot)
	}
	ctx.Update(vm, []types.PropertyChange{{Name: "snapshot", Val: *info}, {Name: "rootSnapshot", Val: roots}})
	var walk func(tree []types.VirtualMachineSnapshotTree)
	walk = func(tree []types.VirtualMachineSnapshotTree) {
		for _, node := range tree {
			if s, ok := ctx.Map.Get(node.Snapshot).(*simulator.VirtualMachineSnapshot); ok {
				ctx.WithLock(s, func() {
					s.ChildSnapshot = nil
					for _, child := range node.ChildSnapshotList {
						s.ChildSnapshot = append(s.ChildSnapshot, child.Snapshot)
					}
				})
			}
			walk(node.ChildSnapshotList)
		}
	}
	walk(info.RootSnapshotList)
}

// snapshotNamed finds a VM's snapshot by name, or by moref value.
func snapshotNamed(vm *simulator.VirtualMachine, name string) (types.ManagedObjectReference, error) {
	var found []types.ManagedObjectReference
	if vm.Snapshot != nil {
		var walk func(tree []types.VirtualMachineSnapshotTree)
		walk = func(tree []types.VirtualMachineSnapshotTree) {
			for _, node := range tree {
				if node.Name == name || node.Snapshot.Value == name {
					found = append(found, node.Snapshot)
				}
				walk(node.ChildSnapshotList)
			}
		}
		walk(vm.Snapshot.RootSnapshotList)
	}
	if len(found) != 1 {
		return types.ManagedObjectReference{}, fmt.Errorf("%d snapshots of %s are named %q", len(found), vm.Name, name)
	}
	return found[0], nil
}
