"""The run's gate: `vrepl.admission` behind a lock, and what a disk or a VM asks of it.

What other runs of the repository hold counts too (`SharedBudgets`). They do not say when they give something back, so
one of those that wait looks every so often while there are other runs. It is also the one that looks whether the
operator asked to stop. The rest sleep until it is their turn: waking dozens of VMs at every change took more processor
time than a VM's own work at the gate.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from vrepl.admission import Admission, Demand, Resource, Room, Scarce, Start, room
from vrepl.errors import VreplError
from vrepl.model import DataEngine, ListedVm, ModeChoice, TransferLimits, TransportMode, VirtualMachine
from vrepl.ports import DiskAddress

POLL = 0.2
"""Seconds between looks at whether the operator asked to stop."""
SHARED_POLL = 0.05
"""Seconds between looks at what other runs hold, while something waits; each takes a fraction of a millisecond."""
SPACE_KEPT = 30.0
"""Seconds that a datastore's free space is counted on without asking again."""
SPACE_POLL = 5.0
"""Seconds between questions for a target's free space while others may still use it up."""

DIRECT_READ_HANDLES = 2
"""Over HotAdd and SAN a source disk is read through two handles (vddk.disk), each with a connection of its own."""

logger = logging.getLogger(__name__)


class SharedBudgets(Protocol):
    """What other runs have a part in."""

    @property
    def others(self) -> bool:
        """Whether there are other runs, as far as was seen."""
        ...

    def admit(self, admission: Admission) -> list[Start]:
        """As Admission.admit, with what the others hold and want; tells them of it."""
        ...


class NoOthers:
    """There are no other runs."""

    others = False

    def admit(self, admission: Admission) -> list[Start]:
        return admission.admit()


@dataclass(frozen=True, slots=True)
class End:
    """One side of a disk in transfer."""

    address: DiskAddress
    vm: VirtualMachine
    written: bool
    choice: ModeChoice
    """The mode that is tried."""
    engine: DataEngine = DataEngine.VDDK


@dataclass(frozen=True, slots=True)
class _Space:
    """A datastore's free bytes, when they were read (monotonic), and what promises had ended before that."""

    free: int
    read: float
    given_up: int


