"""What a failover plan does next: whom to start now, whom to ask, when to look again. Pure.

A group begins when every VM of the group before is there; a VM starts its delay after that; power-ons under way are
held to a number per host. What failed stops the plan: nothing more is started, what is under way is waited for. A plan
that is run again goes on, since VMs that run are there as soon as their gate says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from vrepl.model.plans import FailoverPlan, PlannedVm


class Stage(StrEnum):
    """How far one VM of a plan is."""

    WAITING = "waiting"
    STARTING = "starting"
    """Failing over, up to its power-on."""
    BOOTING = "booting"
    """Powered on; its gate has not let it pass yet."""
    THERE = "there"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Progress:
    stage: Stage
    since: float = 0.0
    """Seconds by the run's clock when it got there."""
    reason: str = ""
    """Of a failure."""


@dataclass(frozen=True, slots=True)
class PlanStep:
    """What to do now."""

    start: tuple[str, ...] = ()
    """VMs to fail over now, in their order in the plan."""
    overdue: tuple[str, ...] = ()
    """VMs whose gate has had its time: they have failed."""
    look_again_in: float | None = None
    """Seconds until something is due even if nothing else happens; None: only events matter."""
    ended: bool = False
    """Nothing is under way, and nothing will be started."""
    stopped_by: tuple[str, ...] = ()
    """VMs whose failure stops the plan."""


def next_step(
    plan: FailoverPlan,
    progress: Mapping[str, Progress],
    began: Mapping[int, float],
    hosts: Mapping[str, str],
    now: float,
) -> PlanStep:
    """`began`: when each group that has begun did, by its index. `hosts`: VM -> ESXi host that it starts on."""
    stages = {vm.name: progress.get(vm.name, Progress(Stage.WAITING)) for vm in plan.vms}
    overdue = tuple(vm.name for vm in plan.vms if _is_overdue(vm, stages[vm.name], now))
    failed = tuple(name for name, one in stages.items() if one.stage is Stage.FAILED) + overdue
    under_way = [
        name for name, one in stages.items() if one.stage in {Stage.STARTING, Stage.BOOTING} and name not in overdue
    ]
    times = [
        stages[vm.name].since + vm.gate.within - now
        for vm in plan.vms
        if vm.gate is not None and stages[vm.name].stage is Stage.BOOTING and vm.name not in overdue
    ]
    if failed:
        return PlanStep(overdue=overdue, look_again_in=min(times, default=None), ended=not under_way, stopped_by=failed)
    group = current_group(plan, progress)
    if group is None:
        return PlanStep(ended=True)
    busy = Counter(hosts.get(name, "") for name, one in stages.items() if one.stage is Stage.STARTING)
    start: list[str] = []
    for vm in plan.groups[group].vms:
        if stages[vm.name].stage is not Stage.WAITING:
            continue
        due = began.get(group, now) + vm.delay - now
        if due > 0:
            times.append(due)
        elif busy[hosts.get(vm.name, "")] < plan.power_ons_per_host:
            busy[hosts.get(vm.name, "")] += 1
            start.append(vm.name)
    return PlanStep(start=tuple(start), look_again_in=min(times, default=None))


def current_group(plan: FailoverPlan, progress: Mapping[str, Progress]) -> int | None:
    """Index of the first group that is not all there; None: all are."""
    for index, group in enumerate(plan.groups):
        if any(progress.get(vm.name, Progress(Stage.WAITING)).stage is not Stage.THERE for vm in group.vms):
            return index
    return None


def _is_overdue(vm: PlannedVm, progress: Progress, now: float) -> bool:
    return vm.gate is not None and progress.stage is Stage.BOOTING and now - progress.since >= vm.gate.within
