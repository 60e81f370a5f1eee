package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// inventoryCategory is a category of tags.
type inventoryCategory struct {
	Name        string   `json:"name"`
	Description string   `json:"description"`
	Cardinality string   `json:"cardinality"` // SINGLE or MULTIPLE
	Tags        []string `json:"tags"`
}

// inventoryDVS is a distributed switch that every host is a member of.
type inventoryDVS struct {
	Name       string   `json:"name"`
	PortGroups []string `json:"port_groups"`
}

// inventoryTwin is a second datacenter, with one host, whose datastores and VMs have names that the first one has, too.
type inventoryTwin struct {
	Datacenter string       `json:"datacenter"`
	Host       string       `json:"host"`
	Datastores []*datastore `json:"datastores"` // as others see them; no VM can be made on them
	Home       *datastore   `json:"home"`       // where its VMs are; its name is its own
	VMs        []string     `json:"vms"`
}

// addDistributedSwitch makes a distributed switch with its port groups.
func (l *Lab) addDistributedSwitch(
	ctx *simulator.Context, client *vim25.Client, folder *object.Folder, dvs *inventoryDVS, hosts []types.ManagedObjectReference,
) error {
	spec := types.DVSCreateSpec{ConfigSpec: &types.VMwareDVSConfigSpec{}}
	config := spec.ConfigSpec.GetDVSConfigSpec()
	config.Name = dvs.Name
	for _, host := range hosts {
		config.Host = append(config.Host, types.DistributedVirtualSwitchHostMemberConfigSpec{
			Operation: string(types.ConfigSpecOperationAdd), Host: host,
		})
	}
	task, err := folder.CreateDVS(ctx, spec)
	if err != nil {
		return err
	}
	info, err := task.WaitForResult(ctx, nil)
	if err != nil {
		return err
	}
	made := object.NewDistributedVirtualSwitch(client, info.Result.(types.ManagedObjectReference))
	reconfigure, err := made.Reconfigure(ctx, &types.DVSConfigSpec{Host: config.Host})
	if err != nil {
		return err
	}
	if _, err := reconfigure.WaitForResult(ctx, nil); err != nil && !strings.Contains(err.Error(), "AlreadyExists") {
		return err
	}
	for _, name := range dvs.PortGroups {
		task, err := made.AddPortgroup(ctx, []types.DVPortgroupConfigSpec{{
			Name: name, Type: string(types.DistributedVirtualPortgroupPortgroupTypeEarlyBinding), NumPorts: 128,
		}})
		if err != nil {
			return err
		}
		if _, err := task.WaitForResult(ctx, nil); err != nil {
			return err
		}
	}
	return nil
}

// addOpaqueNetworks makes networks that NSX has made: a backing by name does not reach them.
func (l *Lab) addOpaqueNetworks(ctx *simulator.Context, folder types.ManagedObjectReference, names []string, hosts map[string]*simulator.HostSystem) error {
	f := ctx.Map.Get(folder).(*simulator.Folder)
	for _, name := range names {
		summary := types.OpaqueNetworkSummary{OpaqueNetworkId: l.newUUID("opaque"), OpaqueNetworkType: "nsx.LogicalSwitch"}
		summary.Name = name
		if err := f.AddOpaqueNetwork(ctx, summary); err != nil {
			return err
		}
		made := ctx.Map.FindByName(name, f.ChildEntity)
		network := ctx.Map.Get(made.Reference()).(*mo.OpaqueNetwork)
		if dc := ctx.Map.Get(l.datacenter).(*simulator.Datacenter); !contains(dc.Network, network.Self) {
			dc.Network = append(slices.Clone(dc.Network), network.Self)
		}
		for _, host := range hosts {
			network.Host = append(network.Host, host.Self)
			host.Network = append(slices.Clone(host.Network), network.Self)
		}
	}
	return nil
}

// place points the network adapters of a VM of the inventory at distributed and opaque networks, where their names are
// such a network's.
func (l *Lab) place(ctx *simulator.Context, changes []types.BaseVirtualDeviceConfigSpec) {
	for _, change := range changes {
		nic, ok := change.GetVirtualDeviceConfigSpec().Device.(types.BaseVirtualEthernetCard)
		if !ok {
			continue
		}
		card := nic.GetVirtualEthernetCard()
		backing, ok := card.Backing.(*types.VirtualEthernetCardNetworkBackingInfo)
		if !ok {
			continue
		}
		dc := ctx.Map.Get(l.datacenter).(*simulator.Datacenter)
		found := ctx.Map.FindByName(backing.DeviceName, dc.Network)
		if found == nil {
			continue
		}
		switch network := ctx.Map.Get(found.Reference()).(type) {
		case *simulator.DistributedVirtualPortgroup:
			dvs := ctx.Map.Get(*network.Config.DistributedVirtualSwitch).(*simulator.DistributedVirtualSwitch)
			card.Backing = &types.VirtualEthernetCardDistributedVirtualPortBackingInfo{
				Port: types.DistributedVirtualSwitchPortConnection{PortgroupKey: network.Key, SwitchUuid: dvs.Uuid},
			}
		case *mo.OpaqueNetwork:
			summary := network.Summary.(*types.OpaqueNetworkSummary)
			card.Backing = &types.VirtualEthernetCardOpaqueNetworkBackingInfo{
				OpaqueNetworkId: summary.OpaqueNetworkId, OpaqueNetworkType: summary.OpaqueNetworkType,
			}
		}
	}
}

