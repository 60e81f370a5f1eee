package main

import (
	"slices"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// isolatedSwitch is the seeded switch that has no uplink; the seeded network "isolated" is on it.
const isolatedSwitch = "vSwitch-isolated"

// networkMethods are those of HostNetworkSystem. govcsim knows one set of port groups per datacenter; on ESXi each host
// has its own, and a network is there once for all hosts that have a port group of that name.
type networkMethods struct {
	shadow
	lab *Lab
}

// hostOf finds the host whose network system this is. The shadow's methods get the real target from the call.
func (l *Lab) hostOf(ctx *simulator.Context, system types.ManagedObjectReference) *simulator.HostSystem {
	for _, entity := range ctx.Map.All("HostSystem") {
		host := entity.(*simulator.HostSystem)
		if ref := host.ConfigManager.NetworkSystem; ref != nil && *ref == system {
			return host
		}
	}
	return nil
}

// onNetwork runs do on a copy of a host's network configuration and publishes what it made of it.
func (l *Lab) onNetwork(
	this types.ManagedObjectReference,
	do func(ctx *simulator.Context, host *simulator.HostSystem, info *types.HostNetworkInfo) types.BaseMethodFault,
) types.BaseMethodFault {
	ctx := l.context()
	host := l.hostOf(ctx, this)
	if host == nil {
		return &types.ManagedObjectNotFound{Obj: this}
	}
	l.networks.Lock()
	defer l.networks.Unlock()
	info := *networkInfo(host)
	info.Vswitch, info.Portgroup = slices.Clone(info.Vswitch), slices.Clone(info.Portgroup)
	if fault := do(ctx, host, &info); fault != nil {
		return fault
	}
	l.publishNetwork(ctx, host, &info)
	return nil
}

func networkInfo(host *simulator.HostSystem) *types.HostNetworkInfo {
	if host.Config.Network == nil {
		return &types.HostNetworkInfo{}
	}
	return host.Config.Network
}

func (l *Lab) publishNetwork(ctx *simulator.Context, host *simulator.HostSystem, info *types.HostNetworkInfo) {
	for i := range info.Vswitch {
		v := &info.Vswitch[i]
		v.Portgroup = nil
		for j := range info.Portgroup {
			g := &info.Portgroup[j]
			if g.Spec.VswitchName == v.Name {
				g.Vswitch = v.Key
				v.Portgroup = append(v.Portgroup, g.Key)
			}
		}
	}
	ctx.WithLock(host, func() {
		ctx.Update(host, []types.PropertyChange{{Name: "config.network", Val: info}})
	})
	if system, ok := ctx.Map.Get(*host.ConfigManager.NetworkSystem).(*simulator.HostNetworkSystem); ok {
		ctx.WithLock(system, func() {
			ctx.Update(system, []types.PropertyChange{{Name: "networkInfo", Val: info}})
		})
	}
}

func findSwitch(info *types.HostNetworkInfo, name string) int {
	return slices.IndexFunc(info.Vswitch, func(v types.HostVirtualSwitch) bool { return v.Name == name })
}

func findGroup(info *types.HostNetworkInfo, name string) int {
	return slices.IndexFunc(info.Portgroup, func(g types.HostPortGroup) bool { return g.Spec.Name == name })
}

func newSwitch(name string, spec types.HostVirtualSwitchSpec) types.HostVirtualSwitch {
	if spec.NumPorts == 0 {
		spec.NumPorts = 128
	}
	v := types.HostVirtualSwitch{
		Name: name, Key: "key-vim.host.VirtualSwitch-" + name, NumPorts: spec.NumPorts,
		NumPortsAvailable: spec.NumPorts, Mtu: 1500, Spec: spec,
	}
	if bond, ok := spec.Bridge.(*types.HostVirtualSwitchBondBridge); ok {
		for _, nic := range bond.NicDevice {
			v.Pnic = append(v.Pnic, "key-vim.host.PhysicalNic-"+nic)
		}
	}
	return v
}

// AddVirtualSwitch makes a switch; without a bridge in its specification it has no uplink.
func (m *networkMethods) AddVirtualSwitch(ctx *simulator.Context, req *types.AddVirtualSwitch) soap.HasFault {
	body := &methods.AddVirtualSwitchBody{}
	fault := m.lab.onNetwork(req.This, func(_ *simulator.Context, _ *simulator.HostSystem, info *types.HostNetworkInfo) types.BaseMethodFault {
		if req.VswitchName == "" || len(req.VswitchName) > 32 {
			return invalidArgument("vswitchName")
		}
		if findSwitch(info, req.VswitchName) >= 0 {
			return &types.AlreadyExists{Name: req.VswitchName}
		}
		spec := types.HostVirtualSwitchSpec{}
		if req.Spec != nil {
			spec = *req.Spec
		}
		info.Vswitch = append(info.Vswitch, newSwitch(req.VswitchName, spec))
		return nil
	})
	if fault != nil {
		body.Fault_ = simulator.Fault(faultText(fault), fault)
	} else {
		body.Res = new(types.AddVirtualSwitchResponse)
	}
	return body
}

// RemoveVirtualSwitch removes a switch, and its port groups with it, unless one of them is in use.
func (m *networkMethods) RemoveVirtualSwitch(ctx *simulator.Context, req *types.RemoveVirtualSwitch) soap.HasFault {
	body := &methods.RemoveVirtualSwitchBody{}
	fault := m.lab.onNetwork(req.This, func(ctx *simulator.Context, host *simulator.HostSystem, info *types.HostNetworkInfo) types.BaseMethodFault {
		at := findSwitch(info, req.VswitchName)
		if at < 0 {
			return &types.NotFound{}
		}
		var names []string
		for _, g := range info.Portgroup {
			if g.Spec.VswitchName == req.VswitchName {
				names = append(names, g.Spec.Name)
			}
		}
		for _, name := range names {
			if fault := m.lab.inUse(ctx, host, name); fault != nil {
				return fault
			}
		}
		for _, name := range names {
			m.lab.dropGroup(ctx, host, info, name)
		}
		info.Vswitch = slices.Delete(info.Vswitch, at, at+1)
		return nil
	})
	if fault != nil {
		body.Fault_ = simulator.Fault(faultText(fault), fault)
	} else {
		body.Res = new(types.RemoveVirtualSwitchResponse)
	}
	return body
}

// AddPortGroup makes a port group on one host.
func (m *networkMethods) AddPortGroup(ctx *simulator.Context, req *types.AddPortGroup) soap.HasFault {
	body := &methods.AddPortGroupBody{}
	fault := m.lab.onNetwork(req.This, func(ctx *simulator.Context, host *simulator.HostSystem, info *types.HostNetworkInfo) types.BaseMethodFault {
		return m.lab.addGroup(ctx, host, info, req.Portgrp)
	})
	if fault != nil {
		body.Fault_ = simulator.Fault(faultText(fault), fault)
	} else {
		body.Res = new(types.AddPortGroupResponse)
	}
	return body
}

func (l *Lab) addGroup(
	ctx *simulator.Context, host *simulator.HostSystem, info *types.HostNetworkInfo, spec types.HostPortGroupSpec,
) types.BaseMethodFault {
	if spec.Name == "" || spec.VlanId < 0 || spec.VlanId > 4095 {
		return invalidArgument("portgrp")
	}
	if findSwitch(info, spec.VswitchName) < 0 {
		return &types.NotFound{}
	}
	if findGroup(info, spec.Name) >= 0 {
		return &types.AlreadyExists{Name: spec.Name}
	}
	network, fault := l.network(ctx, host, spec.Name)
	if fault != nil {
		return fault
	}
	info.Portgroup = append(info.Portgroup, types.HostPortGroup{
		Key: "key-vim.host.PortGroup-" + spec.Name, Spec: spec, ComputedPolicy: spec.Policy,
	})
	ref := network.Reference()
	ctx.WithLock(network, func() {
		if !contains(network.Host, host.Self) {
			ctx.Update(network, []types.PropertyChange{{Name: "host", Val: append(slices.Clone(network.Host), host.Self)}})
		}
	})
	add := func(obj mo.Reference, have []types.ManagedObjectReference) {
		if !contains(have, ref) {
			ctx.WithLock(obj, func() {
				ctx.Update(obj, []types.PropertyChange{{Name: "network", Val: append(slices.Clone(have), ref)}})
			})
		}
	}
	add(host, host.Network)
	if cluster, ok := ctx.Map.Get(*host.Parent).(*simulator.ClusterComputeResource); ok {
		add(cluster, cluster.Network)
	}
	return nil
}

// network finds the network of a name in the host's datacenter, or makes it.
func (l *Lab) network(ctx *simulator.Context, host *simulator.HostSystem, name string) (*mo.Network, types.BaseMethodFault) {
	folder := l.networkFolder(ctx, host)
	if found := ctx.Map.FindByName(name, folder.ChildEntity); found != nil {
		if network, ok := ctx.Map.Get(found.Reference()).(*mo.Network); ok {
			return network, nil
		}
		return nil, &types.DuplicateName{Name: name, Object: found.Reference()}
	}
	network := &mo.Network{}
	network.Name = name
	network.Entity().Name = name
	ctx.WithLock(folder, func() { ctx.Map.PutEntity(folder, ctx.Map.NewEntity(network)) })
	ctx.WithLock(folder, func() {
		ctx.Update(folder, []types.PropertyChange{
			{Name: "childEntity", Val: append(slices.Clone(folder.ChildEntity), network.Reference())},
		})
		dc := ctx.Map.Get(*folder.Parent).(*simulator.Datacenter)
		ctx.Update(dc, []types.PropertyChange{{Name: "network", Val: append(slices.Clone(dc.Network), network.Reference())}})
	})
	ref := network.Reference()
	network.Summary = &types.NetworkSummary{Network: &ref, Name: name, Accessible: true}
	return network, nil
}

func (l *Lab) networkFolder(ctx *simulator.Context, host *simulator.HostSystem) *simulator.Folder {
	for at := host.Parent; at != nil; {
		switch obj := ctx.Map.Get(*at).(type) {
		case *simulator.Datacenter:
			return ctx.Map.Get(obj.NetworkFolder).(*simulator.Folder)
		case mo.Entity:
			at = obj.Entity().Parent
		default:
			at = nil
		}
	}
	dc := ctx.Map.Get(l.datacenter).(*simulator.Datacenter)
	return ctx.Map.Get(dc.NetworkFolder).(*simulator.Folder)
}

// RemovePortGroup removes a port group from one host; the network goes when no host has it any more.
func (m *networkMethods) RemovePortGroup(ctx *simulator.Context, req *types.RemovePortGroup) soap.HasFault {
	body := &methods.RemovePortGroupBody{}
	fault := m.lab.onNetwork(req.This, func(ctx *simulator.Context, host *simulator.HostSystem, info *types.HostNetworkInfo) types.BaseMethodFault {
		if findGroup(info, req.PgName) < 0 {
			return &types.NotFound{}
		}
		if fault := m.lab.inUse(ctx, host, req.PgName); fault != nil {
			return fault
		}
		m.lab.dropGroup(ctx, host, info, req.PgName)
		return nil
	})
	if fault != nil {
		body.Fault_ = simulator.Fault(faultText(fault), fault)
	} else {
		body.Res = new(types.RemovePortGroupResponse)
	}
	return body
}

// inUse refuses what a running VM of the host is connected to.
func (l *Lab) inUse(ctx *simulator.Context, host *simulator.HostSystem, name string) types.BaseMethodFault {
	for _, ref := range host.Vm {
		vm := l.vm(ref)
		if vm == nil || vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOn {
			continue
		}
		for _, card := range ethernetCards(vm.Config.Hardware.Device) {
			if networkName(ctx, card) == name {
				return &types.ResourceInUse{Type: "Network", Name: name}
			}
		}
	}
	return nil
}

func (l *Lab) dropGroup(ctx *simulator.Context, host *simulator.HostSystem, info *types.HostNetworkInfo, name string) {
	at := findGroup(info, name)
	info.Portgroup = slices.Delete(info.Portgroup, at, at+1)
	folder := l.networkFolder(ctx, host)
	found := ctx.Map.FindByName(name, folder.ChildEntity)
	if found == nil {
		return
	}
	network, ok := ctx.Map.Get(found.Reference()).(*mo.Network)
	if !ok {
		return
	}
	ref := network.Reference()
	drop := func(obj mo.Reference, property string, have []types.ManagedObjectReference, gone types.ManagedObjectReference) {
		left := slices.DeleteFunc(slices.Clone(have), func(r types.ManagedObjectReference) bool { return r == gone })
		ctx.WithLock(obj, func() { ctx.Update(obj, []types.PropertyChange{{Name: property, Val: left}}) })
	}
	drop(host, "network", host.Network, ref)
	drop(network, "host", network.Host, host.Self)
	if len(network.Host) > 0 || len(network.Vm) > 0 {
		return
	}
	if cluster, ok := ctx.Map.Get(*host.Parent).(*simulator.ClusterComputeResource); ok {
		drop(cluster, "network", cluster.Network, ref)
	}
	drop(folder, "childEntity", folder.ChildEntity, ref)
	if dc, ok := ctx.Map.Get(*folder.Parent).(*simulator.Datacenter); ok {
		drop(dc, "network", dc.Network, ref)
	}
	ctx.Map.Remove(ctx, ref)
}

// isolated tells whether a network of this name has no uplink on the VM's host.
func (l *Lab) isolated(vm *simulator.VirtualMachine, name string) bool {
	host, _ := l.svc.Context.Map.Get(*vm.Runtime.Host).(*simulator.HostSystem)
	if host == nil {
		return false
	}
	info := networkInfo(host)
	at := findGroup(info, name)
	if at < 0 {
		return false
	}
	on := findSwitch(info, info.Portgroup[at].Spec.VswitchName)
	return on >= 0 && len(info.Vswitch[on].Pnic) == 0
}

// seedSwitches gives each host vSwitch0 with an uplink and a switch without one, and the inventory's port groups on them.
func (l *Lab) seedSwitches(ctx *simulator.Context, host *simulator.HostSystem, names []string) error {
	info := types.HostNetworkInfo{}
	if old := host.Config.Network; old != nil {
		info = *old
	}
	uplink := &types.HostVirtualSwitchBondBridge{NicDevice: []string{"vmnic0"}}
	info.Vswitch = []types.HostVirtualSwitch{
		newSwitch("vSwitch0", types.HostVirtualSwitchSpec{NumPorts: 128, Bridge: uplink}),
		newSwitch(isolatedSwitch, types.HostVirtualSwitchSpec{NumPorts: 128}),
	}
	info.Portgroup = nil
	for _, name := range names {
		on := "vSwitch0"
		if name == "isolated" {
			on = isolatedSwitch
		}
		spec := types.HostPortGroupSpec{Name: name, VswitchName: on}
		if fault := l.addGroup(ctx, host, &info, spec); fault != nil {
			return faultAsError(fault)
		}
	}
	l.publishNetwork(ctx, host, &info)
	return nil
}
