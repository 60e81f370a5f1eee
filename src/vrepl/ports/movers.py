"""What data movers are asked, and what they answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vrepl.extents import Extent
from vrepl.model import (
    TransferKind,
    TransportMode,
)


@dataclass(frozen=True, slots=True)
class SiteConnection:
    """What VDDK needs to connect to a site. `sha1_thumbprint` was computed only after the certificate was verified."""

    server: str
    port: int
    nfc_port: int
    user: str
    password: str = field(repr=False)
    sha1_thumbprint: str
    nfc_compression: str = "none"
    """What vrepl's own engine asks the site's hosts to pack reads with: `none`, `zlib` or `skipz`."""


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
    proxy: str | None = None
    """As `TransportPlan.proxy`: whose movers open it."""


@dataclass(frozen=True, slots=True)
class DigestFiles:
    """Where the digests of the leaf's parent restore point stand: a base set and the changes after it, oldest first."""

    base: Path | None
    deltas: tuple[Path, ...] = ()
    fresh: bool = False
    """True: the disk was created empty and has no sealed state, so every grain is surely zero."""
    restore_point_id: str | None = None
    """The restore point that the set must describe; files that describe another one say nothing."""
    grown_from: int | None = None
    """The files speak of a disk of so many bytes, of which this one is a copy that was made larger: zeros follow."""

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
    compare_with_target: bool
    """Nothing is known of the target's bytes (a mapped replica): read it and compare, instead of using digests."""
    log: Path
    """Transfer log to append to: what may have been issued, what is done (see repository/transferlog)."""
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class VerifyOrder:
    """Read one disk of a restore point, or parts of it, and compare it with its digests."""

    disk: DiskAddress
    digests: DigestFiles
    regions: tuple[Extent, ...] | None = None
    """Only these, grain-aligned (the end of the disk excepted) and normal; None: the whole disk. Of a part it is no
    error that some of its grains have no digest: see `VerifyResult.unknown_grains`.
    """


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
    resent_modes: tuple[str, ...] = ()
    """Transport modes that failed on the way, in words for the report."""


@dataclass(slots=True)
class VerifyResult:
    bytes_read: int
    bad_extents: Sequence[Extent]
    """Empty: every grain agrees with its digest."""
    mode: str
    seconds: float
    unknown_grains: int = 0
    """Grains of what was read that have no digest."""
    zeroed_extents: Sequence[Extent] = ()
    """What of `bad_extents` reads as zeros: a guest may have given it back (TRIM)."""


class Transfers(Protocol):
    """Opens disks in data movers and moves their bytes.

    Raises DiskError (and below) for what VDDK refuses, MoverError when a mover dies, InterruptedRunError when stopped.
    What was done until then stands in the order's log.
    """

    def transfer(self, order: TransferOrder, progress: Callable[[TransferProgress], None]) -> TransferResult: ...


class Verifications(Protocol):
    """Opens disks in data movers and checks their bytes. Raises as `Transfers`."""

    def verify(self, order: VerifyOrder, progress: Callable[[TransferProgress], None]) -> VerifyResult: ...


class AccessGuard(Protocol):
    """PrepareForAccess and EndAccess: while a VM's disks are open, nobody may relocate it. vCenter only."""

    def guards_access(self, site: str) -> bool:
        """Whether it can be done there: it takes VDDK."""
        ...

    def prepare_for_access(self, site: str, vm_ref: str, identity: str) -> None: ...

    def end_access(self, site: str, vm_ref: str, identity: str) -> None:
        """Undoes; works after `DataMovers.stop` too."""
        ...


class HotAddCleanup(Protocol):
    """VDDK's Cleanup."""

    def cleanup(self, site: str, vm_ref: str, proxy: str | None = None) -> int:
        """Detach what HotAdd may have left of this VM on the proxy; before any snapshot operation after HotAdd.

        `proxy`: the configured one that an earlier run used there, "" for this machine; None: that of this run.
        Returns how many disks were detached. Raises UsageError where no such proxy is configured any more.
        Works after `DataMovers.stop` too.
        """
        ...


class DataMovers(Transfers, Verifications, AccessGuard, HotAddCleanup, Protocol):
    """All that data movers do for a run, and their end."""

    def stop(self) -> None:
        """Make every running call raise InterruptedRunError soon; from any thread."""
        ...

    def close(self) -> None: ...