// checkOpaque refuses an opaque network by name, and lets govcsim have one by name where it is asked for as vSphere wants
// it: govcsim knows only those that have a distributed port group. opaqueAgain puts the backing back.
func (l *Lab) checkOpaque(ctx *simulator.Context, card *types.VirtualEthernetCard) types.BaseMethodFault {
	dc := ctx.Map.Get(l.datacenter).(*simulator.Datacenter)
	bad := func(text string) types.BaseMethodFault {
		f := &types.InvalidDeviceBacking{}
		f.Property = "virtualDeviceSpec.device.backing"
		f.FaultMessage = localized(text)
		return f
	}
	switch b := card.Backing.(type) {
	case *types.VirtualEthernetCardNetworkBackingInfo:
		if found := ctx.Map.FindByName(b.DeviceName, dc.Network); found != nil && found.Reference().Type != "Network" {
			return bad("The network " + b.DeviceName + " is not a standard one: another backing is needed")
		}
	case *types.VirtualEthernetCardOpaqueNetworkBackingInfo:
		for _, ref := range dc.Network {
			network, ok := ctx.Map.Get(ref).(*mo.OpaqueNetwork)
			if ok && network.Summary.(*types.OpaqueNetworkSummary).OpaqueNetworkId == b.OpaqueNetworkId {
				card.Backing = &types.VirtualEthernetCardNetworkBackingInfo{
					VirtualDeviceDeviceBackingInfo: types.VirtualDeviceDeviceBackingInfo{DeviceName: network.Name},
				}
				return nil
			}
		}
		return bad("There is no opaque network " + b.OpaqueNetworkId)
	}
	return nil
}

// opaqueAgain gives adapters on opaque networks the backing that checkOpaque took from them.
func opaqueAgain(ctx *simulator.Context, devices []types.BaseVirtualDevice) {
	for _, card := range ethernetCards(devices) {
		b, ok := card.Backing.(*types.VirtualEthernetCardNetworkBackingInfo)
		if !ok || b.Network == nil {
			continue
		}
		if network, ok := ctx.Map.Get(*b.Network).(*mo.OpaqueNetwork); ok {
			summary := network.Summary.(*types.OpaqueNetworkSummary)
			card.Backing = &types.VirtualEthernetCardOpaqueNetworkBackingInfo{
				OpaqueNetworkId: summary.OpaqueNetworkId, OpaqueNetworkType: summary.OpaqueNetworkType,
			}
		}
	}
}

// subfolder finds or makes the folder of a path such as "web/front" below a folder.
func (l *Lab) subfolder(ctx *simulator.Context, below *object.Folder, folderPath string, known map[string]*object.Folder) (*object.Folder, error) {
	at, so := below, ""
	for _, name := range strings.Split(strings.Trim(folderPath, "/"), "/") {
		so += "/" + name
		if known[so] == nil {
			made, err := at.CreateFolder(ctx, name)
			if err != nil {
				return nil, fmt.Errorf("folder %s: %w", so, err)
			}
			known[so] = made
		}
		at = known[so]
	}
	return at, nil
}

// pool finds or makes the resource pool of a path, or the vApp of a name, below the cluster's pool.
func (l *Lab) pool(
	ctx *simulator.Context, root *object.ResourcePool, v *inventoryVM, known map[string]types.ManagedObjectReference,
) (types.ManagedObjectReference, error) {
	at, so := root, ""
	spec := types.DefaultResourceConfigSpec()
	for _, name := range strings.FieldsFunc(v.Pool, func(r rune) bool { return r == '/' }) {
		so += "/" + name
		if _, ok := known[so]; !ok {
			made, err := at.Create(ctx, name, spec)
			if err != nil {
				return types.ManagedObjectReference{}, fmt.Errorf("pool %s: %w", so, err)
			}
			known[so] = made.Reference()
		}
		at = object.NewResourcePool(root.Client(), known[so])
	}
	if v.VApp == "" {
		return at.Reference(), nil
	}
	so += "/vapp:" + v.VApp
	if _, ok := known[so]; !ok {
		made, err := at.CreateVApp(ctx, v.VApp, spec, simulator.NewVAppConfigSpec(), nil)
		if err != nil {
			return types.ManagedObjectReference{}, fmt.Errorf("vApp %s: %w", v.VApp, err)
		}
		known[so] = made.Reference()
	}
	return known[so], nil
}

