"""What stands in a run's way and can be known before anything is made: asked by `plan` and by every run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from vrepl.engine.context import ReplicationContext
from vrepl.engine.events import Note
from vrepl.engine.failover.standing import names_of, standing_clones
from vrepl.engine.reporting import conflict_error, plan_side
from vrepl.engine.undo import Undo
from vrepl.errors import NoSpaceError, NotFoundError, NotReadyError, UsageError, VreplError
from vrepl.model import Datastore, Side, VirtualMachine
from vrepl.planner.placement import Placed, place_disks
from vrepl.planner.snapshots import LONGEST_CHAIN, has_room_for_a_run, longest_chain
from vrepl.planner.vm import VmPlan, space_conflict


def refuse_impossible(context: ReplicationContext, plan: VmPlan, datastores: Sequence[Datastore]) -> Placed:
    """Where the replica's disks lie, or shall.

    Raises what the plan's conflict is, UsageError or NoSpaceError for the target's datastores,
    UsageError for what a replica that is still to be made does not find there, or DiskError for a disk that no
    transport mode reaches. `datastores`: the target's, as they are now.
    """
    if plan.conflict is not None:
        raise conflict_error(plan.conflict)
    placed = _require_space(context, plan, datastores)
    plan = settled(plan, placed)
    if plan.replica is None:
        placed = replace(placed, made_besides=tuple(_require_place(context, plan)))
    for disk_plan in plan.disks:
        plan_side(context, Side.SOURCE, plan, disk_plan.disk)
        if plan.replica is not None or context.job.placement.host:
            # Else its host is still to be chosen, and with it which ports matter.
            plan_side(context, Side.TARGET, plan, disk_plan.disk)
    return placed


def settled(plan: VmPlan, placed: Placed) -> VmPlan:
    """The plan with its disks' datastores, and with what is worth saying of them."""
    elsewhere = placed.named()
    new = [one.disk for one in plan.disks if one.disk.key in elsewhere and plan.replica is None]
    notes = tuple(f"{disk.title} goes to datastore {elsewhere[disk.key]}" for disk in new)
    return replace(plan, disk_stores=elsewhere, notes=(*plan.notes, *notes, *placed.made_besides))


def _require_place(context: ReplicationContext, plan: VmPlan) -> list[str]:
    """What the job says of the target and the target does not have is a mistake of the configuration."""
    placement = replace(context.job.placement, disk_stores=plan.disk_stores)
    try:
        return context.target.check_place(plan.replica_name, plan.vm.hardware, placement)
    except NotFoundError as error:
        raise UsageError(error.message, hint=error.hint) from error


def _require_space(context: ReplicationContext, plan: VmPlan, datastores: Sequence[Datastore]) -> Placed:
    try:
        placed = place_disks(plan, context.job, datastores, context.target.name)
    except NotFoundError as error:
        raise UsageError(error.message, hint=error.hint) from error
    for ref, needed in placed.needed.items():
        conflict = space_conflict(needed, placed.store(ref))
        if conflict is not None:
            raise conflict_error(conflict)
    return placed


@contextmanager
def room_kept(context: ReplicationContext, plan: VmPlan, placed: Placed, note: Note) -> Iterator[None]:
    """Keep room on the target for what this VM may add, so that VMs side by side do not count on the same bytes."""
    with Undo(note) as undo:
        for ref, needed in sorted(placed.needed.items()):
            _keep(context, plan, placed.store(ref), needed, undo)
        yield


def _keep(context: ReplicationContext, plan: VmPlan, store: Datastore, needed: int, undo: Undo) -> None:
    def now() -> Datastore:
        return next(one for one in context.datastores.now() if one.ref == store.ref)

    def refusal(free: int) -> VreplError:
        conflict = space_conflict(needed, replace(now(), free=free))
        return conflict_error(conflict) if conflict else NoSpaceError(f"datastore {store.name} has no room")

    give_up = context.gate.promise_room(plan.vm.ref, store.ref, needed, lambda: now().free, refusal)
    undo.push("give up the room that was kept on the target", give_up)


def refuse_full_chain(context: ReplicationContext, replica: VirtualMachine) -> None:
    """Raises NotReadyError where the chain of snapshots takes no further restore point: nothing is moved then.

    `replica`: as it was before retention went over it.
    """
    if has_room_for_a_run(replica.snapshots):
        return
    now = context.target.read_vm(replica.ref)
    if has_room_for_a_run(now.snapshots):
        return
    clones = standing_clones(context.target, now)
    longest = longest_chain(now.snapshots)
    raise NotReadyError(
        f"the replica {now.name} has {longest} snapshots in a chain, and vSphere takes {LONGEST_CHAIN} at the most"
        + (f": the test {', '.join(names_of(clones))} keeps old restore points from being removed" if clones else ""),
        hint="vrepl failover test stop ends the test" if clones else "remove snapshots that vrepl did not make",
    )
