package main

import (
	"fmt"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/simulator/esx"
	"github.com/vmware/govmomi/simulator/vpx"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// ground is what an inventory is built on: folders, the pool of the cluster or host, and the hosts by name.
type ground struct {
	folders *object.DatacenterFolders
	pool    *object.ResourcePool
	hosts   map[string]*simulator.HostSystem
}

// service is what a site says that it is: a vCenter, or an ESXi host of its own.
func service(standalone bool) (types.ServiceContent, mo.Folder) {
	if standalone {
		content := esx.ServiceContent
		content.About.Version, content.About.ApiVersion, content.About.Build = "8.0.2", "8.0.2.0", "22380479"
		content.About.FullName = "VMware ESXi 8.0.2 build-22380479"
		return content, esx.RootFolder
	}
	content := vpx.ServiceContent
	content.About.Version, content.About.ApiVersion, content.About.Build = "8.0.2", "8.0.2.0", "22617221"
	content.About.FullName = "VMware vCenter Server 8.0.2 build-22617221"
	return content, vpx.RootFolder
}

// vCenterOnly are the methods that an ESXi host refuses when it is asked directly.
var vCenterOnly = map[string]bool{
	"CloneVM_Task": true, "RelocateVM_Task": true, "CustomizeVM_Task": true, "CheckCustomizationSpec": true,
	"CreateFolder": true, "CreateDatacenter": true, "CreateClusterEx": true, "MigrateVM_Task": true,
	"CreateDVS_Task": true, "MarkAsVirtualMachine": true, "MarkAsTemplate": true,
}

// lay makes a vCenter's datacenter with a cluster of the inventory's hosts, or takes what an ESXi host has.
func (l *Lab) lay(ctx *simulator.Context, client *vim25.Client, inv *inventory) (*ground, error) {
	g := &ground{hosts: map[string]*simulator.HostSystem{}}
	add := func(h inventoryHost, ref types.ManagedObjectReference) error {
		g.hosts[h.Name] = ctx.Map.Get(ref).(*simulator.HostSystem)
		_, err := l.addNFC(h.Name, ref, h.NFCLimitMiB)
		return err
	}
	if inv.ESX {
		return g, l.layHost(ctx, client, inv, g, add)
	}
	dc, err := object.NewRootFolder(client).CreateDatacenter(ctx, inv.Datacenter)
	if err != nil {
		return nil, err
	}
	l.datacenter = dc.Reference()
	if g.folders, err = dc.Folders(ctx); err != nil {
		return nil, err
	}
	cluster, err := g.folders.HostFolder.CreateCluster(ctx, inv.Cluster, types.ClusterConfigSpecEx{})
	if err != nil {
		return nil, err
	}
	for _, h := range inv.Hosts {
		task, err := cluster.AddHost(ctx, types.HostConnectSpec{HostName: h.Name}, true, nil, nil)
		if err != nil {
			return nil, err
		}
		info, err := task.WaitForResult(ctx, nil)
		if err != nil {
			return nil, err
		}
		if err := add(h, info.Result.(types.ManagedObjectReference)); err != nil {
			return nil, err
		}
	}
	g.pool, err = cluster.ResourcePool(ctx)
	return g, err
}

func (l *Lab) layHost(
	ctx *simulator.Context, client *vim25.Client, inv *inventory, g *ground,
	add func(inventoryHost, types.ManagedObjectReference) error,
) error {
	if len(inv.Hosts) != 1 {
		return fmt.Errorf("an ESXi host is one host, not %d", len(inv.Hosts))
	}
	dc := ctx.Map.Any("Datacenter").(*simulator.Datacenter)
	l.datacenter = dc.Self
	g.folders = &object.DatacenterFolders{
		VmFolder: object.NewFolder(client, dc.VmFolder), HostFolder: object.NewFolder(client, dc.HostFolder),
		DatastoreFolder: object.NewFolder(client, dc.DatastoreFolder), NetworkFolder: object.NewFolder(client, dc.NetworkFolder),
	}
	host := ctx.Map.Any("HostSystem").(*simulator.HostSystem)
	host.Name, host.Summary.Config.Name = inv.Hosts[0].Name, inv.Hosts[0].Name
	host.Entity().Name = host.Name
	if err := add(inv.Hosts[0], host.Self); err != nil {
		return err
	}
	g.pool = object.NewResourcePool(client, ctx.Map.Any("ResourcePool").Reference())
	return nil
}
