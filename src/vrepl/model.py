"""The nouns of vrepl as frozen values.

Sizes are bytes, times are UTC-aware datetimes, refs are MoRef values ("vm-12").

Nothing here does I/O or imports anything heavy: data movers use it too.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from vrepl.extents import Extent


class PowerState(StrEnum):
    ON = "poweredOn"
    OFF = "poweredOff"
    SUSPENDED = "suspended"


class TransportMode(StrEnum):
    """VDDK's own names."""

    SAN = "san"
    HOTADD = "hotadd"
    NBDSSL = "nbdssl"
    NBD = "nbd"


class Quiesce(StrEnum):
    """What a job asks of the guest before the snapshot."""

    REQUIRE = "require"
    PREFER = "prefer"
    NEVER = "never"


class Consistency(StrEnum):
    """What a restore point really is: `quiesced` by VMware Tools, `powered-off` (nothing ran), or `crash`."""

    QUIESCED = "quiesced"
    POWERED_OFF = "powered-off"
    CRASH = "crash"


class TransferKind(StrEnum):
    """How a disk's bytes are found: all that is allocated; what CBT says; or all, by comparing digests."""

    FULL = "full"
    INCREMENTAL = "incremental"
    COMPARE = "compare"


class ReplicaState(StrEnum):
    READY = "ready"
    TESTING = "testing"
    FAILING_OVER = "failing-over"
    FAILED_OVER = "failed-over"
    UNDONE = "undone"
    COMMITTED = "committed"
    FAILING_BACK = "failing-back"


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
    extra_config: Mapping[str, str] = field(default_factory=dict)
    """Only the `vrepl.*` keys."""

    def disk(self, key: int) -> Disk | None:
        return next((disk for disk in self.disks if disk.key == key), None)


@dataclass(frozen=True, slots=True)
class SnapshotState:
    """A snapshot with the disks in *its* configuration (whose change IDs are the ones that count)."""

    ref: str
    name: str
    description: str
    quiesced: bool
    disks: tuple[Disk, ...]

    def disk(self, key: int) -> Disk | None:
        return next((disk for disk in self.disks if disk.key == key), None)


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
    vsan_esa: bool = False
    """A vSAN datastore of the Express Storage Architecture."""


@dataclass(frozen=True, slots=True)
class ReplicaPlacement:
    """Where a job puts its replicas, by name; None means: the only or the obvious one."""

    host: str | None
    datastore: str
    folder: str | None = None
    resource_pool: str | None = None
    networks: Mapping[str, str] = field(default_factory=dict)
    """Source network name -> target network name; an unmapped one keeps its name."""


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """Everything that is needed to create and register a replica with empty disks."""

    name: str
    placement: ReplicaPlacement
    hardware: Hardware
    bios_uuid: str
    disks: tuple[Disk, ...]
    """The source's disks; capacity, controller, unit number and thinness are followed."""
    keep_macs: bool
    thin: bool | None
    """None follows the source."""
    extra_config: Mapping[str, str]
    """`vrepl.*` keys that never change: source site, source instanceUuid, repository, run, format."""
    annotation: str = ""


@dataclass(frozen=True, slots=True)
class DiskPoint:
    """What a restore point knows of one disk."""

    source_key: int
    index: int
    label: str
    capacity: int
    source_disk_uuid: str
    source_base_path: str
    change_id: str | None
    """Change ID of the *source* snapshot that this restore point was copied from; None where CBT had none."""
    target_key: int
    kind: TransferKind
    bytes_moved: int


@dataclass(frozen=True, slots=True)
class RestorePoint:
    """A sealed state of a replica. `id` sorts by time: `YYYYMMDDTHHMMSSZ-xxxxxx`."""

    id: str
    time: dt.datetime
    """When the source snapshot was taken (UTC)."""
    run_id: str
    job: str
    consistency: Consistency
    snapshot_name: str
    parent_id: str | None
    disks: tuple[DiskPoint, ...]

    def disk(self, source_key: int) -> DiskPoint | None:
        return next((disk for disk in self.disks if disk.source_key == source_key), None)


@dataclass(frozen=True, slots=True)
class ReplicaRecord:
    """What the repository knows of one replica that never changes, or rarely.

    `id` names its folder: `<source site>-<source instanceUuid>`.
    """

    id: str
    source_site: str
    source_instance_uuid: str
    source_name: str
    target_site: str
    target_instance_uuid: str
    target_name: str
    job: str
    state: ReplicaState = ReplicaState.READY
    disk_keys: Mapping[int, int] = field(default_factory=dict)
    """Source device key -> replica device key."""
    empty_disks: tuple[int, ...] = ()
    """Source keys of disks that vrepl made empty and has sealed nothing of: what it did not write there is zeros."""


