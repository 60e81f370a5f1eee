"""A whole night of a large site through `vrepl.admission`, event by event: is it near the best that its limits allow?

10,000 VMs on 300 source hosts go to 200 target hosts through 200 proxies of ten regions. Only time is simulated: what
may start when is decided by the real code. The lower bound on the makespan is what no schedule can beat: the longest
disk, and per host, vCenter, region of proxies and datastore its whole work over its limit.
"""

from __future__ import annotations

import heapq
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from vrepl.admission import Admission, Demand, Resource, Scarce, Start

VMS, PROXIES, SOURCE_HOSTS, TARGET_HOSTS = 10_000, 200, 300, 200
REGIONS, VCENTERS, DATASTORES = 10, 30, 1_000
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
class Vm:
    """One source VM: where its snapshot is open, and its disks' demands (their `size` is bytes)."""

    demand: Demand
    disks: tuple[Demand, ...]


def limit_of(resource: Resource) -> float:
    return LIMITS[resource.kind]


def seconds(disk: Demand) -> float:
    return disk.size / RATE


def vms(seed: int = 1) -> Iterator[Vm]:
    """A site whose load is spread as sites are: unevenly. Most disks are small and a few are large."""
    generator = random.Random(seed)
    for number in range(VMS):
        region = generator.randrange(REGIONS)
        proxies = tuple(f"proxy-{region}-{index}" for index in range(PROXIES // REGIONS))
        vcenter = generator.randrange(VCENTERS)
        # A host belongs to one vCenter: hosts are dealt out to vCenters in turn.
        source = vcenter + VCENTERS * generator.randrange(SOURCE_HOSTS // VCENTERS)
        target = generator.randrange(TARGET_HOSTS)
        store = Resource(Scarce.SNAPSHOTS, f"ds-{generator.randrange(DATASTORES)}")
        disks = tuple(
            Demand(
                key=(number, index),
                needs={
                    Resource(Scarce.NFC, f"source-{source}"): NFC_PER_DISK,
                    Resource(Scarce.NFC, f"target-{target}"): NFC_PER_DISK,
                    Resource(Scarce.CONNECTIONS, f"source-{vcenter}"): 1.0,
                    Resource(Scarce.CONNECTIONS, f"target-{target % VCENTERS}"): 1.0,
                },
                proxies=proxies,
                size=int(min(generator.lognormvariate(22.5, 1.0), 200e9)),
            )
            for index in range(generator.choices((1, 2, 3, 6), (50, 30, 15, 5))[0])
        )
        whole = sum(disk.size for disk in disks)
        needs = {store: 1.0, Resource(Scarce.DISKS, "VMs at once"): 1.0}
        yield Vm(Demand(key=number, needs=needs, size=whole), disks)


def lower_bound(site: list[Vm]) -> tuple[float, str]:
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


class Simulation:
    """Lets everything that `admit` starts run for its time, and checks every limit at every start by its own count."""

    def __init__(self, site: list[Vm]) -> None:
        self._site = {vm.demand.key: vm for vm in site}
        self._left = {vm.demand.key: len(vm.disks) for vm in site}
        self._admission = Admission(limit_of)
        self._held: dict[Resource, float] = defaultdict(float)
        self._ends: list[tuple[float, int, Start]] = []
        self._now = 0.0
        self.disks_started = 0
        self.broken: list[str] = []

    def run(self) -> float:
        """Simulated seconds until all is done."""
        for vm in self._site.values():
            self._admission.offer(vm.demand)
        self._start()
        while self._ends:
            self._now, _, ended = heapq.heappop(self._ends)
            self._end(ended)
            self._start()
        if self._admission.waiting:
            self.broken.append(f"{self._admission.waiting} never started")
        return self._now

    def _start(self) -> None:
        while started := self._admission.admit():
            for start in started:
                self._hold(start, 1.0)
                vm = self._site.get(start.demand.key)
                if vm is None:
                    self.disks_started += 1
                    heapq.heappush(self._ends, (self._now + seconds(start.demand), self.disks_started, start))
                else:
                    for disk in vm.disks:
                        self._admission.offer(disk)

    def _end(self, ended: Start) -> None:
        self._hold(ended, -1.0)
        self._admission.release(ended.demand.key)
        number = ended.demand.key[0]  # type: ignore[index]
        self._left[number] -= 1
        if not self._left[number]:
            whole = Start(self._site[number].demand, None)
            self._hold(whole, -1.0)
            self._admission.release(number)

    def _hold(self, start: Start, sign: float) -> None:
        taken = dict(start.demand.needs)
        if start.proxy is not None:
            taken[Resource(Scarce.SLOTS, start.proxy)] = 1.0
        for resource, amount in taken.items():
            self._held[resource] += sign * amount
            if self._held[resource] > limit_of(resource):
                self.broken.append(f"{resource.kind} of {resource.name}: {self._held[resource]}")


def run() -> dict[str, object]:
    """The figures; `ratio` is to be at most 1.15, `limits_broken` empty."""
    site = list(vms())
    bound, what = lower_bound(site)
    simulation = Simulation(site)
    began = time.perf_counter()
    makespan = simulation.run()
    took = time.perf_counter() - began
    return {
        "vms": VMS,
        "disks": simulation.disks_started,
        "proxies": PROXIES,
        "hosts": SOURCE_HOSTS + TARGET_HOSTS,
        "makespan_s": round(makespan, 1),
        "lower_bound_s": round(bound, 1),
        "bound_by": what,
        "ratio": round(makespan / bound, 4),
        "limits_broken": simulation.broken[:10],
        "seconds": round(took, 2),
    }


if __name__ == "__main__":
    import json

    print(json.dumps(run(), indent=2))
