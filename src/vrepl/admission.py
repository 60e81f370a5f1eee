"""Which waiting disk (or VM) may start now, so that no host, vCenter, proxy or datastore is asked for too much. Pure.

ESXi hosts allow 48 MB (6.x, 7) or 96 MB (8) of NFC buffers in all, and about 52 connections go through a vCenter
(VDDK Programming Guide, "NFC Session Limits"). What a disk in transfer takes of each is its demand; what there is, the
limits. No clock, no threads and no I/O here: the same calls give the same answers. `engine.gate` puts a lock around it.

Runs of one repository share their limits. Each tells the others its stakes (what it holds, what it waits for), and
hears theirs, before it admits anything; `repository.budgets` carries them. Of what several wait for, the next piece is
that run's which holds least of it, or was served longest ago: so a large run leaves a small one its share, and takes
all that nobody else wants.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from vrepl.errors import UsageError


class Scarce(StrEnum):
    """What there is a limit of."""

    DISKS = "disks in transfer"
    """Over a whole run."""
    NFC = "MiB of NFC buffers"
    """Per ESXi host."""
    CONNECTIONS = "connections"
    """Per vCenter."""
    SLOTS = "disks in transfer on a proxy"
    HOTADD = "SCSI slots of the proxy VM"
    """Per site."""
    SNAPSHOTS = "open source snapshots"
    """Per datastore."""


class Resource(NamedTuple):
    """One thing of which there is only so much: `NFC` of one host, `SLOTS` of one proxy …"""

    kind: Scarce
    name: str


@dataclass(frozen=True, slots=True)
class Demand:
    """What something holds from its start to its end."""

    key: Hashable
    needs: Mapping[Resource, float]
    proxies: tuple[str, ...] = ()
    """Any one of these gives a slot to it; none: it needs no slot."""
    size: int = 0
    """Expected work (bytes): larger ones start first, for what starts last decides when all is done."""


@dataclass(frozen=True, slots=True)
class Start:
    """A demand that may start now, and the proxy that takes it."""

    demand: Demand
    proxy: str | None


@dataclass(frozen=True, slots=True)
class Stake:
    """What a run has to do with a resource, as the other runs see it."""

    held: float = 0.0
    wanted: float = 0.0
    """What its next demand that waits for it takes of it; 0: none waits."""
    limit: float = math.inf
    """The run's own; it holds for others too, while the run holds some."""
    turn: int = 0
    """Each start of any run takes the next number of that resource: the number of this run's last start."""

    @property
    def is_empty(self) -> bool:
        return not self.held and not self.wanted


PRIVATE = frozenset({Scarce.DISKS})
"""What each run has limits of its own for."""


def fits(one: Stake, others: Iterable[Stake]) -> bool:
    """Whether a run could have what it waits for, were it to look now; `others`: the stakes of all others."""
    return one.wanted <= _left(one.limit, one.held, others)


def _left(limit: float, held: float, others: Iterable[Stake]) -> float:
    """What is free for a run that has this limit and holds so much; `others`: the stakes of all others."""
    holders = [stake for stake in others if stake.held > 0]
    return min([limit, *(stake.limit for stake in holders)]) - held - sum(stake.held for stake in holders)


_Waiting = tuple[int, int, Demand]
"""(-size, number of arrival, demand): the order in which those that wait are looked at."""


