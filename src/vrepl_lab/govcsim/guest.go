package main

import (
	"crypto/sha1"
	"fmt"
	"net"
	"path"
	"slices"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// guestRule is what a setting says of the guests in VMs whose name matches; what it leaves open, earlier rules say.
type guestRule struct {
	VM         string  `json:"vm"` // a name, or a pattern with * and ?
	Boots      *bool   `json:"boots"`
	BootMS     *int    `json:"boot_ms"`
	Ports      *[]int  `json:"ports"`
	IP         *string `json:"ip"`
	Heartbeat  *string `json:"heartbeat"`
	Shutdown   *string `json:"shutdown"` // ok, hang or refused
	ShutdownMS *int    `json:"shutdown_ms"`
	Login      *string `json:"login"` // USER:PASSWORD that guest operations take
	Customize  *string `json:"customize"`
}

func (r *guestRule) check() error {
	for _, port := range value(r.Ports) {
		if port < 1 || port > 65535 {
			return fmt.Errorf("no port: %d", port)
		}
	}
	if _, err := path.Match(r.VM, ""); err != nil || r.VM == "" {
		return fmt.Errorf("no name and no pattern: %q", r.VM)
	}
	for _, known := range []struct {
		given *string
		words []string
	}{
		{r.Heartbeat, []string{"green", "yellow", "red", "gray"}},
		{r.Shutdown, []string{"ok", "hang", "refused"}},
		{r.Customize, []string{"ok", "fail", "hang"}},
	} {
		if known.given != nil && !slices.Contains(known.words, *known.given) {
			return fmt.Errorf("%q is none of %v", *known.given, known.words)
		}
	}
	return nil
}

func value[T any](p *T) T {
	var none T
	if p == nil {
		return none
	}
	return *p
}

// guestOf is what the rules and the settings say of one VM's guest.
func (l *Lab) guestOf(name string) guestRule {
	s := l.config()
	found := guestRule{BootMS: &s.BootMS}
	for _, r := range s.Guests {
		if ok, _ := path.Match(r.VM, plainName(name)); !ok {
			continue
		}
		take(&found.Boots, r.Boots)
		take(&found.BootMS, r.BootMS)
		take(&found.Ports, r.Ports)
		take(&found.IP, r.IP)
		take(&found.Heartbeat, r.Heartbeat)
		take(&found.Shutdown, r.Shutdown)
		take(&found.ShutdownMS, r.ShutdownMS)
		take(&found.Login, r.Login)
		take(&found.Customize, r.Customize)
	}
	return found
}

func take[T any](into **T, given *T) {
	if given != nil {
		*into = given
	}
}

// identity is who a guest says that it is: what customisation wrote into it, else what the inventory or a rule says.
type identity struct {
	host, domain string
	dns, search  []string
	nics         map[int][]types.NetIpConfigInfoIpAddress // by position; nil: as before
	gateways     map[int][]string
}

// boot is a guest that comes up: after a while its Tools run, it has its addresses, and its services answer.
func (l *Lab) boot(vm *simulator.VirtualMachine, st *vmState, run int) {
	guest := l.guestOf(vm.Name)
	if guest.Boots != nil && !*guest.Boots {
		return
	}
	time.Sleep(time.Duration(*guest.BootMS) * time.Millisecond)
	ctx := l.context()
	up := func() bool {
		var on bool
		ctx.WithLock(vm, func() {
			on = vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn && st.run == run
		})
		return on
	}
	if !up() || !l.customizeNow(ctx, vm, st, guest, up) {
		return
	}
	ctx.WithLock(vm, func() {
		if vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOn || st.run != run {
			return
		}
		st.up = true
		l.setTools(ctx, vm, st.tools && !st.noTools)
		l.answer(vm, st, value(guest.Ports))
	})
}

// fresh begins a run of the guest; what belongs to the last one ends. The caller holds the VM's lock.
func (st *vmState) fresh() int {
	st.run++
	st.up = false
	for _, listener := range st.services {
		_ = listener.Close()
	}
	st.services = nil
	st.killGuest()
	return st.run
}

// bootTime shows since when the VM runs, or that it does not. The caller holds the VM's lock.
func bootTime(ctx *simulator.Context, vm *simulator.VirtualMachine, on bool) {
	var at types.AnyType
	if on {
		at = time.Now()
	}
	ctx.Update(vm, []types.PropertyChange{
		{Name: "runtime.bootTime", Val: at}, {Name: "summary.runtime.bootTime", Val: at},
	})
	cleanPowerOff(ctx, vm, !on, true)
}

// cleanPowerOff says of a VM that is off whether it was powered off in an orderly way; of another one it says nothing.
func cleanPowerOff(ctx *simulator.Context, vm *simulator.VirtualMachine, off, clean bool) {
	var said types.AnyType
	if off {
		said = clean
	}
	ctx.Update(vm, []types.PropertyChange{
		{Name: "runtime.cleanPowerOff", Val: said}, {Name: "summary.runtime.cleanPowerOff", Val: said},
	})
}

// answer opens the guest's TCP ports on its address, if that is on the loopback network; elsewhere nothing can listen.
// A guest whose first adapter is not connected, or is on a switch without an uplink, is not reached.
func (l *Lab) answer(vm *simulator.VirtualMachine, st *vmState, ports []int) {
	address := net.ParseIP(vm.Guest.IpAddress)
	if len(ports) == 0 || address == nil || !address.IsLoopback() || !l.reachable(vm) {
		return
	}
	for _, port := range ports {
		listener, err := net.Listen("tcp", net.JoinHostPort(address.String(), fmt.Sprint(port)))
		if err != nil {
			continue
		}
		st.services = append(st.services, listener)
		name := plainName(vm.Name)
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				fmt.Fprintf(conn, "%s\r\n", name)
				_ = conn.Close()
			}
		}()
	}
}