class Gate:
    """Thread-safe. Everything that waits here wakes when the operator asks to stop."""

    def __init__(
        self,
        limits: TransferLimits,
        check_stop: Callable[[], None],
        *,
        budgets: SharedBudgets | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`check_stop` raises InterruptedRunError. `budgets`: those of the repository; None: nobody else has a part."""
        self._scsi_slots: dict[str, int] = {}
        self._admission = Admission(self._limit_of)
        self._budgets = budgets or NoOthers()
        self._on_watch = False
        """Whether one of those that wait is awake every so often, for all of them."""
        self._limits = limits
        self._check_stop = check_stop
        self._lock = threading.Lock()
        self._waiting: dict[object, threading.Condition] = {}
        """Those that wait to start, by the key of what they want: each is woken by itself."""
        self._room_changed = threading.Condition(self._lock)
        self._started: set[object] = set()
        self._promised: dict[str, dict[object, int]] = defaultdict(dict)
        self._given_up: dict[str, int] = defaultdict(int)
        """Bytes of promises that have ended, by datastore, since the run began."""
        self._space: dict[str, _Space] = {}
        self._asking: set[str] = set()
        """Datastores whose free bytes one VM asks for, while others wait for the answer."""
        self._monotonic = monotonic

    def _limit_of(self, resource: Resource) -> float:
        match resource.kind:
            case Scarce.DISKS:
                return float(self._limits.parallel_disks)
            case Scarce.NFC:
                return float(self._limits.nfc_budget_mib)
            case Scarce.CONNECTIONS:
                return float(self._limits.vcenter_connections)
            case Scarce.SNAPSHOTS:
                return float(self._limits.snapshots_per_datastore)
            case Scarce.SLOTS:
                return float(self._limits.proxy_slots[resource.name])
            case Scarce.HOTADD:
                return float(self._scsi_slots[resource.name])

    def enter(self, demand: Demand) -> Callable[[], None]:
        """Wait until it may start; returns what gives back all that it holds (to be called once)."""
        with self._lock:
            self._admission.offer(demand)
            turn = self._waiting[demand.key] = threading.Condition(self._lock)
            try:
                self._admit()
                while demand.key not in self._started:
                    self._check_stop()
                    self._wait(turn)
            except BaseException:
                if demand.key in self._started:
                    self._give_back(demand)
                else:
                    self._admission.withdraw(demand.key)
                    self._tell()
                raise
            finally:
                del self._waiting[demand.key]
                self._hand_over_the_watch()
        return lambda: self._leave(demand)

    def _wait(self, turn: threading.Condition) -> None:
        """For one's turn, or as the one that looks at what other runs do; the caller holds the lock."""
        if self._on_watch:
            turn.wait()
            return
        self._on_watch = True
        try:
            turn.wait(SHARED_POLL if self._budgets.others else POLL)
        finally:
            self._on_watch = False
        if self._budgets.others:
            self._admit()

    def _hand_over_the_watch(self) -> None:
        """Whoever stops waiting may have been the one that was awake for all; the caller holds the lock."""
        if not self._on_watch:
            for turn in self._waiting.values():
                turn.notify()
                break

    @contextmanager
    def hold_disk(self, key: object, ends: Sequence[End], size: int) -> Iterator[None]:
        """As `hold`, for one attempt at a disk."""
        with self._lock:
            for end in ends:
                if end.choice.at_once is not None:
                    self._scsi_slots.setdefault(end.address.site, max(end.choice.at_once, DIRECT_READ_HANDLES))
        with self.hold(disk_demand(self._limits, key, ends, size)):
            yield

    @contextmanager
    def hold(self, demand: Demand) -> Iterator[None]:
        """As `enter`, for the length of a `with` block."""
        leave = self.enter(demand)
        try:
            self._check_stop()
            yield
        finally:
            leave()

    def promise_room(
        self, key: object, datastore: str, needed: int, free: Callable[[], int], refusal: Callable[[int], VreplError]
    ) -> Callable[[], None]:
        """Keep `needed` bytes of a datastore for one VM; returns what gives up the promise.

        Waits while what runs already may need what is left; `free` is asked again meanwhile. Raises `refusal` (made
        with the free bytes) if there is no room although nothing else runs.

        What was read less than SPACE_KEPT seconds ago is enough to say yes, never to say no: all that was promised
        then or since counts as written in full. Of VMs that begin at once, one asks.
        """
        while True:
            with self._lock:
                while not (known := self._has_room_by_what_is_known(datastore, needed)) and datastore in self._asking:
                    self._check_stop()
                    self._room_changed.wait(POLL)
                if known:
                    self._promised[datastore][key] = needed
                    return lambda: self._give_up(datastore, key)
                self._asking.add(datastore)
                given_up, read = self._given_up[datastore], self._monotonic()
            try:
                now = free()
            except BaseException:
                with self._lock:
                    self._answered(datastore)
                raise
            with self._lock:
                self._answered(datastore)
                self._space[datastore] = _Space(now, read, given_up)
                promises = self._promised[datastore]
                verdict = room(needed, now, sum(promises.values()))
                if verdict is Room.ENOUGH:
                    promises[key] = needed
                    return lambda: self._give_up(datastore, key)
                if verdict is Room.NEVER:
                    raise refusal(now)
                self._room_changed.wait(SPACE_POLL)
            self._check_stop()

    def _answered(self, datastore: str) -> None:
        """The caller holds the lock: whoever waits looks at what is known now."""
        self._asking.discard(datastore)
        self._room_changed.notify_all()

    def _has_room_by_what_is_known(self, datastore: str, needed: int) -> bool:
        space = self._space.get(datastore)
        if space is None or self._monotonic() - space.read > SPACE_KEPT:
            return False
        ended_since = self._given_up[datastore] - space.given_up
        promised = sum(self._promised[datastore].values()) + ended_since
        return room(needed, space.free, promised) is Room.ENOUGH

    def _give_up(self, datastore: str, key: object) -> None:
        with self._lock:
            self._given_up[datastore] += self._promised[datastore].pop(key, 0)
            self._room_changed.notify_all()

    def _leave(self, demand: Demand) -> None:
        with self._lock:
            self._give_back(demand)

    def _give_back(self, demand: Demand) -> None:
        """The caller holds the lock."""
        self._started.discard(demand.key)
        self._admission.release(demand.key)
        self._tell()

    def _tell(self) -> None:
        """What was given back is free for all; that others cannot be told of it must not hold up who gives it back."""
        try:
            self._admit()
        except VreplError as error:
            logger.warning("other runs cannot be told what this one no longer needs: %s", error.message)

    def _admit(self) -> None:
        started = self._budgets.admit(self._admission)
        for start in started:
            self._started.add(start.demand.key)
            self._waiting[start.demand.key].notify()


def disk_demand(limits: TransferLimits, key: object, ends: Sequence[End], size: int) -> Demand:
    """What one attempt at a disk takes.

    Over `nbd` and `nbdssl` an open disk holds its NFC buffers on its VM's host. A disk that VDDK writes directly, or
    reaches by HotAdd at all, is first compared with what NBD reads, so it counts as well. One that vrepl itself
    attaches takes a SCSI slot of the proxy, and nothing else. Each configured proxy that serves it gives a slot.
    """
    needs: dict[Resource, float] = defaultdict(float)
    needs[Resource(Scarce.DISKS, "this run")] = 1.0
    for end in ends:
        mode, site = end.choice.mode, end.address.site
        if mode is TransportMode.HOTADD and end.engine is DataEngine.OWN:
            needs[Resource(Scarce.HOTADD, site)] += 1
            continue
        direct = mode in {TransportMode.SAN, TransportMode.HOTADD}
        handles = DIRECT_READ_HANDLES if direct and not end.written else 1
        if end.written or mode is not TransportMode.SAN:
            needs[Resource(Scarce.NFC, f"{end.vm.host} ({site})")] += limits.nfc_mib_per_disk
        if mode is TransportMode.HOTADD:
            needs[Resource(Scarce.HOTADD, site)] += handles
        needs[Resource(Scarce.CONNECTIONS, site)] += handles
    for proxy in {end.address.proxy for end in ends}:
        if proxy is not None and proxy in limits.proxy_slots:
            needs[Resource(Scarce.SLOTS, proxy)] = 1.0
    return Demand(key=key, needs=dict(needs), size=size)


VMS_PER_SNAPSHOT = 4
"""A run is under way over so many VMs for each source snapshot that may be open: what comes before and after it (the
lock, the listing, the replica's hardware, the seal, retention) takes about three times as long as an unchanged VM's
snapshot stands."""
MOST_VMS = 64


def vms_at_once(vms: Sequence[ListedVm], limits: TransferLimits) -> int:
    """How many VMs keep busy what there is a limit of: snapshots by datastore, and disks in transfer."""
    stores = {store for vm in vms for store in vm.datastores}
    wanted = VMS_PER_SNAPSHOT * limits.snapshots_per_datastore * max(len(stores), 1)
    return max(1, min(len(vms), MOST_VMS, max(wanted, limits.parallel_disks)))


def snapshot_demand(site: str, vm: VirtualMachine) -> Demand:
    """What the source snapshot of a VM takes: one place on each datastore that holds disks of it."""
    stores = {disk.store for disk in vm.disks}
    needs = {Resource(Scarce.SNAPSHOTS, f"{store} ({site})"): 1.0 for store in sorted(stores)}
    return Demand(key=("snapshot", vm.ref), needs=needs, size=sum(disk.capacity for disk in vm.disks))