// seedAttributes defines the custom attributes of the inventory's VMs and sets them.
func (l *Lab) seedAttributes(ctx *simulator.Context, inv *inventory, byName map[string]types.ManagedObjectReference) error {
	content := ctx.Map.Get(vim25.ServiceInstance).(*simulator.ServiceInstance).Content
	if content.CustomFieldsManager == nil {
		return nil
	}
	manager := ctx.Map.Get(*content.CustomFieldsManager).(*simulator.CustomFieldsManager)
	keys := map[string]int32{}
	for _, vm := range inv.VMs {
		names := make([]string, 0, len(vm.Attributes))
		for name := range vm.Attributes {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			if _, ok := keys[name]; !ok {
				body := manager.AddCustomFieldDef(ctx, &types.AddCustomFieldDef{
					This: manager.Self, Name: name, MoType: "VirtualMachine",
				}).(*methods.AddCustomFieldDefBody)
				if body.Fault_ != nil {
					return fmt.Errorf("custom attribute %s: %s", name, body.Fault_.String)
				}
				keys[name] = body.Res.Returnval.Key
			}
			res := manager.SetField(ctx, &types.SetField{
				This: manager.Self, Entity: byName[vm.key()], Key: keys[name], Value: vm.Attributes[name],
			})
			if err := faultError(res); err != nil {
				return fmt.Errorf("custom attribute %s of %s: %w", name, vm.Name, err)
			}
		}
	}
	return nil
}

// addTwin makes the second datacenter.
func (l *Lab) addTwin(ctx *simulator.Context, client *vim25.Client, twin *inventoryTwin) error {
	dc, err := object.NewRootFolder(client).CreateDatacenter(ctx, twin.Datacenter)
	if err != nil {
		return err
	}
	folders, err := dc.Folders(ctx)
	if err != nil {
		return err
	}
	cluster, err := folders.HostFolder.CreateCluster(ctx, twin.Datacenter+"-cluster", types.ClusterConfigSpecEx{})
	if err != nil {
		return err
	}
	task, err := cluster.AddHost(ctx, types.HostConnectSpec{HostName: twin.Host}, true, nil, nil)
	if err != nil {
		return err
	}
	info, err := task.WaitForResult(ctx, nil)
	if err != nil {
		return err
	}
	host := ctx.Map.Get(info.Result.(types.ManagedObjectReference)).(*simulator.HostSystem)
	nfc, err := l.addNFC(twin.Host, host.Self, 0)
	if err != nil {
		return err
	}
	nfc.second = true
	hosts := map[string]*simulator.HostSystem{twin.Host: host}
	for _, ds := range twin.Datastores {
		mine := l.stores[ds.Name]
		folder := filepath.Join(l.dir, "datastores", twin.Datacenter+"-"+ds.Name)
		if err := l.mount(ctx, ds, hosts, folder); err != nil {
			return err
		}
		l.stores[ds.Name] = mine // paths with this name lead to the first datacenter's
	}
	if err := l.addDatastore(ctx, twin.Home, hosts); err != nil {
		return err
	}
	pool, err := cluster.ResourcePool(ctx)
	if err != nil {
		return err
	}
	for _, name := range twin.VMs {
		v := &inventoryVM{
			Name: name, UUID: l.newUUID("bios"), InstanceUUID: l.newUUID("instance"), Host: twin.Host,
			Datastore: twin.Home.Name, Power: "poweredOff", Tools: "notRunning", GuestHost: name,
		}
		if _, err := l.addVM(v, folders.VmFolder.Reference(), pool.Reference(), host.Self); err != nil {
			return fmt.Errorf("%s in %s: %w", name, twin.Datacenter, err)
		}
	}
	return nil
}

// mount is addDatastore with the folder said.
func (l *Lab) mount(ctx *simulator.Context, ds *datastore, hosts map[string]*simulator.HostSystem, folder string) error {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	return l.addDatastoreAt(ctx, ds, hosts, folder)
}

// inTwin tells whether a VM is in the second datacenter.
func (l *Lab) inTwin(ctx *simulator.Context, vm *simulator.VirtualMachine) bool {
	for at := vm.Parent; at != nil; {
		entity, ok := ctx.Map.Get(*at).(mo.Entity)
		if !ok {
			return false
		}
		if at.Type == "Datacenter" {
			return *at != l.datacenter
		}
		at = entity.Entity().Parent
	}
	return false
}

// key tells VMs of one name apart by their folders.
func (v *inventoryVM) key() string {
	if v.Folder == nil {
		return v.Name
	}
	return *v.Folder + "/" + v.Name
}
