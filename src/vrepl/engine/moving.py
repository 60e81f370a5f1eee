"""Moves the disks of one VM: attempt by attempt, each one's intent on disk before its first write."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from vrepl.engine.context import RunContext
from vrepl.engine.gate import End
from vrepl.errors import (
    DiskError,
    DiskLockedError,
    InterruptedRunError,
    MoverError,
    TransportModeError,
    VreplError,
    VsphereError,
)
from vrepl.extents import Extent, intersect, subtract, total, union
from vrepl.model import Disk, SnapshotState, TransferKind, TransportMode, TransportPlan, VirtualMachine
from vrepl.planner.disks import DiskDecision, issued_extents
from vrepl.ports import DigestFiles, DiskAddress, TransferOrder, TransferProgress, TransferResult
from vrepl.report.model import DiskReport, SideTransport
from vrepl.repository.intent import DiskIntent, Intent, hotadd_entry
from vrepl.repository.replica import ReplicaFolder
from vrepl.repository.transferlog import read_log

UNREACHABLE = frozenset({14008, 14009, 14010, 18000})
"""VixErrors of a connection to an ESXi host that was never made (VMware, "Virtual Disk API Errors")."""


class IntentKeeper:
    """The intent of the running run; disks in transfer side by side change it through here, each change durable."""

    def __init__(self, folder: ReplicaFolder, intent: Intent) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self.intent = intent

    def change(self, edit: Callable[[Intent], Intent]) -> None:
        with self._lock:
            changed = edit(self.intent)
            self._folder.save_intent(changed)
            self.intent = changed

    def set_disk(self, disk: DiskIntent) -> None:
        self.change(
            lambda intent: replace(
                intent,
                disks=(*(one for one in intent.disks if one.source_key != disk.source_key), disk),
            )
        )

    def note_hotadd(self, side: str, vm_ref: str, proxy: str | None) -> None:
        """Disks of this VM may hang on this proxy from now on, until `forget_hotadd`."""
        entry = hotadd_entry(side, vm_ref, proxy)
        with self._lock:
            known = entry in self.intent.journal.hotadd_cleanup
        if not known:
            self._change_hotadd(lambda entries: tuple(dict.fromkeys((*entries, entry))))

    def forget_hotadd(self, entry: str) -> None:
        """What hung on the proxy has been detached."""
        self._change_hotadd(lambda entries: tuple(one for one in entries if one != entry))

    def _change_hotadd(self, edit: Callable[[tuple[str, ...]], tuple[str, ...]]) -> None:
        self.change(
            lambda intent: replace(
                intent, journal=replace(intent.journal, hotadd_cleanup=edit(intent.journal.hotadd_cleanup))
            )
        )


@dataclass(frozen=True, slots=True)
class DiskMove:
    """One disk that a run must bring to the source snapshot's state."""

    vm: VirtualMachine
    source_snapshot: SnapshotState
    source_disk: Disk
    replica: VirtualMachine
    replica_disk: Disk
    decision: DiskDecision
    regions: Sequence[Extent]
    parent_restore_point_id: str | None
    parent_digests: DigestFiles
    first_attempt: int


def first_intent(move: DiskMove) -> DiskIntent:
    """What is recorded of a disk before its first attempt of this run."""
    return DiskIntent(
        source_key=move.source_disk.key,
        kind=move.decision.kind,
        capacity=move.source_disk.capacity,
        attempt=move.first_attempt,
        planned=tuple(move.regions),
        change_id=move.source_disk.change_id,
        parent_restore_point_id=move.parent_restore_point_id,
        fresh=move.decision.fresh,
        dirty=move.decision.dirty,
        allocated_only=move.decision.kind is not TransferKind.INCREMENTAL,
        source_disk_uuid=move.source_disk.uuid,
        source_base_path=move.source_disk.base_path,
        compares_with_target=move.decision.compare_with_target,
    )


