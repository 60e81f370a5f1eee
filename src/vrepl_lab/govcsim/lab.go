package main

import (
	"crypto/sha1"
	"fmt"
	"net"
	"net/http"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// Lab is one simulated vCenter with its datastores and ESXi hosts.
type Lab struct {
	svc        *simulator.Service
	site       string
	dir        string // DIR/<site>
	root       string // DIR
	seed       string
	user       string
	password   string
	datacenter types.ManagedObjectReference

	mu       sync.Mutex // guards what follows; held briefly, never while files are copied
	settings settings
	count    int                 // of identifiers given out
	vms      map[string]*vmState // by moref value
	links    map[string]*link    // by datastore path
	handles  map[*handle]struct{}
	peak     int // of connections
	open     int
	stores   map[string]*datastore // by name
	prepared map[string]string     // moref value -> identity that disabled relocation
	uses     map[string][]use      // by moref value of the running VM
	spaceAt  time.Time
	hung     []*Task // by rules

	devices blockDevices
	nfc     map[string]*nfcHost // by host name
	nfcPort int
	library *labSettings // what libvixDiskLib obeys
	calls   callCounter
	watched watched

	networks sync.Mutex // held while switches and port groups change
	powerOns *gates

	transfers transferSet
	restAPI   http.Handler

	standalone bool // it is an ESXi host, not a vCenter
	urlPort    int
	rules      ruleSet
}

// settings are what POST /settings changes.
type settings struct {
	LockLingerS        float64            `json:"lock_linger_s"`
	CBTBlockSize       int64              `json:"cbt_block_size"`
	VCenterConnections int                `json:"vcenter_connections"`
	SnapshotMS         int                `json:"snapshot_ms"`
	TaskMS             int                `json:"task_ms"`
	BootMS             int                `json:"boot_ms"`
	CBTPage            int                `json:"cbt_page"`
	CBTEmptyPage       bool               `json:"cbt_empty_page"`
	NFCLimitMiB        map[string]float64 `json:"nfc_limit_mib"`
	NFCClosed          []string           `json:"nfc_closed"`
	NFCTrouble         string             `json:"nfc_trouble"`
	Quiesce            string             `json:"quiesce"`
	ClockOffsetS       float64            `json:"clock_offset_s"`
	MissingPrivileges  []string           `json:"missing_privileges"`
	FreeBytes          map[string]int64   `json:"free_bytes"`
	HotAddDelayMS      int                `json:"hotadd_delay_ms"`
	HotAddRescan       bool               `json:"hotadd_rescan"`
	unkind
}

func defaultSettings() settings {
	return settings{
		LockLingerS: 5, CBTBlockSize: grainSize, VCenterConnections: 52, CBTPage: 2000, BootMS: 500, Quiesce: "ok",
		NFCLimitMiB: map[string]float64{}, FreeBytes: map[string]int64{}, unkind: defaultUnkind(),
	}
}

func (l *Lab) config() settings {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.settings
}

// datastore is what the lab knows of one datastore beside govcsim's object.
type datastore struct {
	Name     string   `json:"name"`
	Type     string   `json:"type"`
	NAA      string   `json:"naa"`
	Local    bool     `json:"local"`
	Capacity int64    `json:"capacity"`
	Hosts    []string `json:"hosts"`
	ref      types.ManagedObjectReference
	free     int64     // bytes, when it was measured; guarded by Lab.mu
	measured time.Time // guarded by Lab.mu
}

// vmState is what the lab knows of one VM beside govcsim's object.
type vmState struct {
	ref        types.ManagedObjectReference
	data       sync.Mutex // held while the content or the chain of its disks changes
	busy       string     // the task at work; guarded by Lab.mu
	exclusive  bool       // a disk operation is at work: no disk may be opened; guarded by Lab.mu
	trackers   map[int32]*tracker
	snapshots  map[string]*snapshotState // by moref value
	tools      bool                      // VMware Tools are installed and start with the guest
	noTools    bool                      // they were stopped by hand and stay so
	guestHost  string
	guestIP    string
	generation int            // of change-tracking uuids
	ctk        map[int32]bool // by device key: change tracking was set for this disk
	stun       bool           // the next snapshot is the first after it was enabled on a running VM
	run        int            // counts the guest's runs; with what follows guarded by the VM's lock
	up         bool           // the guest has booted
	services   []net.Listener // its TCP ports
	identity   identity
	customize  *types.CustomizationSpec // waits for the next power-on
	toolsSeen  bool                     // Tools have run in it, so that vCenter knows of them
	system     guestSystem
	lostPower  bool // change tracking is not to be trusted, and nobody knows yet
}

// snapshotState is what the lab keeps of one snapshot.
type snapshotState struct {
	disks     map[int32]*snapshotDisk  // by device key
	file      string                   // datastore path of the .vmsn file
	identity  identity                 // what the guest's own files say of it
	customize *types.CustomizationSpec // part of the settings: a guess
}

type snapshotDisk struct {
	frozen   *link
	changeID string
	table    string // copy of the tracker's file, or ""
}

// context returns a new locking identity for one operation.
func (l *Lab) context() *simulator.Context {
	ctx := *l.svc.Context
	return &ctx
}

func (l *Lab) vm(ref types.ManagedObjectReference) *simulator.VirtualMachine {
	vm, _ := l.svc.Context.Map.Get(ref).(*simulator.VirtualMachine)
	return vm
}

func (l *Lab) state(ref types.ManagedObjectReference) *vmState {
	l.mu.Lock()
	defer l.mu.Unlock()
	st := l.vms[ref.Value]
	if st == nil {
		st = &vmState{ref: ref, trackers: map[int32]*tracker{}, snapshots: map[string]*snapshotState{}}
		l.vms[ref.Value] = st
	}
	return st
}

// identifier is a text that never repeats within a lab and is the same for the same inventory and order of calls.
func (l *Lab) identifier(kind string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count++
	return fmt.Sprintf("%s/%s/%s/%d", l.seed, l.site, kind, l.count)
}

func (l *Lab) newUUID(kind string) string {
	sum := sha1.Sum([]byte(l.identifier(kind)))
	b := sum[:16]
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	text := fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
	if kind == "disk" {
		text = "6000C29" + text[7:] // the prefix of every virtual disk's uuid
	}
	return text
}

func (l *Lab) link(dsPath string) *link {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.links[dsPath]
}

func (l *Lab) putLink(at *link) {
	l.mu.Lock()
	l.links[at.dsPath] = at
	l.mu.Unlock()
}

// dropLink forgets a link and deletes its files.
func (l *Lab) dropLink(at *link) error {
	l.mu.Lock()
	if l.links[at.dsPath] == at {
		delete(l.links, at.dsPath)
	}
	l.mu.Unlock()
	return at.remove()
}

func (l *Lab) taken(dsPath string) bool { return l.link(dsPath) != nil }

// children are the links directly over this one.
func (l *Lab) children(parent *link) []*link {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []*link
	for _, at := range l.links {
		if at.parent == parent {
			all = append(all, at)
		}
	}
	return all
}

// storeOf is the name of the datastore in "[name] folder/file".
func storeOf(dsPath string) string {
	var p object.DatastorePath
	p.FromString(dsPath)
	return p.Datastore
}

// resolve finds the file of a datastore path through govcsim (vSAN folders have other names on disk).
func (l *Lab) resolve(ctx *simulator.Context, dsPath string) (string, types.BaseMethodFault) {
	_, file, fault := ctx.Map.FileManager().DiskDescriptor(ctx, &l.datacenter, dsPath)
	return file, fault
}

// disks are the virtual disks of a device list, in its order.
func disks(devices []types.BaseVirtualDevice) []*types.VirtualDisk {
	var all []*types.VirtualDisk
	for _, device := range devices {
		if disk, ok := device.(*types.VirtualDisk); ok {
			all = append(all, disk)
		}
	}
	return all
}

// diskPath is the datastore path of a disk's backing, or "".
func diskPath(disk *types.VirtualDisk) string {
	if b, ok := disk.Backing.(types.BaseVirtualDeviceFileBackingInfo); ok {
		return b.GetVirtualDeviceFileBackingInfo().FileName
	}
	return ""
}

// backingFacts are the fields that flat and raw-device backings share.
func backingFacts(disk *types.VirtualDisk) (mode, sharing, compatibility string) {
	switch b := disk.Backing.(type) {
	case *types.VirtualDiskFlatVer2BackingInfo:
		return b.DiskMode, b.Sharing, ""
	case *types.VirtualDiskRawDiskMappingVer1BackingInfo:
		return b.DiskMode, b.Sharing, b.CompatibilityMode
	}
	return "", "", ""
}

// snapshotted tells whether snapshots hold this disk: not independent, not a physical raw device.
func snapshotted(disk *types.VirtualDisk) bool {
	mode, _, compatibility := backingFacts(disk)
	return !strings.HasPrefix(mode, "independent") &&
		compatibility != string(types.VirtualDiskCompatibilityModePhysicalMode)
}

// setBacking points a disk at a link, with the chain of parents below it.
func (l *Lab) setBacking(disk *types.VirtualDisk, leaf *link, changeID string) {
	l.mu.Lock()
	store := func(dsPath string) *types.ManagedObjectReference {
		if ds := l.stores[storeOf(dsPath)]; ds != nil {
			ref := ds.ref
			return &ref
		}
		return nil
	}
	defer l.mu.Unlock()
	switch b := disk.Backing.(type) {
	case *types.VirtualDiskFlatVer2BackingInfo:
		var build func(at *link) *types.VirtualDiskFlatVer2BackingInfo
		build = func(at *link) *types.VirtualDiskFlatVer2BackingInfo {
			if at == nil {
				return nil
			}
			c := *b
			c.FileName, c.Datastore, c.Uuid, c.ChangeId = at.dsPath, store(at.dsPath), at.uuid, ""
			c.ThinProvisioned = types.NewBool(at.thin)
			c.Parent = build(at.parent)
			return &c
		}
		n := build(leaf)
		n.ChangeId = changeID
		disk.Backing = n
	case *types.VirtualDiskRawDiskMappingVer1BackingInfo:
		var build func(at *link) *types.VirtualDiskRawDiskMappingVer1BackingInfo
		build = func(at *link) *types.VirtualDiskRawDiskMappingVer1BackingInfo {
			if at == nil {
				return nil
			}
			c := *b
			c.FileName, c.Datastore, c.Uuid, c.ChangeId = at.dsPath, store(at.dsPath), at.uuid, ""
			c.Parent = build(at.parent)
			return &c
		}
		n := build(leaf)
		n.ChangeId = changeID
		disk.Backing = n
	}
	disk.CapacityInBytes = leaf.capacity
	disk.CapacityInKB = leaf.capacity / 1024
	if disk.DeviceInfo != nil {
		disk.DeviceInfo.GetDescription().Summary = commas(leaf.capacity/1024) + " KB"
	}
}

func commas(n int64) string {
	text := fmt.Sprint(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// setDevices publishes a new device list: what changed in it is seen by property filters, too.
func (l *Lab) setDevices(ctx *simulator.Context, vm *simulator.VirtualMachine, devices []types.BaseVirtualDevice) {
	wireControllers(devices)
	ctx.Update(vm, []types.PropertyChange{{Name: "config.hardware.device", Val: devices}})
	l.noteUses(vm)
}

// wireControllers fills each controller's list of devices.
func wireControllers(devices []types.BaseVirtualDevice) {
	on := map[int32][]int32{}
	for _, device := range devices {
		d := device.GetVirtualDevice()
		on[d.ControllerKey] = append(on[d.ControllerKey], d.Key)
	}
	for _, device := range devices {
		if c, ok := device.(types.BaseVirtualController); ok {
			c.GetVirtualController().Device = on[device.GetVirtualDevice().Key]
		}
	}
}

// refreshLinks makes the backings of a VM's disks and of its snapshots' disks name the links as they are now.
// The caller holds the VM's lock. leaves maps device keys to current leaves; absent keys keep their file.
func (l *Lab) refreshLinks(ctx *simulator.Context, vm *simulator.VirtualMachine, st *vmState, leaves map[int32]*link) {
	devices := copyDevices(vm.Config.Hardware.Device)
	for _, disk := range disks(devices) {
		leaf := leaves[disk.Key]
		if leaf == nil {
			leaf = l.link(diskPath(disk))
		}
		if leaf == nil {
			continue
		}
		id := ""
		if t := st.trackers[disk.Key]; t != nil {
			id, _ = t.changeID()
		}
		l.setBacking(disk, leaf, id)
	}
	l.setDevices(ctx, vm, devices)
	for value, snap := range st.snapshots {
		ref := types.ManagedObjectReference{Type: "VirtualMachineSnapshot", Value: value}
		s, ok := ctx.Map.Get(ref).(*simulator.VirtualMachineSnapshot)
		if !ok {
			continue
		}
		ctx.WithLock(s, func() {
			devices := copyDevices(s.Config.Hardware.Device)
			for _, disk := range disks(devices) {
				if d := snap.disks[disk.Key]; d != nil {
					l.setBacking(disk, d.frozen, d.changeID)
				}
			}
			s.Config.Hardware.Device = devices
		})
	}
	l.refreshLayout(ctx, vm, st)
}

// leafs maps the device keys of a VM's disks to their current leaves. The caller holds the VM's lock.
func (l *Lab) leafs(vm *simulator.VirtualMachine) map[int32]*link {
	all := map[int32]*link{}
	for _, disk := range disks(vm.Config.Hardware.Device) {
		if at := l.link(diskPath(disk)); at != nil {
			all[disk.Key] = at
		}
	}
	return all
}

// trackerFile is where the change-tracking table of a disk lies: beside the lowest link that the VM itself made.
func trackerFile(leaf *link, owner string) string {
	at := leaf
	for at.parent != nil && at.parent.owner == owner {
		at = at.parent
	}
	return at.stem + "-ctk.bin"
}

// vmFolder is the datastore folder of a VM: "[ds] folder".
func vmFolder(vm *simulator.VirtualMachine) string {
	return path.Dir(vm.Config.Files.VmPathName)
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}
