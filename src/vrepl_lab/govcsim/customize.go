package main

import (
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// CustomizeVMTask is CustomizeVM_Task: the specification is checked now and takes effect when the guest boots next.
func (m *vmMethods) CustomizeVMTask(ctx *simulator.Context, req *types.CustomizeVM_Task) soap.HasFault {
	l, vm := m.lab, m.lab.vm(req.This)
	ref := l.vmTask(vm, "CustomizeVM_Task", false,
		func(ctx *simulator.Context, _ *Task, st *vmState) (types.AnyType, types.BaseMethodFault) {
			var fault types.BaseMethodFault
			ctx.WithLock(vm, func() { fault = l.customizeNext(ctx, vm, st, &req.Spec) })
			return nil, fault
		})
	return &methods.CustomizeVM_TaskBody{Res: &types.CustomizeVM_TaskResponse{Returnval: ref}}
}

// CheckCustomizationSpec refuses what CustomizeVM_Task would refuse.
func (m *vmMethods) CheckCustomizationSpec(ctx *simulator.Context, req *types.CheckCustomizationSpec) soap.HasFault {
	l, vm := m.lab, m.lab.vm(req.This)
	own := l.context()
	body := &methods.CheckCustomizationSpecBody{}
	var fault types.BaseMethodFault
	own.WithLock(vm, func() { fault = l.mayCustomize(vm, l.state(vm.Self), &req.Spec) })
	if fault != nil {
		body.Fault_ = simulator.Fault(faultText(fault), fault)
	} else {
		body.Res = new(types.CheckCustomizationSpecResponse)
	}
	return body
}

// customizeNext keeps a specification for the next power-on. The caller holds the VM's lock.
func (l *Lab) customizeNext(
	ctx *simulator.Context, vm *simulator.VirtualMachine, st *vmState, spec *types.CustomizationSpec,
) types.BaseMethodFault {
	if state := vm.Runtime.PowerState; state != types.VirtualMachinePowerStatePoweredOff {
		return &types.InvalidPowerState{RequestedState: types.VirtualMachinePowerStatePoweredOff, ExistingState: state}
	}
	if fault := l.mayCustomize(vm, st, spec); fault != nil {
		return fault
	}
	kept := *spec
	st.customize = &kept
	pending := vmFolder(vm) + "/imc-" + fmt.Sprintf("%x", time.Now().UnixNano())
	if vm.Config.Tools == nil {
		vm.Config.Tools = &types.ToolsConfigInfo{}
	}
	ctx.Update(vm, []types.PropertyChange{{Name: "config.tools.pendingCustomization", Val: pending}})
	return nil
}

// mayCustomize is what vCenter finds wrong with a specification before it takes it. That a specification for the other
// family of guest systems is UncustomizableGuest is a guess; that one for a guest without known Tools is it, too, is what
// "Customization of the guest operating system '...' is not supported in this configuration" stands for.
func (l *Lab) mayCustomize(vm *simulator.VirtualMachine, st *vmState, spec *types.CustomizationSpec) types.BaseMethodFault {
	if st.customize != nil {
		return &types.CustomizationPending{}
	}
	wrong := &types.UncustomizableGuest{UncustomizableGuestOS: vm.Config.GuestId}
	wrong.FaultMessage = localized("Customization of the guest operating system '" + vm.Config.GuestId +
		"' is not supported in this configuration.")
	windows := isWindows(vm.Config.GuestId)
	var name types.BaseCustomizationName
	limit, property := 63, "spec.identity.hostName"
	switch id := spec.Identity.(type) {
	case *types.CustomizationLinuxPrep:
		if windows {
			return wrong
		}
		if id.Domain == "" {
			return invalidArgument("spec.identity.domain")
		}
		name = id.HostName
	case *types.CustomizationSysprep:
		if !windows {
			return wrong
		}
		name, limit, property = id.UserData.ComputerName, 15, "spec.identity.userData.computerName"
	case *types.CustomizationSysprepText, *types.CustomizationCloudinitPrep:
	default:
		return invalidArgument("spec.identity")
	}
	if fixed, ok := name.(*types.CustomizationFixedName); ok && (len(fixed.Name) > limit || !hostNames.MatchString(fixed.Name)) {
		return invalidArgument(property)
	}
	if _, ok := name.(*types.CustomizationUnknownName); ok {
		return invalidArgument(property)
	}
	cards := ethernetCards(vm.Config.Hardware.Device)
	if len(spec.NicSettingMap) != len(cards) {
		f := &types.NicSettingMismatch{NumberOfNicsInSpec: int32(len(spec.NicSettingMap)), NumberOfNicsInVM: int32(len(cards))}
		f.FaultMessage = localized(fmt.Sprintf(
			"The number of network adapter settings (%d) does not match that of network adapters (%d).",
			len(spec.NicSettingMap), len(cards)))
		return f
	}
	for i, nic := range spec.NicSettingMap {
		if fault := checkAdapter(fmt.Sprintf("spec.nicSettingMap[%d].adapter", i), &nic.Adapter); fault != nil {
			return fault
		}
		if nic.MacAddress != "" && position(cards, nic.MacAddress) < 0 {
			return invalidArgument(fmt.Sprintf("spec.nicSettingMap[%d].macAddress", i))
		}
	}
	if l.config().CustomizeTools && !st.toolsSeen {
		return wrong
	}
	return nil
}

var hostNames = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?$`)

func checkAdapter(path string, adapter *types.CustomizationIPSettings) types.BaseMethodFault {
	switch ip := adapter.Ip.(type) {
	case *types.CustomizationFixedIp:
		if a := net.ParseIP(ip.IpAddress); a == nil || a.To4() == nil {
			return invalidArgument(path + ".ip.ipAddress")
		}
		if prefixOf(adapter.SubnetMask) < 0 {
			return invalidArgument(path + ".subnetMask")
		}
	case *types.CustomizationUnknownIpGenerator, nil:
		return invalidArgument(path + ".ip")
	}
	for _, list := range [][]string{adapter.Gateway, adapter.DnsServerList} {
		for _, address := range list {
			if net.ParseIP(address) == nil {
				return invalidArgument(path)
			}
		}
	}
	if v6 := adapter.IpV6Spec; v6 != nil {
		for _, one := range v6.Ip {
			if fixed, ok := one.(*types.CustomizationFixedIpV6); ok {
				if a := net.ParseIP(fixed.IpAddress); a == nil || a.To4() != nil || fixed.SubnetMask < 1 || fixed.SubnetMask > 128 {
					return invalidArgument(path + ".ipV6Spec")
				}
			}
		}
	}
	return nil
}

// prefixOf is the length of a netmask such as 255.255.255.0; -1 for what is none.
func prefixOf(mask string) int {
	address := net.ParseIP(mask).To4()
	if address == nil {
		return -1
	}
	ones, bits := net.IPMask(address).Size()
	if bits == 0 || ones == 0 {
		return -1
	}
	return ones
}

func position(cards []*types.VirtualEthernetCard, mac string) int {
	return slices.IndexFunc(cards, func(c *types.VirtualEthernetCard) bool { return strings.EqualFold(c.MacAddress, mac) })
}

// customizeNow is the first boot after a specification was given: the guest is changed, and boots once more. It returns
// false when the guest does not come up.
func (l *Lab) customizeNow(
	ctx *simulator.Context, vm *simulator.VirtualMachine, st *vmState, guest guestRule, up func() bool,
) bool {
	var spec *types.CustomizationSpec
	ctx.WithLock(vm, func() {
		if spec = st.customize; spec == nil {
			return
		}
		st.customize = nil
		ctx.Update(vm, []types.PropertyChange{{Name: "config.tools.pendingCustomization", Val: ""}})
	})
	if spec == nil {
		return true
	}
	event := func() types.CustomizationEvent { return types.CustomizationEvent{VmEvent: l.vmEvent(ctx, vm)} }
	l.post(&types.CustomizationStartedEvent{CustomizationEvent: event()})
	if value(guest.Customize) == "hang" {
		return false
	}
	time.Sleep(time.Duration(*guest.BootMS) * time.Millisecond)
	if !up() {
		return false
	}
	failed := func(reason string) types.CustomizationFailed {
		return types.CustomizationFailed{CustomizationEvent: event(), Reason: reason}
	}
	if value(guest.Customize) == "fail" {
		l.post(&types.CustomizationUnknownFailure{CustomizationFailed: failed("customizationDisabled")})
		return true
	}
	fits := false
	ctx.WithLock(vm, func() {
		cards := ethernetCards(vm.Config.Hardware.Device)
		if fits = len(cards) == len(spec.NicSettingMap); fits {
			st.identity = l.customized(vm, st.identity, spec, cards)
		}
	})
	if !fits {
		l.post(&types.CustomizationNetworkSetupFailed{CustomizationFailed: failed("NicSettingMismatch")})
		return true
	}
	l.post(&types.CustomizationSucceeded{CustomizationEvent: event()})
	return up()
}

// customized is who a guest is after a specification was carried out in it.
func (l *Lab) customized(
	vm *simulator.VirtualMachine, old identity, spec *types.CustomizationSpec, cards []*types.VirtualEthernetCard,
) identity {
	is := identity{
		host: old.host, domain: old.domain, search: spec.GlobalIPSettings.DnsSuffixList,
		dns: slices.Clone(spec.GlobalIPSettings.DnsServerList), nics: map[int][]types.NetIpConfigInfoIpAddress{},
		gateways: map[int][]string{},
	}
	windows := false
	switch id := spec.Identity.(type) {
	case *types.CustomizationLinuxPrep:
		is.host, is.domain = computerName(vm, id.HostName), id.Domain
	case *types.CustomizationSysprep:
		is.host, windows = computerName(vm, id.UserData.ComputerName), true
		if id.Identification.JoinDomain != "" {
			is.domain = id.Identification.JoinDomain
		}
	}
	for i, nic := range spec.NicSettingMap {
		n := i
		if nic.MacAddress != "" {
			if at := position(cards, nic.MacAddress); at >= 0 {
				n = at
			}
		}
		var all []types.NetIpConfigInfoIpAddress
		if fixed, ok := nic.Adapter.Ip.(*types.CustomizationFixedIp); ok {
			all = append(all, types.NetIpConfigInfoIpAddress{
				IpAddress: fixed.IpAddress, PrefixLength: int32(prefixOf(nic.Adapter.SubnetMask)), State: "preferred",
			})
			is.gateways[n] = slices.Clone(nic.Adapter.Gateway)
		}
		if v6 := nic.Adapter.IpV6Spec; v6 != nil {
			for _, one := range v6.Ip {
				if fixed, ok := one.(*types.CustomizationFixedIpV6); ok {
					all = append(all, types.NetIpConfigInfoIpAddress{
						IpAddress: fixed.IpAddress, PrefixLength: fixed.SubnetMask, State: "preferred",
					})
				}
			}
			is.gateways[n] = append(is.gateways[n], v6.Gateway...)
		}
		if len(all) > 0 {
			is.nics[n] = all
		}
		if windows { // on Linux name servers are the system's; on Windows each adapter has its own
			is.dns = append(is.dns, nic.Adapter.DnsServerList...)
			if is.domain == "" {
				is.domain = nic.Adapter.DnsDomain
			}
		}
	}
	return is
}

func computerName(vm *simulator.VirtualMachine, name types.BaseCustomizationName) string {
	switch n := name.(type) {
	case *types.CustomizationFixedName:
		return n.Name
	case *types.CustomizationPrefixName:
		return n.Base + "-1"
	case *types.CustomizationVirtualMachineName:
		return plainName(vm.Name)
	}
	return plainName(vm.Name)
}

// vmEvent is what every event about a VM says. The caller does not hold the VM's lock.
func (l *Lab) vmEvent(ctx *simulator.Context, vm *simulator.VirtualMachine) types.VmEvent {
	var e types.VmEvent
	ctx.WithLock(vm, func() {
		e.Vm = &types.VmEventArgument{EntityEventArgument: types.EntityEventArgument{Name: vm.Name}, Vm: vm.Self}
		if host, ok := ctx.Map.Get(*vm.Runtime.Host).(*simulator.HostSystem); ok {
			e.Host = &types.HostEventArgument{
				EntityEventArgument: types.EntityEventArgument{Name: host.Name}, Host: host.Self,
			}
		}
	})
	if dc, ok := ctx.Map.Get(l.datacenter).(*simulator.Datacenter); ok {
		e.Datacenter = &types.DatacenterEventArgument{
			EntityEventArgument: types.EntityEventArgument{Name: dc.Name}, Datacenter: dc.Self,
		}
	}
	return e
}

// signedIn is a context with a session of the lab's user, which some of govcsim's methods want.
func (l *Lab) signedIn() *simulator.Context {
	ctx := l.context()
	ctx.Session = &simulator.Session{
		UserSession: types.UserSession{Key: "lab", UserName: l.user}, Registry: simulator.NewRegistry(), Map: ctx.Map,
	}
	return ctx
}

// post puts an event into the vCenter's history, as its user's doing.
func (l *Lab) post(event types.BaseEvent) {
	ctx := l.signedIn()
	manager := ctx.Map.EventManager()
	ctx.WithLock(manager, func() { manager.PostEvent(ctx, &types.PostEvent{EventToPost: event}) })
}
