"""Decides each disk by the snapshot's configuration, asks CBT, and puts the intent on disk before the first write."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from vrepl.engine.auditing import RunAudit
from vrepl.engine.changes import changed_extents
from vrepl.engine.context import ReplicationContext
from vrepl.engine.disk_move import DiskMove, first_intent
from vrepl.engine.events import Note
from vrepl.engine.intent_keeper import IntentKeeper
from vrepl.engine.knowledge import leaf_identity
from vrepl.engine.prepared_replica import PreparedReplica
from vrepl.engine.source_snapshot import TakenSnapshot
from vrepl.errors import CbtError, VsphereError
from vrepl.extents import Extent, union
from vrepl.model import Disk, SnapshotState, TransferKind, VirtualMachine
from vrepl.planner.disks import DiskFacts, decide_disk, regions_of, unplanned, without_cbt
from vrepl.planner.knowledge import ReplicaDisk, ReplicaKnowledge, disk_facts, grown_disk
from vrepl.planner.preflight import unreplicable_disk_reason
from vrepl.planner.tracking import tracking_break
from vrepl.planner.vm import ReplicaAction, VmPlan
from vrepl.ports import DigestFiles
from vrepl.repository.digest_sets import open_lookup
from vrepl.repository.replica_folder import ReplicaFolder
from vrepl.repository.transferlog import read_log


def every_grain_is_known(files: DigestFiles, capacity: int) -> bool:
    """Whether a digest set has no gaps (after a rebuild, or damage, it has)."""
    digests = open_lookup(files, capacity)
    try:
        return next(digests.unknown(), None) is None
    finally:
        digests.close()


def tracked_too_late(context: ReplicationContext, vm: VirtualMachine) -> dict[int, str]:
    """Keys of the source's disks whose CBT was enabled while a snapshot existed, each with that snapshot's name.

    Such tracking may miss changes (VMware KB 1020128: enable it without snapshots). What tells is a snapshot below the
    leaf in whose own configuration a disk has no change ID. `vm`: as it was before the run's own snapshot.
    """
    found: dict[int, str] = {}
    parents = {snapshot.ref: snapshot for snapshot in vm.snapshots}
    below = parents.get(vm.current_snapshot_ref or "") if vm.cbt_enabled else None
    while below is not None:
        for disk in context.source.read_snapshot(below.ref).disks:
            if disk.change_id is None:
                found[disk.key] = below.name
        below = parents.get(below.parent_ref or "")
    return found


def find_changes(
    context: ReplicationContext,
    folder: ReplicaFolder,
    keeper: IntentKeeper,
    plan: VmPlan,
    known: ReplicaKnowledge,
    replica: PreparedReplica,
    taken: TakenSnapshot,
    note: Note,
    audit: RunAudit | None = None,
) -> list[DiskMove]:
    """Decide each disk by the snapshot's own configuration, and put the intent on disk before the first write."""
    _refuse_unplanned(plan, taken)
    moves = []
    unbelievable = tracked_too_late(context, plan.vm)
    for disk_plan in plan.disks:
        source_disk = taken.state.disk(disk_plan.disk.key)
        if source_disk is not None and source_disk.change_id and source_disk.key in unbelievable:
            name = unbelievable[source_disk.key]
            note(f"{source_disk.title}: CBT was enabled while the snapshot {name} existed, so it is not believed")
            source_disk = replace(source_disk, change_id=None)
        replica_disk = replica.disk_for(disk_plan.disk.key)
        if source_disk is None or replica_disk is None:
            side = "source snapshot" if source_disk is None else "replica"
            raise VsphereError(
                f"{disk_plan.disk.title} is missing from the {side}",
                hint="its hardware changed during the run: run the job again",
            )
        move = _decide(context, folder, plan, known, replica, taken.state, source_disk, replica_disk, note)
        moves.append(audit.judge(move) if audit is not None else move)
    notes = {f"leaf:{move.written_disk.key}": leaf_identity(move.written_disk) for move in moves}
    keeper.change(
        lambda intent: replace(
            intent,
            restore_point_id=taken.point_id,
            sealing=False,
            disks_run_id=context.run_id,
            disks=tuple(first_intent(move) for move in moves),
            journal=replace(intent.journal, notes=notes),
        )
    )
    return moves


