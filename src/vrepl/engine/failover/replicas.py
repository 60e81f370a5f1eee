"""Finds replicas at the site that is left: by their own marks alone, so that nothing of the lost site is needed."""

from __future__ import annotations

import datetime as dt
import difflib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from vrepl.errors import NotFoundError, NotReadyError, UsageError
from vrepl.model import RestorePoint, Snapshot, SnapshotState, VirtualMachine
from vrepl.model.failover import FailoverRecord
from vrepl.model.plans import FailoverPlan
from vrepl.repository.commit_record import CommitRecord, is_header, parse_commit_record, read_commit_record, read_mark


@dataclass(frozen=True, slots=True)
class FoundReplica:
    """A VM of the site that bears vrepl's mark, and what its restore points say of its source."""

    vm: VirtualMachine
    source_name: str
    restore_points: tuple[RestorePoint, ...]
    """By time."""
    never_failed_over: FailoverRecord
    """Its state, unless another one was saved."""

    @property
    def job(self) -> str | None:
        """Of the newest restore point."""
        return self.restore_points[-1].job if self.restore_points else None


class ReplicaReader(Protocol):
    """Looks closer at a VM where the listing of all does not tell enough."""

    def saved_state(self, vm: VirtualMachine) -> FailoverRecord | None:
        """What lies beside it."""
        ...

    def read_snapshot(self, snapshot_ref: str) -> SnapshotState: ...


def find_replicas(vms: Iterable[VirtualMachine], reader: ReplicaReader) -> list[FoundReplica]:
    """Every replica among the VMs of a site, in their order."""
    return [found for vm in vms if (found := _as_replica(vm, reader)) is not None]


def _as_replica(vm: VirtualMachine, reader: ReplicaReader) -> FoundReplica | None:
    mark = read_mark(vm.extra_config)
    if mark is None or vm.template:
        return None
    records = [record for one in vm.snapshots if (record := _commit_record(one, reader)) is not None]
    records.sort(key=lambda record: (record.restore_point.time, record.restore_point.id))
    state = None if records else reader.saved_state(vm)  # after a commit there is no other trace of the name
    name = records[-1].source_name if records else (state.source_name if state else vm.name)
    return FoundReplica(
        vm,
        name,
        tuple(record.restore_point for record in records),
        FailoverRecord(mark.repository_id, mark.source_site, mark.source_instance_uuid, name, vm.instance_uuid),
    )


def _commit_record(snapshot: Snapshot, reader: ReplicaReader) -> CommitRecord | None:
    """From its description, or from its own configuration where that was too short for it."""
    if not is_header(snapshot.description):
        return parse_commit_record(snapshot.description)
    state = reader.read_snapshot(snapshot.ref)
    return read_commit_record(state.description, state.extra_config)


def point_as_of(replica: FoundReplica, moment: dt.datetime) -> RestorePoint:
    """The newest restore point that is no younger. Raises NotReadyError where all are."""
    older = [point for point in replica.restore_points if point.time <= moment]
    if older:
        return older[-1]
    first = f"the oldest one is of {replica.restore_points[0].time:%Y-%m-%d %H:%M %Z}" if replica.restore_points else ""
    raise NotReadyError(
        f"{replica.source_name} has no restore point of {moment.astimezone(dt.UTC):%Y-%m-%d %H:%M %Z} or before",
        hint=first or "vrepl replicate makes one, as long as the source lives",
    )


def by_name(found: Sequence[FoundReplica]) -> dict[str, FoundReplica]:
    """Replicas by the names of their sources; those of which several have one are called as they are themselves."""
    count = Counter(one.source_name for one in found)
    return {one.source_name if count[one.source_name] == 1 else one.vm.name: one for one in found}


def choose(
    found: Sequence[FoundReplica],
    names: Sequence[str],
    *,
    job: str | None = None,
    every: bool = False,
    plan: FailoverPlan | None = None,
) -> list[FoundReplica]:
    """Those named (source or replica name), those of a job, of a plan (naming VMs, not patterns), or all.

    Raises UsageError for none or several of these ways, or a name that two replicas answer to, NotFoundError for a name
    or a job that has no replica here. A VM of a plan that has none is left out.
    """
    if (bool(names), job is not None, every, plan is not None).count(True) != 1:
        raise UsageError(
            "say which VMs: their names, --job JOB, --plan PLAN, or --all", hint="vrepl replicas lists them"
        )
    if every:
        return list(found)
    if plan is not None:
        known = by_name(found)
        return [known[name] for name in plan.names if name in known]
    if job is not None:
        chosen = [one for one in found if one.job == job]
        if not chosen:
            jobs = sorted({one.job for one in found if one.job})
            raise NotFoundError(
                f"job {job} has no replica here", hint=f"jobs with replicas: {', '.join(jobs) or 'none'}"
            )
        return chosen
    return [_named(found, name) for name in dict.fromkeys(names)]


def _named(found: Sequence[FoundReplica], name: str) -> FoundReplica:
    matching = [one for one in found if name in {one.source_name, one.vm.name}]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise UsageError(
            f"{len(matching)} replicas answer to {name}: {', '.join(one.vm.name for one in matching)}",
            hint="name the replica instead of its source",
        )
    known = sorted({one.source_name for one in found} | {one.vm.name for one in found})
    near = difflib.get_close_matches(name, known, n=1)
    raise NotFoundError(
        f"there is no replica of {name}" + (f"; did you mean {near[0]}?" if near else ""),
        hint=f"replicas here: {', '.join(known) or 'none'}",
    )
