"""pyVmomi's objects -> model values. Pure: nothing here makes a call."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vrepl.model import (
    Allocation,
    Controller,
    Disk,
    Hardware,
    NetworkAdapter,
    PowerState,
    Resources,
    Snapshot,
    VirtualMachine,
)
from vrepl.vsphere.api import kind_of, ref_of, vim

CONTROLLER_TYPES: Mapping[str, str] = {
    "ParaVirtualSCSIController": "pvscsi",
    "VirtualLsiLogicController": "lsilogic",
    "VirtualLsiLogicSASController": "lsilogic-sas",
    "VirtualBusLogicController": "buslogic",
    "VirtualAHCIController": "sata",
    "VirtualSATAController": "sata",
    "VirtualNVMEController": "nvme",
    "VirtualIDEController": "ide",
}

ADAPTER_TYPES: Mapping[str, str] = {
    "VirtualVmxnet3": "vmxnet3",
    "VirtualVmxnet3Vrdma": "vmxnet3",
    "VirtualVmxnet2": "vmxnet2",
    "VirtualVmxnet": "vmxnet2",
    "VirtualE1000": "e1000",
    "VirtualE1000e": "e1000e",
    "VirtualPCNet32": "pcnet32",
    "VirtualSriovEthernetCard": "sriov",
}

LEFT_BEHIND: Mapping[str, str] = {
    "VirtualPCIPassthrough": "PCI passthrough device",
    "VirtualUSB": "USB device",
    "VirtualSerialPort": "serial port",
    "VirtualParallelPort": "parallel port",
    "VirtualNVDIMM": "NVDIMM",
    "VirtualPrecisionClock": "precision clock",
    "VirtualWDT": "watchdog timer",
    "VirtualSCSIPassthrough": "SCSI passthrough device",
}
"""Devices that a guest can feel and its replica does not get: they are of the source's host or hold state."""

OWN_KEYS = "vrepl."
"""Prefix of the extraConfig keys that vrepl sets."""

_MATTERS = re.compile(
    r"^(disk\.enableuuid|guestinfo\.(metadata|userdata|vendordata)(\.encoding)?|pcipassthru\.(use64bitmmio|64bitmmiosizegb)"
    r"|numa\..+|cpuid\..+|isolation\..+|time\.synchronize\..+|tools\.synctime|svga\.(vramsize|maxwidth|maxheight)"
    r"|smbios\.(reflecthost|assettag)|monitor_control\..+)$",
    re.IGNORECASE,
)
"""extraConfig that a guest can feel; the rest is bookkeeping of the host that wrote it (uuids, slots, swap files).

sched.*.latencySensitivity is not among them: "high" takes full reservations to power on, which no replica has."""

_DATASTORE_PATH = re.compile(r"^\[(?P<datastore>.*?)\]\s*(?P<path>.*)$")


@dataclass(frozen=True, slots=True)
class Names:
    """What MoRefs are called, gathered once per listing."""

    names: Mapping[str, str] = field(default_factory=dict)
    """Of hosts, networks, datastores, folders, datacenters, vApps: ref -> name."""
    parents: Mapping[str, str] = field(default_factory=dict)
    """ref -> ref of the folder, datacenter, … above."""
    datacenters: frozenset[str] = frozenset()
    portgroups: Mapping[str, str] = field(default_factory=dict)
    """Distributed port group key -> name."""
    opaque_networks: Mapping[str, str] = field(default_factory=dict)
    """NSX network id -> name."""

    def name(self, ref: str | None) -> str:
        """The name, or the ref itself where the user may not read it."""
        return self.names.get(ref or "", ref or "")

    def datacenter_of(self, ref: str | None) -> str:
        """The name of the datacenter above, "" if there is none to be seen."""
        for _ in range(100):
            if not ref:
                break
            if ref in self.datacenters:
                return self.name(ref)
            ref = self.parents.get(ref)
        return ""


def decode_name(name: str) -> str:
    """vSphere escapes `/`, `\\` and `%` in names of its objects; people do not."""
    return name.replace("%2f", "/").replace("%2F", "/").replace("%5c", "\\").replace("%5C", "\\").replace("%25", "%")


