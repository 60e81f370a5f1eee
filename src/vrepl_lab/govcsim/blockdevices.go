package main

import (
	"bytes"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// blockDevice is a disk of a running proxy VM as its guest sees it: files under the proxy's sysroot (docs/lab-internals.md
// section 9). The content is a copy of what the chain shows, made when the disk is plugged in. What the guest wrote to a
// persistent disk goes into the leaf when the disk is taken away, or asked for.
type blockDevice struct {
	vm      types.ManagedObjectReference
	proxy   string
	host    int // SCSI host number of the guest
	unit    int32
	name    string // sdb
	file    string // absolute path of the device, under sysroot/dev once it is visible
	leaf    *link
	write   bool
	visible bool
	gone    bool
	scanned bool     // the guest has looked since it was plugged in
	links   []string // symlinks and folders that lead to it
}

// blockDevices are all devices of all proxies of this site.
type blockDevices struct {
	mu  sync.Mutex
	all map[string]*blockDevice // by moref value and device key
}

func deviceID(vm types.ManagedObjectReference, key int32) string {
	return fmt.Sprintf("%s/%d", vm.Value, key)
}

// firstSCSIHost keeps the devices of two vCenters apart on the one machine that the lab's proxy is a VM of both: Linux
// counts its ATA ports first, too.
func (l *Lab) firstSCSIHost() int {
	if l.site == "prod" {
		return 2
	}
	return 6
}

// proxiesOf are the machines that a VM is: those with its BIOS uuid.
func (l *Lab) proxiesOf(vm *simulator.VirtualMachine) []string {
	found, _ := filepath.Glob(filepath.Join(l.root, "proxies", "*", "sysroot/sys/class/dmi/id/product_uuid"))
	var names []string
	for _, file := range found {
		raw, err := os.ReadFile(file)
		if err == nil && strings.EqualFold(strings.TrimSpace(string(raw)), vm.Config.Uuid) {
			rel, _ := filepath.Rel(filepath.Join(l.root, "proxies"), file)
			names = append(names, strings.SplitN(rel, string(filepath.Separator), 2)[0])
		}
	}
	return names
}

// replug brings the guest's block devices to the VM's disks: those that are new appear, those that are gone vanish, and
// what was written to them is kept. What VDDK attached is not shown. The caller holds the VM's lock.
func (l *Lab) replug(vm *simulator.VirtualMachine) error {
	proxies := l.proxiesOf(vm)
	if len(proxies) == 0 {
		return nil
	}
	wanted := map[string]*blockDevice{}
	if vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn {
		for _, disk := range disks(vm.Config.Hardware.Device) {
			at := l.link(diskPath(disk))
			host, scsi := l.scsiHost(vm.Config.Hardware.Device, disk.ControllerKey)
			if at == nil || !scsi || disk.UnitNumber == nil || l.hotAdded(at, vm.Self) {
				continue
			}
			wanted[deviceID(vm.Self, disk.Key)] = &blockDevice{
				vm: vm.Self, proxy: proxies[0], host: host, unit: *disk.UnitNumber, leaf: at, write: useOf(disk, at).write,
			}
		}
	}
	l.devices.mu.Lock()
	defer l.devices.mu.Unlock()
	var errs []error
	for id, device := range l.devices.all {
		want := wanted[id]
		if !strings.HasPrefix(id, vm.Self.Value+"/") || (want != nil && want.leaf == device.leaf && want.write == device.write) {
			delete(wanted, id)
			continue
		}
		delete(l.devices.all, id)
		errs = append(errs, l.unplug(device))
	}
	for id, device := range wanted {
		if err := l.plug(device, diskUUIDs(vm)); err != nil {
			errs = append(errs, err)
			continue
		}
		l.devices.all[id] = device
	}
	return errors.Join(errs...)
}

func (l *Lab) scsiHost(devices []types.BaseVirtualDevice, controller int32) (int, bool) {
	for _, device := range devices {
		if c, ok := device.(types.BaseVirtualSCSIController); ok && c.GetVirtualSCSIController().Key == controller {
			return l.firstSCSIHost() + int(c.GetVirtualSCSIController().BusNumber), true
		}
	}
	return 0, false
}

// diskUUIDs tells whether the guest is told which virtual disk is which: disk.EnableUUID, FALSE unless it is set.
func diskUUIDs(vm *simulator.VirtualMachine) bool {
	for _, option := range vm.Config.ExtraConfig {
		if o := option.GetOptionValue(); strings.EqualFold(o.Key, "disk.EnableUUID") {
			return strings.EqualFold(fmt.Sprint(o.Value), "true")
		}
	}
	return false
}

// plug copies the content and, now or after the delay that is set, shows the device.
func (l *Lab) plug(device *blockDevice, uuids bool) error {
	hidden := filepath.Join(l.root, "proxies", device.proxy, "unplugged")
	if err := os.MkdirAll(hidden, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(hidden, "disk-")
	if err != nil {
		return err
	}
	device.file = f.Name()
	err = f.Truncate(device.leaf.capacity)
	if err == nil {
		err = eachAllocated(device.leaf, func(from *os.File, offset, length int64) error {
			return copyRange(f, from, offset, length)
		})
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = os.Remove(device.file)
		return err
	}
	config := l.config()
	if config.HotAddDelayMS == 0 && !config.HotAddRescan {
		return l.show(device, uuids)
	}
	go func() {
		time.Sleep(time.Duration(config.HotAddDelayMS) * time.Millisecond)
		for config.HotAddRescan && !l.rescanned(device) {
			time.Sleep(20 * time.Millisecond)
		}
		l.devices.mu.Lock()
		defer l.devices.mu.Unlock()
		if !device.gone {
			if err := l.show(device, uuids); err != nil {
				log.Printf("showing %s: %v", device.leaf.dsPath, err)
			}
		}
	}()
	return nil
}

// scanFile is where a guest asks its SCSI host to look for devices.
func (l *Lab) scanFile(device *blockDevice) string {
	return l.sysroot(device.proxy, fmt.Sprintf("sys/class/scsi_host/host%d/scan", device.host))
}

// makeScanFile makes it where it is not there: what was written to it is not forgotten.
func (l *Lab) makeScanFile(device *blockDevice) {
	file := l.scanFile(device)
	_ = os.MkdirAll(filepath.Dir(file), 0o700)
	if f, err := os.OpenFile(file, os.O_CREATE|os.O_RDONLY, 0o600); err == nil {
		_ = f.Close()
	}
}

// rescanned tells whether the guest asked, or the device went meanwhile.
func (l *Lab) rescanned(device *blockDevice) bool {
	file := l.scanFile(device)
	l.devices.mu.Lock()
	defer l.devices.mu.Unlock()
	if device.gone || device.scanned {
		return true
	}
	said, err := os.ReadFile(file)
	if err != nil {
		l.makeScanFile(device)
		return false
	}
	if len(bytes.TrimSpace(said)) == 0 {
		return false
	}
	_ = os.Truncate(file, 0)
	for _, other := range l.devices.all { // a scan finds all that there is on the host
		other.scanned = other.scanned || l.scanFile(other) == file
	}
	return device.scanned
}

// show puts the device into /dev and /sys. The caller holds devices.mu.
func (l *Lab) show(device *blockDevice, uuids bool) error {
	root := l.sysroot(device.proxy, "")
	for letter := 'a'; ; letter++ {
		if letter > 'z' {
			return errors.New("the proxy has no name left for a disk")
		}
		device.name = "sd" + string(letter)
		err := os.Mkdir(filepath.Join(root, "dev", device.name+".taken"), 0o700)
		if err == nil {
			device.links = append(device.links, filepath.Join(root, "dev", device.name+".taken"))
			if _, err := os.Lstat(filepath.Join(root, "dev", device.name)); os.IsNotExist(err) {
				break
			}
			continue // a LUN that a proxy for SAN sees
		}
		if !os.IsExist(err) {
			return err
		}
	}
	address := fmt.Sprintf("%d:0:%d:0", device.host, device.unit)
	node := filepath.Join(root, "sys/devices/pci0000:00", fmt.Sprintf("0000:%02x:00.0", device.host),
		fmt.Sprintf("host%d", device.host), fmt.Sprintf("target%d:0:%d", device.host, device.unit), address)
	block := filepath.Join(node, "block", device.name)
	attributes := map[string]string{
		filepath.Join(node, "vendor"):                     "VMware  \n",
		filepath.Join(node, "model"):                      "Virtual disk    \n",
		filepath.Join(node, "type"):                       "0\n",
		filepath.Join(node, "state"):                      "running\n",
		filepath.Join(node, "delete"):                     "",
		filepath.Join(block, "size"):                      strconv.FormatInt(device.leaf.capacity/512, 10) + "\n",
		filepath.Join(block, "ro"):                        "0\n",
		filepath.Join(block, "queue/logical_block_size"):  "512\n",
		filepath.Join(block, "queue/physical_block_size"): "512\n",
	}
	wwn := ""
	if uuids {
		wwn = strings.ToLower(strings.ReplaceAll(device.leaf.uuid, "-", ""))
		attributes[filepath.Join(node, "wwid")] = "naa." + wwn + "\n"
	}
	for name, text := range attributes {
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			return err
		}
	}
	l.makeScanFile(device)
	device.links = append(device.links, node)
	at := filepath.Join(root, "dev", device.name)
	if err := os.Rename(device.file, at); err != nil {
		return err
	}
	device.file, device.visible = at, true
	aliases := map[string]string{
		filepath.Join("sys/class/block", device.name):                                              block,
		filepath.Join("sys/bus/scsi/devices", address):                                             node,
		fmt.Sprintf("dev/disk/by-path/pci-0000:%02x:00.0-scsi-0:0:%d:0", device.host, device.unit): at,
	}
	if wwn != "" {
		aliases["dev/disk/by-id/wwn-0x"+wwn] = at
		aliases["dev/disk/by-id/scsi-3"+wwn] = at
	}
	for name, target := range aliases {
		alias := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(alias), 0o700); err != nil {
			return err
		}
		if to, err := filepath.Rel(filepath.Dir(alias), target); err == nil {
			target = to
		}
		_ = os.Remove(alias) // two disks with one uuid: the last one has the name, as with udev
		if err := os.Symlink(target, alias); err != nil {
			return err
		}
		device.links = append(device.links, alias)
	}
	return nil
}

