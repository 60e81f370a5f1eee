package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// tracks tells whether change tracking is on for a disk of a VM that has it on. On ESXi it is a property of each disk
// (scsi0:1.ctkEnabled), which changeTrackingEnabled sets for the disks that are there at that moment.
func (l *Lab) tracks(st *vmState, key int32) bool {
	on, known := st.ctk[key]
	if l.config().CBTPerDisk {
		return on
	}
	return on || !known
}

// trackDisks notes what a reconfiguration says about change tracking. The caller holds st.data and the VM's lock.
func (l *Lab) trackDisks(vm *simulator.VirtualMachine, st *vmState, spec *types.VirtualMachineConfigSpec, was bool) {
	if st.ctk == nil {
		st.ctk = map[int32]bool{}
	}
	devices := vm.Config.Hardware.Device
	there := map[int32]bool{}
	for _, disk := range disks(devices) {
		there[disk.Key] = true
		if on := spec.ChangeTrackingEnabled; on != nil {
			st.ctk[disk.Key] = *on
		}
		name := diskName(devices, disk) + ".ctkenabled"
		for _, option := range spec.ExtraConfig {
			if o := option.GetOptionValue(); strings.ToLower(o.Key) == name {
				st.ctk[disk.Key] = strings.EqualFold(fmt.Sprint(o.Value), "true")
			}
		}
		if t := st.trackers[disk.Key]; t != nil && !l.tracks(st, disk.Key) {
			t.remove()
			delete(st.trackers, disk.Key)
		}
	}
	for key := range st.ctk {
		if !there[key] {
			delete(st.ctk, key)
		}
	}
	on := spec.ChangeTrackingEnabled
	if on != nil && *on && !was && vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn {
		st.stun = true
	}
}

// diskName is what a configuration file calls a disk's slot, such as "scsi0:1".
func diskName(devices []types.BaseVirtualDevice, disk *types.VirtualDisk) string {
	unit := int32(0)
	if disk.UnitNumber != nil {
		unit = *disk.UnitNumber
	}
	for _, device := range devices {
		c, ok := device.(types.BaseVirtualController)
		if !ok || device.GetVirtualDevice().Key != disk.ControllerKey {
			continue
		}
		kind := "ide"
		switch device.(type) {
		case types.BaseVirtualSCSIController:
			kind = "scsi"
		case types.BaseVirtualSATAController:
			kind = "sata"
		case *types.VirtualNVMEController:
			kind = "nvme"
		}
		return fmt.Sprintf("%s%d:%d", kind, c.GetVirtualController().BusNumber, unit)
	}
	return ""
}

// stunned is the first snapshot after change tracking was enabled on a running VM: the guest stands still while the
// tables are made, for long with large disks (Broadcom KB 320346). That quiescing then fails is a guess.
func (l *Lab) stunned(st *vmState, quiesce bool) types.BaseMethodFault {
	ms := l.config().CBTStunMS
	first := st.stun
	st.stun = false
	if !first || ms == 0 {
		return nil
	}
	time.Sleep(time.Duration(ms) * time.Millisecond)
	if quiesce {
		f := &types.ApplicationQuiesceFault{}
		f.FaultMessage = localized(textQuiescing)
		return f
	}
	return nil
}
