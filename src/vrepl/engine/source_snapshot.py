"""The temporary snapshot of the source: taken quiesced where it can be, and removed on every way out."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from vrepl.engine.consolidation import consolidate
from vrepl.engine.context import ReplicationContext, timestamped_id
from vrepl.engine.events import Note
from vrepl.engine.gate import snapshot_demand
from vrepl.engine.marks import SourceMark
from vrepl.engine.recovery import remove_source_snapshots
from vrepl.engine.undo import Undo
from vrepl.errors import VsphereError
from vrepl.model import Consistency, PowerState, Quiesce, SnapshotState, VirtualMachine
from vrepl.planner.knowledge import ReplicaKnowledge
from vrepl.planner.vm import VmPlan

Pending = Callable[[bool], None]
QUIESCE_FAULTS = frozenset(
    {"ApplicationQuiesceFault", "FilesystemQuiesceFault", "ToolsUnavailable", "QuiesceDatastoreIOForHAFailed"}
)
"""Faults of CreateSnapshot_Task that mean: without quiescing it may do (vSphere API reference)."""


@dataclass(frozen=True, slots=True)
class TakenSnapshot:
    state: SnapshotState
    consistency: Consistency
    point_id: str
    time: dt.datetime


@contextmanager
def snapshot_window(
    context: ReplicationContext, plan: VmPlan, known: ReplicaKnowledge, note: Note, pending: Pending
) -> Iterator[TakenSnapshot]:
    """A snapshot of the source, quiesced as the job wants; removed on every way out.

    Waits for its place among the snapshots that may be open at once. `pending` is told whether the source needs
    consolidation once the snapshot is gone.
    """
    with Undo(note) as undo:
        leave = context.gate.enter(snapshot_demand(context.source.name, plan.vm))
        undo.push("leave room for other snapshots", leave)
        yield _take_snapshot(context, undo, plan, known, note, pending)
        undo.release_all()


def _take_snapshot(
    context: ReplicationContext, undo: Undo, plan: VmPlan, known: ReplicaKnowledge, note: Note, pending: Pending
) -> TakenSnapshot:
    mark = SourceMark(context.services.repository.id, context.run_id)
    moment = _after_all(context.services.clock(), known, note)
    point_id = timestamped_id(moment, context.services.new_id())

    def remove() -> None:
        """Where creating it seemed to fail it may exist all the same: then it is found by its mark."""
        if not taken_ref:
            context.source.wait_for_tasks(plan.vm.ref)
            vm = context.source.read_vm(plan.vm.ref)
            remove_source_snapshots(context.services, context.source, vm, even_when_stopped=True)
            return
        _mend_consolidation(
            context,
            plan.vm,
            note,
            pending,
            context.services.patiently(
                plan.vm.name,
                "remove the source snapshot",
                lambda: context.source.remove_snapshot(plan.vm.ref, taken_ref[0]),
                even_when_stopped=True,
            ),
        )

    taken_ref: list[str] = []
    undo.push("remove the source snapshot", remove)

    def create(quiesce: bool) -> SnapshotState:
        return context.services.patiently(
            plan.vm.name,
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
            note(f"the guest could not be quiesced ({error.message}): the restore point is crash-consistent")
    elif context.job.quiesce is Quiesce.PREFER and plan.vm.power is PowerState.ON:
        note("VMware Tools does not run in the guest: the restore point is crash-consistent")
    if state is None:
        state = create(False)
    taken_ref.append(state.ref)
    if plan.vm.power is PowerState.OFF:
        consistency = Consistency.POWERED_OFF
    else:
        consistency = Consistency.QUIESCED if state.quiesced else Consistency.CRASH
    return TakenSnapshot(state, consistency, point_id, moment)


def _after_all(now: dt.datetime, known: ReplicaKnowledge, note: Note) -> dt.datetime:
    """The time of a new restore point: restore points are ordered by time, so it lies after all that there are."""
    newest = max((point.time for point in (*known.restore_points, *known.lost_restore_points)), default=None)
    if newest is None or now > newest:
        return now
    note(
        f"the clock says {now:%Y-%m-%d %H:%M:%S} UTC, which is before the last restore point "
        f"({newest:%Y-%m-%d %H:%M:%S} UTC): the new one is dated right after that"
    )
    return newest + dt.timedelta(seconds=1)


def _mend_consolidation(
    context: ReplicationContext, vm: VirtualMachine, note: Note, pending: Pending, needed: bool
) -> None:
    """After the snapshot is gone: mend a pending consolidation, and say so where it stays."""
    if not needed:
        return
    if not consolidate(context.services, context.source, vm, wait_for_locks=False):
        pending(True)
        note("a disk of the source is still locked: its snapshot is gone, but not yet the snapshot's files")
