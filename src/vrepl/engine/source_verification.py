"""`verify --source`: what change tracking calls unchanged since the newest restore point, read and compared at once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from vrepl.engine.access import GuardedVm, access_window
from vrepl.engine.access_identity import access_identity
from vrepl.engine.auditing import doubt, read_part
from vrepl.engine.changes import changed_extents
from vrepl.engine.context import ReplicationContext
from vrepl.engine.gate import snapshot_demand
from vrepl.engine.holding import replica_held
from vrepl.engine.intent_keeper import IntentKeeper
from vrepl.engine.knowledge import restore_point_snapshots
from vrepl.engine.marks import SourceMark
from vrepl.engine.recovery import Original
from vrepl.engine.source_snapshot import temporary_snapshot
from vrepl.engine.vm_work import VmWork
from vrepl.errors import NotFoundError, NotReadyError, VerificationError
from vrepl.extents import GRAIN, Extent, align, intersect, subtract, total, union
from vrepl.model import DiskPoint, Quiesce, RestorePoint, Side, SnapshotState, VirtualMachine
from vrepl.planner.audit import after_reading
from vrepl.planner.tracking import tracking_break
from vrepl.report.model import Result
from vrepl.report.verification import DiskVerification, VmVerification
from vrepl.repository.audit_book import read_audit_book, write_audit_book
from vrepl.repository.intent import Intent
from vrepl.repository.replica_folder import ReplicaFolder

SAMPLE_BLOCK = 1024 * 1024
"""Bytes that are read together where only a part is read."""


class _Nowhere:
    """No intent is kept: nothing is written, and what is left outside is found by its identity and marks."""

    def save_intent(self, intent: Intent) -> None:
        del intent


def verify_against_source(
    context: ReplicationContext, folder: ReplicaFolder, vm: VirtualMachine, sample: float
) -> VmVerification:
    """Compare the newest restore point's digests with the source; never raises. `sample`: the share that is read."""
    services, record = context.services, folder.record
    work = VmWork(services, vm.name, step="verify")
    result = VmVerification(name=vm.name, result=Result.FAILED, replica=record.target_name)

    def verify() -> None:
        original = Original(context.source, vm)
        with replica_held(services, work, folder, context.target, original):
            points = _points(context, folder)
            result.restore_point = points[-1].id
            now = context.source.read_vm(vm.ref)
            identity = access_identity(services.repository.id, record.id, now)
            keeper = IntentKeeper(_Nowhere(), Intent(context.run_id, "", context.job.name))
            mark = SourceMark(services.repository.id, context.run_id)
            guarded = (GuardedVm(Side.SOURCE, context.source, now, identity),)
            with (
                access_window(services, keeper, vm.name, guarded, work.note),
                context.gate.hold(snapshot_demand(context.source.name, now)),
                temporary_snapshot(
                    services, context.source, now, mark, Quiesce.NEVER, work.note, lambda _: None, quiesce=False
                ) as state,
            ):
                work.enter("read the source")
                for disk in points[-1].disks:
                    result.disks = [*result.disks, _verify_disk(context, folder, points, now, state, disk, sample)]
            _judge(points[-1], result.disks)

    outcome = work.outcome(verify)
    result.result, result.error = outcome.result, outcome.error
    return result


def _points(context: ReplicationContext, folder: ReplicaFolder) -> list[RestorePoint]:
    """Those that the replica has. Raises NotFoundError or NotReadyError where there is none."""
    replica = context.target.find_vm_by_instance_uuid(folder.record.target_instance_uuid)
    if replica is None:
        raise NotFoundError(f"the replica {folder.record.target_name or '(not made yet)'} is not there")
    present = restore_point_snapshots(replica)
    points = [point for point in folder.restore_points() if point.id in present]
    if not points:
        raise NotReadyError(f"{folder.record.source_name} has no restore point yet", hint="run its job first")
    return points


def _verify_disk(
    context: ReplicationContext,
    folder: ReplicaFolder,
    points: Sequence[RestorePoint],
    vm: VirtualMachine,
    state: SnapshotState,
    point: DiskPoint,
    sample: float,
) -> DiskVerification:
    services = context.services
    disk = state.disk(point.source_key)
    if disk is None:
        raise NotReadyError(f"{point.label} was removed from the source since the last restore point")
    broken = tracking_break(point.position, disk.position)
    if broken is not None or point.change_id is None or vm.lost_power:
        reason = broken.reason if broken else "the VM lost power" if vm.lost_power else "it has no change ID"
        raise NotReadyError(
            f"change tracking does not say what of {disk.title} is unchanged: {reason}",
            hint="the next run compares the whole disk all the same",
        )
    digests = folder.digest_files(point.source_key, points[-1].id)
    if digests.base is None:
        raise NotReadyError(
            f"the repository holds no digests of {disk.title} at restore point {points[-1].id}",
            hint="digests come with a run that reads the whole disk",
        )
    since = point.change_id
    changed = changed_extents(
        lambda start: context.source.changed_areas(vm.ref, state.ref, disk.key, start, since), disk.capacity
    )
    changed = align(changed, GRAIN, disk.capacity)
    unchanged = subtract([Extent(0, disk.capacity)], changed)
    part = _sampled(unchanged, disk.capacity, sample, random.Random(f"{context.run_id} {disk.key}"))  # noqa: S311
    services.events.disk_started(vm.name, point.index, disk.title, "verify", "what change tracking calls unchanged")
    found = read_part(context, vm, state, disk, digests, part)
    book, _ = read_audit_book(folder.path)
    audit = book.disks.get(disk.key)
    now = services.clock()
    if found.missed:
        doubt(folder, points, disk.key, disk, audit, found.missed, now)
    else:
        judged = subtract(part, union(found.unknown, found.zeroed))
        noted = after_reading(disk.capacity, audit, judged, points[0].time, points[-1].id)
        if judged == unchanged:  # what changed since is read by the next run all the same
            noted = replace(noted, paid=now, position=0)
        write_audit_book(folder.path, replace(book, disks={**book.disks, disk.key: noted}))
    return DiskVerification(
        index=point.index,
        label=point.label,
        capacity=disk.capacity,
        bytes_read=found.bytes_read,
        bad_extents=[(extent.offset, extent.length) for extent in found.missed],
        bytes_zeroed=total(found.zeroed),
        bytes_not_judged=total(found.unknown),
        bytes_changed=total(changed),
        not_judged_extents=[(extent.offset, extent.length) for extent in union(changed, found.unknown)],
    )


def _sampled(unchanged: list[Extent], capacity: int, sample: float, draw: random.Random) -> list[Extent]:
    """So much of it, in blocks taken at random."""
    if sample >= 1:
        return unchanged
    count = -(-capacity // SAMPLE_BLOCK)
    chosen = sorted(draw.sample(range(count), max(1, round(count * sample))))
    blocks = [Extent(at * SAMPLE_BLOCK, min(SAMPLE_BLOCK, capacity - at * SAMPLE_BLOCK)) for at in chosen]
    return intersect(unchanged, blocks)


def _judge(point: RestorePoint, disks: Sequence[DiskVerification]) -> None:
    bad = [disk for disk in disks if disk.bad_extents]
    if not bad:
        return
    offset, length = bad[0].bad_extents[0]
    detail = "; ".join(f"{disk.label}: {sum(size for _, size in disk.bad_extents)} bytes" for disk in bad)
    raise VerificationError(
        f"change tracking missed changes: restore point {point.id} is not what the source was ({detail}; first: "
        f"{length} bytes at {offset})",
        hint="run the job: it compares the whole disk; `vrepl restore-points VM` shows which are doubtful",
    )
