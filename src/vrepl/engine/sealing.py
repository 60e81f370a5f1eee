"""Makes restore points and lets old ones go. The replica's snapshot is the commit record; the repository follows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from vrepl.engine.context import ReplicationContext, Services
from vrepl.engine.events import Note
from vrepl.engine.failover.standing import announce_removal, held_snapshots
from vrepl.engine.knowledge import restore_point_snapshots
from vrepl.engine.recovery import note_that_disks_were_sealed, remove_cut_seal
from vrepl.errors import VreplError, VsphereError
from vrepl.model import ReplicaRecord, RestorePoint, Sighting, SnapshotState, VirtualMachine
from vrepl.ports import TargetSite
from vrepl.repository.commit_record import (
    COMMIT_KEYS,
    CommitRecord,
    CommitText,
    is_header,
    lay_out,
    read_commit_record,
)
from vrepl.repository.replica_folder import ReplicaFolder
from vrepl.repository.sightings import note_sighting
from vrepl.retention import removable


class SealingContext(Protocol):
    """Whose replica is sealed: a run's, or that of a failback."""

    @property
    def services(self) -> Services: ...

    @property
    def target(self) -> TargetSite: ...


def seal(
    context: SealingContext,
    folder: ReplicaFolder,
    record: ReplicaRecord,
    replica: VirtualMachine,
    point: RestorePoint,
    note: Note,
    *,
    still_ready: Callable[[], None],
) -> None:
    """Snapshot the replica and record the restore point; with this, and not before, its change IDs count.

    What was written is read back and compared: a commit record that did not survive is no commit. Raises VsphereError
    where neither the snapshot's description nor the replica's extraConfig keeps it.

    `still_ready` raises where a failover has begun meanwhile: then the snapshot may hold anything, and counts for
    nothing here. Whoever ends the failover looks after it.
    """
    commit = CommitRecord(
        repository_id=context.services.repository.id,
        source_site=record.source_site,
        source_instance_uuid=record.source_instance_uuid,
        source_name=record.source_name,
        restore_point=point,
    )

    text = lay_out(commit, inline=not _keeps_only_headers(replica))
    kept = _kept(context, folder, record, replica, point, commit, text)
    if kept is None:
        if not text.is_inline:
            raise _not_kept(point)
        note("the description of the restore point's snapshot was cut: its record goes to the replica's extraConfig")
        kept = _kept(context, folder, record, replica, point, commit, lay_out(commit, inline=False))
        if kept is None:
            raise _not_kept(point)
    still_ready()
    note_that_disks_were_sealed(folder)
    folder.seal(point)
    note_sighting(folder.path, Sighting(replica.ref, kept.ref))


def _keeps_only_headers(replica: VirtualMachine) -> bool:
    """Whether this site cut the record of the last restore point, or that was too long anyway: do as was done then."""
    current = [one for one in replica.snapshots if one.ref == replica.current_snapshot_ref]
    return any(is_header(snapshot.description) for snapshot in current)


def _not_kept(point: RestorePoint) -> VsphereError:
    return VsphereError(
        f"the record of restore point {point.id} could not be read back from its snapshot, so it does not count",
        hint="neither the snapshot's description nor the replica's extraConfig (vrepl.commit.*) came back as it was "
        "written: please report the version of vCenter and ESXi; what was transferred is kept for the next run",
    )


def _kept(
    context: SealingContext,
    folder: ReplicaFolder,
    record: ReplicaRecord,
    replica: VirtualMachine,
    point: RestorePoint,
    commit: CommitRecord,
    text: CommitText,
) -> SnapshotState | None:
    """Seal with the record laid out like this. None where it cannot be read back: then the snapshot goes again."""
    target, services = context.target, context.services
    if text.extra_config:
        stale = [key for key in target.read_vm(replica.ref).extra_config if key.startswith(COMMIT_KEYS)]
        values = {**dict.fromkeys(stale, ""), **text.extra_config}
        services.patiently(
            record.source_name, "write the restore point's record", lambda: target.set_extra_config(replica.ref, values)
        )

    def make() -> SnapshotState:
        _note_sealing(folder, True)
        try:
            return target.create_snapshot(replica.ref, point.snapshot_name, text.description, quiesce=False)
        except VreplError:
            # It may have been made, now or by the try before this one, and only the reply got lost.
            target.wait_for_tasks(replica.ref)
            made = [one for one in target.read_vm(replica.ref).snapshots if one.name == point.snapshot_name]
            if not made:
                _note_sealing(folder, False)
                raise
            return target.read_snapshot(made[0].ref)

    state = services.patiently(record.source_name, "seal the restore point", make)
    if read_commit_record(state.description, state.extra_config) == commit:
        return state

    remove_cut_seal(services, target, folder, replica, state.ref, even_when_stopped=True)
    _note_sealing(folder, False)
    return None


def _note_sealing(folder: ReplicaFolder, sealing: bool) -> None:
    """A first seal that nobody recorded and that is gone later makes the leaf unsure (see `engine.knowledge`)."""
    intent = folder.intent()
    if intent is not None and intent.sealing != sealing:
        folder.save_intent(replace(intent, sealing=sealing))


def prune(
    context: ReplicationContext, folder: ReplicaFolder, vm_name: str, replica_ref: str, points: Sequence[RestorePoint]
) -> list[str]:
    """Remove what the policy lets go of `points`, oldest first and one at a time; returns the IDs that went.

    `points`: those whose snapshots exist; others must not count for what is kept.
    What cannot be removed now is said and left for the next run: the new restore point is sealed already.
    """
    removed: list[str] = []
    now = context.services.clock()
    if not removable(points, {}, context.job.retention, now):
        return removed  # nothing by the times in the records, whatever the target's say
    replica = context.target.read_vm(replica_ref)
    times = {snapshot.ref: snapshot.created for snapshot in replica.snapshots}
    created = {point_id: times[ref] for point_id, ref in restore_point_snapshots(replica).items()}
    read_anew = False
    for point in removable(points, created, context.job.retention, now):
        if context.services.stop.is_set():
            continue
        try:
            # For each but the first: removing one moves what is above it.
            if read_anew:
                replica = context.target.read_vm(replica_ref)
            snapshot_ref = restore_point_snapshots(replica).get(point.id)
            if snapshot_ref is not None:
                if not _may_remove(context, replica, snapshot_ref):
                    held = f"restore point {point.id} stays as long as a test stands on it or on a newer one"
                    context.services.events.note(vm_name, f"{held} (vrepl failover test stop {vm_name})")
                    continue
                consolidation_needed = context.target.remove_snapshot(replica_ref, snapshot_ref)
                if consolidation_needed:
                    context.target.consolidate(replica_ref)
            read_anew = True
            folder.remove_restore_point(point.id)
        except VreplError as error:
            context.services.events.note(vm_name, f"restore point {point.id} could not be removed: {error.message}")
            break
        removed.append(point.id)
    return removed


def _may_remove(context: ReplicationContext, replica: VirtualMachine, snapshot_ref: str) -> bool:
    """Announced first, then looked: a test that begins now sees it, and one that began before is seen."""
    announce_removal(context.target, replica, snapshot_ref)
    if snapshot_ref not in held_snapshots(context.target, replica):
        return True
    announce_removal(context.target, replica, None)
    return False
