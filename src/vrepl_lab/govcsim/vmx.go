package main

import (
	"bufio"
	"fmt"
	"os"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// A .vmx has no line breaks and quotes in its values: they are written by their codes.
var (
	vmxText  = strings.NewReplacer("|", "|7C", `"`, "|22", "\n", "|0A", "\r", "|0D")
	vmxPlain = strings.NewReplacer("|7C", "|", "|22", `"`, "|0A", "\n", "|0D", "\r")
)

// vmxLines are the lines of a .vmx as ESXi writes them.
func vmxLines(vm *simulator.VirtualMachine) []string {
	c := vm.Config
	lines := []string{
		`.encoding = "UTF-8"`, `config.version = "8"`,
		fmt.Sprintf("virtualHW.version = \"%s\"", strings.TrimPrefix(c.Version, "vmx-")),
		fmt.Sprintf("displayName = \"%s\"", vmxText.Replace(plainName(vm.Name))), fmt.Sprintf("guestOS = \"%s\"", guestOS(c.GuestId)),
		fmt.Sprintf("firmware = \"%s\"", c.Firmware), fmt.Sprintf("uuid.bios = \"%s\"", spacedUUID(c.Uuid)),
		fmt.Sprintf("vc.uuid = \"%s\"", c.InstanceUuid), fmt.Sprintf(`memSize = "%d"`, c.Hardware.MemoryMB),
		fmt.Sprintf(`numvcpus = "%d"`, c.Hardware.NumCPU),
	}
	if c.Annotation != "" {
		lines = append(lines, fmt.Sprintf("annotation = \"%s\"", vmxText.Replace(c.Annotation)))
	}
	nics := 0
	for _, device := range c.Hardware.Device {
		d := device.GetVirtualDevice()
		switch x := device.(type) {
		case *types.VirtualDisk:
			if slot := diskName(c.Hardware.Device, x); strings.HasPrefix(slot, "scsi") {
				lines = append(lines, slot+`.present = "TRUE"`, fmt.Sprintf("%s.fileName = \"%s\"", slot, vmxText.Replace(path.Base(diskPath(x)))))
			}
		case types.BaseVirtualSCSIController:
			slot := fmt.Sprintf("scsi%d", x.GetVirtualSCSIController().BusNumber)
			lines = append(lines, slot+`.present = "TRUE"`, fmt.Sprintf("%s.virtualDev = \"%s\"", slot, scsiKind(device)))
		case types.BaseVirtualEthernetCard:
			slot := fmt.Sprintf("ethernet%d", nics)
			nics++
			lines = append(lines, slot+`.present = "TRUE"`, fmt.Sprintf("%s.generatedAddress = \"%s\"", slot, x.GetVirtualEthernetCard().MacAddress))
			if b, ok := d.Backing.(*types.VirtualEthernetCardNetworkBackingInfo); ok {
				lines = append(lines, fmt.Sprintf("%s.networkName = \"%s\"", slot, vmxText.Replace(b.DeviceName)))
			}
		}
	}
	for _, option := range c.ExtraConfig {
		o := option.GetOptionValue()
		lines = append(lines, fmt.Sprintf("%s = \"%s\"", o.Key, vmxText.Replace(fmt.Sprint(o.Value))))
	}
	return lines
}

func scsiKind(device types.BaseVirtualDevice) string {
	switch device.(type) {
	case *types.ParaVirtualSCSIController:
		return "pvscsi"
	case *types.VirtualLsiLogicSASController:
		return "lsisas1068"
	case *types.VirtualBusLogicController:
		return "buslogic"
	}
	return "lsilogic"
}

// guestOS is a guest ID as a .vmx has it: "debian12-64" for debian12_64Guest.
func guestOS(id string) string {
	return strings.ToLower(strings.ReplaceAll(strings.TrimSuffix(id, "Guest"), "_", "-"))
}

// readVMX reads the lines of a .vmx, keys in lower case; what is no such line is passed over.
func (l *Lab) readVMX(dsPath string) map[string]string {
	lines := map[string]string{}
	file, fault := l.folderFile(dsPath)
	if fault != nil {
		return lines
	}
	f, err := os.Open(file)
	if err != nil {
		return lines
	}
	defer f.Close()
	for scan := bufio.NewScanner(f); scan.Scan(); {
		key, value, ok := strings.Cut(scan.Text(), "=")
		if !ok {
			continue
		}
		value = strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(value), `"`), `"`)
		lines[strings.ToLower(strings.TrimSpace(key))] = vmxPlain.Replace(value)
	}
	return lines
}

