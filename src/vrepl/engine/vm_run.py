"""One VM of a run, from recovery to retention: what is done, in order. How it is done stands in the rooms beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vrepl.engine.access import GuardedVm, access_window
from vrepl.engine.access_identity import access_identity
from vrepl.engine.auditing import RunAudit
from vrepl.engine.consolidation import consolidate
from vrepl.engine.context import ReplicationContext
from vrepl.engine.crossing import Crossing
from vrepl.engine.deciding import find_changes
from vrepl.engine.disk_crossing import CrossingEnd, CrossingRoute
from vrepl.engine.disk_move import DiskMove
from vrepl.engine.failover.guard import Ready, replica_ready, undo_overdue
from vrepl.engine.failover.settings import keep_settings
from vrepl.engine.gate import snapshot_demand
from vrepl.engine.guest_freeze import GuestScripts, guest_frozen, thaw_after_the_dead
from vrepl.engine.holding import replica_held
from vrepl.engine.intent_keeper import IntentKeeper
from vrepl.engine.knowledge import TargetNames
from vrepl.engine.leaf_check import look_at_suspects
from vrepl.engine.loose_files import remove_loose_files
from vrepl.engine.marks import SourceMark, restore_point_snapshot_name
from vrepl.engine.nvram import carry_nvram
from vrepl.engine.planning import look_and_plan
from vrepl.engine.preflight import refuse_full_chain, refuse_impossible, room_kept, settled
from vrepl.engine.prepared_replica import PreparedReplica, prepare_replica
from vrepl.engine.recovery import Original, Seen, forget_lost_restore_points
from vrepl.engine.sealing import prune, seal
from vrepl.engine.source_snapshot import TakenSnapshot, snapshot_window, temporary_snapshot
from vrepl.engine.vm_work import VmWork
from vrepl.errors import RESUME_HINT, CbtError, NoSpaceError, NotFoundError, UsageError, VreplError
from vrepl.model import DiskPoint, ListedVm, Quiesce, ReplicaRecord, RestorePoint, Side, VirtualMachine
from vrepl.planner.knowledge import ReplicaKnowledge
from vrepl.planner.placement import Placed
from vrepl.planner.vm import ReplicaAction, VmPlan, plan_vm
from vrepl.report.model import ScriptReport, VmReport
from vrepl.repository.intent import Intent, Journal
from vrepl.repository.replica_folder import ReplicaFolder
from vrepl.repository.store import replica_id


class VmRun:
    """Replicates one VM once. `run` never raises: what happened stands in its report."""

    def __init__(
        self,
        context: ReplicationContext,
        vm: ListedVm,
        names: TargetNames,
        *,
        map_to: str | None = None,
        lock_wait: float = 0.0,
    ) -> None:
        """`map_to`: name of an existing VM of the target that shall become the replica.

        `lock_wait`: seconds to wait for whoever holds the replica, such as a verification.
        """
        self._lock_wait = lock_wait
        self._context = context
        self._map_to = map_to
        self._vm = vm
        self._names = names
        self._work = VmWork(context.services, vm.name)
        self._replica_name: str | None = None
        self._crossing: Crossing | None = None
        self._sealed: RestorePoint | None = None
        self._removed: list[str] = []
        self._audit: RunAudit | None = None
        self._scripts: list[ScriptReport] = []
        self._consolidation_needed = False

    def run(self) -> VmReport:
        clock = self._context.services.clock
        started = clock()
        outcome = self._work.outcome(self._replicate, interrupted_hint=RESUME_HINT)
        return VmReport(
            name=self._vm.name,
            result=outcome.result,
            instance_uuid=self._vm.instance_uuid,
            replica=self._replica_name,
            error=outcome.error,
            restore_point=self._sealed.id if self._sealed else None,
            consistency=self._sealed.consistency if self._sealed else None,
            notes=self._work.notes,
            removed_restore_points=self._removed,
            consolidation_needed=self._consolidation_needed,
            seconds=(clock() - started).total_seconds(),
            disks=self._crossing.reports() if self._crossing else [],
            audit=self._audit.report if self._audit else None,
            scripts=self._scripts,
        )

    def _folder(self) -> ReplicaFolder:
        """The replica's folder, which also holds the lock; made before anything else exists of the replica."""
        context, uuid = self._context, self._vm.instance_uuid
        site, repository = context.source.name, context.services.repository
        folder = repository.replica(site, uuid)
        if folder is not None:
            return folder
        return repository.create_replica(
            ReplicaRecord(
                id=replica_id(site, uuid),
                source_site=site,
                source_instance_uuid=uuid,
                source_name=self._vm.name,
                target_site=context.target.name,
                target_instance_uuid="",
                target_name="",
                job=context.job.name,
            )
        )

    # -- the steps, in order ------------------------------------------------------------------------------------------

    def _replicate(self) -> None:
        context, work = self._context, self._work
        folder = self._folder()
        original = Original(context.source, self._vm)
        scripts = GuestScripts(context, self._vm, self._scripts.append)
        with replica_held(
            context.services,
            work,
            folder,
            context.target,
            original,
            lock_wait=self._lock_wait,
            first=lambda: thaw_after_the_dead(context, folder, self._vm, scripts),
        ) as seen:
            work.enter("preflight")
            plan, known, placed, ready = self._plan(folder, seen)
            folder.upgrade()  # what could be compared has been
            with room_kept(context, plan, placed, work.note):
                work.enter("replica")
                ready.check()
                replica = self._prepare_replica(folder, plan, known)
                carry_nvram(context, folder, plan.vm, replica.vm, work.note)
                if plan.enable_cbt:
                    work.enter("enable CBT")
                    plan = self._enable_cbt(plan)
                keeper = self._begin(folder)
                work.enter("prepare access")
                guarded = (
                    GuardedVm(Side.SOURCE, context.source, plan.vm, self._identity(folder, plan.vm)),
                    GuardedVm(Side.TARGET, context.target, replica.vm, self._identity(folder, replica.vm)),
                )
                with access_window(context.services, keeper, self._vm.name, guarded, work.note):
                    work.enter("source snapshot")
                    with snapshot_window(
                        context, plan, known, work.note, self._set_consolidation_needed,
                        freeze=lambda: guest_frozen(scripts, keeper, work.note),
                    ) as taken:  # fmt: skip
                        work.enter("find changes")
                        audit = self._audit = RunAudit(context, folder, known.restore_points, work.note)
                        moves = find_changes(context, folder, keeper, plan, known, replica, taken, work.note, audit)
                        work.enter("transfer")
                        ready.check()
                        crossing = self._cross(folder, keeper, moves, ready)
                        work.enter("remove source snapshot")
                work.enter("seal")
                ready.check()
                self._seal(folder, replica, taken, moves, crossing, ready)
            audit.settle(moves, taken.point_id)
            work.enter("settings for a failover", even_when_stopped=True)
            self._keep_settings(folder, plan.vm, replica.vm)
            work.enter("retention", even_when_stopped=True)
            if known.lost_restore_points:
                forget_lost_restore_points(folder, context.target.read_vm(replica.vm.ref))
            self._prune(folder, replica.vm.ref, folder.restore_points())
            if self._removed or plan.revert_replica or any(disk.replace_disk for disk in plan.disks):
                remove_loose_files(folder, context.target, replica.vm.ref, work.note)
            self._consolidate_in_the_end(plan.vm)

    def _keep_settings(self, folder: ReplicaFolder, source: VirtualMachine, replica: VirtualMachine) -> None:
        """Not worth a failed run: the restore point is sealed."""
        try:
            keep_settings(self._context, folder, source, replica)
        except VreplError as error:
            self._work.note(f"what a failover needs to know could not be kept beside the replica: {error.message}")

    def _prepare_replica(self, folder: ReplicaFolder, plan: VmPlan, known: ReplicaKnowledge) -> PreparedReplica:
        if plan.action is ReplicaAction.UPDATE and known.replica is not None:
            # What an earlier run could not remove: a chain that has grown too long takes no further restore point.
            self._prune(folder, known.replica.ref, known.restore_points)
            refuse_full_chain(self._context, known.replica)
        replica, done = prepare_replica(self._context, folder, plan, known)
        for note in done:
            self._work.note(note)
        self._replica_name = replica.vm.name
        return replica

    def _identity(self, folder: ReplicaFolder, vm: VirtualMachine) -> str:
        return access_identity(self._context.services.repository.id, folder.record.id, vm)

    def _set_consolidation_needed(self, needed: bool) -> None:
        self._consolidation_needed = needed

    def _consolidate_in_the_end(self, vm: VirtualMachine) -> None:
        """Only now: what held the disk open is given time to go, and the restore point did not have to wait for it."""
        if not self._consolidation_needed:
            return
        if consolidate(self._context.services, self._context.source, vm, wait_for_locks=True):
            self._consolidation_needed = False
            self._work.note("the source's disks are consolidated")

    def _prune(self, folder: ReplicaFolder, replica_ref: str, points: Sequence[RestorePoint]) -> None:
        self._removed += prune(self._context, folder, self._vm.name, replica_ref, points)

    def _plan(self, folder: ReplicaFolder, seen: Seen) -> tuple[VmPlan, ReplicaKnowledge, Placed, Ready]:
        context = self._context
        vm = seen.original or context.source.read_vm(self._vm.ref)
        plan, known = look_and_plan(context, folder, vm, self._names, self._map_to, seen.replica)
        if undo_overdue(context, folder, known.replica, self._work):
            plan, known = look_and_plan(context, folder, vm, self._names, self._map_to)
        ready = replica_ready(context, folder, known)
        if plan.conflict is None and plan.action is ReplicaAction.UPDATE and known.suspects:
            known = look_at_suspects(context, folder, vm.name, known)
            plan = plan_vm(vm, context.job, known)
        self._replica_name = plan.replica_name
        for note in plan.notes:
            self._work.note(note)
        for _, reason in plan.left_out:
            self._work.note(f"left out: {reason}")
        placed = self._require_possible(plan)
        ready_plan = settled(plan, placed)
        for note in ready_plan.notes[len(plan.notes) :]:
            self._work.note(note)
        return ready_plan, known, placed, ready

    def _require_possible(self, plan: VmPlan) -> Placed:
        """Where the replica's disks go. Nothing is refused by what was read for another VM of the run."""
        context = self._context
        if plan.conflict is not None:
            return refuse_impossible(context, plan, ())
        try:
            return refuse_impossible(context, plan, context.datastores.known())
        except (NoSpaceError, NotFoundError, UsageError):
            return refuse_impossible(context, plan, context.datastores.now())

    def _enable_cbt(self, plan: VmPlan) -> VmPlan:
        """The plan, whose snapshot is not quiesced if it is the one that tracking begins with on a running VM."""
        context = self._context
        try:
            switched = context.source.enable_cbt(plan.vm.ref)
        except CbtError as error:
            self._work.note(f"without change tracking, runs compare by digest: {error.message}")
            return plan
        if not switched or not plan.quiesce:
            return plan
        if context.job.quiesce is not Quiesce.REQUIRE:
            self._work.note("change tracking begins with this snapshot, so it is crash-consistent")
            return replace(plan, quiesce=False)
        mark = SourceMark(context.services.repository.id, context.run_id)
        with (
            context.gate.hold(snapshot_demand(context.source.name, plan.vm)),
            temporary_snapshot(
                context.services, context.source, plan.vm, mark, Quiesce.NEVER, self._work.note,
                self._set_consolidation_needed, quiesce=False,
            ),
        ):  # fmt: skip
            pass  # change tracking has begun with it
        return plan

    def _begin(self, folder: ReplicaFolder) -> IntentKeeper:
        """This run's intent; what an unfinished one says of the disks stays until this run knows better."""
        context = self._context
        before = folder.intent()
        keeper = IntentKeeper(
            folder,
            Intent(
                run_id=context.run_id,
                restore_point_id=before.restore_point_id if before else "",
                job=context.job.name,
                disks=before.disks if before else (),
                disks_run_id=before.disks_run_id if before else "",
                journal=Journal(notes=before.journal.notes if before else {}),
                sealing=before.sealing if before else False,
                source_snapshot_name=SourceMark(context.services.repository.id, context.run_id).snapshot_name,
            ),
        )
        keeper.change(lambda intent: intent)
        return keeper

    # -- moving and sealing -------------------------------------------------------------------------------------------

    def _cross(self, folder: ReplicaFolder, keeper: IntentKeeper, moves: Sequence[DiskMove], ready: Ready) -> Crossing:
        context, job = self._context, self._context.job
        route = CrossingRoute(
            services=context.services,
            gate=context.gate,
            logs=folder,
            keeper=keeper,
            read=CrossingEnd(Side.SOURCE, context.source, job.source_modes),
            written=CrossingEnd(Side.TARGET, context.target, job.target_modes),
            fallback=job.fallback,
            still_allowed=ready.check,
        )
        self._crossing = Crossing(route, moves, self._vm.name, self._work.note)
        self._crossing.run()
        return self._crossing

    def _track_replica(self, replica_ref: str) -> None:
        """Change tracking must be on at the first seal, for failback; writing over SAN (or a mapped VM) has it off."""
        replica = self._context.target.read_vm(replica_ref)
        if replica.cbt_enabled or replica.snapshots:
            return
        try:
            self._context.target.enable_cbt(replica_ref)
        except CbtError as error:
            self._work.note(f"the replica gets no change tracking, so that a failback compares: {error.message}")

    def _seal(
        self,
        folder: ReplicaFolder,
        replica: PreparedReplica,
        taken: TakenSnapshot,
        moves: Sequence[DiskMove],
        crossing: Crossing,
        ready: Ready,
    ) -> None:
        context = self._context
        if not any(move.parent_restore_point_id for move in moves):
            self._track_replica(replica.vm.ref)
        point = RestorePoint(
            id=taken.point_id,
            time=taken.time,
            run_id=context.run_id,
            job=context.job.name,
            consistency=taken.consistency,
            snapshot_name=restore_point_snapshot_name(taken.point_id),
            parent_id=moves[0].parent_restore_point_id if moves else None,
            disks=tuple(
                DiskPoint(
                    source_key=move.key,
                    index=move.read_disk.index,
                    label=move.read_disk.label,
                    capacity=move.read_disk.capacity,
                    source_disk_uuid=move.read_disk.uuid,
                    source_base_path=move.read_disk.base_path,
                    change_id=move.read_disk.change_id,
                    target_key=move.written_disk.key,
                    kind=move.decision.kind,
                    bytes_moved=crossing.bytes_moved(move.key),
                )
                for move in moves
            ),
        )
        seal(context, folder, replica.record, replica.vm, point, self._work.note, still_ready=ready.check)
        self._sealed = point
