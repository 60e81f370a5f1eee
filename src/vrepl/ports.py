"""What the engine needs of the world, as small Protocols: sites, data movers, the clock and IDs.

`vsphere` and `vddk` implement them for real; the tests' in-memory pair of sites implements them for property tests.
Implementations raise only the exceptions of `vrepl.errors`. All methods may be called from several threads.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vrepl.extents import Extent
from vrepl.model import (
    ChangedAreas,
    Datastore,
    Disk,
    Hardware,
    ReplicaPlacement,
    ReplicaSpec,
    SnapshotState,
    TransferKind,
    TransportMode,
    TransportPlan,
    VirtualMachine,
)


class Site(Protocol):
    """A vCenter Server or a standalone ESXi host. Task methods return when the task has ended, or raise."""

    @property
    def name(self) -> str: ...

    @property
    def is_vcenter(self) -> bool:
        """False for a standalone ESXi host, which knows no PrepareForAccess."""
        ...

    @property
    def soap_calls(self) -> int:
        """API calls made so far."""
        ...

    def connection(self) -> SiteConnection:
        """How a data mover reaches this site; the certificate has been verified."""
        ...

    def list_vms(self) -> list[VirtualMachine]:
        """Every VM and template of the site; a constant number of calls per 1,000 VMs."""
        ...

    def find_vms(self, names: Sequence[str]) -> list[VirtualMachine]:
        """VMs by exact name, in the order asked for.

        Raises NotFoundError naming all that do not exist (hint: near names), or that are ambiguous.
        """
        ...

    def find_vm_by_instance_uuid(self, instance_uuid: str) -> VirtualMachine | None: ...

    def read_vm(self, vm_ref: str) -> VirtualMachine:
        """Raises NotFoundError if it is gone."""
        ...

    def settle_tasks(self, vm_ref: str) -> None:
        """Wait for the tasks that still run on the VM (a dead run's snapshot may be under way). Gone VM: fine."""
        ...

    def read_snapshot(self, snapshot_ref: str) -> SnapshotState: ...

    def enable_cbt(self, vm_ref: str) -> None:
        """Takes effect with the next snapshot."""
        ...

    def disable_cbt(self, vm_ref: str) -> None:
        """Of a VM that is powered off: at once."""
        ...

    def create_snapshot(self, vm_ref: str, name: str, description: str, *, quiesce: bool) -> SnapshotState:
        """Without memory. Raises VsphereError with `fault` naming the quiesce fault if quiescing fails."""
        ...

    def remove_snapshot(self, vm_ref: str, snapshot_ref: str) -> bool:
        """Remove one snapshot (not its children); a snapshot that is already gone is fine.

        Returns the VM's `consolidationNeeded` afterwards.
        """
        ...

    def consolidate(self, vm_ref: str) -> None: ...

    def revert_to_snapshot(self, vm_ref: str, snapshot_ref: str) -> None: ...

    def changed_areas(
        self, vm_ref: str, snapshot_ref: str | None, disk_key: int, start: int, change_id: str
    ) -> ChangedAreas:
        """One page. Raises CbtError where vSphere answers with FileFault or cannot resolve the change ID."""
        ...

    def datastores(self) -> list[Datastore]: ...

    def create_replica(self, spec: ReplicaSpec) -> VirtualMachine:
        """Create and register, with empty disks, powered off. Nothing is left behind when it raises."""
        ...

    def reconcile_replica(
        self, vm_ref: str, hardware: Hardware, placement: ReplicaPlacement, *, keep_macs: bool
    ) -> list[str]:
        """Bring the replica's hardware (not its disks) to the source's; returns what was changed, in words."""
        ...

    def add_replica_disk(self, vm_ref: str, spec: ReplicaSpec, disk_index: int) -> VirtualMachine: ...

    def remove_replica_disk(self, vm_ref: str, disk_key: int) -> None:
        """Remove the disk from the VM; its files are destroyed only where no snapshot of the VM needs them."""
        ...

    def rename_vm(self, vm_ref: str, name: str) -> None: ...

    def set_extra_config(self, vm_ref: str, values: Mapping[str, str]) -> None: ...

    def destroy_vm(self, vm_ref: str) -> None:
        """Raises VsphereError if it is powered on. A VM that is already gone is fine."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class SiteConnection:
    """What VDDK needs to connect to a site. `sha1_thumbprint` was computed only after the certificate was verified."""

    server: str
    port: int
    nfc_port: int
    user: str
    password: str = field(repr=False)
    sha1_thumbprint: str


@dataclass(frozen=True, slots=True)
class DiskAddress:
    """Which bytes to open: one link of one disk of one VM, through one of its snapshots or as it is now."""

    site: str
    vm_ref: str
    snapshot_ref: str | None
    path: str
    capacity: int
    modes: tuple[TransportMode, ...]
    vm_name: str
    disk_title: str


@dataclass(frozen=True, slots=True)
class DigestFiles:
    """Where the digests of the leaf's parent restore point stand: a base set and the changes after it, oldest first."""

    base: Path | None
    deltas: tuple[Path, ...] = ()
    fresh: bool = False
    """True: the disk was created empty and has no sealed state, so every grain is surely zero."""
    restore_point_id: str | None = None
    """The restore point that the set must describe; files that describe another one say nothing."""

    @property
    def known(self) -> bool:
        """False: nothing is known of any grain."""
        return self.fresh or self.base is not None


@dataclass(frozen=True, slots=True)
class TransferOrder:
    """One attempt to bring one disk of a replica's leaf to the source snapshot's state."""

    kind: TransferKind
    source: DiskAddress
    target: DiskAddress
    regions: Sequence[Extent]
    """Grain-aligned (the end of the disk excepted), normal: the grains that this attempt must settle."""
    allocated_only: bool
    """Ask the source which blocks are allocated within `regions` and take the rest as zeros without reading it."""
    dirty: Sequence[Extent]
    """Grains that may have been written since the last seal: always written, zeros included, never suppressed."""
    parent: DigestFiles
    """What is surely known of all other grains."""
    read_target: bool
    """Nothing is known of the target's bytes (a mapped replica): read it and compare, instead of using digests."""
    log: Path
    """Transfer log to append to: what may have been issued, what is done (see repository/transferlog)."""
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class VerifyOrder:
    """Read one disk of a restore point and compare it with its digests."""

    disk: DiskAddress
    digests: DigestFiles


@dataclass(slots=True)
class TransferProgress:
    """A running transfer's figures, in bytes; `planned` is an upper bound until the allocated blocks are known."""

    planned: int = 0
    settled: int = 0
    """Bytes of `planned` that need no more work: written, or surely equal."""
    bytes_read: int = 0
    bytes_moved: int = 0
    waits: Mapping[str, float] = field(default_factory=dict)
    """Seconds waited so far, as in TransferResult."""


@dataclass(slots=True)
class TransferResult:
    bytes_read: int
    """From the source."""
    bytes_moved: int
    """Written to the target, zeros included."""
    bytes_skipped: int
    """Settled without a write: surely equal already."""
    source_mode: str
    """What VDDK says it used (GetTransportMode)."""
    target_mode: str
    seconds: float
    waits: Mapping[str, float] = field(default_factory=dict)
    """Seconds that the pipeline waited for: source, mover, network, target."""
    resent_modes: Sequence[str] = ()
    """Transport modes that failed on the way, in words for the report."""


@dataclass(slots=True)
class VerifyResult:
    bytes_read: int
    bad_extents: Sequence[Extent]
    """Empty: every grain agrees with its digest."""
    mode: str
    seconds: float


class DataMovers(Protocol):
    """Opens disks in data movers and moves or checks their bytes.

    Raises DiskError (and below) for what VDDK refuses, MoverError when a mover dies, InterruptedRunError when stopped.
    What was done until then stands in the order's log.
    """

    def transfer(self, order: TransferOrder, progress: Callable[[TransferProgress], None]) -> TransferResult: ...

    def verify(self, order: VerifyOrder, progress: Callable[[TransferProgress], None]) -> VerifyResult: ...

    def prepare_for_access(self, site: str, vm_ref: str, identity: str) -> None: ...

    def end_access(self, site: str, vm_ref: str, identity: str) -> None: ...

    def cleanup(self, site: str, vm_ref: str, proxy: str | None = None) -> int:
        """Detach what HotAdd may have left of this VM on the proxy; before any snapshot operation after HotAdd.

        `proxy`: the configured one that an earlier run used there, "" for this machine; None: that of this run.
        Returns how many disks were detached. Raises UsageError where no such proxy is configured any more.
        """
        ...

    def stop(self) -> None:
        """Make every running call raise InterruptedRunError soon; from any thread."""
        ...

    def close(self) -> None: ...


class TransportAdvisor(Protocol):
    """Chooses transport modes by rule and remembers what failed in this run."""

    def plan(
        self, side: str, site: str, vm: VirtualMachine, disk: Disk, *, first_run: bool, allowed: Sequence[TransportMode]
    ) -> TransportPlan:
        """`side` is `source` or `target`; `allowed` are the job's modes in its order.

        Raises DiskError (with a hint) if no mode is usable.
        """
        ...

    def failed(self, site: str, datastore: str, mode: TransportMode, reason: str) -> None:
        """This mode is not offered again for that datastore in this run."""
        ...

    def left_on_proxy(self, site: str, vm: VirtualMachine) -> bool:
        """Whether files of this VM hung on the proxy's VM when this run began: somebody's HotAdd, live or dead."""
        ...

    def detached(self, site: str, vm: VirtualMachine, count: int) -> None:
        """They hang there no longer; `count` SCSI slots are free again."""
        ...


class DigestLookup(Protocol):
    """What is surely known of the grains of a leaf's parent. Digests are 16 bytes; all zeros stand for a zero grain."""

    def digest_of(self, grain: int) -> bytes | None:
        """None: unknown."""
        ...

    def not_zero(self, extent: Extent) -> Iterator[Extent]:
        """Within a grain-aligned extent: the grains that are unknown, or known and not zero; in order, lazily."""
        ...

    def close(self) -> None:
        """Let go of its files; may be called twice."""
        ...


class TransferLog(Protocol):
    """The durable trace of one attempt; written by the data mover, read by the next run."""

    def allow(self, end_offset: int) -> None:
        """Durable before it returns: writes to grains below this byte offset may be issued from now on.

        A transfer goes through its regions in ascending order, so grains at or above the highest allowed offset
        have never been issued by it.
        """
        ...

    def record(self, entries: Iterable[tuple[int, bytes]]) -> None:
        """Durable before it returns: these grains are settled with these digests. Only after Wait and Flush.

        An entry is a grain and the digests of it and of those that follow it, 16 bytes each.
        """
        ...

    def record_zeros(self, extents: Iterable[Extent]) -> None:
        """Durable before it returns: these grain-aligned extents (the disk's end excepted) are settled and are zeros.

        What `record` says with zero digests, for stretches of any length. Only after Wait and Flush, too, unless
        nothing was written there since the disk was created empty.
        """
        ...

    def close(self) -> None: ...


Clock = Callable[[], dt.datetime]
"""Now, UTC-aware."""

NewId = Callable[[], str]
"""A short random ID (hex), for runs and restore points."""
