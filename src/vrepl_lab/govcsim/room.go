package main

import (
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// gates count what a host does at once.
type gates struct {
	sync.Mutex
	freed *sync.Cond
	now   map[string]int
	peak  map[string]int
}

func newGates() *gates {
	g := &gates{now: map[string]int{}, peak: map[string]int{}}
	g.freed = sync.NewCond(g)
	return g
}

// admit lets a power-on begin when its host does not do too many at once (power_on_limit), and takes the time that it
// takes (power_on_ms). What it returns ends it.
func (l *Lab) admit(ctx *simulator.Context, vm *simulator.VirtualMachine) func() {
	host := l.hostName(ctx, vm)
	g := l.powerOns
	g.Lock()
	for limit := l.config().PowerOnLimit; limit > 0 && g.now[host] >= limit; limit = l.config().PowerOnLimit {
		g.freed.Wait()
	}
	g.now[host]++
	g.peak[host] = max(g.peak[host], g.now[host])
	g.Unlock()
	time.Sleep(time.Duration(l.config().PowerOnMS) * time.Millisecond)
	return func() {
		g.Lock()
		g.now[host]--
		g.Unlock()
		g.freed.Broadcast()
	}
}

// powerOnPeaks is how many power-ons each host had at once.
func (l *Lab) powerOnPeaks() map[string]int {
	l.powerOns.Lock()
	defer l.powerOns.Unlock()
	peaks := map[string]int{}
	for host, n := range l.powerOns.peak {
		peaks[host] = n
	}
	return peaks
}

func (l *Lab) hostName(ctx *simulator.Context, vm *simulator.VirtualMachine) string {
	if vm.Runtime.Host == nil {
		return ""
	}
	host, _ := ctx.Map.Get(*vm.Runtime.Host).(*simulator.HostSystem)
	if host == nil {
		return ""
	}
	return host.Name
}

// room refuses a power-on for which its host has no memory left. The caller holds the VM's lock.
func (l *Lab) room(ctx *simulator.Context, vm *simulator.VirtualMachine) types.BaseMethodFault {
	limits := l.config().HostMemoryMiB
	limit, ok := limits[l.hostName(ctx, vm)]
	if !ok {
		if limit, ok = limits["*"]; !ok {
			return nil
		}
	}
	used := 0
	for _, entity := range ctx.Map.All("VirtualMachine") {
		other := entity.(*simulator.VirtualMachine)
		if other != vm && other.Runtime.Host != nil && *other.Runtime.Host == *vm.Runtime.Host &&
			other.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn {
			used += int(other.Config.Hardware.MemoryMB)
		}
	}
	want := int(vm.Config.Hardware.MemoryMB)
	if used+want <= limit {
		return nil
	}
	f := &types.InsufficientMemoryResourcesFault{
		Unreserved: int64(max(limit-used, 0)) << 20, Requested: int64(want) << 20,
	}
	f.FaultMessage = localized(fmt.Sprintf(
		"The host does not have sufficient memory resources to satisfy the reservation: %d MiB of %d MiB are free.",
		max(limit-used, 0), limit))
	return f
}

// losePower is what a failing host does to a VM: it is off at once, and what change tracking had only in memory is gone.
// The host notices at the next power-on, and only then the change IDs become void (Broadcom KB 432633); until then
// runtime.cleanPowerOff alone tells.
func (l *Lab) losePower(r *http.Request) (any, error) {
	vm, err := l.vmNamed(r)
	if err != nil {
		return nil, err
	}
	st := l.state(vm.Self)
	st.data.Lock()
	defer st.data.Unlock()
	ctx := l.context()
	var fault types.BaseMethodFault
	ctx.WithLock(vm, func() {
		if vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOff {
			err = fmt.Errorf("%s is off", vm.Name)
			return
		}
		if fault = l.powerOff(ctx, vm); fault == nil {
			cleanPowerOff(ctx, vm, true, false)
		}
	})
	if fault != nil {
		err = fmt.Errorf("%s", faultText(fault))
	}
	if err != nil {
		return nil, err
	}
	for _, t := range st.trackers {
		if err := t.forget(); err != nil {
			return nil, err
		}
	}
	st.lostPower = len(st.trackers) > 0
	return nil, nil
}

// afterPowerLoss voids the change IDs of a VM that lost power while it was tracked.
func (l *Lab) afterPowerLoss(st *vmState) error {
	if !st.lostPower {
		return nil
	}
	st.lostPower = false
	for _, t := range st.trackers {
		if err := t.reset(l.identifier("ctk")); err != nil {
			return err
		}
	}
	return nil
}