class Admission:
    """Keeps account of what is held; `admit` starts all that fits.

    Each that waits is looked at again only when what it lacked is given back, so that a large run costs no more per
    disk than a small one. It waits for the first thing that it lacks; smaller needs behind it do not overtake it there.
    """

    def __init__(self, limit_of: Callable[[Resource], float]) -> None:
        self._limit_of = limit_of
        self._limits: dict[Resource, float] = {}
        self._used: dict[Resource, float] = {}
        self._running: dict[Hashable, Start] = {}
        self._withdrawn: set[Hashable] = set()
        self._new: list[_Waiting] = []
        self._blocked: dict[Resource | tuple[str, ...], list[_Waiting]] = {}
        self._groups: dict[str, set[tuple[str, ...]]] = {}
        self._freed: dict[Resource | tuple[str, ...], None] = {}
        self._arrivals = 0
        self._waiting = 0
        self._waits_at: dict[Hashable, Resource | tuple[str, ...]] = {}
        self._others: dict[Resource, dict[str, Stake]] = {}
        """By resource, the stakes of other runs."""
        self._turns: dict[Resource, int] = {}
        self._touched: dict[Resource, None] = {}
        """Where this run's stake may be another than it was told last."""
        self._told: dict[Resource, Stake] = {}

    @property
    def waiting(self) -> int:
        """How many were offered and have neither started nor been withdrawn."""
        return self._waiting

    def used(self, resource: Resource) -> float:
        """What is held of it now."""
        return self._used.get(resource, 0.0)

    def offer(self, demand: Demand) -> None:
        """Let it wait for its start. Raises UsageError if it needs more of something than there is at all."""
        for resource, amount in demand.needs.items():
            if amount > self._limit(resource):
                raise UsageError(
                    f"{amount:g} {resource.kind} are needed of {resource.name}, and the limit is "
                    f"{self._limit(resource):g}",
                    hint="raise the limit in the job (nfc_budget_mib, vcenter_connections), or use smaller NFC buffers",
                )
        self._arrivals += 1
        self._waiting += 1
        heapq.heappush(self._new, (-demand.size, self._arrivals, demand))

    def withdraw(self, key: Hashable) -> None:
        """It no longer wants to start; one that has started must be released instead."""
        self._withdrawn.add(key)
        self._waiting -= 1
        if key in self._waits_at:
            self._touch(self._waits_at.pop(key))

    def release(self, key: Hashable) -> None:
        """It has ended: what it held is free for others."""
        start = self._running.pop(key)
        for resource, amount in self._needs(start).items():
            self._used[resource] -= amount
            self._freed[resource] = self._touched[resource] = None
        if start.proxy is not None:
            self._freed.update(dict.fromkeys(self._groups[start.proxy]))

    def admit(self) -> list[Start]:
        """Start all that may start now; they count as running from now on."""
        started: list[Start] = []
        while self._new:
            self._try(heapq.heappop(self._new), started)
        while self._freed:
            freed = next(iter(self._freed))
            del self._freed[freed]
            queue = self._blocked.get(freed)
            while queue and self._lets_in(freed, queue[0][2]):
                self._try(heapq.heappop(queue), started)
        return started

    # -- other runs ------------------------------------------------------------------------------------------------

    def hear(self, run: str, stakes: Mapping[Resource, Stake]) -> None:
        """What another run's stakes are now, of those that have changed; an empty stake is none."""
        for resource, stake in stakes.items():
            if stake.is_empty:
                known = self._others.get(resource, {})
                known.pop(run, None)
                if not known:
                    self._others.pop(resource, None)
            else:
                self._others.setdefault(resource, {})[run] = stake
            self._freed[resource] = None
            if resource.kind is Scarce.SLOTS:
                self._freed.update(dict.fromkeys(self._groups.get(resource.name, ())))

    def told(self) -> dict[Resource, Stake]:
        """This run's stakes, of those that have changed since this was asked last: what the other runs must hear."""
        changed: dict[Resource, Stake] = {}
        for resource in self._touched:
            if resource.kind in PRIVATE:
                continue
            stake = Stake(
                self._used.get(resource, 0.0), self._wanted(resource), self._limit(resource),
                self._turns.get(resource, 0),
            )  # fmt: skip
            if stake != self._told.get(resource, Stake(limit=stake.limit)):
                self._told[resource] = changed[resource] = stake
        self._touched.clear()
        return changed

    def _wanted(self, resource: Resource) -> float:
        queue = self._next_waiting(resource)
        wanted = queue[0][2].needs[resource] if queue else 0.0
        if not wanted and resource.kind is Scarce.SLOTS:
            return float(any(self._next_waiting(group) for group in self._groups.get(resource.name, ())))
        return wanted

    def _next_waiting(self, what: Resource | tuple[str, ...]) -> list[_Waiting]:
        """The queue, its first being one that still wants to start."""
        queue = self._blocked.get(what, [])
        while queue and queue[0][2].key in self._withdrawn:
            self._withdrawn.discard(heapq.heappop(queue)[2].key)
        return queue

    def _yields(self, resource: Resource) -> bool:
        """Whether another run that waits for it has the right of way."""
        others = self._others.get(resource)
        if not others:
            return False
        mine = (self._used.get(resource, 0.0), self._turns.get(resource, 0))
        return any(stake.wanted > 0 and (stake.held, stake.turn) < mine for stake in others.values())

    def _touch(self, what: Resource | tuple[str, ...]) -> None:
        if isinstance(what, Resource):
            self._touched[what] = None
        else:
            self._touched.update(dict.fromkeys(Resource(Scarce.SLOTS, name) for name in what))

    # -- inside ----------------------------------------------------------------------------------------------------

    def _limit(self, resource: Resource) -> float:
        if resource not in self._limits:
            self._limits[resource] = self._limit_of(resource)
        return self._limits[resource]

    def _free(self, resource: Resource) -> float:
        others = self._others.get(resource, {}).values()
        return _left(self._limit(resource), self._used.get(resource, 0.0), others)

    def _may_take(self, resource: Resource, amount: float) -> bool:
        return amount <= self._free(resource) and not self._yields(resource)

    def _lets_in(self, what: Resource | tuple[str, ...], demand: Demand) -> bool:
        if demand.key in self._withdrawn:
            return True
        if isinstance(what, Resource):
            return self._may_take(what, demand.needs[what])
        return self._proxy_for(what) is not None

    def _proxy_for(self, group: Iterable[str]) -> str | None:
        """The proxy with the most free slots, the first of equals."""
        best, most = None, 0.0
        for proxy in group:
            slots = Resource(Scarce.SLOTS, proxy)
            free = self._free(slots)
            if free > most and not self._yields(slots):
                best, most = proxy, free
        return best

    def _try(self, waiting: _Waiting, started: list[Start]) -> None:
        demand = waiting[2]
        was_at = self._waits_at.pop(demand.key, None)
        if was_at is not None:
            self._touch(was_at)
        if demand.key in self._withdrawn:
            self._withdrawn.discard(demand.key)
            return
        for resource, amount in demand.needs.items():
            if not self._may_take(resource, amount):
                self._block(resource, waiting)
                return
        proxy = None
        if demand.proxies:
            proxy = self._proxy_for(demand.proxies)
            if proxy is None:
                for name in demand.proxies:
                    self._groups.setdefault(name, set()).add(demand.proxies)
                self._block(demand.proxies, waiting)
                return
            self._groups.setdefault(proxy, set()).add(demand.proxies)
        start = Start(demand, proxy)
        for resource, amount in self._needs(start).items():
            self._used[resource] = self._used.get(resource, 0.0) + amount
            self._touched[resource] = None
            turns = [stake.turn for stake in self._others.get(resource, {}).values()]
            self._turns[resource] = 1 + max([self._turns.get(resource, 0), *turns])
        self._running[demand.key] = start
        self._waiting -= 1
        started.append(start)

    def _block(self, what: Resource | tuple[str, ...], waiting: _Waiting) -> None:
        self._waits_at[waiting[2].key] = what
        self._touch(what)
        heapq.heappush(self._blocked.setdefault(what, []), waiting)

    @staticmethod
    def _needs(start: Start) -> Mapping[Resource, float]:
        if start.proxy is None:
            return start.demand.needs
        return {**start.demand.needs, Resource(Scarce.SLOTS, start.proxy): 1.0}


class Room(StrEnum):
    """Whether a target datastore has room for one more VM's data."""

    ENOUGH = "enough"
    LATER = "later"
    """What runs already may need what is left; it is asked again when one of them has ended."""
    NEVER = "never"


def room(needed: int, free: int, promised: int) -> Room:
    """`free`: bytes that the datastore reports now; `promised`: what those that run may still write at the most."""
    if needed <= free - promised:
        return Room.ENOUGH
    return Room.LATER if promised > 0 else Room.NEVER
