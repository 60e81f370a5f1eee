"""A whole night of a large site through `vrepl.admission`, event by event: only time is simulated.

What may start when is decided by the real code, of one run or of several that share their limits. The lower bound on
the makespan is what no schedule can beat: the longest disk, and per host, vCenter, region of proxies and datastore its
whole work over its limit.
"""

from __future__ import annotations

import heapq
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from vrepl.admission import Admission, Demand, Resource, Scarce, Stake, Start

SLOTS, NFC_MIB, CONNECTIONS, SNAPSHOTS, VMS_AT_ONCE = 4, 32.0, 40, 4, 2_000
NFC_PER_DISK = 4.0
RATE = 100e6
"""Bytes/s of one disk."""

LIMITS = {
    Scarce.NFC: NFC_MIB,
    Scarce.CONNECTIONS: float(CONNECTIONS),
    Scarce.SLOTS: float(SLOTS),
    Scarce.SNAPSHOTS: float(SNAPSHOTS),
    Scarce.DISKS: float(VMS_AT_ONCE),
}


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything a site has."""

    vms: int = 10_000
    proxies: int = 200
    source_hosts: int = 300
    target_hosts: int = 200
    regions: int = 10
    vcenters: int = 30
    datastores: int = 1_000


@dataclass(frozen=True, slots=True)
class Vm:
    """One source VM: where its snapshot is open, and its disks' demands (their `size` is bytes)."""

    demand: Demand
    disks: tuple[Demand, ...]


def limit_of(resource: Resource) -> float:
    return LIMITS[resource.kind]


def seconds(disk: Demand) -> float:
    return disk.size / RATE


