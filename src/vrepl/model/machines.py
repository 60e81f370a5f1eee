"""Virtual machines, their disks and snapshots, and what they lie on."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from vrepl.extents import Extent
from vrepl.model.addresses import GuestNetwork


class PowerState(StrEnum):
    ON = "poweredOn"
    OFF = "poweredOff"
    SUSPENDED = "suspended"


@dataclass(frozen=True, slots=True)
class TrackingPosition:
    """Where changed block tracking of one disk stands: a change ID says something only of this disk, in this place."""

    change_id: str | None
    """None: there is no tracking."""
    disk_uuid: str
    base_path: str
    """The base of its chain of links."""
    capacity: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Disk:
    """One virtual disk as some configuration (the VM's current one, or a snapshot's) shows it."""

    key: int
    """vSphere's device key: stable for the life of the device within its VM."""
    index: int
    """Position among the VM's disks, by (controller key, unit number); what people call "disk 0"."""
    label: str
    path: str
    """The link that this configuration points to: `[datastore] folder/name.vmdk`."""
    base_path: str
    """The base of its chain of links (equal to `path` without snapshots)."""
    capacity: int
    uuid: str
    datastore: str
    mode: str = "persistent"
    thin: bool = True
    controller_key: int = 1000
    unit_number: int = 0
    sharing: str = "sharingNone"
    rdm: str | None = None
    """`physicalMode` or `virtualMode` for a raw device mapping."""
    encrypted: bool = False
    change_id: str | None = None
    datastore_ref: str = ""
    """The datastore's MoRef; "" where only its name is known. Names repeat across datacenters."""

    @property
    def position(self) -> TrackingPosition:
        """Of its change tracking, as this configuration shows it."""
        return TrackingPosition(self.change_id, self.uuid, self.base_path, self.capacity)

    @property
    def store(self) -> str:
        """What tells its datastore from others of the site: the MoRef, or the name where that is all there is."""
        return self.datastore_ref or self.datastore

    @property
    def title(self) -> str:
        """How messages name it: `disk 0 (Hard disk 1)`."""
        return f"disk {self.index} ({self.label})"


@dataclass(frozen=True, slots=True)
class Controller:
    """`kind` is one of pvscsi, lsilogic, lsilogic-sas, buslogic, sata, nvme, ide."""

    key: int
    kind: str
    bus_number: int
    sharing: str = "noSharing"


@dataclass(frozen=True, slots=True)
class NetworkAdapter:
    """`kind` is one of vmxnet3, vmxnet2, e1000, e1000e, pcnet32, sriov."""

    key: int
    label: str
    kind: str
    network: str
    mac: str
    mac_is_static: bool
    connected: bool = True


@dataclass(frozen=True, slots=True)
class Allocation:
    """What a VM is promised of its host's processors (MHz) or memory (MiB); a limit of -1 is none."""

    reservation: int = 0
    limit: int = -1
    shares_level: str = "normal"
    shares: int = 0
    """How many, where the level is `custom`."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What a VM takes of its host."""

    cpu: Allocation = Allocation()
    memory: Allocation = Allocation()
    memory_locked: bool = False
    """All of its memory is reserved, however much that is."""
    latency_sensitivity: str = "normal"


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a replica's guest hardware follows."""

    version: int
    guest_id: str
    firmware: str
    secure_boot: bool
    cpus: int
    cores_per_socket: int
    memory_mib: int
    cpu_hot_add: bool = False
    memory_hot_add: bool = False
    nested_virtualisation: bool = False
    performance_counters: bool = False
    io_mmu: bool = False
    virtualisation_based_security: bool = False
    resources: Resources | None = None
    """None: not to be followed, or not told."""
    controllers: tuple[Controller, ...] = ()
    network_adapters: tuple[NetworkAdapter, ...] = ()
    cdroms: int = 0
    extra_config: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One node of a VM's snapshot tree."""

    ref: str
    name: str
    description: str
    created: dt.datetime
    parent_ref: str | None
    quiesced: bool = False