// unplug keeps what was written and takes the device away. Whoever has it open still finds it empty: as with a device
// that is gone, nothing can be read, and what is written is lost. The caller holds devices.mu.
func (l *Lab) unplug(device *blockDevice) error {
	device.gone = true
	err := l.keepWrites(device)
	for i := len(device.links) - 1; i >= 0; i-- {
		_ = os.RemoveAll(device.links[i])
	}
	_ = os.Truncate(device.file, 0)
	_ = os.Remove(device.file)
	return err
}

// keepWrites stores in the leaf what a persistent disk's device shows otherwise than the chain does. Change tracking of
// the VM whose disk it is did not see these writes; that it begins anew then is a guess.
func (l *Lab) keepWrites(device *blockDevice) error {
	if !device.write {
		return nil
	}
	f, err := os.Open(device.file)
	if err != nil {
		return err
	}
	defer f.Close()
	o, err := device.leaf.open(true)
	if err != nil {
		return err
	}
	defer o.close()
	const piece = 1 << 20
	now, was := make([]byte, piece), make([]byte, piece)
	changed := false
	for at := int64(0); at < device.leaf.capacity; at += piece {
		length := min(piece, device.leaf.capacity-at)
		if _, err := f.ReadAt(now[:length], at); err != nil {
			return err
		}
		if err := o.read(was[:length], at); err != nil {
			return err
		}
		if bytes.Equal(now[:length], was[:length]) {
			continue
		}
		for offset := int64(0); offset < length; offset += grainSize {
			end := min(offset+grainSize, length)
			if bytes.Equal(now[offset:end], was[offset:end]) {
				continue
			}
			changed = true
			if err := o.write(now[offset:end], at+offset); err != nil {
				return err
			}
		}
	}
	if !changed {
		return nil
	}
	owner := l.state(types.ManagedObjectReference{Type: "VirtualMachine", Value: device.leaf.owner})
	if device.leaf.owner != device.vm.Value { // whose data the caller has locked already
		owner.data.Lock()
		defer owner.data.Unlock()
	}
	for _, t := range owner.trackers {
		if t.file == trackerFile(device.leaf, device.leaf.owner) {
			return t.reset(l.identifier("ctk"))
		}
	}
	return nil
}
