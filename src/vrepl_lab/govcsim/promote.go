package main

import (
	"os"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// flatten copies what a link shows of its parents into it, so that it stands on nothing.
func (l *Lab) flatten(at *link) error {
	o, err := at.open(true)
	if err != nil {
		return err
	}
	defer o.close()
	err = eachAllocated(at.parent, func(from *os.File, offset, length int64) error {
		return runs(o.marks, offset, length, func(mark byte, offset, length int64) error {
			if mark != grainHole {
				return nil
			}
			if err := copyRange(o.flat, from, offset, length); err != nil {
				return err
			}
			return o.mark(offset/grainSize, (offset+length-1)/grainSize, grainPresent)
		})
	})
	if err != nil {
		return err
	}
	for i, mark := range o.marks {
		if mark == grainUnmapped { // only a link over another one has to say so
			o.marks[i] = grainHole
		}
	}
	if _, err := o.file.WriteAt(o.marks, 0); err != nil {
		return err
	}
	l.mu.Lock()
	at.parent = nil
	l.mu.Unlock()
	return at.writeDescriptor()
}

// PromoteDisksTask is PromoteDisks_Task: with unlink set, disks get a copy of what they share with another VM. Without,
// nothing changes here: what is shared can be shared on.
func (m *vmMethods) PromoteDisksTask(ctx *simulator.Context, req *types.PromoteDisks_Task) soap.HasFault {
	l, vm := m.lab, m.lab.vm(req.This)
	ref := l.vmTask(vm, "PromoteDisks_Task", true,
		func(ctx *simulator.Context, _ *Task, st *vmState) (types.AnyType, types.BaseMethodFault) {
			st.data.Lock()
			defer st.data.Unlock()
			var fault types.BaseMethodFault
			ctx.WithLock(vm, func() { fault = l.promote(ctx, vm, st, req) })
			return nil, fault
		})
	return &methods.PromoteDisks_TaskBody{Res: &types.PromoteDisks_TaskResponse{Returnval: ref}}
}

func (l *Lab) promote(
	ctx *simulator.Context, vm *simulator.VirtualMachine, st *vmState, req *types.PromoteDisks_Task,
) types.BaseMethodFault {
	leaves := l.leafs(vm)
	chosen := leaves
	if len(req.Disks) > 0 {
		chosen = map[int32]*link{}
		for _, disk := range req.Disks {
			if leaves[disk.Key] == nil {
				return invalidArgument("disks")
			}
			chosen[disk.Key] = leaves[disk.Key]
		}
	}
	if !req.Unlink {
		return nil
	}
	for _, leaf := range chosen {
		for _, at := range leaf.chain() {
			if at.owner != vm.Self.Value || at.parent == nil || at.parent.owner == vm.Self.Value {
				continue
			}
			if l.held(at, vm.Self.Value) {
				return fileLocked(at.dsPath)
			}
			if why := l.brokenChain(at); why != "" {
				return fileFault(at.dsPath, why)
			}
			if err := l.flatten(at); err != nil {
				return systemError(err)
			}
			break
		}
	}
	l.refreshLinks(ctx, vm, st, nil)
	return nil
}
