"""What stands in a run's way and can be known before anything is made: asked by `plan` and by every run."""

from __future__ import annotations

from collections.abc import Sequence

from vrepl.engine.context import RunContext
from vrepl.engine.reporting import conflict_error, plan_side
from vrepl.model import Datastore
from vrepl.planner.datastores import find_datastore
from vrepl.planner.vm import VmPlan, space_conflict, space_needed


def refuse_impossible(context: RunContext, plan: VmPlan, datastores: Sequence[Datastore]) -> Datastore:
    """The datastore that the replica lies on, or shall.

    Raises what the plan's conflict is, NotFoundError, UsageError or NoSpaceError for the target's datastore, or
    DiskError for a disk that no transport mode reaches. `datastores`: the target's, as they are now.
    """
    if plan.conflict is not None:
        raise conflict_error(plan.conflict)
    store = _require_space(context, plan, datastores)
    for disk_plan in plan.disks:
        plan_side(context, "source", plan, disk_plan.disk)
        if plan.replica is not None or context.job.placement.host:
            # Else its host is still to be chosen, and with it which ports matter.
            plan_side(context, "target", plan, disk_plan.disk)
    return store


def _require_space(context: RunContext, plan: VmPlan, datastores: Sequence[Datastore]) -> Datastore:
    placement = context.job.placement
    host = placement.host or (plan.replica.host if plan.replica is not None else None)
    store = find_datastore(placement.datastore, datastores, site=context.target.name, host=host)
    conflict = space_conflict(space_needed(plan, context.job), store)
    if conflict is not None:
        raise conflict_error(conflict)
    return store
