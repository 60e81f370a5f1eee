"""What stands in a run's way and can be known before anything is made: asked by `plan` and by every run."""

from __future__ import annotations

from collections.abc import Sequence

from vrepl.engine.context import RunContext
from vrepl.engine.reporting import conflict_error, plan_side
from vrepl.errors import NotFoundError
from vrepl.model import Datastore
from vrepl.planner.vm import VmPlan, space_conflict, space_needed


def refuse_impossible(context: RunContext, plan: VmPlan, datastores: Sequence[Datastore]) -> None:
    """Raises what the plan's conflict is, NotFoundError or NoSpaceError for the target's datastore, or DiskError for a
    disk that no transport mode reaches. `datastores`: the target's, as they are now.
    """
    if plan.conflict is not None:
        raise conflict_error(plan.conflict)
    _require_space(context, plan, datastores)
    for disk_plan in plan.disks:
        plan_side(context, "source", plan, disk_plan.disk)
        if plan.replica is not None or context.job.placement.host:
            # Else its host is still to be chosen, and with it which ports matter.
            plan_side(context, "target", plan, disk_plan.disk)


def _require_space(context: RunContext, plan: VmPlan, datastores: Sequence[Datastore]) -> None:
    wanted = context.job.placement.datastore
    by_name = {store.name: store for store in datastores}
    if wanted not in by_name:
        raise NotFoundError(
            f"site {context.target.name} has no datastore {wanted}",
            hint=f"its datastores are: {', '.join(sorted(by_name)) or 'none'}",
        )
    conflict = space_conflict(space_needed(plan, context.job), by_name[wanted])
    if conflict is not None:
        raise conflict_error(conflict)