// reachable tells whether the guest's first adapter is on a network that leads out of its host.
func (l *Lab) reachable(vm *simulator.VirtualMachine) bool {
	cards := ethernetCards(vm.Config.Hardware.Device)
	if len(cards) == 0 {
		return false
	}
	if c := cards[0].Connectable; c != nil && !c.Connected {
		return false
	}
	return l.config().IsolatedReachable || !l.isolated(vm, networkName(l.svc.Context, cards[0]))
}

func ethernetCards(devices []types.BaseVirtualDevice) []*types.VirtualEthernetCard {
	var all []*types.VirtualEthernetCard
	for _, device := range devices {
		if card, ok := device.(types.BaseVirtualEthernetCard); ok {
			all = append(all, card.GetVirtualEthernetCard())
		}
	}
	slices.SortFunc(all, func(a, b *types.VirtualEthernetCard) int { return int(a.Key - b.Key) }) // edits reorder them
	return all
}

// networkName is the name of the network that an adapter is on.
func networkName(ctx *simulator.Context, card *types.VirtualEthernetCard) string {
	switch b := card.Backing.(type) {
	case *types.VirtualEthernetCardNetworkBackingInfo:
		return b.DeviceName
	case *types.VirtualEthernetCardDistributedVirtualPortBackingInfo:
		ref := types.ManagedObjectReference{Type: "DistributedVirtualPortgroup", Value: b.Port.PortgroupKey}
		if group, ok := ctx.Map.Get(ref).(*simulator.DistributedVirtualPortgroup); ok {
			return group.Name
		}
	case *types.VirtualEthernetCardOpaqueNetworkBackingInfo:
		return b.OpaqueNetworkId
	}
	return ""
}

// networkRef is the distributed port group or the opaque network that an adapter is on.
func networkRef(ctx *simulator.Context, card *types.VirtualEthernetCard) *types.ManagedObjectReference {
	switch b := card.Backing.(type) {
	case *types.VirtualEthernetCardDistributedVirtualPortBackingInfo:
		return &types.ManagedObjectReference{Type: "DistributedVirtualPortgroup", Value: b.Port.PortgroupKey}
	case *types.VirtualEthernetCardOpaqueNetworkBackingInfo:
		for _, entity := range ctx.Map.All("OpaqueNetwork") {
			network, ok := entity.(*mo.OpaqueNetwork)
			if !ok {
				continue
			}
			if summary, ok := network.Summary.(*types.OpaqueNetworkSummary); ok && summary.OpaqueNetworkId == b.OpaqueNetworkId {
				ref := network.Reference()
				return &ref
			}
		}
	}
	return nil
}

// addresses are what each adapter of the guest has.
func (l *Lab) addresses(vm *simulator.VirtualMachine, st *vmState, n int) []types.NetIpConfigInfoIpAddress {
	if set, ok := st.identity.nics[n]; ok {
		return set
	}
	guest := l.guestOf(vm.Name)
	ip := ""
	sum := sha1.Sum([]byte(fmt.Sprintf("%s/%d", vm.Config.InstanceUuid, n)))
	switch {
	case n == 0 && value(guest.IP) != "":
		ip = *guest.IP
	case n == 0 && len(value(guest.Ports)) > 0: // who answers must be reached; the lab's hosts have 127.20 to 127.219
		ip = fmt.Sprintf("127.%d.%d.%d", 220+sum[0]%31, sum[1], 1+sum[2]%250)
	case n == 0 && st.guestIP != "":
		ip = st.guestIP
	default:
		ip = fmt.Sprintf("10.%d.%d.%d", sum[0], sum[1], 1+sum[2]%250)
	}
	return []types.NetIpConfigInfoIpAddress{{IpAddress: ip, PrefixLength: 24, State: "preferred"}}
}