def vms(size: Size, seed: int = 1) -> Iterator[Vm]:
    """A site whose load is spread as sites are: unevenly. Most disks are small and a few are large."""
    generator = random.Random(seed)
    for number in range(size.vms):
        region = generator.randrange(size.regions)
        proxies = tuple(f"proxy-{region}-{index}" for index in range(size.proxies // size.regions))
        vcenter = generator.randrange(size.vcenters)
        # A host belongs to one vCenter: hosts are dealt out to vCenters in turn.
        source = vcenter + size.vcenters * generator.randrange(size.source_hosts // size.vcenters)
        target = generator.randrange(size.target_hosts)
        store = Resource(Scarce.SNAPSHOTS, f"ds-{generator.randrange(size.datastores)}")
        disks = tuple(
            Demand(
                key=(number, index),
                needs={
                    Resource(Scarce.NFC, f"source-{source}"): NFC_PER_DISK,
                    Resource(Scarce.NFC, f"target-{target}"): NFC_PER_DISK,
                    Resource(Scarce.CONNECTIONS, f"source-{vcenter}"): 1.0,
                    Resource(Scarce.CONNECTIONS, f"target-{target % size.vcenters}"): 1.0,
                },
                proxies=proxies,
                size=int(min(generator.lognormvariate(22.5, 1.0), 200e9)),
            )
            for index in range(generator.choices((1, 2, 3, 6), (50, 30, 15, 5))[0])
        )
        whole = sum(disk.size for disk in disks)
        needs = {store: 1.0, Resource(Scarce.DISKS, "VMs at once"): 1.0}
        yield Vm(Demand(key=number, needs=needs, size=whole), disks)


def lower_bound(site: Sequence[Vm]) -> tuple[float, str]:
    """Seconds that no schedule can beat, and what sets them."""
    work: dict[tuple[str, str], float] = defaultdict(float)
    bounds: dict[str, float] = {}
    for vm in site:
        longest = max(map(seconds, vm.disks))
        bounds["the longest disk"] = max(bounds.get("the longest disk", 0.0), longest)
        for resource in vm.demand.needs:
            work[resource.kind, resource.name] += longest / limit_of(resource)
        for disk in vm.disks:
            for resource, amount in disk.needs.items():
                work[resource.kind, resource.name] += amount * seconds(disk) / limit_of(resource)
            work[Scarce.SLOTS, disk.proxies[0].rpartition("-")[0]] += seconds(disk) / (SLOTS * len(disk.proxies))
    bounds |= {f"{kind} of {name}": bound for (kind, name), bound in work.items()}
    what = max(bounds, key=bounds.__getitem__)
    return bounds[what], what


class Night:
    """Lets everything that the runs' admissions start run for its time, and checks every limit by its own count."""

    def __init__(self, *runs: Sequence[Vm]) -> None:
        """Each run's VMs; all runs begin at once, and hear of each other at every event."""
        self._runs = [Admission(limit_of) for _ in runs]
        self._vms_of = runs
        self._site = {vm.demand.key: vm for vms in runs for vm in vms}
        self._run_of = {vm.demand.key: run for run, vms in enumerate(runs) for vm in vms}
        self._left = {key: len(vm.disks) for key, vm in self._site.items()}
        self._held: dict[Resource, float] = defaultdict(float)
        self._ends: list[tuple[float, int, Start]] = []
        self._wants: list[dict[Resource, Stake]] = [{} for _ in runs]
        self._now = 0.0
        self.disks_started = 0
        self.lapsed = 0
        """How often all waited for each other until rights of way lapsed (a second each)."""
        self.ended: list[float] = [0.0 for _ in runs]
        """By run, when its last disk was done."""
        self.broken: list[str] = []

    def run(self) -> float:
        """Simulated seconds until all is done."""
        if len(self._runs) == 1:
            for vm in self._site.values():
                self._runs[0].offer(vm.demand)
        else:
            # Runs that begin at one moment find the same places free: they take them one by one, in turns.
            queues = [sorted(vms, key=lambda vm: -vm.demand.size) for vms in self._vms_of]
            for row in zip_longest(*queues):
                for run, vm in enumerate(row):
                    if vm is not None:
                        self._runs[run].offer(vm.demand)
                        self._start_of(run)
        self._start()
        while self._ends or self._can_lapse():
            if self._ends:
                self._now, _, ended = heapq.heappop(self._ends)
                self._end(ended)
            self._start()
        waiting = sum(run.waiting for run in self._runs)
        if waiting:
            self.broken.append(f"{waiting} never started")
        return self._now

    def _start(self) -> None:
        """Until no run finds anything more to start."""
        quiet, turn = 0, 0
        while quiet < len(self._runs):
            quiet = 0 if self._start_of(turn % len(self._runs)) else quiet + 1
            turn += 1

    def _start_of(self, run: int) -> bool:
        """Whether this run found something to start."""
        started = self._runs[run].admit()
        self._tell(run)
        for start in started:
            self._hold(run, start, 1.0)
            vm = self._site.get(start.demand.key)
            if vm is None:
                self.disks_started += 1
                heapq.heappush(self._ends, (self._now + seconds(start.demand), self.disks_started, start))
            else:
                for disk in vm.disks:
                    self._runs[run].offer(disk)
        return bool(started)

    def _tell(self, run: int) -> None:
        if len(self._runs) == 1:
            return
        told = self._runs[run].told()
        self._wants[run].update(told)
        for other, admission in enumerate(self._runs):
            if other != run and told:
                admission.hear(str(run), told)

    def _can_lapse(self) -> bool:
        """Nothing runs and something waits: those who have the right of way cannot use it."""
        if len(self._runs) == 1 or not any(run.waiting for run in self._runs) or self.lapsed > 1000:
            return False
        self.lapsed += 1
        self._now += 1.0
        for run, stakes in enumerate(self._wants):
            for other, admission in enumerate(self._runs):
                if other != run:
                    admission.hear(str(run), {one: replace(stake, wanted=0.0) for one, stake in stakes.items()})
        return True

    def _end(self, ended: Start) -> None:
        number = ended.demand.key[0]  # type: ignore[index]
        run = self._run_of[number]
        self._hold(run, ended, -1.0)
        self._runs[run].release(ended.demand.key)
        self._left[number] -= 1
        if not self._left[number]:
            whole = Start(self._site[number].demand, None)
            self._hold(run, whole, -1.0)
            self._runs[run].release(number)
            self.ended[run] = self._now
        self._tell(run)

    def _hold(self, run: int, start: Start, sign: float) -> None:
        taken = dict(start.demand.needs)
        if start.proxy is not None:
            taken[Resource(Scarce.SLOTS, start.proxy)] = 1.0
        for resource, amount in taken.items():
            # A limit of each run's own is counted for each.
            counted = resource._replace(name=f"{run}") if resource.kind is Scarce.DISKS else resource
            self._held[counted] += sign * amount
            if self._held[counted] > limit_of(resource):
                self.broken.append(f"{resource.kind} of {resource.name}: {self._held[counted]}")