def encode_name(name: str) -> str:
    """vSphere escapes slashes by itself; a per cent sign it could take for the start of an escape."""
    return name.replace("%", "%25")


def datastore_of(path: str) -> str:
    """`[ds-1] vm/vm.vmdk` -> `ds-1`."""
    match = _DATASTORE_PATH.match(path)
    return match["datastore"] if match else ""


def links_of(backing: Any) -> Iterator[Any]:
    """The backing and its parents, from the leaf to the base."""
    while backing is not None:
        yield backing
        backing = getattr(backing, "parent", None)


def disks_of(devices: Sequence[Any]) -> tuple[Disk, ...]:
    """The disks of a configuration's devices, in (controller key, unit number) order, which gives their index."""
    found = [device for device in devices if isinstance(device, vim.vm.device.VirtualDisk)]
    found.sort(key=lambda device: (device.controllerKey or 0, device.unitNumber or 0, device.key))
    return tuple(_disk(device, index) for index, device in enumerate(found))


def _disk(device: Any, index: int) -> Disk:
    backing = device.backing
    links = list(links_of(backing))
    base = links[-1]
    path = str(getattr(backing, "fileName", None) or "")
    info = device.deviceInfo
    raw = "RawDisk" in kind_of(backing)
    return Disk(
        key=int(device.key),
        index=index,
        label=str(info.label) if info is not None and info.label else f"disk {device.key}",
        path=path,
        base_path=str(getattr(base, "fileName", None) or path),
        capacity=int(device.capacityInBytes or (device.capacityInKB or 0) * 1024),
        uuid=str(getattr(backing, "uuid", None) or ""),
        datastore=datastore_of(path),
        datastore_ref=ref_of(store) if (store := getattr(backing, "datastore", None)) is not None else "",
        mode=str(getattr(backing, "diskMode", None) or "persistent"),
        # A delta is always thin; what counts is how the base is allocated.
        thin=bool(getattr(base, "thinProvisioned", False)) or "Sparse" in kind_of(base),
        controller_key=int(device.controllerKey or 0),
        unit_number=int(device.unitNumber or 0),
        sharing=str(getattr(backing, "sharing", None) or "sharingNone"),
        rdm=(str(getattr(backing, "compatibilityMode", None) or "physicalMode") if raw else None),
        encrypted=getattr(backing, "keyId", None) is not None,
        change_id=str(change) if (change := getattr(backing, "changeId", None)) else None,
    )


def controllers_of(devices: Sequence[Any]) -> tuple[Controller, ...]:
    """The disk controllers, by kind and bus."""
    found = []
    for device in devices:
        kind = CONTROLLER_TYPES.get(kind_of(device))
        if kind is not None:
            sharing = str(getattr(device, "sharedBus", None) or "noSharing")
            found.append(Controller(int(device.key), kind, int(device.busNumber), sharing))
    return tuple(sorted(found, key=lambda controller: (controller.kind, controller.bus_number)))


def network_of(backing: Any, names: Names) -> str:
    """The name of the network behind a network adapter."""
    port = getattr(backing, "port", None)
    if port is not None:
        key = str(port.portgroupKey or "")
        return names.portgroups.get(key, names.name(key))
    opaque = getattr(backing, "opaqueNetworkId", None)
    if opaque:
        return names.opaque_networks.get(str(opaque), str(opaque))
    network = getattr(backing, "network", None)
    if network is not None and ref_of(network) in names.names:
        return names.name(ref_of(network))
    return decode_name(str(getattr(backing, "deviceName", None) or ""))


def adapters_of(devices: Sequence[Any], names: Names) -> tuple[NetworkAdapter, ...]:
    """The network adapters in device key order."""
    cards = [device for device in devices if isinstance(device, vim.vm.device.VirtualEthernetCard)]
    return tuple(
        NetworkAdapter(
            key=int(card.key),
            label=str(card.deviceInfo.label) if card.deviceInfo is not None else f"adapter {card.key}",
            kind=ADAPTER_TYPES.get(kind_of(card), "vmxnet3"),
            network=network_of(card.backing, names),
            mac=str(card.macAddress or "").lower(),
            mac_is_static=str(card.addressType or "").lower() == "manual",
            connected=bool(card.connectable.startConnected) if card.connectable is not None else True,
        )
        for card in sorted(cards, key=lambda card: int(card.key))
    )


