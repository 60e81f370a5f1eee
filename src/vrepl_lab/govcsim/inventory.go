package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// inventory is DIR/<site>/inventory.json (docs/lab-internals.md section 3).
type inventory struct {
	Datacenter string          `json:"datacenter"`
	Cluster    string          `json:"cluster"`
	Hosts      []inventoryHost `json:"hosts"`
	Datastores []*datastore    `json:"datastores"`
	Networks   []string        `json:"networks"`
	PortHint   int             `json:"nfc_port_hint"`
	Seed       string          `json:"instance_uuid_seed"`
	VMs        []inventoryVM   `json:"vms"`

	DistributedSwitch *inventoryDVS       `json:"distributed_switch"`
	OpaqueNetworks    []string            `json:"opaque_networks"`
	Categories        []inventoryCategory `json:"categories"`
	Twin              *inventoryTwin      `json:"twin"`
	ESX               bool                `json:"esx"` // an ESXi host that no vCenter manages
}

type inventoryHost struct {
	Name        string   `json:"name"`
	NFCLimitMiB float64  `json:"nfc_limit_mib"`
	LUNs        []string `json:"luns"`
}

type inventoryVM struct {
	Name         string            `json:"name"`
	UUID         string            `json:"uuid"`
	InstanceUUID string            `json:"instance_uuid"`
	Host         string            `json:"host"`
	Datastore    string            `json:"datastore"`
	CPUs         int32             `json:"cpus"`
	MemoryMiB    int64             `json:"memory_mib"`
	GuestID      string            `json:"guest_id"`
	Firmware     string            `json:"firmware"`
	SecureBoot   bool              `json:"secure_boot"`
	Version      string            `json:"version"`
	Power        string            `json:"power"`
	Tools        string            `json:"tools"`
	CBT          bool              `json:"cbt"`
	Template     bool              `json:"template"`
	Folder       *string           `json:"folder"`
	GuestHost    string            `json:"guest_host"`
	GuestIP      string            `json:"guest_ip"`
	Annotation   string            `json:"annotation"`
	NICs         []inventoryNIC    `json:"nics"`
	CDROM        bool              `json:"cdrom"`
	ExtraConfig  map[string]string `json:"extra_config"`
	Disks        []inventoryDisk   `json:"disks"`
	Pool         string            `json:"pool"`
	VApp         string            `json:"vapp"`
	Tags         []string          `json:"tags"`
	Attributes   map[string]string `json:"attributes"`
}

type inventoryNIC struct {
	Network string `json:"network"`
	Type    string `json:"type"`
	MAC     string `json:"mac"`
}

type inventoryDisk struct {
	Capacity   int64   `json:"capacity"`
	Image      *string `json:"image"`
	Mode       string  `json:"mode"`
	Thin       bool    `json:"thin"`
	Controller string  `json:"controller"`
	Bus        int32   `json:"bus"`
	Unit       int32   `json:"unit"`
	Sharing    string  `json:"sharing"`
	SharedBus  string  `json:"shared_bus"`
	RDM        *string `json:"rdm"`
}

