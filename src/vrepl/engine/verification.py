"""Reads restore points back through data movers and compares every grain with its digest."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from vrepl.engine.comparing import compare_disk
from vrepl.engine.context import VerificationContext
from vrepl.engine.knowledge import restore_point_snapshots, settings_of
from vrepl.engine.recovery import detach_leavings
from vrepl.engine.vm_work import VmWork
from vrepl.errors import (
    NotFoundError,
    NotReadyError,
    VerificationError,
)
from vrepl.model import DiskPoint, RestorePoint, SnapshotState, VirtualMachine
from vrepl.ports import TransferProgress
from vrepl.report.model import Result
from vrepl.report.verification import DiskVerification, VmVerification
from vrepl.repository.agreement import require_agreement
from vrepl.repository.replica_folder import ReplicaFolder, Verification


def verify_replica(context: VerificationContext, folder: ReplicaFolder, restore_point_id: str | None) -> VmVerification:
    """Verify one restore point of one replica, the newest unless one is named; never raises."""
    record = folder.record
    result = VmVerification(name=record.source_name, result=Result.FAILED, replica=record.target_name)

    def verify() -> None:
        # Without the lock a run could remove the restore point, or fold its digests, while it is read.
        with folder.lock():
            point = _restore_point(folder, restore_point_id)
            result.restore_point = point.id
            disks = _verify_disks(context, folder, point)
            result.disks = disks
            _judge(context, folder, point, disks)

    outcome = VmWork(context.services, record.source_name, step="verify").outcome(verify)
    result.result, result.error = outcome.result, outcome.error
    return result


def _restore_point(folder: ReplicaFolder, restore_point_id: str | None) -> RestorePoint:
    points = folder.restore_points()
    if not points:
        raise NotReadyError(f"{folder.record.source_name} has no restore point yet", hint="run its job first")
    if restore_point_id is None:
        return points[-1]
    for point in points:
        if point.id == restore_point_id:
            return point
    raise NotFoundError(
        f"{folder.record.source_name} has no restore point {restore_point_id}",
        hint=f"its restore points are: {', '.join(one.id for one in points)}",
    )


def _verify_disks(context: VerificationContext, folder: ReplicaFolder, point: RestorePoint) -> list[DiskVerification]:
    replica = context.target.find_vm_by_instance_uuid(folder.record.target_instance_uuid)
    if replica is None:
        raise NotFoundError(
            f"the replica {folder.record.target_name} is gone from site {context.target.name}",
            hint="the next run makes it anew",
        )
    require_agreement(folder, replica, context.services.repository.id, settings_of(context.target))
    snapshot_ref = restore_point_snapshots(replica).get(point.id)
    if snapshot_ref is None:
        raise NotFoundError(
            f"the snapshot of restore point {point.id} is gone from {replica.name}",
            hint="the next run forgets this restore point",
        )
    snapshot = context.target.read_snapshot(snapshot_ref)
    for note in detach_leavings(context.services, context.target, replica):
        context.services.events.note(folder.record.source_name, note)

    def verify(disk: DiskPoint) -> DiskVerification:
        return _verify_disk(context, folder, point, replica, snapshot, disk)

    with ThreadPoolExecutor(max_workers=max(1, len(point.disks)), thread_name_prefix="verify") as pool:
        return list(pool.map(verify, point.disks))


def _verify_disk(
    context: VerificationContext,
    folder: ReplicaFolder,
    point: RestorePoint,
    replica: VirtualMachine,
    snapshot: SnapshotState,
    disk_point: DiskPoint,
) -> DiskVerification:
    services = context.services
    disk = snapshot.disk(disk_point.target_key)
    if disk is None:
        raise NotFoundError(f"{disk_point.label} is missing from restore point {point.id}")
    digests = folder.digest_files(disk_point.source_key, point.id)
    if digests.base is None:
        raise NotReadyError(
            f"the repository holds no digests of restore point {point.id} of {folder.record.source_name}",
            hint="digests come with a run that reads the whole disk; after a rebuild older restore points have none",
        )

    def progressed(progress: TransferProgress) -> None:
        services.events.disk_progress(folder.record.source_name, disk_point.index, progress)

    services.events.disk_started(
        folder.record.source_name, disk_point.index, disk.title, "verify", f"restore point {point.id}"
    )
    read = compare_disk(context, folder.record.source_name, replica, snapshot.ref, disk, digests, progressed=progressed)
    return DiskVerification(
        index=disk_point.index,
        label=disk_point.label,
        capacity=disk_point.capacity,
        bytes_read=read.bytes_read,
        bad_extents=[(extent.offset, extent.length) for extent in read.bad_extents],
        mode=read.mode,
        seconds=read.seconds,
    )


def _judge(
    context: VerificationContext, folder: ReplicaFolder, point: RestorePoint, disks: Sequence[DiskVerification]
) -> None:
    """Puts the verdict on record. Raises VerificationError where something differs."""
    bad = [disk for disk in disks if disk.bad_extents]
    detail = "; ".join(f"{disk.label}: {len(disk.bad_extents)} extents differ" for disk in bad)
    folder.mark_verified(point.id, Verification(time=context.services.clock(), good=not bad, detail=detail))
    if not bad:
        return
    offset, length = bad[0].bad_extents[0]
    raise VerificationError(
        f"restore point {point.id} differs from its digests: {detail} (first: {length} bytes at {offset})",
        hint="do not fail over to it; remove its snapshot on the replica and run the job: it then compares both sides",
    )
