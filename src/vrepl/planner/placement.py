"""On which datastore of the target each disk of a replica goes. Pure.

A disk that exists stays where it is. For one that is to be made the job's `disk_datastores` are asked in order; the
first pattern that the source's datastore matches says where: a datastore's name, `same-name`, or a pattern, of whose
datastores the one with the most free bytes is taken. Without a match it goes beside the VM's own files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from vrepl.errors import NotFoundError
from vrepl.model import Datastore, Disk, JobSettings
from vrepl.planner.datastores import datastore_of_disk, find_datastore
from vrepl.planner.vm import VmPlan, space_needed

SAME_NAME = "same-name"
WILD = "*?["


@dataclass(frozen=True, slots=True)
class Placed:
    """Where the disks of one plan lie or go, and how many bytes the run may add there."""

    home: Datastore
    """Of the VM's own files."""
    disks: Mapping[int, Datastore]
    """By source key."""
    needed: Mapping[str, int]
    """By the datastore's ref, the home always among them."""
    made_besides: tuple[str, ...] = ()
    """What else the run would make for the replica's sake, in words."""

    def named(self) -> dict[int, str]:
        """Source key -> datastore, of disks elsewhere than at home."""
        return {key: store.name for key, store in self.disks.items() if store.ref != self.home.ref}

    def store(self, ref: str) -> Datastore:
        return next(one for one in (self.home, *self.disks.values()) if one.ref == ref)


def place_disks(plan: VmPlan, job: JobSettings, stores: Sequence[Datastore], site: str) -> Placed:
    """Raises NotFoundError with near names, UsageError for an ambiguous name. `site`: whose datastores `stores` are."""
    replica = plan.replica
    host = job.placement.host or (replica.host if replica is not None else None)
    home = find_datastore(job.placement.datastore, stores, site=site, host=host)
    hosts = {host} if host else set(home.hosts)
    disks: dict[int, Datastore] = {}
    taken: dict[str, int] = {}
    for disk_plan in plan.disks:
        disk = disk_plan.disk
        there = None if replica is None else next((one for one in replica.disks if one.index == disk.index), None)
        known = (
            datastore_of_disk(there, stores, datacenter=replica.datacenter, host=replica.host)
            if (there is not None and replica is not None)
            else None
        )
        store = known or place_new_disk(disk, job, home, stores, hosts, taken, site)
        if store.hosts and hosts:
            hosts &= set(store.hosts)
        disks[disk.key] = store
        taken[store.ref] = taken.get(store.ref, 0) + disk.capacity
    needed = {home.ref: 0}
    for ref in {store.ref for store in disks.values()}:
        needed[ref] = space_needed(plan, job, [key for key, store in disks.items() if store.ref == ref])
    return Placed(home, disks, needed)


def place_new_disk(
    disk: Disk,
    job: JobSettings,
    home: Datastore,
    stores: Sequence[Datastore],
    hosts: set[str],
    taken: Mapping[str, int],
    site: str,
) -> Datastore:
    """`hosts`: that mount what the VM has already; `taken`: bytes that were given away, by the datastore's ref."""
    rule = next((to for pattern, to in job.disk_datastores.items() if fnmatchcase(disk.datastore, pattern)), None)
    if rule is None:
        return home
    reachable = [one for one in stores if not one.hosts or not hosts or hosts & set(one.hosts)]
    where = f"{site} (on hosts that mount {home.name})" if hosts else site
    if not set(rule) & set(WILD):
        return find_datastore(disk.datastore if rule == SAME_NAME else rule, reachable, site=where)
    match = [
        one
        for one in reachable
        if (fnmatchcase(one.name, rule) or fnmatchcase(f"{one.datacenter}/{one.name}", rule))
        and one.datacenter == home.datacenter
    ]
    if not match:
        raise NotFoundError(
            f"no datastore of site {where} matches {rule}, where {disk.title} would go",
            hint=f"they are: {', '.join(sorted(one.name for one in reachable)) or 'none'}",
        )
    return max(match, key=lambda one: (one.free - taken.get(one.ref, 0), one.name))