def snapshots_of(tree: Any) -> tuple[Snapshot, ...]:
    """The whole snapshot tree, parents before children, siblings by age."""
    found: list[Snapshot] = []
    waiting: list[tuple[Any, str | None]] = (
        [(node, None) for node in reversed(tree.rootSnapshotList or [])] if tree is not None else []
    )
    while waiting:
        node, parent = waiting.pop()
        ref = ref_of(node.snapshot)
        found.append(
            Snapshot(
                ref=ref,
                name=decode_name(str(node.name)),
                description=str(node.description or ""),
                created=as_utc(node.createTime),
                parent_ref=parent,
                quiesced=bool(node.quiesced),
            )
        )
        waiting.extend((child, ref) for child in reversed(node.childSnapshotList or []))
    return tuple(found)


def as_utc(moment: dt.datetime) -> dt.datetime:
    return moment.astimezone(dt.UTC) if moment.tzinfo is not None else moment.replace(tzinfo=dt.UTC)


def hardware_version(text: str | None) -> int:
    """`vmx-19` -> 19; 0 if there is none."""
    digits = re.search(r"(\d+)$", text or "")
    return int(digits[1]) if digits else 0


def settings_of(options: Sequence[Any]) -> dict[str, str]:
    """extraConfig as a mapping."""
    return {str(option.key): str(option.value) for option in options or () if option.value is not None}


def own_settings(settings: Mapping[str, str]) -> dict[str, str]:
    """Those of extraConfig that vrepl sets."""
    return {key: text for key, text in settings.items() if key.startswith(OWN_KEYS)}


def guest_settings(settings: Mapping[str, str]) -> dict[str, str]:
    """Those extraConfig settings that a replica needs to behave as its source does."""
    return {key: value for key, value in settings.items() if _MATTERS.match(key)}


VM_PATHS: tuple[str, ...] = (
    "name",
    "parent",
    "parentVApp",
    "config.uuid",
    "config.instanceUuid",
    "config.template",
    "config.version",
    "config.guestId",
    "config.firmware",
    "config.bootOptions.efiSecureBootEnabled",
    "config.hardware.numCPU",
    "config.hardware.numCoresPerSocket",
    "config.hardware.memoryMB",
    "config.hardware.device",
    "config.cpuHotAddEnabled",
    "config.memoryHotAddEnabled",
    "config.nestedHVEnabled",
    "config.vPMCEnabled",
    "config.flags.vvtdEnabled",
    "config.flags.vbsEnabled",
    "config.cpuAllocation",
    "config.memoryAllocation",
    "config.memoryReservationLockedToMax",
    "config.latencySensitivity.level",
    "config.annotation",
    "config.extraConfig",
    "config.changeTrackingEnabled",
    "config.files.vmPathName",
    "capability.changeTrackingSupported",
    "runtime.powerState",
    "runtime.cleanPowerOff",
    "runtime.host",
    "runtime.consolidationNeeded",
    "guest.toolsRunningStatus",
    "snapshot",
    "summary.storage.committed",
    "disabledMethod",
)
"""What one VirtualMachine value is made of."""


def _nvram(settings: Mapping[str, str], vm_path: str) -> str:
    """As the extraConfig says, else beside the .vmx and called like it, as vSphere does (a guess)."""
    name = settings.get("nvram", "")
    if not name and vm_path.endswith(".vmx"):
        name = vm_path.rpartition("/")[2].removesuffix(".vmx") + ".nvram"
    return name.rpartition("/")[2]


def _allocation(info: Any) -> Allocation:
    if info is None:
        return Allocation()
    shares = getattr(info, "shares", None)
    level = str(shares.level) if shares is not None else "normal"
    return Allocation(
        reservation=int(info.reservation or 0),
        limit=int(info.limit if info.limit is not None else -1),
        shares_level=level,
        shares=int(shares.shares or 0) if shares is not None and level == "custom" else 0,
    )


