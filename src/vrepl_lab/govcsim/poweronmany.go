package main

import (
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// datacenterMethods are those of Datacenter.
type datacenterMethods struct {
	shadow
	lab *Lab
}

// PowerOnMultiVMTask is PowerOnMultiVM_Task: a task per VM, as PowerOnVM_Task would be.
func (m *datacenterMethods) PowerOnMultiVMTask(ctx *simulator.Context, req *types.PowerOnMultiVM_Task) soap.HasFault {
	l := m.lab
	ref := l.run(req.This, "", "PowerOnMultiVM_Task",
		func(ctx *simulator.Context, _ *Task) (types.AnyType, types.BaseMethodFault) {
			result := types.ClusterPowerOnVmResult{}
			for _, vm := range req.Vm {
				if l.vm(vm) == nil {
					result.NotAttempted = append(result.NotAttempted, types.ClusterNotAttemptedVmInfo{
						Vm: vm, Fault: types.LocalizedMethodFault{Fault: &types.ManagedObjectNotFound{Obj: vm}},
					})
					continue
				}
				res := (&vmMethods{lab: l}).PowerOnVMTask(ctx, &types.PowerOnVM_Task{This: vm})
				task := res.(*methods.PowerOnVM_TaskBody).Res.Returnval
				result.Attempted = append(result.Attempted, types.ClusterAttemptedVmInfo{Vm: vm, Task: &task})
			}
			return result, nil
		})
	return &methods.PowerOnMultiVM_TaskBody{Res: &types.PowerOnMultiVM_TaskResponse{Returnval: ref}}
}
