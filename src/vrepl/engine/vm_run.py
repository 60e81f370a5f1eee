"""One VM of a run, from recovery to retention, in the order of the design's section 3."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from vrepl.engine.access import prepare_access
from vrepl.engine.consolidation import consolidate_source
from vrepl.engine.context import RunContext
from vrepl.engine.deciding import find_changes
from vrepl.engine.gate import snapshot_demand
from vrepl.engine.knowledge import TargetNames, gather, mapping_request
from vrepl.engine.marks import SourceMark
from vrepl.engine.moving import DiskMove, DiskMover, IntentKeeper
from vrepl.engine.preflight import refuse_impossible
from vrepl.engine.recovery import forget_lost_restore_points, recover
from vrepl.engine.replica import PreparedReplica, prepare_replica
from vrepl.engine.reporting import conflict_error
from vrepl.engine.san_writing import move_side_by_side, write_over_san
from vrepl.engine.sealing import prune, seal, snapshot_name
from vrepl.engine.source_snapshot import REMOVE, TakenSnapshot, take_snapshot
from vrepl.engine.undo import Undo
from vrepl.errors import (
    RESUME_HINT,
    CbtError,
    InterruptedRunError,
    LockedError,
    NoSpaceError,
    NotReadyError,
    VreplError,
)
from vrepl.model import (
    Datastore,
    DiskPoint,
    ReplicaRecord,
    RestorePoint,
    VirtualMachine,
)
from vrepl.planner.vm import ReplicaAction, ReplicaKnowledge, VmPlan, plan_vm, space_conflict, space_needed
from vrepl.report.model import ErrorReport, Result, VmReport
from vrepl.repository.intent import Intent, Journal, read_hotadd_entry
from vrepl.repository.replica import ReplicaFolder
from vrepl.repository.store import replica_id

logger = logging.getLogger(__name__)

DETACH = "detach HotAdd disks"
LEAVE = "leave room for other snapshots"


class VmRun:
    """Replicates one VM once. `run` never raises: what happened stands in its report."""

    def __init__(
        self, context: RunContext, vm: VirtualMachine, names: TargetNames, *, map_to: str | None = None
    ) -> None:
        """`map_to`: name of an existing VM of the target that shall become the replica."""
        self._context = context
        self._map_to = map_to
        self._vm = vm
        self._names = names
        self._step = "start"
        self._store_ref = ""
        self._report = VmReport(name=vm.name, result=Result.FAILED, instance_uuid=vm.instance_uuid)

    def run(self) -> VmReport:
        started = self._context.clock()
        report = self._report
        try:
            self._context.check_stop()
            folder = self._folder()
            with folder.lock():
                self._replicate(folder)
            report.result = Result.SUCCESS
        except (LockedError, NotReadyError) as error:
            report.result, report.error = Result.SKIPPED, self._error_report(error)
        except InterruptedRunError as error:
            report.result, report.error = Result.INTERRUPTED, self._error_report(error)
        except VreplError as error:
            report.result, report.error = Result.FAILED, self._error_report(error)
        except Exception as error:
            logger.exception("VM %s, %s: unexpected failure", self._vm.name, self._step)
            report.result, report.error = Result.FAILED, ErrorReport.of(error)
            report.error.step = self._step
        report.seconds = (self._context.clock() - started).total_seconds()
        return report

    def _error_report(self, error: VreplError) -> ErrorReport:
        if isinstance(error, InterruptedRunError):
            error.hint = error.hint or RESUME_HINT
        return ErrorReport.of(error.at(vm=self._vm.name, step=self._step))

    def _enter(self, step: str) -> None:
        self._context.check_stop()
        self._step = step
        self._context.events.vm_step(self._vm.name, step)

    def _note(self, message: str) -> None:
        self._report.notes.append(message)
        self._context.events.note(self._vm.name, message)

    def _set_consolidation_needed(self, needed: bool) -> None:
        self._report.consolidation_needed = needed

    def _folder(self) -> ReplicaFolder:
        """The replica's folder, which also holds the lock; made before anything else exists of the replica."""
        site, uuid = self._context.source.name, self._vm.instance_uuid
        folder = self._context.repository.replica(site, uuid)
        if folder is not None:
            return folder
        return self._context.repository.create_replica(
            ReplicaRecord(
                id=replica_id(site, uuid),
                source_site=site,
                source_instance_uuid=uuid,
                source_name=self._vm.name,
                target_site=self._context.target.name,
                target_instance_uuid="",
                target_name="",
                job=self._context.job.name,
            )
        )

    # -- the steps, in order ------------------------------------------------------------------------------------------

    def _replicate(self, folder: ReplicaFolder) -> None:
        context = self._context
        self._enter("recovery")
        for note in recover(context, folder, self._vm):
            self._note(note)
        self._enter("preflight")
        plan, known = self._plan(folder)
        with Undo(self._note) as undo:
            self._promise_room(undo, plan)
            self._enter("replica")
            if plan.action is ReplicaAction.UPDATE and known.replica is not None:
                # What an earlier run could not remove: a chain that has grown too long takes no further restore point.
                self._prune(folder, known.replica.ref, known.restore_points)
            replica, done = prepare_replica(context, folder, plan, known)
            for note in done:
                self._note(note)
            self._report.replica = replica.vm.name
            if plan.enable_cbt:
                self._enter("enable CBT")
                self._enable_cbt(plan.vm.ref)
            keeper = self._begin(folder)
            self._enter("prepare access")
            prepare_access(context, undo, keeper, self._vm.name, source_ref=plan.vm.ref, target_ref=replica.vm.ref)
            self._enter("source snapshot")
            undo.push(LEAVE, context.gate.enter(snapshot_demand(context.source.name, plan.vm)))
            taken = take_snapshot(context, undo, plan, known, self._note, self._set_consolidation_needed)
            self._enter("find changes")
            moves = find_changes(context, folder, keeper, plan, known, replica, taken, self._note)
            self._enter("transfer")
            self._move(undo, folder, keeper, moves, replica.vm.ref)
            self._enter("remove source snapshot")
            undo.settle(DETACH)
            undo.settle(REMOVE)
            undo.settle(LEAVE)
            undo.settle("end access at the target")
            undo.settle("end access at the source")
            self._enter("seal")
            self._seal(folder, replica, taken, moves)
        self._step = "retention"
        context.events.vm_step(self._vm.name, self._step)
        if known.lost_restore_points:
            forget_lost_restore_points(folder, context.target.read_vm(replica.vm.ref))
        self._prune(folder, replica.vm.ref, folder.restore_points())
        # Only now: what held the disk open is given time to go, and the restore point did not have to wait for it.
        if self._report.consolidation_needed and consolidate_source(context, plan.vm, wait_for_locks=True):
            self._set_consolidation_needed(False)
            self._note("the source's disks are consolidated")

    def _prune(self, folder: ReplicaFolder, replica_ref: str, points: Sequence[RestorePoint]) -> None:
        self._report.removed_restore_points += prune(self._context, folder, self._vm.name, replica_ref, points)

    def _plan(self, folder: ReplicaFolder) -> tuple[VmPlan, ReplicaKnowledge]:
        context = self._context
        vm = context.source.read_vm(self._vm.ref)
        known = gather(
            folder,
            vm,
            context.job.replica_name_of(vm.name),
            context.repository.id,
            context.target,
            self._names,
            mapping_request(context.repository, vm, context.source, context.target, self._map_to)
            if self._map_to
            else None,
        )
        plan = plan_vm(vm, context.job, known)
        self._report.replica = plan.replica_name
        for note in plan.notes:
            self._note(note)
        for _, reason in plan.left_out:
            self._note(f"left out: {reason}")
        self._store_ref = refuse_impossible(context, plan, () if plan.conflict else context.target.datastores()).ref
        return plan, known

    def _promise_room(self, undo: Undo, plan: VmPlan) -> None:
        """Keep room on the target for what this VM may add, so that VMs side by side do not count on the same bytes."""
        context = self._context
        wanted = context.job.placement.datastore
        needed = space_needed(plan, context.job)

        def store() -> Datastore:
            return next(store for store in context.target.datastores() if store.ref == self._store_ref)

        def refusal(free: int) -> VreplError:
            conflict = space_conflict(needed, replace(store(), free=free))
            return conflict_error(conflict) if conflict else NoSpaceError(f"datastore {wanted} has no room")

        give_up = context.gate.promise_room(plan.vm.ref, self._store_ref, needed, lambda: store().free, refusal)
        undo.push("give up the room that was kept on the target", give_up)

    def _enable_cbt(self, source_ref: str) -> None:
        try:
            self._context.source.enable_cbt(source_ref)
        except CbtError as error:
            self._note(f"without change tracking, runs compare by digest: {error.message}")

    def _begin(self, folder: ReplicaFolder) -> IntentKeeper:
        """This run's intent; what an unfinished one says of the disks stays until this run knows better."""
        context = self._context
        mark = SourceMark(context.repository.id, context.run_id)
        before = folder.intent()
        keeper = IntentKeeper(
            folder,
            Intent(
                run_id=context.run_id,
                restore_point_id=before.restore_point_id if before else "",
                job=context.job.name,
                source_snapshot_name=mark.snapshot_name,
                disks=before.disks if before else (),
                journal=Journal(notes=before.journal.notes if before else {}),
            ),
        )
        keeper.change(lambda intent: intent)
        return keeper

    # -- moving and sealing -------------------------------------------------------------------------------------------

    def _move(
        self,
        undo: Undo,
        folder: ReplicaFolder,
        keeper: IntentKeeper,
        moves: Sequence[DiskMove],
        target_ref: str,
    ) -> None:
        context = self._context
        movers = [DiskMover(context, folder, keeper, move) for move in moves]
        self._report.disks = [mover.report for mover in movers]
        undo.push(DETACH, lambda: self._detach_hotadd(keeper))
        for mover in movers:
            if mover.finished:
                mover.describe()
        write_over_san(context, undo, keeper, target_ref, movers, self._note)
        move_side_by_side([mover.run for mover in movers if not mover.finished])

    def _detach_hotadd(self, keeper: IntentKeeper) -> None:
        """VDDK wants Cleanup after HotAdd before any snapshot operation (VDDK Programming Guide, Cleanup)."""
        context = self._context
        sites = {"source": context.source.name, "target": context.target.name}
        for entry in keeper.intent.journal.hotadd_cleanup:
            side, vm_ref, _ = read_hotadd_entry(entry)
            context.patiently(
                self._vm.name,
                "detach HotAdd disks",
                lambda site=sites[side], vm_ref=vm_ref: context.movers.cleanup(site, vm_ref),  # type: ignore[misc]
                even_when_stopped=True,
            )
            keeper.forget_hotadd(entry)

    def _track_replica(self, replica_ref: str) -> None:
        """Change tracking must be on at the first seal, for failback; writing over SAN (or a mapped VM) has it off."""
        replica = self._context.target.read_vm(replica_ref)
        if replica.cbt_enabled or replica.snapshots:
            return
        try:
            self._context.target.enable_cbt(replica_ref)
        except CbtError as error:
            self._note(f"the replica gets no change tracking, so that a failback compares: {error.message}")

    def _seal(
        self, folder: ReplicaFolder, replica: PreparedReplica, taken: TakenSnapshot, moves: Sequence[DiskMove]
    ) -> None:
        context = self._context
        if not any(move.parent_restore_point_id for move in moves):
            self._track_replica(replica.vm.ref)
        moved = {report.index: report.bytes_moved or 0 for report in self._report.disks}
        point = RestorePoint(
            id=taken.point_id,
            time=taken.time,
            run_id=context.run_id,
            job=context.job.name,
            consistency=taken.consistency,
            snapshot_name=snapshot_name(taken.point_id),
            parent_id=moves[0].parent_restore_point_id if moves else None,
            disks=tuple(
                DiskPoint(
                    source_key=move.source_disk.key,
                    index=move.source_disk.index,
                    label=move.source_disk.label,
                    capacity=move.source_disk.capacity,
                    source_disk_uuid=move.source_disk.uuid,
                    source_base_path=move.source_disk.base_path,
                    change_id=move.source_disk.change_id,
                    target_key=move.replica_disk.key,
                    kind=move.decision.kind,
                    bytes_moved=moved.get(move.source_disk.index, 0),
                )
                for move in moves
            ),
        )
        seal(context, folder, replica.record, replica.vm.ref, point)
        self._report.restore_point = point.id
        self._report.consistency = taken.consistency