@dataclass(frozen=True, slots=True)
class ModeChoice:
    """A transport mode for one side of one disk, and why it is (or is not) taken."""

    mode: TransportMode
    reason: str
    places: int | None = None
    """How many disks can be reached this way at once: the proxy VM's free SCSI slots; None: no such limit."""


@dataclass(frozen=True, slots=True)
class TransportPlan:
    """Modes to try in order for one side of one disk, and those that were ruled out, each with its reason."""

    usable: tuple[ModeChoice, ...]
    ruled_out: tuple[ModeChoice, ...] = ()

    @property
    def modes(self) -> tuple[TransportMode, ...]:
        return tuple(choice.mode for choice in self.usable)


class OnResize(StrEnum):
    """What a run does when a source disk was resized (the replica's snapshot chain cannot grow)."""

    REFUSE = "refuse"
    RESTART = "restart"


class OnNotReplicable(StrEnum):
    """What a run does with a VM that has a disk that cannot be replicated."""

    FAIL = "fail"
    SKIP_DISK = "skip-disk"


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """How many restore points to keep: the `last` ones, and the newest of so many days and weeks.

    `last` is 1..28, and so is the sum: vSphere allows 32 snapshots in a chain.
    """

    last: int = 7
    daily: int = 0
    weekly: int = 0


@dataclass(frozen=True, slots=True)
class BandwidthWindow:
    """A window of local time with its own limit; may cross midnight. `rate`: bytes/s, None unlimited."""

    start: dt.time
    end: dt.time
    rate: int | None

    def contains(self, moment: dt.time) -> bool:
        if self.start <= self.end:
            return self.start <= moment < self.end
        return moment >= self.start or moment < self.end


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """How fast all transfers of a job together may move bytes. `rate`: bytes/s, None unlimited."""

    rate: int | None = None
    windows: tuple[BandwidthWindow, ...] = ()

    def rate_at(self, moment: dt.time) -> int | None:
        """The limit at a local time of day in bytes/s; the first window that holds it wins."""
        return next((window.rate for window in self.windows if window.contains(moment)), self.rate)


@dataclass(frozen=True, slots=True)
class JobSettings:
    """One job as the engine takes it; built from the configuration, where every default is written down."""

    name: str
    source: str
    """Site name."""
    target: str
    """Site name."""
    vms: tuple[str, ...]
    placement: ReplicaPlacement
    replica_name: str = "{name}-replica"
    quiesce: Quiesce = Quiesce.PREFER
    retention: RetentionPolicy = field(default_factory=RetentionPolicy)
    source_modes: tuple[TransportMode, ...] = (
        TransportMode.SAN,
        TransportMode.HOTADD,
        TransportMode.NBDSSL,
    )
    target_modes: tuple[TransportMode, ...] = (
        TransportMode.SAN,
        TransportMode.HOTADD,
        TransportMode.NBDSSL,
    )
    fallback: bool = True
    """Whether the next mode may be tried when one fails."""
    on_resize: OnResize = OnResize.REFUSE
    on_not_replicable: OnNotReplicable = OnNotReplicable.FAIL
    keep_macs: bool = False
    thin: bool | None = None
    """None follows the source."""
    parallel_vms: int = 2
    parallel_disks: int = 4
    """Disks in transfer at once, over all VMs of the run."""
    nfc_budget_mib: int = 32
    """NFC buffers per ESXi host, in MiB."""
    nfc_mib_per_disk: float = 4.0
    """NFC buffers that an open disk holds on its ESXi host, in MiB; what the data movers are started with."""
    vcenter_connections: int = 40
    snapshots_per_datastore: int = 4
    """Source snapshots that may be open at once on one datastore."""
    bandwidth: Bandwidth = field(default_factory=Bandwidth)
    source_proxy: str | None = None
    """Name of the configured proxy whose data movers open the source's disks; None: this machine, with [vddk]."""
    target_proxy: str | None = None
    """Likewise for the target's disks. Two different proxies: a pair of data movers, joined by a byte stream."""

    def proxy_at(self, site: str) -> str | None:
        """The proxy that serves one of the job's two sites."""
        return self.source_proxy if site == self.source else self.target_proxy

    def replica_name_of(self, source_name: str) -> str:
        """The name of the replica of a source VM of this name."""
        return self.replica_name.replace("{name}", source_name).replace("{job}", self.name)
