"""One VM of a run, from recovery to retention, in the order of the design's section 3."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from vrepl.engine.changes import changed_extents
from vrepl.engine.context import RunContext, timestamped_id
from vrepl.engine.knowledge import TargetNames, gather, leaf_identity
from vrepl.engine.marks import SourceMark
from vrepl.engine.moving import DiskMove, DiskMover, IntentKeeper, first_intent
from vrepl.engine.recovery import recover, remove_source_snapshots
from vrepl.engine.replica import PreparedReplica, prepare_replica
from vrepl.engine.reporting import conflict_error
from vrepl.engine.sealing import prune, seal, snapshot_name
from vrepl.engine.undo import Undo
from vrepl.errors import (
    CbtError,
    InterruptedRunError,
    LockedError,
    NotFoundError,
    NotReadyError,
    VreplError,
    VsphereError,
)
from vrepl.model import (
    Consistency,
    Disk,
    DiskPoint,
    PowerState,
    Quiesce,
    ReplicaRecord,
    RestorePoint,
    SnapshotState,
    TransferKind,
    VirtualMachine,
)
from vrepl.planner.disks import decide_disk, regions_of, without_cbt
from vrepl.planner.preflight import Conflict
from vrepl.planner.vm import ReplicaKnowledge, VmPlan, plan_vm, space_conflict, space_needed
from vrepl.ports import DigestFiles
from vrepl.report.model import DiskReport, ErrorReport, Result, VmReport
from vrepl.repository.digests import open_lookup
from vrepl.repository.intent import Intent, Journal, PreparedAccess
from vrepl.repository.replica import ReplicaFolder
from vrepl.repository.store import replica_id
from vrepl.repository.transferlog import read_log

logger = logging.getLogger(__name__)

QUIESCE_FAULTS = frozenset(
    {"ApplicationQuiesceFault", "FilesystemQuiesceFault", "ToolsUnavailable", "QuiesceDatastoreIOForHAFailed"}
)
"""Faults of CreateSnapshot_Task that mean: without quiescing it may do (vSphere API reference)."""


def every_grain_is_known(files: DigestFiles, capacity: int) -> bool:
    """Whether a digest set has no gaps (after a rebuild, or damage, it has)."""
    digests = open_lookup(files, capacity)
    try:
        return next(digests.unknown(), None) is None
    finally:
        digests.close()


@dataclass(frozen=True, slots=True)
class TakenSnapshot:
    state: SnapshotState
    consistency: Consistency
    point_id: str
    time: dt.datetime


class VmRun:
    """Replicates one VM once. `run` never raises: what happened stands in its report."""

    def __init__(self, context: RunContext, vm: VirtualMachine, names: TargetNames) -> None:
        self._context = context
        self._vm = vm
        self._names = names
        self._step = "start"
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
        return ErrorReport.of(error.at(vm=self._vm.name, step=self._step))

    def _enter(self, step: str) -> None:
        self._context.check_stop()
        self._step = step
        self._context.events.vm_step(self._vm.name, step)

    def _note(self, message: str) -> None:
        self._report.notes.append(message)
        self._context.events.note(self._vm.name, message)

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
        with Undo() as undo:
            self._enter("replica")
            replica, done = prepare_replica(context, folder, plan, known)
            for note in done:
                self._note(note)
            self._report.replica = replica.vm.name
            if plan.enable_cbt:
                self._enter("enable CBT")
                context.source.enable_cbt(plan.vm.ref)
            keeper = self._begin(folder)
            self._enter("prepare access")
            self._prepare_access(undo, keeper, plan.vm.ref, replica.vm.ref)
            self._enter("source snapshot")
            taken = self._take_snapshot(undo, plan)
            self._enter("find changes")
            moves = self._find_changes(folder, keeper, plan, known, replica, taken)
            self._enter("transfer")
            self._move(undo, folder, keeper, moves, plan.vm.ref, replica.vm.ref)
            self._enter("remove source snapshot")
            undo.settle("detach HotAdd disks")
            undo.settle("remove the source snapshot")
            undo.settle("end access at the target")
            undo.settle("end access at the source")
            self._enter("seal")
            self._seal(folder, replica, taken, moves)
        for failure in undo.failures:
            self._note(failure)
        self._step = "retention"
        context.events.vm_step(self._vm.name, self._step)
        self._report.removed_restore_points = prune(context, folder, self._vm.name, replica.vm.ref)

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
        )
        plan = plan_vm(vm, context.job, known)
        self._report.replica = plan.replica_name
        for note in plan.notes:
            self._note(note)
        for _, reason in plan.left_out:
            self._note(f"left out: {reason}")
        conflict = plan.conflict or self._space_conflict(plan)
        if conflict is not None:
            raise conflict_error(conflict)
        return plan, known

    def _space_conflict(self, plan: VmPlan) -> Conflict | None:
        wanted = self._context.job.placement.datastore
        datastores = {store.name: store for store in self._context.target.datastores()}
        if wanted not in datastores:
            raise NotFoundError(
                f"site {self._context.target.name} has no datastore {wanted}",
                hint=f"its datastores are: {', '.join(sorted(datastores))}",
            )
        return space_conflict(space_needed(plan, self._context.job), datastores[wanted])

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

    def _prepare_access(self, undo: Undo, keeper: IntentKeeper, source_ref: str, target_ref: str) -> None:
        context = self._context
        for side, site, vm_ref in (("source", context.source, source_ref), ("target", context.target, target_ref)):
            if not site.is_vcenter:
                continue
            access = PreparedAccess(site.name, vm_ref, f"vrepl-{context.run_id}"[:50])
            keeper.change(
                lambda intent, access=access: replace(  # type: ignore[misc]
                    intent,
                    journal=replace(
                        intent.journal, prepared_for_access=(*intent.journal.prepared_for_access, access)
                    ),
                )
            )

            def end(access: PreparedAccess = access) -> None:
                context.movers.end_access(access.site, access.vm_ref, access.identity)
                self._forget_access(keeper, access)

            try:
                context.patiently(
                    self._vm.name,
                    f"prepare access at the {side}",
                    lambda access=access: context.movers.prepare_for_access(  # type: ignore[misc]
                        access.site, access.vm_ref, access.identity
                    ),
                )
            except VreplError:
                self._forget_access(keeper, access)
                raise
            undo.push(f"end access at the {side}", end)

    @staticmethod
    def _forget_access(keeper: IntentKeeper, access: PreparedAccess) -> None:
        keeper.change(
            lambda intent: replace(
                intent,
                journal=replace(
                    intent.journal,
                    prepared_for_access=tuple(
                        one for one in intent.journal.prepared_for_access if one != access
                    ),
                ),
            )
        )

    def _take_snapshot(self, undo: Undo, plan: VmPlan) -> TakenSnapshot:
        context = self._context
        mark = SourceMark(context.repository.id, context.run_id)
        moment = context.clock()
        point_id = timestamped_id(moment, context.new_id())

        def remove() -> None:
            """Where creating it seemed to fail it may exist all the same: then it is found by its mark."""
            if not taken_ref:
                context.source.settle_tasks(plan.vm.ref)
                vm = context.source.read_vm(plan.vm.ref)
                remove_source_snapshots(context, vm, even_when_stopped=True)
                return
            self._mend_consolidation(
                plan.vm.ref,
                context.patiently(
                    self._vm.name,
                    "remove the source snapshot",
                    lambda: context.source.remove_snapshot(plan.vm.ref, taken_ref[0]),
                    even_when_stopped=True,
                ),
            )

        taken_ref: list[str] = []
        undo.push("remove the source snapshot", remove)

        def create(quiesce: bool) -> SnapshotState:
            return context.patiently(
                self._vm.name,
                "create the source snapshot",
                lambda: context.source.create_snapshot(
                    plan.vm.ref, mark.snapshot_name, mark.description(), quiesce=quiesce
                ),
            )

        state: SnapshotState | None = None
        if plan.quiesce:
            try:
                state = create(True)
            except VsphereError as error:
                if context.job.quiesce is Quiesce.REQUIRE or error.fault not in QUIESCE_FAULTS:
                    raise
                self._note(f"the guest could not be quiesced ({error.message}): the restore point is crash-consistent")
        elif context.job.quiesce is Quiesce.PREFER and plan.vm.power is PowerState.ON:
            self._note("VMware Tools does not run in the guest: the restore point is crash-consistent")
        if state is None:
            state = create(False)
        taken_ref.append(state.ref)
        if plan.vm.power is PowerState.OFF:
            consistency = Consistency.POWERED_OFF
        else:
            consistency = Consistency.QUIESCED if state.quiesced else Consistency.CRASH
        return TakenSnapshot(state, consistency, point_id, moment)

    def _mend_consolidation(self, vm_ref: str, needed: bool) -> None:
        """After the snapshot is gone: mend a pending consolidation, and say so where it stays."""
        if not needed:
            return
        source = self._context.source
        try:
            source.consolidate(vm_ref)
        except VreplError as error:
            logger.warning("VM %s: consolidation failed: %s", self._vm.name, error)
        if source.read_vm(vm_ref).consolidation_needed:
            self._report.consolidation_needed = True
            self._note("the source needs disk consolidation: its snapshot is gone, but not yet its files")

    # -- what to move -------------------------------------------------------------------------------------------------

    def _find_changes(
        self,
        folder: ReplicaFolder,
        keeper: IntentKeeper,
        plan: VmPlan,
        known: ReplicaKnowledge,
        replica: PreparedReplica,
        taken: TakenSnapshot,
    ) -> list[DiskMove]:
        """Decide each disk by the snapshot's own configuration, and put the intent on disk before the first write."""
        moves = []
        for disk_plan in plan.disks:
            source_disk = taken.state.disk(disk_plan.disk.key)
            replica_disk = replica.disk_for(disk_plan.disk.key)
            if source_disk is None or replica_disk is None:
                side = "source snapshot" if source_disk is None else "replica"
                raise VsphereError(
                    f"{disk_plan.disk.title} is missing from the {side}",
                    hint="its hardware changed during the run: run the job again",
                )
            moves.append(self._decide(folder, plan, known, replica, taken.state, source_disk, replica_disk))
        notes = {f"leaf:{move.replica_disk.key}": leaf_identity(move.replica_disk) for move in moves}
        keeper.change(
            lambda intent: replace(
                intent,
                restore_point_id=taken.point_id,
                disks=tuple(first_intent(move) for move in moves),
                journal=replace(intent.journal, notes=notes),
            )
        )
        return moves

    def _decide(
        self,
        folder: ReplicaFolder,
        plan: VmPlan,
        known: ReplicaKnowledge,
        replica: PreparedReplica,
        snapshot: SnapshotState,
        source_disk: Disk,
        replica_disk: Disk,
    ) -> DiskMove:
        key = source_disk.key
        newly_made = key in replica.newly_made
        last = known.last if plan.replica is not None else None
        point = last.disk(key) if last and not newly_made else None
        unfinished = None
        if plan.replica is not None and not plan.revert_replica and not newly_made:
            unfinished = dict(known.unfinished).get(key)
        digests_known = point is not None and key in known.digests_known
        decision = decide_disk(
            source_disk,
            point,
            unfinished,
            digests_known=digests_known,
            leaf_is_sealed_state=newly_made or known.leaf_is_sealed_state,
            newly_made=newly_made,
        )
        changed = []
        if decision.since_change_id is not None:
            since = decision.since_change_id
            try:
                changed = changed_extents(
                    lambda start: self._context.source.changed_areas(plan.vm.ref, snapshot.ref, key, start, since),
                    source_disk.capacity,
                )
            except CbtError as error:
                decision = without_cbt(
                    decision, f"CBT gave no answer: {error.message}", digests_known=digests_known
                )
                self._note(f"{source_disk.title}: {decision.reason}")
        if decision.kind is TransferKind.COMPARE and digests_known and last is not None:
            # Asked only now: looking for gaps costs as much as the disk is large, and so does comparing.
            digests_known = every_grain_is_known(folder.digest_files(key, last.id), source_disk.capacity)
            if not digests_known:
                decision = without_cbt(decision, decision.reason, digests_known=False)
        digests = DigestFiles(base=None, fresh=decision.fresh)
        if point is not None and last is not None and digests_known:
            digests = folder.digest_files(key, last.id)
        attempts = read_log(folder.transfer_log(key)).last
        return DiskMove(
            vm=plan.vm,
            source_snapshot=snapshot,
            source_disk=source_disk,
            replica=replica.vm,
            replica_disk=replica_disk,
            decision=decision,
            regions=regions_of(decision, changed, source_disk.capacity),
            parent_restore_point_id=last.id if last else None,
            parent_digests=digests,
            first_attempt=attempts.number + 1 if attempts else 1,
        )

    # -- moving and sealing -------------------------------------------------------------------------------------------

    def _move(
        self,
        undo: Undo,
        folder: ReplicaFolder,
        keeper: IntentKeeper,
        moves: Sequence[DiskMove],
        source_ref: str,
        target_ref: str,
    ) -> None:
        context = self._context
        movers = [DiskMover(context, folder, keeper, move) for move in moves]
        self._report.disks = [mover.report for mover in movers]
        undo.push("detach HotAdd disks", lambda: self._detach_hotadd(source_ref, target_ref))
        waiting = [mover for mover, move in zip(movers, moves, strict=True) if move.regions]
        with ThreadPoolExecutor(max_workers=max(1, len(waiting)), thread_name_prefix="disk") as pool:
            running: list[Future[None]] = [pool.submit(mover.run) for mover in waiting]
        errors = [error for error in (future.exception() for future in running) if error is not None]
        if errors:
            # A stop is the reason for whatever else failed meanwhile.
            raise next((error for error in errors if isinstance(error, InterruptedRunError)), errors[0])

    def _detach_hotadd(self, source_ref: str, target_ref: str) -> None:
        """VDDK wants Cleanup after HotAdd before any snapshot operation (VDDK Programming Guide, Cleanup)."""
        for side, site, vm_ref in (
            ("source", self._context.source.name, source_ref),
            ("target", self._context.target.name, target_ref),
        ):
            if any(self._used_hotadd(disk, side) for disk in self._report.disks):
                self._context.movers.cleanup(site, vm_ref)

    @staticmethod
    def _used_hotadd(disk: DiskReport, side: str) -> bool:
        transport = disk.source if side == "source" else disk.target
        return transport.mode == "hotadd" or any(text.startswith("hotadd") for text in transport.fallbacks)

    def _seal(
        self, folder: ReplicaFolder, replica: PreparedReplica, taken: TakenSnapshot, moves: Sequence[DiskMove]
    ) -> None:
        context = self._context
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