var (
	scsiDisk = regexp.MustCompile(`^scsi(\d+):(\d+)\.filename$`)
	nicOn    = regexp.MustCompile(`^ethernet\d+\.networkname$`)
	ofVMX    = regexp.MustCompile(`^(\.encoding|config\.|virtualhw\.|displayname|guestos|firmware|uuid\.|vc\.|memsize|numvcpus|nvram|` +
		`scsi\d|ide\d|sata\d|nvme\d|ethernet\d|floppy\d|lab\.state)`)
)

// configureFrom gives a registered VM what a .vmx names that the lab did not write: CPUs, memory, guest, firmware, uuid,
// SCSI disks that are there, adapters on networks that are there; other keys become extraConfig. The caller holds the locks.
func (l *Lab) configureFrom(
	ctx *simulator.Context, vm *simulator.VirtualMachine, st *vmState, lines map[string]string,
) types.BaseMethodFault {
	number := func(key string) int64 {
		n, _ := strconv.ParseInt(lines[key], 10, 64)
		return n
	}
	spec := types.VirtualMachineConfigSpec{
		NumCPUs: int32(number("numvcpus")), MemoryMB: number("memsize"), Firmware: lines["firmware"],
		Annotation: lines["annotation"], Uuid: dashedUUID(lines["uuid.bios"]),
	}
	if id := lines["vc.uuid"]; id != "" && !l.instanceTaken(ctx, vm.Self, id) {
		spec.InstanceUuid = dashedUUID(id)
	}
	if n := number("virtualhw.version"); n > 0 {
		spec.Version = fmt.Sprintf("vmx-%02d", n)
	}
	for _, id := range simulator.GuestID {
		if lines["guestos"] != "" && guestOS(string(id)) == lines["guestos"] {
			spec.GuestId = string(id)
		}
	}
	buses := map[string]bool{}
	add := func(device types.BaseVirtualDevice) {
		spec.DeviceChange = append(spec.DeviceChange, &types.VirtualDeviceConfigSpec{
			Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: device,
		})
	}
	for _, key := range sortedKeys(lines) {
		if m := scsiDisk.FindStringSubmatch(key); m != nil {
			file := joined(vmFolder(vm), lines[key])
			bus, _ := strconv.Atoi(m[1])
			unit, _ := strconv.Atoi(m[2])
			if l.link(file) == nil {
				continue // a disk that is not there is met at power-on; here it is left out
			}
			if !buses[m[1]] {
				buses[m[1]] = true
				device, _, err := controller(vmxController(lines["scsi"+m[1]+".virtualdev"]), inventoryDisk{Bus: int32(bus)})
				if err != nil {
					return &types.InvalidVmConfig{Property: key}
				}
				add(device)
			}
			disk := &types.VirtualDisk{}
			disk.Key, disk.ControllerKey, disk.UnitNumber = -int32(100+len(spec.DeviceChange)), int32(1000+bus), types.NewInt32(int32(unit))
			disk.Backing = &types.VirtualDiskFlatVer2BackingInfo{
				VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: file},
				DiskMode:                     string(types.VirtualDiskModePersistent),
			}
			add(disk)
		} else if nicOn.MatchString(key) {
			dc := ctx.Map.Get(l.datacenter).(*simulator.Datacenter)
			if ctx.Map.FindByName(lines[key], dc.Network) == nil {
				continue
			}
			device, err := object.EthernetCardTypes().CreateEthernetCard("vmxnet3", &types.VirtualEthernetCardNetworkBackingInfo{
				VirtualDeviceDeviceBackingInfo: types.VirtualDeviceDeviceBackingInfo{DeviceName: lines[key]},
			})
			if err != nil {
				return systemError(err)
			}
			device.GetVirtualDevice().Key = -int32(100 + len(spec.DeviceChange))
			add(device)
		} else if key != "annotation" && !ofVMX.MatchString(key) {
			spec.ExtraConfig = append(spec.ExtraConfig, &types.OptionValue{Key: key, Value: lines[key]})
		}
	}
	return l.reconfigure(ctx, vm, st, &types.ReconfigVM_Task{This: vm.Self, Spec: spec})
}

func vmxController(name string) string {
	switch name {
	case "pvscsi", "buslogic":
		return name
	case "lsisas1068":
		return "lsilogic-sas"
	}
	return "lsilogic"
}

// dashedUUID is a uuid as the API has it, of one as a .vmx has it: "56 4d … -…".
func dashedUUID(text string) string {
	hex := strings.ToLower(strings.NewReplacer(" ", "", "-", "").Replace(text))
	if len(hex) != 32 {
		return ""
	}
	return strings.Join([]string{hex[:8], hex[8:12], hex[12:16], hex[16:20], hex[20:]}, "-")
}