class DiskMover:
    """Moves one disk, trying again from its transfer log what may pass."""

    def __init__(self, context: RunContext, folder: ReplicaFolder, keeper: IntentKeeper, move: DiskMove) -> None:
        self._intent = first_intent(move)
        self._announced = False
        self._left_on_proxy: set[str] = set()
        self.finished = not move.regions
        self._context = context
        self._folder = folder
        self._keeper = keeper
        self._move = move
        self.report = DiskReport(
            index=move.source_disk.index,
            label=move.source_disk.label,
            kind=move.decision.kind,
            reason=move.decision.reason,
            capacity=move.source_disk.capacity,
            resumed=bool(move.decision.carry or move.decision.dirty),
            bytes_read=0,
            bytes_moved=0,
            bytes_skipped=0,
            seconds=0.0,
        )

    def run(self, through: SnapshotState | None = None) -> None:
        """Raises the error of the last attempt, with VM, disk and step in it.

        `through`: a temporary snapshot of the replica, through which the base of its disk is written over SAN (see
        `engine.san_writing`); returns with the disk unfinished where SAN fails.
        """
        waits = list(self._context.patience.waits)
        while not self.finished:
            self.report.attempts += 1
            intent = self._intent
            try:
                self.finished = self._attempt(intent, through)
                if not self.finished:
                    return
            except VreplError as error:
                following, progressed = self._after_failure(intent, error)
                if progressed:
                    waits = list(self._context.patience.waits)
                if not waits:
                    raise
                self._intent = following
                self._keeper.set_disk(following)
                self._pause(error, 0.0 if progressed or isinstance(error, TransportModeError) else waits.pop(0))
                self._detach_leavings(error)

    def writes_over_san(self) -> bool:
        """Whether SAN is how the rules would reach the replica's disk now."""
        return self._target_plan().modes[0] is TransportMode.SAN and not self._move.replica.snapshots

    def describe(self) -> None:
        """Choose how both sides are reached and put it into the report; nothing is opened."""
        self._describe(self.report.source, self._source_plan())
        self._describe(self.report.target, self._target_plan())

    def _attempt(self, intent: DiskIntent, through: SnapshotState | None) -> bool:
        """False: SAN may no longer be used, so that nothing was moved through the temporary snapshot."""
        move, context = self._move, self._context
        while True:
            source, target = self._source_address(), self._target_address(through)
            ends = (
                End(source, move.vm, False, self._source_plan().usable[0]),
                End(target, move.replica, True, self._target_plan().usable[0]),
            )
            with context.gate.hold_disk(object(), ends, total(intent.planned)):
                if through is not None and not self.writes_over_san():
                    return False
                if (source, target) != (self._source_address(), self._target_address(through)):
                    continue  # a mode failed for another disk while this one waited
                self.describe()
                self._transfer(intent, source, target)
                return True

    def _transfer(self, intent: DiskIntent, source: DiskAddress, target: DiskAddress) -> None:
        move = self._move
        if not self._announced:
            self._announced = True
            self._context.events.disk_started(
                move.vm.name, move.source_disk.index, move.source_disk.title, intent.kind.value, move.decision.reason
            )
        for side, address in (("source", source), ("target", target)):
            if address.modes[0] is TransportMode.HOTADD:
                self._keeper.note_hotadd(side, address.vm_ref, self._context.job.proxy_at(address.site))
        order = TransferOrder(
            kind=intent.kind,
            source=source,
            target=target,
            regions=intent.planned,
            allocated_only=intent.allocated_only,
            dirty=intent.dirty,
            parent=move.parent_digests,
            read_target=move.decision.compare_with_target,
            log=self._folder.transfer_log(intent.source_key),
            attempt=intent.attempt,
        )
        seen = TransferProgress()

        def progressed(progress: TransferProgress) -> None:
            nonlocal seen
            seen = progress
            self._context.events.disk_progress(move.vm.name, move.source_disk.index, progress)

        try:
            result = self._context.movers.transfer(order, progressed)
        except VreplError:
            self._add_bytes(seen.bytes_read, seen.bytes_moved, 0)
            raise
        self._count(result)

    def _after_failure(self, intent: DiskIntent, error: VreplError) -> tuple[DiskIntent, bool]:
        """The intent of the next attempt, and whether this one settled anything; raises what trying cannot mend."""
        error.at(vm=self._move.vm.name, disk=self._move.source_disk.title, step="transfer")
        self._name_host(error)
        if isinstance(error, InterruptedRunError):
            raise error
        if isinstance(error, TransportModeError):
            self._mode_failed(error)
        elif not error.retryable:
            raise error
        state = read_log(self._folder.transfer_log(intent.source_key)).attempt(intent.attempt)
        done = intersect(intent.planned, state.done)
        issued = issued_extents(intent.planned, state.allowed, intent.capacity)
        following = replace(
            intent,
            attempt=intent.attempt + 1,
            planned=tuple(subtract(intent.planned, done)),
            dirty=tuple(union(intent.dirty, issued)),
        )
        return following, bool(done)

    def _name_host(self, error: VreplError) -> None:
        """VDDK does not say which ESXi host it could not reach; the disk that it speaks of tells."""
        if not isinstance(error, DiskError) or error.code not in UNREACHABLE:
            return
        move = self._move
        for path, vm in ((move.source_disk.path, move.vm), (move.replica_disk.path, move.replica)):
            if path and path in error.message and vm.host:
                error.message += f"; the disk is reached through ESXi host {vm.host}"
                return

    def _pause(self, error: VreplError, seconds: float) -> None:
        again = f"trying again in {seconds:g} s" if seconds else "going on from the checkpoint"
        self._context.events.note(self._move.vm.name, f"{self._move.source_disk.title}: {error.message}; {again}")
        self._context.wait(seconds)

    def _detach_leavings(self, error: VreplError) -> None:
        """A data mover that died over HotAdd left the disk on the proxy VM, where it stays locked until Cleanup.

        Asked again as long as the disk is locked: who died may not be seen to be dead yet. Disks of this VM that
        other data movers hold stay where they are.
        """
        sides = {
            "source": (self.report.source, self._context.source.name, self._move.vm.ref),
            "target": (self.report.target, self._context.target.name, self._move.replica.ref),
        }
        if isinstance(error, MoverError):
            self._left_on_proxy |= {side for side, (used, _, _) in sides.items() if used.mode == TransportMode.HOTADD}
        if not isinstance(error, MoverError | DiskLockedError):
            return
        for side in sorted(self._left_on_proxy):
            _, site, vm_ref = sides[side]
            try:
                self._context.movers.cleanup(site, vm_ref)
            except InterruptedRunError:
                raise
            except VreplError as failure:  # the next attempt tells whether the disk can be had
                self._context.events.note(self._move.vm.name, f"detaching what HotAdd left: {failure.message}")

    def _mode_failed(self, error: TransportModeError) -> None:
        """Rule the mode out for its datastore in this run; raises if the job wants no other."""
        if not self._context.job.fallback:
            raise error
        move = self._move
        mode = TransportMode(error.mode)
        held = False
        for side, site, datastore, report in (
            ("source", self._context.source.name, move.source_disk.store, self.report.source),
            ("target", self._context.target.name, move.replica_disk.store, self.report.target),
        ):
            if report.mode == error.mode and error.side in {None, side}:
                self._context.transports.failed(site, datastore, mode, error.message)
                report.fallbacks.append(f"{mode} failed: {error.message}")
                held = True
        if not held:
            raise error

    def _source_plan(self) -> TransportPlan:
        move, context = self._move, self._context
        return context.transports.plan(
            "source",
            context.source.name,
            move.vm,
            move.source_disk,
            first_run=move.parent_restore_point_id is None,
            allowed=context.job.source_modes,
        )

    def _target_plan(self) -> TransportPlan:
        move, context = self._move, self._context
        return context.transports.plan(
            "target",
            context.target.name,
            move.replica,
            move.replica_disk,
            first_run=move.parent_restore_point_id is None and not move.replica.snapshots,
            allowed=context.job.target_modes,
        )

    def _source_address(self) -> DiskAddress:
        move, context = self._move, self._context
        plan = self._source_plan()
        return DiskAddress(
            site=context.source.name,
            vm_ref=move.vm.ref,
            snapshot_ref=move.source_snapshot.ref,
            path=move.source_disk.path,
            capacity=move.source_disk.capacity,
            modes=plan.modes if context.job.fallback else plan.modes[:1],
            vm_name=move.vm.name,
            disk_title=move.source_disk.title,
        )

    def _target_address(self, through: SnapshotState | None) -> DiskAddress:
        move, context = self._move, self._context
        plan = self._target_plan()
        disk: Disk | None = move.replica_disk
        if through is not None:
            # Over SAN alone: every other mode would have to write to a leaf that is going to be reverted.
            disk = through.disk(move.replica_disk.key)
        if disk is None:
            raise VsphereError(f"{move.replica_disk.title} is missing from the replica's temporary snapshot")
        modes = plan.modes if context.job.fallback else plan.modes[:1]
        return DiskAddress(
            site=context.target.name,
            vm_ref=move.replica.ref,
            snapshot_ref=through.ref if through else None,
            path=disk.path,
            capacity=move.replica_disk.capacity,
            modes=(TransportMode.SAN,) if through else modes,
            vm_name=move.replica.name,
            disk_title=move.replica_disk.title,
        )

    @staticmethod
    def _describe(side: SideTransport, plan: TransportPlan) -> None:
        first = plan.usable[0]
        side.chosen = side.chosen or first.mode.value
        side.reason, side.mode = first.reason, first.mode.value
        side.ruled_out = [(choice.mode.value, choice.reason) for choice in plan.ruled_out]

    def _count(self, result: TransferResult) -> None:
        report = self.report
        self._add_bytes(result.bytes_read, result.bytes_moved, result.bytes_skipped)
        report.seconds = (report.seconds or 0.0) + result.seconds
        for stage, seconds in result.waits.items():
            report.waits[stage] = report.waits.get(stage, 0.0) + seconds
        report.source.mode, report.target.mode = result.source_mode, result.target_mode
        report.source.fallbacks.extend(result.resent_modes)

    def _add_bytes(self, read: int, moved: int, skipped: int) -> None:
        report = self.report
        report.bytes_read = (report.bytes_read or 0) + read
        report.bytes_moved = (report.bytes_moved or 0) + moved
        report.bytes_skipped = (report.bytes_skipped or 0) + skipped
