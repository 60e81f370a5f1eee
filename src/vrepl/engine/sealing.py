"""Makes restore points and lets old ones go. The replica's snapshot is the commit record; the repository follows it."""

from __future__ import annotations

from collections.abc import Sequence

from vrepl.engine.context import ReplicationContext
from vrepl.engine.knowledge import restore_point_snapshots
from vrepl.engine.recovery import note_that_disks_were_sealed
from vrepl.errors import VreplError
from vrepl.model import ReplicaRecord, RestorePoint
from vrepl.repository.commit_record import CommitRecord, format_commit_record
from vrepl.repository.replica_folder import ReplicaFolder
from vrepl.retention import apply_retention

RESTORE_POINT_SNAPSHOT_PREFIX = "vrepl "


def snapshot_name(restore_point_id: str) -> str:
    return f"{RESTORE_POINT_SNAPSHOT_PREFIX}{restore_point_id}"


def seal(
    context: ReplicationContext, folder: ReplicaFolder, record: ReplicaRecord, replica_ref: str, point: RestorePoint
) -> None:
    """Snapshot the replica and record the restore point; with this, and not before, its change IDs count."""
    commit = CommitRecord(
        repository_id=context.services.repository.id,
        source_site=record.source_site,
        source_instance_uuid=record.source_instance_uuid,
        source_name=record.source_name,
        restore_point=point,
    )

    def make() -> None:
        try:
            context.target.create_snapshot(
                replica_ref, point.snapshot_name, format_commit_record(commit), quiesce=False
            )
        except VreplError:
            # It may have been made, now or by the try before this one, and only the reply got lost.
            context.target.wait_for_tasks(replica_ref)
            if point.id not in restore_point_snapshots(context.target.read_vm(replica_ref)):
                raise

    context.services.patiently(record.source_name, "seal the restore point", make)
    note_that_disks_were_sealed(folder)
    folder.seal(point)


def prune(
    context: ReplicationContext, folder: ReplicaFolder, vm_name: str, replica_ref: str, points: Sequence[RestorePoint]
) -> list[str]:
    """Remove what the policy lets go of `points`, oldest first and one at a time; returns the IDs that went.

    `points`: those whose snapshots exist; others must not count for what is kept.
    What cannot be removed now is said and left for the next run: the new restore point is sealed already.
    """
    removed: list[str] = []
    decisions = apply_retention(points, context.job.retention, context.services.clock())
    for decision in decisions:
        if decision.keep or context.services.stop.is_set():
            continue
        point = decision.restore_point
        try:
            replica = context.target.read_vm(replica_ref)
            snapshot_ref = restore_point_snapshots(replica).get(point.id)
            if snapshot_ref is not None:
                consolidation_needed = context.target.remove_snapshot(replica_ref, snapshot_ref)
                if consolidation_needed:
                    context.target.consolidate(replica_ref)
            folder.remove_restore_point(point.id)
        except VreplError as error:
            context.services.events.note(vm_name, f"restore point {point.id} could not be removed: {error.message}")
            break
        removed.append(point.id)
    return removed