func readInventory(name string) (*inventory, error) {
	raw, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	inv := &inventory{}
	dec := json.NewDecoder(strings.NewReader(string(raw)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(inv); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return inv, nil
}

// build makes the inventory with govcsim's own methods.
func (l *Lab) build(inv *inventory) error {
	ctx := l.context()
	client, err := vim25.NewClient(ctx, l.svc)
	if err != nil {
		return err
	}
	ground, err := l.lay(ctx, client, inv)
	if err != nil {
		return err
	}
	folders, root, hosts := ground.folders, ground.pool, ground.hosts
	for _, ds := range inv.Datastores {
		if err := l.addDatastore(ctx, ds, hosts); err != nil {
			return err
		}
	}
	for _, h := range inv.Hosts {
		addLUNs(ctx, hosts[h.Name], h.LUNs, inv.Datastores)
	}
	if err := l.addNetworks(ctx, inv, hosts); err != nil {
		return err
	}
	if len(inv.OpaqueNetworks) > 0 && !inv.ESX {
		if err := l.addOpaqueNetworks(ctx, folders.NetworkFolder.Reference(), inv.OpaqueNetworks, hosts); err != nil {
			return err
		}
	}
	if inv.DistributedSwitch != nil && !inv.ESX {
		var members []types.ManagedObjectReference
		for _, h := range inv.Hosts {
			members = append(members, hosts[h.Name].Self)
		}
		if err := l.addDistributedSwitch(ctx, client, folders.NetworkFolder, inv.DistributedSwitch, members); err != nil {
			return err
		}
	}
	subfolders := map[string]*object.Folder{}
	pools := map[string]types.ManagedObjectReference{}
	byName := map[string]types.ManagedObjectReference{}
	for i := range inv.VMs {
		v := &inv.VMs[i]
		folder := folders.VmFolder.Reference()
		if v.Folder != nil && *v.Folder != "" && !inv.ESX {
			f, err := l.subfolder(ctx, folders.VmFolder, *v.Folder, subfolders)
			if err != nil {
				return err
			}
			folder = f.Reference()
		}
		host := hosts[v.Host]
		if host == nil {
			return fmt.Errorf("%s: no host %q", v.Name, v.Host)
		}
		pool, err := l.pool(ctx, root, v, pools)
		if err != nil {
			return err
		}
		vm, err := l.addVM(v, folder, pool, host.Self)
		if err != nil {
			return fmt.Errorf("%s: %w", v.Name, err)
		}
		byName[v.key()] = vm.Self
		if v.VApp != "" {
			vm.ParentVApp = &pool
		}
	}
	if err := l.seedAttributes(l.signedIn(), inv, byName); err != nil {
		return err
	}
	if err := l.seedTags(inv, byName); err != nil {
		return err
	}
	if inv.Twin != nil && !inv.ESX {
		if err := l.addTwin(ctx, client, inv.Twin); err != nil {
			return err
		}
	}
	l.refreshSpace(true)
	return nil
}

func faultError(res soap.HasFault) error {
	if f := res.Fault(); f != nil {
		return fmt.Errorf("%s %T", f.String, f.Detail.Fault)
	}
	return nil
}

// addDatastore mounts a folder as a datastore and gives it the details of its type.
func (l *Lab) addDatastore(ctx *simulator.Context, ds *datastore, hosts map[string]*simulator.HostSystem) error {
	return l.mount(ctx, ds, hosts, filepath.Join(l.dir, "datastores", ds.Name))
}

func (l *Lab) addDatastoreAt(
	ctx *simulator.Context, ds *datastore, hosts map[string]*simulator.HostSystem, folder string,
) error {
	for _, name := range ds.Hosts {
		host := hosts[name]
		if host == nil {
			return fmt.Errorf("datastore %s: no host %q", ds.Name, name)
		}
		dss := ctx.Map.Get(*host.ConfigManager.DatastoreSystem).(*simulator.HostDatastoreSystem)
		res := dss.CreateLocalDatastore(ctx, &types.CreateLocalDatastore{This: dss.Self, Name: ds.Name, Path: folder})
		if err := faultError(res); err != nil {
			return err
		}
		ds.ref = res.(*methods.CreateLocalDatastoreBody).Res.Returnval
	}
	if len(ds.Hosts) == 0 {
		return fmt.Errorf("datastore %s is mounted by no host", ds.Name)
	}
	ds.ref = ctx.Map.FindByName(ds.Name, hosts[ds.Hosts[0]].Datastore).Reference()
	obj := ctx.Map.Get(ds.ref).(*simulator.Datastore)
	common := *obj.Info.GetDatastoreInfo()
	volume := types.HostFileSystemVolume{Type: ds.Type, Name: ds.Name, Capacity: ds.Capacity}
	id := l.newUUID("volume")
	switch ds.Type {
	case "VMFS":
		local := ds.Local
		obj.Info = &types.VmfsDatastoreInfo{DatastoreInfo: common, Vmfs: &types.HostVmfsVolume{
			HostFileSystemVolume: volume, BlockSizeMb: 1, BlockSize: 1024, MaxBlocks: 63963136, MajorVersion: 6,
			Version: "6.82", Uuid: id, VmfsUpgradable: false, Local: &local, Ssd: types.NewBool(false),
			Extent: []types.HostScsiDiskPartition{{DiskName: ds.NAA, Partition: 1}},
		}}
	case "NFS", "NFS41":
		obj.Info = &types.NasDatastoreInfo{DatastoreInfo: common, Nas: &types.HostNasVolume{
			HostFileSystemVolume: volume, RemoteHost: "nas.lab", RemotePath: "/export/" + ds.Name, UserName: "",
			RemoteHostNames: []string{"nas.lab"},
		}}
	case "vsan":
		obj.Info = &types.VsanDatastoreInfo{DatastoreInfo: common, MembershipUuid: id}
	case "VVOL":
		obj.Info = &types.VvolDatastoreInfo{DatastoreInfo: common, VvolDS: &types.HostVvolVolume{
			HostFileSystemVolume: volume, ScId: id,
		}}
	default:
		return fmt.Errorf("datastore %s: unknown type %q", ds.Name, ds.Type)
	}
	shared := len(ds.Hosts) > 1
	obj.Summary.Type, obj.Summary.MultipleHostAccess = ds.Type, &shared
	obj.Summary.Capacity, obj.Summary.FreeSpace = ds.Capacity, ds.Capacity
	for i := range obj.Host {
		obj.Host[i].MountInfo.Path = "/vmfs/volumes/" + id
	}
	l.stores[ds.Name] = ds
	return nil
}

// addLUNs gives a host the SCSI disks of its own list and of the VMFS datastores that it mounts.
func addLUNs(ctx *simulator.Context, host *simulator.HostSystem, luns []string, stores []*datastore) {
	all := slices.Clone(luns)
	for _, ds := range stores {
		if ds.NAA != "" && slices.Contains(ds.Hosts, host.Name) && !slices.Contains(all, ds.NAA) {
			all = append(all, ds.NAA)
		}
	}
	if host.Config == nil || host.Config.StorageDevice == nil {
		return
	}
	info := *host.Config.StorageDevice
	info.ScsiLun = slices.Clone(info.ScsiLun)
	for i, naa := range all {
		hex := strings.TrimPrefix(naa, "naa.")
		lun := &types.HostScsiDisk{DevicePath: "/vmfs/devices/disks/" + naa}
		lun.Key = "key-vim.host.ScsiDisk-" + hex
		lun.Uuid = "0200000000" + hex
		lun.DeviceName, lun.DeviceType = lun.DevicePath, "disk"
		lun.CanonicalName, lun.DisplayName = naa, "Lab Fibre Channel Disk ("+naa+")"
		lun.LunType, lun.Vendor, lun.Model, lun.Revision = "disk", "LAB     ", "LUN             ", "1   "
		lun.OperationalState = []string{"ok"}
		lun.Capacity = types.HostDiskDimensionsLba{BlockSize: 512, Block: int64(2147483648 + i)}
		info.ScsiLun = append(info.ScsiLun, lun)
	}
	host.Config.StorageDevice = &info
	if system, ok := ctx.Map.Get(*host.ConfigManager.StorageSystem).(*simulator.HostStorageSystem); ok {
		system.StorageDeviceInfo = &info
	}
}

func (l *Lab) addNetworks(
	ctx *simulator.Context, inv *inventory, hosts map[string]*simulator.HostSystem,
) error {
	if len(inv.Hosts) == 0 {
		return fmt.Errorf("the inventory has no host")
	}
	for _, h := range inv.Hosts {
		if err := l.seedSwitches(ctx, hosts[h.Name], inv.Networks); err != nil {
			return fmt.Errorf("networks of %s: %w", h.Name, err)
		}
	}
	return nil
}

func (l *Lab) addVM(
	v *inventoryVM, folder, pool, host types.ManagedObjectReference,
) (*simulator.VirtualMachine, error) {
	ctx := l.context()
	spec := types.VirtualMachineConfigSpec{
		Name: v.Name, Uuid: v.UUID, InstanceUuid: v.InstanceUUID, NumCPUs: max(v.CPUs, 1), MemoryMB: max(v.MemoryMiB, 32),
		NumCoresPerSocket: types.NewInt32(1), GuestId: v.GuestID, Firmware: v.Firmware, Version: v.Version,
		Annotation: v.Annotation, Files: &types.VirtualMachineFileInfo{VmPathName: "[" + v.Datastore + "]"},
	}
	if spec.GuestId == "" {
		spec.GuestId = "otherGuest64"
	}
	if v.SecureBoot {
		spec.BootOptions = &types.VirtualMachineBootOptions{EfiSecureBootEnabled: types.NewBool(true)}
	}
	keys := make([]string, 0, len(v.ExtraConfig))
	for key := range v.ExtraConfig {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		spec.ExtraConfig = append(spec.ExtraConfig, &types.OptionValue{Key: key, Value: v.ExtraConfig[key]})
	}
	changes, err := v.devices()
	if err != nil {
		return nil, err
	}
	l.place(ctx, changes)
	spec.DeviceChange = changes
	vm, fault := l.createVM(ctx, &types.CreateVM_Task{This: folder, Config: spec, Pool: pool, Host: &host})
	if fault != nil {
		return nil, faultAsError(fault)
	}
	st := l.state(vm.Self)
	for i, disk := range disks(vm.Config.Hardware.Device) {
		if image := v.Disks[i].Image; image != nil {
			if err := l.link(diskPath(disk)).importImage(*image); err != nil {
				return nil, err
			}
		}
	}
	st.guestHost, st.guestIP, st.tools = v.GuestHost, v.GuestIP, v.Tools == "running"
	if st.guestHost == "" {
		st.guestHost = v.Name
	}
	for _, device := range vm.Config.Hardware.Device {
		nic, ok := device.(types.BaseVirtualEthernetCard)
		if !ok {
			continue
		}
		card := nic.GetVirtualEthernetCard()
		if mac := v.NICs[card.Key-4000].MAC; mac != "" {
			card.MacAddress = mac
		}
	}
	ctx.WithLock(vm, func() {
		enabled := v.CBT
		vm.Config.ChangeTrackingEnabled = &enabled
		l.trackDisks(vm, st, &types.VirtualMachineConfigSpec{ChangeTrackingEnabled: &enabled}, enabled)
		if v.Power == "poweredOn" {
			setPower(ctx, vm, types.VirtualMachinePowerStatePoweredOn)
			st.fresh()
			st.up = true
			bootTime(ctx, vm, true)
			if err = l.startTracking(vm, st); err != nil {
				return
			}
			for _, device := range vm.Config.Hardware.Device {
				if c := device.GetVirtualDevice().Connectable; c != nil {
					c.Connected = c.StartConnected
				}
			}
		}
		vm.Config.Template, vm.Summary.Config.Template = v.Template, v.Template
		l.setTools(ctx, vm, st.tools && v.Power == "poweredOn")
		l.refreshLinks(ctx, vm, st, nil)
		l.summarize(ctx, vm)
	})
	return vm, err
}

// ready is DIR/<site>/ready.json.
type ready struct {
	PID      int         `json:"pid"`
	URLPort  int         `json:"url_port"`
	VDDKPort int         `json:"vddk_port"`
	NFCPort  int         `json:"nfc_port"`
	Hosts    []readyHost `json:"hosts"`
}

type readyHost struct {
	Name  string `json:"name"`
	Moref string `json:"moref"`
}

// write puts ready.json in place in one step.
func (r *ready) write(dir string) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	name := path.Join(dir, "ready.json")
	if err := os.WriteFile(name+".tmp", raw, 0o600); err != nil {
		return err
	}
	return os.Rename(name+".tmp", name)
}
