package main

import (
	"slices"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// use is a disk that a running VM has open. What HotAdd put on a proxy VM is a use, too.
type use struct {
	leaf   *link
	write  bool // the leaf is written; a nonpersistent disk is only read
	shared bool // multi-writer, or on a shared bus: several VMs may have it
}

// usesOf are the disks of a VM as it would open them.
func (l *Lab) usesOf(devices []types.BaseVirtualDevice) []use {
	shared := map[int32]bool{} // controllers
	for _, device := range devices {
		if c, ok := device.(types.BaseVirtualSCSIController); ok {
			bus := c.GetVirtualSCSIController()
			shared[bus.Key] = bus.SharedBus != "" && bus.SharedBus != types.VirtualSCSISharingNoSharing
		}
	}
	var all []use
	for _, disk := range disks(devices) {
		if at := l.link(diskPath(disk)); at != nil {
			u := useOf(disk, at)
			u.shared = u.shared || shared[disk.ControllerKey]
			all = append(all, u)
		}
	}
	return all
}

func useOf(disk *types.VirtualDisk, at *link) use {
	mode, sharing, _ := backingFacts(disk)
	return use{
		leaf: at, write: !strings.HasSuffix(mode, "nonpersistent"),
		shared: sharing == string(types.VirtualDiskSharingSharingMultiWriter),
	}
}

// noteUses remembers which disks a VM has open: all while it runs, none while it is off. The caller holds the VM's lock.
func (l *Lab) noteUses(vm *simulator.VirtualMachine) {
	var all []use
	if vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff {
		all = l.usesOf(vm.Config.Hardware.Device)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(all) == 0 {
		delete(l.uses, vm.Self.Value)
		return
	}
	l.uses[vm.Self.Value] = all
}

// usedByOther names the file that a running VM other than self holds, so that want cannot be opened, or "".
func (l *Lab) usedByOther(want use, self string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for vm, all := range l.uses {
		if vm == self {
			continue
		}
		for _, u := range all {
			switch {
			case u.leaf == want.leaf && u.shared && want.shared:
			case u.write && slices.Contains(want.leaf.chain(), u.leaf):
				return u.leaf.dsPath
			case want.write && slices.Contains(u.leaf.chain(), want.leaf):
				return want.leaf.dsPath
			}
		}
	}
	return ""
}

// held tells whether a link may not be changed: a handle has it open, or a running VM other than self.
func (l *Lab) held(at *link, self string) bool {
	return l.anyHandle(at) || l.usedByOther(use{leaf: at, write: true}, self) != ""
}

// anyWriter tells whether somebody writes this link: a handle, or a running VM other than self. What is written cannot
// be copied.
func (l *Lab) anyWriter(at *link, self string) bool {
	return l.openForWriting(map[int32]*link{0: at}) != "" || l.usedByOther(use{leaf: at}, self) != ""
}

// mayOpen checks, as a VM is powered on, that all its disks can be opened: no handle has them, no other running VM, and
// what they stand on is as it was. The caller holds the VM's lock.
func (l *Lab) mayOpen(vm *simulator.VirtualMachine) types.BaseMethodFault {
	for _, disk := range disks(vm.Config.Hardware.Device) {
		if l.link(diskPath(disk)) == nil {
			f := &types.FileNotFound{}
			f.File = diskPath(disk)
			return f
		}
	}
	for _, u := range l.usesOf(vm.Config.Hardware.Device) {
		if l.anyHandle(u.leaf) {
			return fileLocked(u.leaf.dsPath)
		}
		if file := l.usedByOther(u, vm.Self.Value); file != "" {
			return fileLocked(file)
		}
		if fault := l.intact(u.leaf); fault != nil {
			return fault
		}
	}
	return nil
}

// intact refuses a chain whose links do not fit each other any more.
func (l *Lab) intact(leaf *link) types.BaseMethodFault {
	why := l.brokenChain(leaf)
	if why == "" {
		return nil
	}
	f := &types.GenericVmConfigFault{Reason: why}
	f.FaultMessage = []types.LocalizableMessage{
		message(keyNoBackEnd, strings.Replace(textNoBackEnd, "%s", leaf.dsPath, 1), leaf.dsPath),
		message("msg.disklib.chain", why), // the key is a guess, the text is that of Broadcom KB 345254
	}
	return f
}

// brokenChain says why a chain cannot be opened, or "".
func (l *Lab) brokenChain(leaf *link) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, at := range leaf.chain() {
		if at.broken != "" {
			return at.broken
		}
	}
	return ""
}

// mayHotAdd checks what a running VM is about to open.
func (l *Lab) mayHotAdd(disk *types.VirtualDisk, at *link, self string) types.BaseMethodFault {
	u := useOf(disk, at)
	if u.write && l.anyHandle(at) || l.openForWriting(map[int32]*link{0: at}) != "" {
		return l.wrapped("hot-add", fileLocked(at.dsPath))
	}
	if file := l.usedByOther(u, self); file != "" {
		return l.wrapped("hot-add", fileLocked(file))
	}
	return l.intact(at)
}

// meetHotAdd is where a fault of open over hotadd meets who attaches a disk without VDDK. A crash or a lost connection
// has nobody to befall here.
func (l *Lab) meetHotAdd(at *link) types.BaseMethodFault {
	owner := ""
	if vm := l.vm(types.ManagedObjectReference{Type: "VirtualMachine", Value: at.owner}); vm != nil {
		owner = plainName(vm.Name)
	}
	fault := l.library.take(opOpen, owner, "hotadd")
	time.Sleep(fault.freeze)
	switch fault.code {
	case 0:
		return nil
	case vixLocked:
		return l.wrapped("hot-add", fileLocked(at.dsPath))
	}
	f := &types.GenericVmConfigFault{Reason: "the lab was asked to refuse it"}
	f.FaultMessage = localized(f.Reason)
	return f
}
