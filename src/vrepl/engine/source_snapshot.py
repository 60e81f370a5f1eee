"""The temporary snapshot of the source: taken quiesced where it can be, and removed on every way out."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from vrepl.engine.consolidation import consolidate
from vrepl.engine.context import ReplicationContext, Services, timestamped_id
from vrepl.engine.events import Note
from vrepl.engine.gate import snapshot_demand
from vrepl.engine.marks import SourceMark
from vrepl.engine.recovery import remove_source_snapshots
from vrepl.engine.undo import Undo
from vrepl.errors import DiskLockedError, VsphereError
from vrepl.model import Consistency, PowerState, Quiesce, SnapshotState, VirtualMachine
from vrepl.model.guests import GuestPolicy
from vrepl.planner.knowledge import ReplicaKnowledge
from vrepl.planner.vm import VmPlan
from vrepl.ports import SnapshottedSite

Pending = Callable[[bool], None]
Freeze = Callable[[], AbstractContextManager[None]]
"""A window in which the guest stands still; no longer than it takes to make the snapshot."""


@dataclass(frozen=True, slots=True)
class TakenSnapshot:
    state: SnapshotState
    consistency: Consistency
    point_id: str
    time: dt.datetime


@contextmanager
def snapshot_window(
    context: ReplicationContext,
    plan: VmPlan,
    known: ReplicaKnowledge,
    note: Note,
    pending: Pending,
    freeze: Freeze = nullcontext,
) -> Iterator[TakenSnapshot]:
    """A snapshot of the source, from which a restore point is going to be made; removed on every way out.

    Waits for its place among the snapshots that may be open at once. `pending` as in `temporary_snapshot`.
    """
    services, vm = context.services, plan.vm
    with Undo(note) as undo:
        undo.push("leave room for other snapshots", context.gate.enter(snapshot_demand(context.source.name, vm)))
        moment = _after_all(services.clock(), known, note)
        point_id = timestamped_id(moment, services.new_id())
        mark = SourceMark(services.repository.id, context.run_id)
        with temporary_snapshot(
            services,
            context.source,
            vm,
            mark,
            context.job.quiesce,
            note,
            pending,
            quiesce=plan.quiesce,
            guest=context.job.guest,
            freeze=freeze,
        ) as state:
            yield TakenSnapshot(state, _consistency(vm, state), point_id, moment)
        undo.release_all()


@contextmanager
def temporary_snapshot(
    services: Services,
    site: SnapshottedSite,
    vm: VirtualMachine,
    mark: SourceMark,
    wish: Quiesce,
    note: Note,
    pending: Pending,
    *,
    quiesce: bool,
    guest: GuestPolicy = GuestPolicy(),  # noqa: B008 - it is frozen
    freeze: Freeze = nullcontext,
) -> Iterator[SnapshotState]:
    """A snapshot of a VM whose disks are going to be read; removed on every way out, by its mark if need be.

    `wish`: whether a guest that cannot be quiesced is an error; `quiesce`: whether it is tried, as patiently as `guest`
    says. `pending` is told
    whether the VM needs consolidation once the snapshot is gone.
    """
    with Undo(note) as undo:
        taken: list[SnapshotState] = []

        def remove() -> None:
            """Where creating it seemed to fail it may exist all the same: then it is found by its mark."""
            if not taken:
                site.wait_for_tasks(vm.ref)
                remove_source_snapshots(services, site, site.read_vm(vm.ref), even_when_stopped=True)
                return
            needed = services.patiently(
                vm.name,
                "remove the source snapshot",
                lambda: site.remove_snapshot(vm.ref, taken[0].ref),
                even_when_stopped=True,
            )
            if needed and not consolidate(services, site, vm, wait_for_locks=False):
                pending(True)
                note("a disk of the source is still locked: its snapshot is gone, but not yet the snapshot's files")

        def create(quiesced: bool) -> SnapshotState:
            return services.patiently(
                vm.name,
                "create the source snapshot",
                lambda: site.create_snapshot(
                    vm.ref,
                    mark.snapshot_name,
                    mark.description(),
                    quiesce=quiesced,
                    within=guest.quiesce_timeout if quiesced else None,
                ),
            )

        def quiesced_snapshot() -> SnapshotState | None:
            """None where the guest cannot be quiesced, and need not be; nothing is left of the tries then."""
            for left in reversed(range(guest.quiesce_tries)):
                try:
                    state = create(True)
                except (VsphereError, DiskLockedError) as error:
                    # Whatever the fault: what quiescing fails with depends on guest, Tools and host, and comes wrapped.
                    if wish is Quiesce.REQUIRE and not left:
                        raise
                    site.wait_for_tasks(vm.ref)
                    remove_source_snapshots(services, site, site.read_vm(vm.ref))
                    then = "trying again" if left else "the restore point is crash-consistent"
                    note(f"the guest could not be quiesced ({error.message}): {then}")
                else:
                    taken.append(state)
                    if not state.quiesced:
                        _not_quiesced(wish, note)
                    return state
            return None

        undo.push("remove the source snapshot", remove)
        with freeze():
            state: SnapshotState | None = None
            if quiesce:
                state = quiesced_snapshot()
            elif wish is Quiesce.PREFER and vm.power is PowerState.ON and not vm.tools_running:
                note("VMware Tools does not run in the guest: the restore point is crash-consistent")
            if state is None:
                taken.append(create(False))
        yield taken[0]
        undo.release_all()


def _not_quiesced(wish: Quiesce, note: Note) -> None:
    """vSphere ignores the wish where VMware Tools have stopped meanwhile (API reference, CreateSnapshot_Task)."""
    said = "vSphere took the snapshot without quiescing the guest (VMware Tools did not answer)"
    if wish is Quiesce.REQUIRE:
        raise VsphereError(f"{said}, and the job requires it", hint='start VMware Tools, or set quiesce = "prefer"')
    note(f"{said}: the restore point is crash-consistent")


def _consistency(vm: VirtualMachine, state: SnapshotState) -> Consistency:
    if vm.power is PowerState.OFF:
        return Consistency.POWERED_OFF
    return Consistency.QUIESCED if state.quiesced else Consistency.CRASH


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