// nics is guest.net: what Tools say of each adapter, or nothing while they do not run.
func (l *Lab) nics(ctx *simulator.Context, vm *simulator.VirtualMachine, st *vmState, running bool, host string) []types.GuestNicInfo {
	var all []types.GuestNicInfo
	if !running {
		return nil
	}
	for n, card := range ethernetCards(vm.Config.Hardware.Device) {
		connected := card.Connectable == nil || card.Connectable.Connected
		info := types.GuestNicInfo{
			Network: networkName(ctx, card), MacAddress: card.MacAddress, Connected: connected, DeviceConfigId: card.Key,
			DnsConfig: &types.NetDnsConfigInfo{
				HostName: host, DomainName: st.identity.domain, IpAddress: st.identity.dns, SearchDomain: st.identity.search,
			},
		}
		if connected {
			config := &types.NetIpConfigInfo{IpAddress: l.addresses(vm, st, n)}
			for _, a := range config.IpAddress {
				info.IpAddress = append(info.IpAddress, a.IpAddress)
			}
			info.IpConfig = config
		}
		all = append(all, info)
	}
	return all
}

// stack is guest.ipStack: name resolution and default routes.
func (l *Lab) stack(st *vmState, nics []types.GuestNicInfo, host string) []types.GuestStackInfo {
	if len(nics) == 0 {
		return nil
	}
	info := types.GuestStackInfo{
		DnsConfig: &types.NetDnsConfigInfo{
			HostName: host, DomainName: st.identity.domain, IpAddress: st.identity.dns, SearchDomain: st.identity.search,
		},
		IpRouteConfig: &types.NetIpRouteConfigInfo{},
	}
	for n := range nics {
		for _, gateway := range st.identity.gateways[n] {
			whole := "0.0.0.0"
			if address := net.ParseIP(gateway); address != nil && address.To4() == nil {
				whole = "::"
			}
			info.IpRouteConfig.IpRoute = append(info.IpRouteConfig.IpRoute, types.NetIpRouteConfigInfoIpRoute{
				Network: whole, PrefixLength: 0,
				Gateway: types.NetIpRouteConfigInfoGateway{IpAddress: gateway, Device: fmt.Sprint(n)},
			})
		}
	}
	return []types.GuestStackInfo{info}
}

// setTools sets what vCenter shows of VMware Tools and of what they tell. The caller holds the VM's lock.
func (l *Lab) setTools(ctx *simulator.Context, vm *simulator.VirtualMachine, running bool) {
	st := l.state(vm.Self)
	status, run := types.VirtualMachineToolsStatusToolsNotRunning, types.VirtualMachineToolsRunningStatusGuestToolsNotRunning
	state, heartbeat := types.VirtualMachineGuestStateNotRunning, types.ManagedEntityStatusGray
	version := types.VirtualMachineToolsVersionStatusGuestToolsCurrent
	host, ip := "", ""
	if !st.tools {
		status, version = types.VirtualMachineToolsStatusToolsNotInstalled,
			types.VirtualMachineToolsVersionStatusGuestToolsNotInstalled
	}
	var nics []types.GuestNicInfo
	if running {
		status, run = types.VirtualMachineToolsStatusToolsOk, types.VirtualMachineToolsRunningStatusGuestToolsRunning
		state, heartbeat = types.VirtualMachineGuestStateRunning, types.ManagedEntityStatusGreen
		if given := l.guestOf(vm.Name).Heartbeat; given != nil {
			heartbeat = types.ManagedEntityStatus(*given)
		}
		host = st.guestHost
		if host == "" {
			host = vm.Name
		}
		if st.identity.host != "" {
			host = st.identity.host
		}
		nics = l.nics(ctx, vm, st, running, host)
		for _, nic := range nics {
			if ip == "" && len(nic.IpAddress) > 0 {
				ip = nic.IpAddress[0]
			}
		}
	}
	st.toolsSeen = st.toolsSeen || running
	ready := running
	guest := *vm.Guest
	guest.ToolsStatus, guest.ToolsRunningStatus = status, string(run)
	guest.ToolsVersionStatus, guest.ToolsVersionStatus2 = string(version), string(version)
	guest.ToolsVersion, guest.GuestState = "12389", string(state)
	guest.HostName, guest.IpAddress, guest.Net, guest.IpStack = host, ip, nics, l.stack(st, nics, host)
	guest.GuestOperationsReady, guest.InteractiveGuestOperationsReady = &ready, types.NewBool(false)
	guest.GuestStateChangeSupported = types.NewBool(true)
	guest.GuestId, guest.GuestFullName = vm.Config.GuestId, vm.Config.GuestFullName
	summary := types.VirtualMachineGuestSummary{
		GuestId: guest.GuestId, GuestFullName: guest.GuestFullName, ToolsStatus: status,
		ToolsVersionStatus: string(version), ToolsVersionStatus2: string(version), ToolsRunningStatus: string(run),
		HostName: host, IpAddress: ip,
	}
	ctx.Update(vm, []types.PropertyChange{
		{Name: "guest", Val: guest},
		{Name: "summary.guest", Val: summary},
		{Name: "guestHeartbeatStatus", Val: heartbeat},
		{Name: "summary.quickStats.guestHeartbeatStatus", Val: heartbeat},
	})
}