def virtual_machine(ref: str, values: Mapping[str, Any], names: Names) -> VirtualMachine:
    """A VM from the values of VM_PATHS; a property that the user may not read, or that is unset, has its default.

    `host` and `datacenter` are names.
    """

    def value(path: str, default: Any) -> Any:
        found = values.get(path)
        return default if found is None else found

    devices = value("config.hardware.device", [])
    kinds = {kind_of(one) for one in devices}
    settings = settings_of(value("config.extraConfig", []))
    parent = values.get("parent") or values.get("parentVApp")
    host = values.get("runtime.host")
    tree = values.get("snapshot")
    current = getattr(tree, "currentSnapshot", None)
    return VirtualMachine(
        ref=ref,
        name=decode_name(str(value("name", ref))),
        instance_uuid=str(value("config.instanceUuid", "")).lower(),
        bios_uuid=str(value("config.uuid", "")).lower(),
        power=PowerState(str(value("runtime.powerState", "poweredOff"))),
        host=names.name(ref_of(host)) if host is not None else "",
        datacenter=names.datacenter_of(ref_of(parent) if parent is not None else None),
        folder_ref=ref_of(parent) if parent is not None else "",
        hardware=Hardware(
            version=hardware_version(value("config.version", None)),
            guest_id=str(value("config.guestId", "otherGuest64")),
            firmware=str(value("config.firmware", "bios")),
            secure_boot=bool(value("config.bootOptions.efiSecureBootEnabled", False)),
            cpus=int(value("config.hardware.numCPU", 1)),
            cores_per_socket=int(value("config.hardware.numCoresPerSocket", 1)) or 1,
            memory_mib=int(value("config.hardware.memoryMB", 0)),
            cpu_hot_add=bool(value("config.cpuHotAddEnabled", False)),
            memory_hot_add=bool(value("config.memoryHotAddEnabled", False)),
            nested_virtualisation=bool(value("config.nestedHVEnabled", False)),
            performance_counters=bool(value("config.vPMCEnabled", False)),
            io_mmu=bool(value("config.flags.vvtdEnabled", False)),
            virtualisation_based_security=bool(value("config.flags.vbsEnabled", False)),
            resources=Resources(
                cpu=_allocation(value("config.cpuAllocation", None)),
                memory=_allocation(value("config.memoryAllocation", None)),
                memory_locked=bool(value("config.memoryReservationLockedToMax", False)),
                latency_sensitivity=str(value("config.latencySensitivity.level", "normal")),
            ),
            controllers=controllers_of(devices),
            network_adapters=adapters_of(devices, names),
            cdroms=sum(1 for device in devices if isinstance(device, vim.vm.device.VirtualCdrom)),
            extra_config=guest_settings(settings),
        ),
        disks=disks_of(devices),
        snapshots=snapshots_of(tree),
        current_snapshot_ref=ref_of(current) if current is not None else None,
        template=bool(value("config.template", False)),
        cbt_enabled=bool(value("config.changeTrackingEnabled", False)),
        cbt_supported=bool(value("capability.changeTrackingSupported", True)),
        tools_running=str(value("guest.toolsRunningStatus", "")) == "guestToolsRunning",
        consolidation_needed=bool(value("runtime.consolidationNeeded", False)),
        vm_path=str(value("config.files.vmPathName", "")),
        committed=int(committed) if (committed := values.get("summary.storage.committed")) is not None else None,
        disabled_methods=tuple(str(method) for method in value("disabledMethod", ())),
        lost_power=value("runtime.cleanPowerOff", True) is False and value("runtime.powerState", "") == "poweredOff",
        devices_left_behind=tuple(sorted({LEFT_BEHIND[kind] for kind in kinds if kind in LEFT_BEHIND})),
        virtual_tpm="VirtualTPM" in kinds,
        notes=str(value("config.annotation", "")),
        nvram=_nvram(settings, str(value("config.files.vmPathName", ""))),
        extra_config=own_settings(settings),
    )
