package main

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// hotAddLimit is the largest disk that HotAdd takes: 62 TiB.
const hotAddLimit = 62 << 40

// sysroot is what a proxy machine sees of itself.
func (l *Lab) sysroot(proxy, name string) string {
	return filepath.Join(l.root, "proxies", proxy, "sysroot", name)
}

// proxyVM finds the VM that a proxy is: exactly one VM of this vCenter has its BIOS uuid, and it runs.
func (l *Lab) proxyVM(proxy string) (*simulator.VirtualMachine, *vixFault) {
	if proxy == "" || strings.ContainsAny(proxy, "/") {
		return nil, fails(vixAccess, "the proxy has no name")
	}
	raw, err := os.ReadFile(l.sysroot(proxy, "sys/class/dmi/id/product_uuid"))
	uuid := strings.ToLower(strings.TrimSpace(string(raw)))
	if err != nil || uuid == "" {
		return nil, fails(vixAccess, "the proxy %s is no virtual machine", proxy)
	}
	ctx := l.context()
	var found []*simulator.VirtualMachine
	for _, entity := range ctx.Map.All("VirtualMachine") {
		vm := entity.(*simulator.VirtualMachine)
		ctx.WithLock(vm, func() {
			if strings.ToLower(vm.Config.Uuid) == uuid {
				found = append(found, vm)
			}
		})
	}
	if len(found) != 1 {
		return nil, fails(vixAccess, "%d virtual machines here have the BIOS uuid of proxy %s", len(found), proxy)
	}
	return found[0], nil
}

// hotAddPrivileges are what the user must have on the proxy's VM.
var hotAddPrivileges = []string{
	"VirtualMachine.Config.AddExistingDisk", "VirtualMachine.Config.AddRemoveDevice", "VirtualMachine.Config.RemoveDisk",
	"VirtualMachine.Config.Settings", "VirtualMachine.Config.Resource",
}

// tryHotAdd attaches the disk to the proxy's VM.
func (l *Lab) tryHotAdd(t *target, h *handle) *vixFault {
	proxy, fault := l.proxyVM(h.proxy)
	if fault != nil {
		return fault
	}
	if id := l.lacked(hotAddPrivileges...); id != "" {
		return fails(vixAccess, "missing privilege %s on the proxy's virtual machine", id)
	}
	switch {
	case h.write && t.snapshot != "":
		return fails(vixReadOnly, "a snapshot's disk cannot be written in this mode")
	case proxy.Self == t.vm.Self:
		return fails(vixAccess, "HotAdd cannot take the proxy's own disks")
	case t.ide:
		return fails(vixAccess, "HotAdd does not take IDE disks")
	case t.at.capacity > hotAddLimit:
		return fails(vixAccess, "the disk is larger than 62 TiB")
	}
	if file := l.acquire(h); file != "" {
		return fails(vixLocked, "locked: %s", file)
	}
	ctx := l.context()
	ctx.WithLock(proxy, func() { fault = l.attach(ctx, proxy, t, h) })
	if fault != nil {
		l.drop(h)
	}
	return fault
}

