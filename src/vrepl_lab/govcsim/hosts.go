package main

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/simulator/esx"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// newestHardware is the newest virtual hardware of an ESXi 8.0 U2, which the lab's hosts are.
const newestHardware = 21

// environmentMethods are those of EnvironmentBrowser that say what a host knows.
type environmentMethods struct {
	shadow
	lab *Lab
}

// hardwareOf is the newest hardware version that a host knows; for no host, that any of them does.
func (l *Lab) hardwareOf(ctx *simulator.Context, host *types.ManagedObjectReference) int {
	limits := l.config().HardwareMax
	of := func(name string) int {
		if n := limits[name]; n > 0 {
			return n
		}
		if n := limits["*"]; n > 0 {
			return n
		}
		return newestHardware
	}
	best := 0
	for _, h := range ctx.Map.All("HostSystem") {
		if host == nil || *host == h.Reference() {
			best = max(best, of(h.Entity().Name))
		}
	}
	return best
}

// unknownTo is the fault of a VM whose hardware or guest system a host does not know.
func (l *Lab) unknownTo(
	ctx *simulator.Context, host types.ManagedObjectReference, version, guestID string,
) types.BaseMethodFault {
	if version != "" && hardwareVersion(version) > l.hardwareOf(ctx, &host) {
		f := &types.VirtualHardwareVersionNotSupported{Host: host}
		if h, ok := ctx.Map.Get(host).(*simulator.HostSystem); ok {
			f.HostName = h.Name
		}
		f.FaultMessage = localized("The virtual machine version is not compatible with the version of the host '" + f.HostName + "'.")
		return f
	}
	if guestID != "" && slices.Contains(l.config().UnknownGuestIDs, guestID) {
		return invalidArgument("configSpec.guestId")
	}
	return nil
}

// QueryConfigOption tells what virtual hardware of one version may have on a host; nothing for a version it does not know.
func (m *environmentMethods) QueryConfigOption(ctx *simulator.Context, req *types.QueryConfigOption) soap.HasFault {
	return &methods.QueryConfigOptionBody{Res: &types.QueryConfigOptionResponse{
		Returnval: m.lab.configOption(m.lab.context(), req.Key, req.Host, nil),
	}}
}

// QueryConfigOptionEx is QueryConfigOption for some guest systems.
func (m *environmentMethods) QueryConfigOptionEx(ctx *simulator.Context, req *types.QueryConfigOptionEx) soap.HasFault {
	spec := req.Spec
	if spec == nil {
		spec = &types.EnvironmentBrowserConfigOptionQuerySpec{}
	}
	return &methods.QueryConfigOptionExBody{Res: &types.QueryConfigOptionExResponse{
		Returnval: m.lab.configOption(m.lab.context(), spec.Key, spec.Host, spec.GuestId),
	}}
}

func (l *Lab) configOption(
	ctx *simulator.Context, key string, host *types.ManagedObjectReference, guests []string,
) *types.VirtualMachineConfigOption {
	newest := l.hardwareOf(ctx, host)
	if key == "" {
		key = fmt.Sprintf("vmx-%d", newest)
	}
	if n := hardwareVersion(key); n > newest || n < 3 {
		return nil
	}
	shares := types.SharesOption{DefaultLevel: types.SharesLevelNormal}
	option := &types.VirtualMachineConfigOption{
		Version: key, Description: key, DefaultDevice: esx.VirtualDevice, SupportedMonitorType: []string{"release"},
		HardwareOptions: types.VirtualHardwareOption{
			HwVersion: int32(hardwareVersion(key)), NumCPU: []int32{1, 2, 4, 8, 16, 32, 64, 128},
			NumCoresPerSocket:   types.IntOption{Min: 1, Max: 64, DefaultValue: 1},
			MemoryMB:            types.LongOption{Min: 4, Max: 25165824, DefaultValue: 2048},
			VirtualDeviceOption: []types.BaseVirtualDeviceOption{&types.VirtualDeviceOption{Type: "VirtualDisk"}},
			ResourceConfigOption: types.ResourceConfigOption{
				CpuAllocationOption:    types.ResourceAllocationOption{SharesOption: shares},
				MemoryAllocationOption: types.ResourceAllocationOption{SharesOption: shares},
			},
		},
		Datastore: types.DatastoreOption{UnsupportedVolumes: []types.VirtualMachineDatastoreVolumeOption{}},
	}
	unknown := l.config().UnknownGuestIDs
	add := func(wanted []string) {
		for _, known := range simulator.GuestID {
			id := string(known)
			if slices.Contains(unknown, id) || (wanted != nil && !slices.Contains(wanted, id)) {
				continue
			}
			option.GuestOSDescriptor = append(option.GuestOSDescriptor, guestDescriptor(id))
		}
	}
	add(guests)
	if len(option.GuestOSDescriptor) == 0 {
		add(nil) // none of those asked for: the whole list
	}
	return option
}

