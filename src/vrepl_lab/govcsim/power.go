package main

import (
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// PowerOnVMTask is PowerOnVM_Task.
func (m *vmMethods) PowerOnVMTask(ctx *simulator.Context, req *types.PowerOnVM_Task) soap.HasFault {
	l, vm := m.lab, m.lab.vm(req.This)
	ref := l.vmTask(vm, "PowerOnVM_Task", true,
		func(ctx *simulator.Context, _ *Task, st *vmState) (types.AnyType, types.BaseMethodFault) {
			return nil, l.powerOn(ctx, vm, st)
		})
	return &methods.PowerOnVM_TaskBody{Res: &types.PowerOnVM_TaskResponse{Returnval: ref}}
}

func (l *Lab) powerOn(ctx *simulator.Context, vm *simulator.VirtualMachine, st *vmState) types.BaseMethodFault {
	defer l.admit(ctx, vm)()
	st.data.Lock()
	defer st.data.Unlock()
	var fault types.BaseMethodFault
	ctx.WithLock(vm, func() {
		if vm.Config.Template {
			fault = &types.NotSupported{}
			return
		}
		if fault = l.mayOpen(vm); fault != nil {
			return
		}
		if fault = l.room(ctx, vm); fault != nil {
			return
		}
		res := vm.PowerOnVMTask(ctx, &types.PowerOnVM_Task{This: vm.Self}).(*methods.PowerOnVM_TaskBody)
		if res.Fault_ != nil {
			fault = res.Fault_.VimFault().(types.BaseMethodFault)
			return
		}
		if _, fault = inner(ctx, res.Res.Returnval); fault != nil {
			return
		}
		if err := l.afterPowerLoss(st); err != nil {
			fault = systemError(err)
			return
		}
		if err := l.startTracking(vm, st); err != nil {
			fault = systemError(err)
			return
		}
		l.refreshLinks(ctx, vm, st, nil)
		if err := l.replug(vm); err != nil {
			fault = systemError(err)
			return
		}
		run := st.fresh()
		bootTime(ctx, vm, true)
		if boots(l, vm, st) {
			st.tools = true
			go l.boot(vm, st, run)
		}
	})
	return fault
}

// boots tells whether a guest system comes up: the inventory says that Tools are installed, or the VM was made through
// the API and its first disk is not empty.
func boots(l *Lab, vm *simulator.VirtualMachine, st *vmState) bool {
	if st.tools || st.guestHost != "" {
		return st.tools
	}
	all := disks(vm.Config.Hardware.Device)
	if len(all) == 0 {
		return false
	}
	at := l.link(diskPath(all[0]))
	for ; at != nil; at = at.parent {
		marks, err := at.readMap()
		if err != nil {
			return false
		}
		for _, mark := range marks {
			if mark == grainPresent {
				return true
			}
		}
	}
	return false
}

// PowerOffVMTask is PowerOffVM_Task.
func (m *vmMethods) PowerOffVMTask(ctx *simulator.Context, req *types.PowerOffVM_Task) soap.HasFault {
	l, vm := m.lab, m.lab.vm(req.This)
	ref := l.vmTask(vm, "PowerOffVM_Task", false,
		func(ctx *simulator.Context, _ *Task, st *vmState) (types.AnyType, types.BaseMethodFault) {
			var fault types.BaseMethodFault
			ctx.WithLock(vm, func() { fault = l.powerOff(ctx, vm) })
			return nil, fault
		})
	return &methods.PowerOffVM_TaskBody{Res: &types.PowerOffVM_TaskResponse{Returnval: ref}}
}

func (l *Lab) powerOff(ctx *simulator.Context, vm *simulator.VirtualMachine) types.BaseMethodFault {
	res := vm.PowerOffVMTask(ctx, &types.PowerOffVM_Task{This: vm.Self}).(*methods.PowerOffVM_TaskBody)
	if _, fault := inner(ctx, res.Res.Returnval); fault != nil {
		return fault
	}
	wireControllers(vm.Config.Hardware.Device)
	l.state(vm.Self).fresh()
	bootTime(ctx, vm, false)
	if err := l.replug(vm); err != nil {
		return systemError(err)
	}
	l.noteUses(vm)
	l.setTools(ctx, vm, false)
	return nil
}

// ResetVMTask is ResetVM_Task.
func (m *vmMethods) ResetVMTask(ctx *simulator.Context, req *types.ResetVM_Task) soap.HasFault {
	l, vm := m.lab, m.lab.vm(req.This)
	ref := l.vmTask(vm, "ResetVM_Task", false,
		func(ctx *simulator.Context, _ *Task, st *vmState) (types.AnyType, types.BaseMethodFault) {
			var fault types.BaseMethodFault
			ctx.WithLock(vm, func() { fault = l.powerOff(ctx, vm) })
			if fault != nil {
				return nil, fault
			}
			return nil, l.powerOn(ctx, vm, st)
		})
	return &methods.ResetVM_TaskBody{Res: &types.ResetVM_TaskResponse{Returnval: ref}}
}

// ShutdownGuest asks Tools to shut the guest down; it is off some time later.
func (m *vmMethods) ShutdownGuest(ctx *simulator.Context, req *types.ShutdownGuest) soap.HasFault {
	l, vm := m.lab, m.lab.vm(req.This)
	own := l.context()
	var fault types.BaseMethodFault
	own.WithLock(vm, func() {
		if vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOn {
			fault = &types.InvalidPowerState{
				RequestedState: types.VirtualMachinePowerStatePoweredOn, ExistingState: vm.Runtime.PowerState,
			}
		} else if vm.Guest.ToolsRunningStatus != string(types.VirtualMachineToolsRunningStatusGuestToolsRunning) {
			fault = &types.ToolsUnavailable{}
		}
	})
	if fault != nil {
		return &methods.ShutdownGuestBody{Fault_: simulator.Fault(faultText(fault), fault)}
	}
	guest := l.guestOf(vm.Name)
	how, ms := value(guest.Shutdown), *guest.BootMS
	if guest.ShutdownMS != nil {
		ms = *guest.ShutdownMS
	}
	if how == "refused" {
		f := &types.ToolsUnavailable{}
		return &methods.ShutdownGuestBody{Fault_: simulator.Fault(faultText(f), f)}
	}
	run := l.state(vm.Self).run
	go func() {
		if how == "hang" {
			return // the guest was asked, and goes on
		}
		time.Sleep(time.Duration(ms) * time.Millisecond)
		own.WithLock(vm, func() {
			if l.state(vm.Self).run != run {
				return
			}
			if vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn {
				_ = l.powerOff(own, vm)
			}
		})
	}()
	return &methods.ShutdownGuestBody{Res: new(types.ShutdownGuestResponse)}
}