// attach puts a disk on the first free SCSI slot. The caller holds the proxy VM's lock.
func (l *Lab) attach(ctx *simulator.Context, proxy *simulator.VirtualMachine, t *target, h *handle) *vixFault {
	if proxy.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOn {
		return fails(vixAccess, "the proxy's virtual machine %s does not run", proxy.Name)
	}
	for _, at := range h.links {
		if fault := l.mounted(ctx, *proxy.Runtime.Host, storeOf(at.dsPath)); fault != nil {
			return fails(vixAccess, "the proxy's host does not mount %s", storeOf(at.dsPath))
		}
	}
	devices := copyDevices(proxy.Config.Hardware.Device)
	used := map[[2]int32]bool{}
	key := int32(2000)
	for _, device := range devices {
		d := device.GetVirtualDevice()
		if d.UnitNumber != nil {
			used[[2]int32{d.ControllerKey, *d.UnitNumber}] = true
		}
		if d.Key >= key && d.Key < 3000 {
			key = d.Key + 1
		}
	}
	for _, device := range devices {
		if _, ok := device.(types.BaseVirtualSCSIController); !ok {
			continue
		}
		controller := device.GetVirtualDevice().Key
		for unit := int32(0); unit < 16; unit++ {
			if unit == 7 || used[[2]int32{controller, unit}] {
				continue
			}
			disk := &types.VirtualDisk{}
			disk.Key, disk.ControllerKey, disk.UnitNumber = key, controller, types.NewInt32(unit)
			disk.DeviceInfo = &types.Description{Label: "Hard disk (HotAdd of " + t.vm.Name + ")"}
			mode := types.VirtualDiskModeIndependent_nonpersistent
			if h.write {
				mode = types.VirtualDiskModeIndependent_persistent
			}
			disk.Backing = &types.VirtualDiskFlatVer2BackingInfo{
				DiskMode: string(mode), Sharing: string(types.VirtualDiskSharingSharingNone),
			}
			l.setBacking(disk, t.at, "")
			l.setDevices(ctx, proxy, append(devices, disk))
			l.summarize(ctx, proxy)
			l.mu.Lock()
			h.proxyVM, h.device = proxy.Self, key
			l.mu.Unlock()
			return nil
		}
	}
	return fails(vixFail, "no SCSI slot is free on %s", proxy.Name)
}

// detachHotAdd takes a disk off the proxy's VM again.
func (l *Lab) detachHotAdd(h *handle) {
	l.mu.Lock()
	key, ref := h.device, h.proxyVM
	h.device = 0
	l.mu.Unlock()
	proxy := l.vm(ref)
	if key == 0 || proxy == nil {
		return
	}
	ctx := l.context()
	ctx.WithLock(proxy, func() {
		var left []types.BaseVirtualDevice
		for _, device := range copyDevices(proxy.Config.Hardware.Device) {
			if device.GetVirtualDevice().Key != key {
				left = append(left, device)
			}
		}
		l.setDevices(ctx, proxy, left)
		l.summarize(ctx, proxy)
	})
}

// cleanup detaches what dead clients of a proxy left on its VM; remaining are disks of live clients.
func (l *Lab) cleanup(proxy string) (cleaned, remaining int) {
	l.mu.Lock()
	var left []*handle
	for h := range l.handles {
		if h.proxy != proxy || h.device == 0 {
			continue
		}
		if h.lingering {
			left = append(left, h)
		} else {
			remaining++
		}
	}
	l.mu.Unlock()
	for _, h := range left {
		l.detachHotAdd(h)
		l.drop(h)
	}
	return len(left), remaining
}

// trySAN needs the LUN behind the datastore in the proxy's /dev/disk/by-id; it writes thick base disks only.
func (l *Lab) trySAN(t *target, h *handle) *vixFault {
	for _, at := range h.links {
		store := storeOf(at.dsPath)
		l.mu.Lock()
		ds := l.stores[store]
		l.mu.Unlock()
		if ds == nil || ds.Type != "VMFS" || ds.NAA == "" {
			return fails(vixAccess, "%s is no VMFS datastore on a LUN", store)
		}
		if !l.seesLUN(h.proxy, ds.NAA) {
			return fails(vixAccess, "the proxy %s does not see %s", h.proxy, ds.NAA)
		}
	}
	if h.write && (t.at.parent != nil || t.at.thin) {
		return fails(vixReadOnly, "SAN writes thick base disks only")
	}
	if file := l.acquire(h); file != "" {
		return fails(vixLocked, "locked: %s", file)
	}
	return nil
}

func (l *Lab) seesLUN(proxy, naa string) bool {
	if proxy == "" || strings.ContainsAny(proxy, "/") {
		return false
	}
	entries, err := os.ReadDir(l.sysroot(proxy, "dev/disk/by-id"))
	if err != nil {
		return false
	}
	id := strings.ToLower(strings.TrimPrefix(naa, "naa."))
	for _, entry := range entries {
		if strings.Contains(strings.ToLower(entry.Name()), id) {
			return true
		}
	}
	return false
}