func guestDescriptor(id string) types.GuestOsDescriptor {
	family := types.VirtualMachineGuestOsFamilyLinuxGuest
	if isWindows(id) {
		family = types.VirtualMachineGuestOsFamilyWindowsGuest
	}
	return types.GuestOsDescriptor{
		Id: id, Family: string(family), FullName: id, SupportedMaxCPUs: 768, SupportedMinMemMB: 4,
		SupportedMaxMemMB: 25165824, RecommendedMemMB: 2048, SupportedNumDisks: 60, RecommendedDiskSizeMB: 16384,
		SupportedDiskControllerList: []string{"ParaVirtualSCSIController", "VirtualLsiLogicController"},
		RecommendedSCSIController:   "ParaVirtualSCSIController", RecommendedDiskController: "ParaVirtualSCSIController",
		RecommendedCdromController: "VirtualAHCIController", RecommendedEthernetCard: "VirtualVmxnet3",
		SupportedEthernetCard: []string{"VirtualVmxnet3", "VirtualE1000"}, SupportsSlaveDisk: types.NewBool(true),
		SupportedFirmware: []string{"bios", "efi"}, RecommendedFirmware: "efi", SupportLevel: "supported",
		SupportedForCreate: true, DiskUuidEnabled: true, SupportsSecureBoot: types.NewBool(true),
	}
}

// QueryConfigOptionDescriptor lists the hardware versions and which hosts know them.
func (m *environmentMethods) QueryConfigOptionDescriptor(
	ctx *simulator.Context, req *types.QueryConfigOptionDescriptor,
) soap.HasFault {
	own := m.lab.context()
	hosts := own.Map.All("HostSystem")
	sort.Slice(hosts, func(i, j int) bool { return hosts[i].Entity().Name < hosts[j].Entity().Name })
	newest := m.lab.hardwareOf(own, nil)
	res := &types.QueryConfigOptionDescriptorResponse{}
	for _, version := range []int{7, 8, 9, 10, 11, 13, 14, 15, 17, 18, 19, 20, 21, 22} {
		if version > newest {
			break
		}
		name := fmt.Sprintf("vmx-%02d", version)
		one := types.VirtualMachineConfigOptionDescriptor{
			Key: name, Description: name, CreateSupported: true, RunSupported: true,
			UpgradeSupported: true, DefaultConfigOption: version == newest,
		}
		for _, h := range hosts {
			ref := h.Reference()
			if !m.lab.inFirst(h.Entity().Name) {
				continue
			}
			if version <= m.lab.hardwareOf(own, &ref) {
				one.Host = append(one.Host, ref)
			}
		}
		res.Returnval = append(res.Returnval, one)
	}
	return &methods.QueryConfigOptionDescriptorBody{Res: res}
}

func isWindows(guestID string) bool { return strings.HasPrefix(strings.ToLower(guestID), "win") }
