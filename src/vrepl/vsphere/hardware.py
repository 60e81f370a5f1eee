"""A replica's virtual hardware as vSphere's specifications; no calls are made here."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from vrepl.errors import NotFoundError
from vrepl.model import (
    DISCONNECTED,
    Allocation,
    Controller,
    Disk,
    Hardware,
    NetworkAdapter,
    ReplicaSpec,
    Resources,
)
from vrepl.vsphere.api import vim
from vrepl.vsphere.placement import Place, mapped_network
from vrepl.vsphere.translation import encode_name

CONTROLLER_CLASSES: Mapping[str, str] = {
    "pvscsi": "ParaVirtualSCSIController",
    "lsilogic": "VirtualLsiLogicController",
    "lsilogic-sas": "VirtualLsiLogicSASController",
    "buslogic": "VirtualBusLogicController",
    "sata": "VirtualAHCIController",
    "nvme": "VirtualNVMEController",
    "ide": "VirtualIDEController",
}

ADAPTER_CLASSES: Mapping[str, str] = {
    "vmxnet3": "VirtualVmxnet3",
    "vmxnet2": "VirtualVmxnet2",
    "e1000": "VirtualE1000",
    "e1000e": "VirtualE1000e",
    "pcnet32": "VirtualPCNet32",
    # SR-IOV needs a physical function of the source's host: the replica gets the paravirtual card instead.
    "sriov": "VirtualVmxnet3",
}

_SCSI = frozenset({"pvscsi", "lsilogic", "lsilogic-sas", "buslogic"})
_SCSI_OWN_UNIT = 7


def is_static_mac(mac: str) -> bool:
    """May a MAC be set by hand? VMware keeps 00:50:56:00:00:00 to 00:50:56:3F:FF:FF for that."""
    parts = mac.lower().replace("-", ":").split(":")
    if len(parts) != 6 or not all(len(part) == 2 and set(part) <= set("0123456789abcdef") for part in parts):
        return False
    return parts[:3] == ["00", "50", "56"] and int(parts[3], 16) <= 0x3F


def temporary_key(key: int) -> int:
    """The key that a device of the source has within a specification: vSphere takes negative ones as placeholders."""
    return -abs(key) - 1


def added(device: Any, *, new_file: bool = False) -> Any:
    """Add a device; `new_file`: and make its disk file."""
    operation = vim.vm.device.VirtualDeviceSpec.Operation.add
    change = vim.vm.device.VirtualDeviceSpec(operation=operation, device=device)
    if new_file:
        change.fileOperation = vim.vm.device.VirtualDeviceSpec.FileOperation.create
    return change


def edited(device: Any) -> Any:
    operation = vim.vm.device.VirtualDeviceSpec.Operation.edit
    return vim.vm.device.VirtualDeviceSpec(operation=operation, device=device)


def removed(device: Any, *, destroy_file: bool = False) -> Any:
    """Remove a device; `destroy_file`: and the files of its disk."""
    operation = vim.vm.device.VirtualDeviceSpec.Operation.remove
    change = vim.vm.device.VirtualDeviceSpec(operation=operation, device=device)
    if destroy_file:
        change.fileOperation = vim.vm.device.VirtualDeviceSpec.FileOperation.destroy
    return change


def controller_device(controller: Controller, key: int) -> Any:
    """A controller at the source's bus position; a replica's bus is never shared."""
    device = getattr(vim.vm.device, CONTROLLER_CLASSES[controller.kind])()
    device.key = key
    device.busNumber = controller.bus_number
    if controller.kind in _SCSI:
        device.sharedBus = vim.vm.device.VirtualSCSIController.Sharing.noSharing
        device.scsiCtlrUnitNumber = _SCSI_OWN_UNIT
    return device


def disk_device(disk: Disk, *, key: int, controller_key: int, thin: bool, datastore: Any, datastore_name: str) -> Any:
    """An empty disk of the source disk's capacity, at its unit; the file is named by vSphere, in the VM's folder."""
    backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
        fileName=f"[{datastore_name}]",
        datastore=datastore,
        diskMode="persistent",
        thinProvisioned=thin,
        # A lazily zeroed thick disk: eager zeroing would write the whole disk before the first byte arrives.
        eagerlyScrub=None if thin else False,
    )
    return vim.vm.device.VirtualDisk(
        key=key,
        backing=backing,
        controllerKey=controller_key,
        unitNumber=disk.unit_number,
        capacityInKB=disk.capacity // 1024,
        capacityInBytes=disk.capacity,
    )


def name_file(device: Any, path: str) -> None:
    """Let a disk that is to be added stand on the file at `path`, as that was made: thin or thick."""
    device.backing.fileName = path
    device.backing.datastore = None
    device.backing.thinProvisioned = device.backing.eagerlyScrub = None


def adapter_backing(network: str, place: Place) -> Any:
    """The backing for a network of the place, by name. Raises NotFoundError with near names.

    A disconnected adapter wants one all the same: the first of the host's, where it is not connected.
    """
    card = vim.vm.device.VirtualEthernetCard
    if network == DISCONNECTED and network not in place.networks:
        plain = sorted(set(place.networks) - set(place.portgroups) - set(place.opaque)) or sorted(place.networks)
        if not plain:
            raise NotFoundError(f"host {place.host_name} has no network at all", hint="give it one")
        network = plain[0]
    found = place.network(network)
    if network in place.portgroups:
        key, switch = place.portgroups[network]
        port = vim.dvs.PortConnection(portgroupKey=key, switchUuid=switch)
        return card.DistributedVirtualPortBackingInfo(port=port)
    if network in place.opaque:
        network_id, network_type = place.opaque[network]
        return card.OpaqueNetworkBackingInfo(opaqueNetworkId=network_id, opaqueNetworkType=network_type)
    return card.NetworkBackingInfo(deviceName=network, network=found)


def adapter_device(adapter: NetworkAdapter, *, key: int, network: str, place: Place, keep_mac: bool) -> Any:
    """A network adapter of the source's type; its MAC is the source's only if asked for and allowed."""
    device = getattr(vim.vm.device, ADAPTER_CLASSES[adapter.kind])()
    device.key = key
    device.backing = adapter_backing(network, place)
    device.connectable = vim.vm.device.VirtualDevice.ConnectInfo(
        startConnected=adapter.connected and network != DISCONNECTED, allowGuestControl=True, connected=False
    )
    device.wakeOnLanEnabled = True
    set_mac(device, adapter.mac if keep_mac else None)
    return device


def set_mac(device: Any, mac: str | None) -> None:
    """The MAC by hand where that is allowed, else one that vSphere chooses."""
    if mac is not None and is_static_mac(mac):
        device.addressType = "manual"
        device.macAddress = mac
    else:
        device.addressType = "generated"


def cdrom_device(key: int, controller_key: int, unit: int) -> Any:
    """An empty drive."""
    return vim.vm.device.VirtualCdrom(
        key=key,
        controllerKey=controller_key,
        unitNumber=unit,
        backing=vim.vm.device.VirtualCdrom.RemotePassthroughBackingInfo(deviceName="", exclusive=False),
        connectable=vim.vm.device.VirtualDevice.ConnectInfo(
            startConnected=False, allowGuestControl=True, connected=False
        ),
    )


def cdrom_places(hardware: Hardware, disks: Sequence[Disk]) -> Iterator[tuple[int, int]]:
    """Free (temporary controller key, unit) positions for CD-ROM drives: IDE first, then SATA."""
    taken = {(disk.controller_key, disk.unit_number) for disk in disks}
    for kind, units in (("ide", 2), ("sata", 30)):
        for controller in hardware.controllers:
            if controller.kind != kind:
                continue
            for unit in range(units):
                if (controller.key, unit) not in taken:
                    yield temporary_key(controller.key), unit


def options(settings: Mapping[str, str]) -> list[Any]:
    """extraConfig."""
    return [vim.option.OptionValue(key=key, value=value) for key, value in sorted(settings.items())]


def flags(hardware: Hardware) -> Any:
    """What of a VM's flags a guest can feel; those that are not set stay as they are."""
    return vim.vm.FlagInfo(vvtdEnabled=hardware.io_mmu, vbsEnabled=hardware.virtualisation_based_security)