@dataclass(frozen=True, slots=True)
class VirtualMachine:
    """One VM as one read of its site showed it."""

    ref: str
    name: str
    instance_uuid: str
    bios_uuid: str
    power: PowerState
    host: str
    datacenter: str
    folder_ref: str
    hardware: Hardware
    disks: tuple[Disk, ...]
    snapshots: tuple[Snapshot, ...] = ()
    """Whole tree, parents before children."""
    current_snapshot_ref: str | None = None
    template: bool = False
    cbt_enabled: bool = False
    cbt_supported: bool = True
    tools_running: bool = False
    consolidation_needed: bool = False
    vm_path: str = ""
    committed: int | None = None
    """Bytes that the VM's files really take on its datastores; None where the site does not say."""
    disabled_methods: tuple[str, ...] = ()
    lost_power: bool = False
    """It is powered off, and was not powered off in an orderly way: its host crashed, or lost power."""
    devices_left_behind: tuple[str, ...] = ()
    """What a guest can feel and no replica gets, such as `PCI passthrough device`; each kind once."""
    virtual_tpm: bool = False
    notes: str = ""
    nvram: str = ""
    """Name of the file beside it that holds its firmware's variables; "" where it is not told."""
    guest: GuestNetwork | None = None
    """What its guest reports; None where it reports nothing, and in reads that do not ask (only one "at rest" does)."""
    extra_config: Mapping[str, str] = field(default_factory=dict)
    """Only the `vrepl.*` keys."""

    def disk(self, key: int) -> Disk | None:
        return next((disk for disk in self.disks if disk.key == key), None)


@dataclass(frozen=True, slots=True)
class ListedVm:
    """A VM as far as a run looks at it before its turn: what it is like then is read with its replica's lock held."""

    ref: str
    name: str
    instance_uuid: str
    power: PowerState
    datastores: tuple[str, ...] = ()
    """MoRefs of those that any file of it lies on."""


@dataclass(frozen=True, slots=True)
class GuestState:
    """What VMware Tools and the host say of a running VM."""

    power: PowerState
    tools_running: bool
    heartbeat: str
    """green, yellow, red, or gray (no Tools)."""
    host_name: str
    ip_address: str
    question: str
    """What the VM waits for somebody to answer in vSphere; "" if nothing."""


@dataclass(frozen=True, slots=True)
class SnapshotState:
    """A snapshot with the disks in *its* configuration (whose change IDs are the ones that count)."""

    ref: str
    name: str
    description: str
    quiesced: bool
    disks: tuple[Disk, ...]
    extra_config: Mapping[str, str] = field(default_factory=dict)
    """Only the `vrepl.*` keys, as they were when the snapshot was taken."""

    def disk(self, key: int) -> Disk | None:
        return next((disk for disk in self.disks if disk.key == key), None)


@dataclass(frozen=True, slots=True)
class Sighting:
    """By which refs a VM and a snapshot of it were known when they were seen last: where to look first, no more."""

    vm_ref: str
    snapshot_ref: str


@dataclass(frozen=True, slots=True)
class VmAtRest:
    """A VM as it was with no task running on it."""

    vm: VirtualMachine
    snapshot: SnapshotState | None = None
    """That of its snapshots which was looked for, as it was read in the same moment; None: it was not."""


@dataclass(frozen=True, slots=True)
class ChangedAreas:
    """One page of QueryChangedDiskAreas: what changed within `[start, start + length)` bytes."""

    start: int
    length: int
    areas: tuple[Extent, ...]


@dataclass(frozen=True, slots=True)
class Datastore:
    """Facts of one datastore, for placement, free space and transport selection.

    `kind` is one of VMFS, NFS, NFS41, vsan, VVOL, OTHER; `luns` are the `naa.` names of VMFS extents.
    """

    ref: str
    name: str
    kind: str
    capacity: int
    free: int
    luns: tuple[str, ...] = ()
    local: bool = False
    hosts: tuple[str, ...] = ()
    datacenter: str = ""
    """Name of the datacenter above it: within that, and nowhere else, its own name is unique."""
    vsan_esa: bool = False
    """A vSAN datastore of the Express Storage Architecture."""