def _refuse_unplanned(plan: VmPlan, taken: TakenSnapshot) -> None:
    """A disk that was added after the plan would be missing from the restore point, and nobody would be told."""
    known = {disk.disk.key for disk in plan.disks} | {disk.key for disk, _ in plan.left_out}
    for disk in taken.state.disks:
        if disk.key not in known and unreplicable_disk_reason(disk) is None:
            raise VsphereError(
                f"{disk.title} was added to the source while the run prepared its replica",
                hint="its hardware changed during the run: run the job again",
            )


def _decide(
    context: ReplicationContext,
    folder: ReplicaFolder,
    plan: VmPlan,
    known: ReplicaKnowledge,
    replica: PreparedReplica,
    snapshot: SnapshotState,
    source_disk: Disk,
    replica_disk: Disk,
    note: Note,
) -> DiskMove:
    key = source_disk.key
    last = known.last if plan.action is ReplicaAction.UPDATE else None
    at_target = ReplicaDisk(
        replica_disk.key,
        newly_made=key in replica.newly_made,
        empty=key in replica.record.empty_disks,
        grown=grown_disk(replica.record, replica.vm, key),
        newly_grown=key in replica.newly_grown,
    )
    facts = disk_facts(known, key, at_target, reverted=plan.revert_replica, lost_power=plan.vm.lost_power)
    digests_known = facts.digests_known
    decision = decide_disk(source_disk, facts)
    grown_from = at_target.grown.capacity if at_target.grown is not None else None
    changed = []
    if decision.since_change_id is not None:
        since = decision.since_change_id
        try:
            changed = changed_extents(
                lambda start: context.source.changed_areas(plan.vm.ref, snapshot.ref, key, start, since),
                source_disk.capacity,
            )
        except CbtError as error:
            decision = without_cbt(decision, f"CBT gave no answer: {error.message}", digests_known=digests_known)
            note(f"{source_disk.title}: {decision.reason}")
    if decision.kind is TransferKind.COMPARE and not decision.compare_with_target and digests_known and last:
        # Asked only now: looking for gaps costs as much as the disk is large, and so does comparing.
        digests_known = every_grain_is_known(folder.digest_files(key, last.id), grown_from or source_disk.capacity)
        if not digests_known:
            decision = without_cbt(decision, decision.reason, digests_known=False)
    if facts.unfinished is not None and decision.since_change_id is not None and not decision.whole_disk:
        changed = union(changed, unplanned(facts, _owed(context, plan.vm, snapshot, source_disk, facts)))
    digests = DigestFiles(base=None, fresh=decision.fresh)
    if last is not None and digests_known:
        digests = replace(folder.digest_files(key, last.id), grown_from=grown_from)
    attempts = read_log(folder.transfer_log(key)).last
    return DiskMove(
        key=key,
        read_vm=plan.vm,
        read_snapshot=snapshot,
        read_disk=source_disk,
        written_vm=replica.vm,
        written_disk=replica_disk,
        decision=decision,
        regions=regions_of(decision, changed, source_disk.capacity),
        parent_restore_point_id=last.id if last else None,
        parent_digests=digests,
        first_attempt=attempts.number + 1 if attempts else 1,
    )


def _owed(
    context: ReplicationContext, vm: VirtualMachine, snapshot: SnapshotState, disk: Disk, facts: DiskFacts
) -> list[Extent]:
    """All that may differ from the leaf's parent, by what the source and the restore point say: not the intent."""
    point, left = facts.point, facts.unfinished
    if (
        point is not None
        and point.change_id is not None
        and not facts.doubtful
        and not (left is not None and left.compare_with_target)
        and tracking_break(point.position, disk.position) is None
    ):
        since = point.change_id
        with suppress(CbtError):
            return changed_extents(
                lambda start: context.source.changed_areas(vm.ref, snapshot.ref, disk.key, start, since), disk.capacity
            )
    return [Extent(0, disk.capacity)]
