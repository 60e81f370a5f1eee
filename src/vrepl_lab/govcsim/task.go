package main

import (
	"fmt"
	"log"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// Task is a vCenter task that, unlike govcsim's own, holds no lock of its VM while it waits or copies.
type Task struct {
	mo.Task
	ended chan struct{}
}

// CancelTask ends a task that hangs; others finish their work.
func (t *Task) CancelTask(ctx *simulator.Context, req *types.CancelTask) soap.HasFault {
	if t.Info.Cancelable {
		finishTask(ctx, t, nil, &types.RequestCanceled{}, "The task was canceled by a user.")
		return &methods.CancelTaskBody{Res: new(types.CancelTaskResponse)}
	}
	return &methods.CancelTaskBody{Fault_: simulator.Fault("", &types.NotSupported{})}
}

func finishTask(ctx *simulator.Context, t *Task, result types.AnyType, fault types.BaseMethodFault, message string) {
	changes := []types.PropertyChange{{Name: "info.completeTime", Val: time.Now()}}
	if fault != nil {
		if message == "" {
			message = faultText(fault)
		}
		changes = append(changes,
			types.PropertyChange{Name: "info.error", Val: types.LocalizedMethodFault{Fault: fault, LocalizedMessage: message}},
			types.PropertyChange{Name: "info.state", Val: types.TaskInfoStateError})
	} else {
		if result != nil {
			changes = append(changes, types.PropertyChange{Name: "info.result", Val: result})
		}
		changes = append(changes, types.PropertyChange{Name: "info.state", Val: types.TaskInfoStateSuccess})
	}
	ctx.WithLock(t, func() {
		if t.Info.State == types.TaskInfoStateSuccess || t.Info.State == types.TaskInfoStateError {
			return
		}
		ctx.Update(t, changes)
		close(t.ended)
	})
	forgetTask(ctx, *t.Info.Entity, t.Self)
}

// endHung ends the tasks that a rule made hang, as a host that is restarted does.
func (l *Lab) endHung() {
	l.mu.Lock()
	hung := l.hung
	l.hung = nil
	l.mu.Unlock()
	for _, t := range hung {
		finishTask(l.context(), t, nil, &types.Timedout{}, "")
	}
}

// newTask registers a running task of an entity. method is the API's name, like "CreateSnapshot_Task".
func (l *Lab) newTask(entity types.ManagedObjectReference, name, method string, cancelable bool) *Task {
	ctx := l.context()
	t := &Task{ended: make(chan struct{})}
	id := strings.TrimSuffix(method, "_Task")
	now := time.Now()
	t.Info = types.TaskInfo{
		Name:          method,
		DescriptionId: entity.Type + "." + strings.ToLower(id[:1]) + id[1:],
		Entity:        &entity,
		EntityName:    name,
		State:         types.TaskInfoStateRunning,
		Cancelable:    cancelable,
		Reason:        &types.TaskReasonUser{UserName: l.user},
		QueueTime:     now,
		StartTime:     &now,
	}
	ctx.Map.Put(t)
	ctx.WithLock(t, func() {
		t.Info.Key, t.Info.Task = t.Self.Value, t.Self
	})
	noteTask(ctx, entity, t.Self)
	return t
}

// noteTask puts a task among the recent ones of its entity, before anybody has its reference. govcsim does this for tasks
// of its own type alone.
func noteTask(ctx *simulator.Context, entity, task types.ManagedObjectReference) {
	changeRecent(ctx, entity, func(recent []types.ManagedObjectReference) []types.ManagedObjectReference {
		return append(slices.Clone(recent), task)
	})
}

// forgetTask takes a task that has ended off its entity. vSphere does so after ten minutes; the runs of a job are further
// apart than that, those of a test are not.
func forgetTask(ctx *simulator.Context, entity, task types.ManagedObjectReference) {
	changeRecent(ctx, entity, func(recent []types.ManagedObjectReference) []types.ManagedObjectReference {
		return slices.DeleteFunc(slices.Clone(recent), func(one types.ManagedObjectReference) bool { return one == task })
	})
}

func changeRecent(
	ctx *simulator.Context, entity types.ManagedObjectReference,
	change func([]types.ManagedObjectReference) []types.ManagedObjectReference,
) {
	obj := ctx.Map.Get(entity)
	if e, ok := obj.(mo.Entity); ok {
		ctx.WithLock(obj, func() {
			ctx.Update(obj, []types.PropertyChange{{Name: "recentTask", Val: change(e.Entity().RecentTask)}})
		})
	}
}

// run starts a task; body may take as long as it needs and takes the locks that it needs itself.
func (l *Lab) run(
	entity types.ManagedObjectReference, name, method string,
	body func(ctx *simulator.Context, t *Task) (types.AnyType, types.BaseMethodFault),
) types.ManagedObjectReference {
	t := l.newTask(entity, name, method, false)
	go func() {
		ctx := l.context()
		s := l.config()
		wait := time.Duration(s.TaskMS) * time.Millisecond
		if strings.Contains(method, "Snapshot") {
			wait += time.Duration(s.SnapshotMS) * time.Millisecond
		}
		time.Sleep(wait)
		defer func() {
			if r := recover(); r != nil {
				log.Printf("%s of %s: %v\n%s", method, name, r, debug.Stack())
				finishTask(l.context(), t, nil, systemError(fmt.Errorf("%v", r)), "")
			}
		}()
		result, fault := body(ctx, t)
		finishTask(ctx, t, result, l.wrapped(method, fault), "")
	}()
	return t.Self
}

// inner waits for a task that govcsim started on our behalf and takes it off the registry.
func inner(ctx *simulator.Context, ref types.ManagedObjectReference) (types.AnyType, types.BaseMethodFault) {
	task := ctx.Map.Get(ref).(*simulator.Task)
	probe := &simulator.Context{}
	for {
		var info types.TaskInfo
		ctx.Map.WithLock(probe, task, func() { info = task.Info })
		switch info.State {
		case types.TaskInfoStateSuccess:
			ctx.Map.Remove(ctx, ref)
			return info.Result, nil
		case types.TaskInfoStateError:
			ctx.Map.Remove(ctx, ref)
			return nil, info.Error.Fault
		}
		time.Sleep(100 * time.Microsecond)
	}
}

// begin marks a VM as busy with one task; a second one fails as it does on vCenter. disks: no disk may be opened meanwhile.
func (l *Lab) begin(st *vmState, t *Task, exclusive bool) types.BaseMethodFault {
	l.mu.Lock()
	defer l.mu.Unlock()
	if st.busy != "" {
		return &types.TaskInProgress{Task: types.ManagedObjectReference{Type: "Task", Value: st.busy}}
	}
	st.busy, st.exclusive = t.Self.Value, exclusive
	return nil
}

func (l *Lab) end(st *vmState) {
	l.mu.Lock()
	st.busy, st.exclusive = "", false
	l.mu.Unlock()
}

// vmTask runs body as the only task of a VM.
func (l *Lab) vmTask(
	vm *simulator.VirtualMachine, method string, exclusive bool,
	body func(ctx *simulator.Context, t *Task, st *vmState) (types.AnyType, types.BaseMethodFault),
) types.ManagedObjectReference {
	st := l.state(vm.Self)
	return l.run(vm.Self, vm.Name, method, func(ctx *simulator.Context, t *Task) (types.AnyType, types.BaseMethodFault) {
		if fault := l.begin(st, t, exclusive); fault != nil {
			return nil, fault
		}
		defer l.end(st)
		return body(ctx, t, st)
	})
}
