"""Looks where a replica's change tracking hints at foreign writes: only a digest that differs proves one."""

from __future__ import annotations

from dataclasses import replace

from vrepl.engine.comparing import compare_disk
from vrepl.engine.context import ReplicationContext, VerificationContext
from vrepl.planner.knowledge import ReplicaKnowledge
from vrepl.planner.suspects import settled_again, tells_something, worth_reading
from vrepl.repository.replica_folder import ReplicaFolder


def look_at_suspects(
    context: ReplicationContext, folder: ReplicaFolder, vm_name: str, known: ReplicaKnowledge
) -> ReplicaKnowledge:
    """The same with the suspicions settled: the leaf is touched, or the grains are owed again, or nothing is wrong.

    Reads of the replica's leaf what the hints name, over the job's target modes. Raises DiskError.
    """
    replica, last = known.replica, known.last
    if not known.suspects or known.touched or replica is None or last is None:
        return known
    reading = VerificationContext(context.services, context.target, context.job.target_modes, context.gate)
    unfinished = dict(known.unfinished)
    for key, extents in known.suspects:
        point = last.disk(key)
        disk = replica.disk(point.target_key) if point else None
        if point is None or disk is None:
            continue
        if key in known.digests_known and not known.verification_failed:
            regions = worth_reading(extents, disk.capacity, last.id)
            read = compare_disk(
                reading, vm_name, replica, None, disk, folder.digest_files(key, last.id), regions=regions
            )
            if read.bad_extents:
                return replace(
                    known,
                    touched=f"{disk.title} of the replica was written by something else since the last restore point "
                    f"(it differs from its digests, first at {read.bad_extents[0].offset})",
                    unfinished=(),
                    suspects=(),
                )
            if not read.unknown_grains:
                continue
        if tells_something(extents, disk.capacity):
            # Nothing tells what stands there: it is taken from the source again.
            unfinished[key] = settled_again(unfinished.get(key), point, extents, disk.capacity)
    return replace(known, unfinished=tuple(unfinished.items()), suspects=())