def resource_fields(resources: Resources | None) -> dict[str, Any]:
    """What of a ConfigSpec says it; nothing for None."""
    if resources is None:
        return {}
    return {
        "cpuAllocation": _allocation(resources.cpu),
        "memoryAllocation": _allocation(resources.memory),
        "memoryReservationLockedToMax": resources.memory_locked,
        "latencySensitivity": vim.LatencySensitivity(level=resources.latency_sensitivity),
    }


def _allocation(wanted: Allocation) -> Any:
    shares = vim.SharesInfo(level=wanted.shares_level, shares=wanted.shares)
    return vim.ResourceAllocationInfo(reservation=wanted.reservation, limit=wanted.limit, shares=shares)


def replica_config(spec: ReplicaSpec, place: Place, new_uuid: Callable[[], str]) -> Any:
    """The ConfigSpec that creates a replica with empty disks. Raises NotFoundError for an unknown network."""
    hardware = spec.hardware
    keys = itertools.count(-100_000, -1)
    used = {disk.controller_key for disk in spec.disks}
    drives = list(itertools.islice(cdrom_places(hardware, spec.disks), hardware.cdroms))
    used_temporary = {temporary_key(key) for key in used} | {key for key, _ in drives}
    changes = [
        added(controller_device(controller, temporary_key(controller.key)))
        for controller in hardware.controllers
        # vSphere adds IDE controllers by itself; one that nothing hangs on need not be named.
        if controller.kind != "ide" or temporary_key(controller.key) in used_temporary
    ]
    for disk in spec.disks:
        thin = disk.thin if spec.thin is None else spec.thin
        datastore, datastore_name = place.store_of(spec.placement, disk.key)
        device = disk_device(
            disk,
            key=next(keys),
            controller_key=temporary_key(disk.controller_key),
            thin=thin,
            datastore=datastore,
            datastore_name=datastore_name,
        )
        changes.append(added(device, new_file=True))
    for adapter in hardware.network_adapters:
        network = mapped_network(adapter.network, spec.placement.networks)
        device = adapter_device(adapter, key=next(keys), network=network, place=place, keep_mac=spec.keep_macs)
        changes.append(added(device))
    changes += [added(cdrom_device(next(keys), controller, unit)) for controller, unit in drives]
    return vim.vm.ConfigSpec(
        name=encode_name(spec.name),
        annotation=spec.annotation,
        uuid=spec.bios_uuid,
        instanceUuid=spec.instance_uuid or new_uuid(),
        files=vim.vm.FileInfo(vmPathName=f"[{place.datastore_name}]"),
        version=f"vmx-{hardware.version:02d}" if hardware.version else None,
        guestId=hardware.guest_id,
        firmware=hardware.firmware,
        bootOptions=vim.vm.BootOptions(efiSecureBootEnabled=hardware.secure_boot),
        numCPUs=hardware.cpus,
        numCoresPerSocket=hardware.cores_per_socket,
        memoryMB=hardware.memory_mib,
        cpuHotAddEnabled=hardware.cpu_hot_add,
        memoryHotAddEnabled=hardware.memory_hot_add,
        nestedHVEnabled=hardware.nested_virtualisation or None,
        vPMCEnabled=hardware.performance_counters or None,
        flags=flags(hardware) if hardware.io_mmu or hardware.virtualisation_based_security else None,
        **resource_fields(hardware.resources),
        # Before the first seal, so that every restore point carries a change ID: failback needs it.
        changeTrackingEnabled=True if hardware.version >= 7 else None,
        extraConfig=options({**hardware.extra_config, **spec.extra_config}),
        deviceChange=changes,
    )
