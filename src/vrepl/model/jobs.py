"""A job's policy."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase

from vrepl.model.addresses import FailoverPolicy
from vrepl.model.guests import GuestPolicy
from vrepl.model.plans import FailoverPlan
from vrepl.model.replicas import ReplicaPlacement
from vrepl.model.selection import Selection, is_pattern
from vrepl.model.transport import DEFAULT_MODES, TransportMode


class Quiesce(StrEnum):
    """What a job asks of the guest before the snapshot."""

    REQUIRE = "require"
    PREFER = "prefer"
    NEVER = "never"


class EnableCbt(StrEnum):
    """When a run may switch change tracking on that a source VM lacks."""

    ALWAYS = "always"
    POWERED_OFF = "powered-off"
    """Only while the VM does not run: on a running one the next snapshot stuns the guest, for long with large disks."""
    NEVER = "never"


class Carry(StrEnum):
    """What a replica has of its source only where the job says so, for it speaks of the source's site too."""

    RESERVATIONS = "reservations"
    NOTES = "notes"


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
    """How many restore points to keep: the `last` ones, and the newest of so many hours, days, weeks and months.

    `last` is 1..28, and so is the sum: vSphere allows 32 snapshots in a chain.
    """

    last: int = 7
    daily: int = 0
    weekly: int = 0
    hourly: int = 0
    monthly: int = 0


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
class TransferLimits:
    """What disks in transfer, and source snapshots, may take of sites and hosts at once."""

    parallel_disks: int = 4
    """Disks in transfer at once, over all VMs of the run."""
    nfc_budget_mib: int = 32
    """NFC buffers per ESXi host, in MiB."""
    nfc_mib_per_disk: float = 4.0
    """NFC buffers that an open disk holds on its ESXi host, in MiB; what the data movers are started with."""
    vcenter_connections: int = 40
    snapshots_per_datastore: int = 4
    """Source snapshots that may be open at once on one datastore."""
    proxy_slots: Mapping[str, int] = field(default_factory=dict)
    """Disks in transfer at once on each configured proxy, whoever's."""


@dataclass(frozen=True, slots=True)
class JobSettings:
    """One job as the engine takes it; built from the configuration, where every default is written down."""

    name: str
    source: str
    """Site name."""
    target: str
    """Site name."""
    vms: tuple[str, ...]
    """Names of VMs, or patterns that stand for names."""
    placement: ReplicaPlacement
    disk_datastores: Mapping[str, str] = field(default_factory=dict)
    """Pattern of source datastores -> where a disk from there goes, the first that fits (`planner.placement`)."""
    selection: Selection = field(default_factory=Selection)
    """More VMs, by what they are; and what is left out of all of them."""
    allow_empty: bool = False
    """A run that finds no VM has nothing to do, instead of failing."""
    skip_disks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Pattern of VM names -> numbers of disks that are left out."""
    carry: tuple[Carry, ...] = ()
    replica_name: str = "{name}-replica"
    quiesce: Quiesce = Quiesce.PREFER
    enable_cbt: EnableCbt = EnableCbt.ALWAYS
    guest: GuestPolicy = field(default_factory=GuestPolicy)
    failover: FailoverPolicy = field(default_factory=FailoverPolicy)
    plans: tuple[FailoverPlan, ...] = ()
    """Failover plans that may mean VMs of the job: runs keep them beside the replicas."""
    retention: RetentionPolicy = field(default_factory=RetentionPolicy)
    source_modes: tuple[TransportMode, ...] = DEFAULT_MODES
    target_modes: tuple[TransportMode, ...] = DEFAULT_MODES
    audit: dt.timedelta | None = None
    """In how long all that change tracking calls unchanged is read and compared once; None: never."""
    fallback: bool = True
    """Whether the next mode may be tried when one fails."""
    on_resize: OnResize = OnResize.REFUSE
    on_not_replicable: OnNotReplicable = OnNotReplicable.FAIL
    keep_macs: bool = False
    thin: bool | None = None
    """None follows the source."""
    parallel_vms: int | None = None
    """VMs at once; None: as many as the limits keep busy."""
    limits: TransferLimits = field(default_factory=TransferLimits)
    bandwidth: Bandwidth = field(default_factory=Bandwidth)
    readback: str = "sample"
    """How much of what vrepl's own engine wrote is read back before it counts: `sample` or `all`."""
    source_proxies: tuple[str, ...] = ()
    """Names of the configured proxies whose data movers open the source's disks; none: this machine, with [vddk]."""
    target_proxies: tuple[str, ...] = ()
    """Likewise for the target's disks. Two different proxies: a pair of data movers, joined by a byte stream."""

    @property
    def lists_its_vms(self) -> bool:
        """Every VM is given by its very name."""
        return self.selection.is_empty and not any(is_pattern(name) for name in self.vms)

    def may_mean(self, name: str) -> bool:
        """Whether a VM of this name can be one of the job's, as far as that is known without asking the site."""
        return name in self.vms or not self.selection.wanted.is_empty or any(fnmatchcase(name, one) for one in self.vms)

    def skips_disk(self, vm: str, index: int) -> bool:
        return any(index in numbers for pattern, numbers in self.skip_disks.items() if fnmatchcase(vm, pattern))

    def proxy_at(self, site: str) -> str | None:
        """The first proxy that serves one of the job's two sites."""
        return next(iter(self.proxies_at(site)), None)

    def proxies_at(self, site: str) -> tuple[str, ...]:
        """Those that serve one of the job's two sites; none: this machine."""
        return self.source_proxies if site == self.source else self.target_proxies

    def replica_name_of(self, source_name: str) -> str:
        """The name of the replica of a source VM of this name."""
        return self.replica_name.replace("{name}", source_name).replace("{job}", self.name)
