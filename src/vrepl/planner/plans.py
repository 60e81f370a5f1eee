"""What a failover plan does next: whom to start now, whom to ask, when to look again. Pure.

A group begins when every VM of the group before is there; a VM starts its delay after that. What failed stops the
plan (nothing more is started, what is under way is waited for), or is gone on without, as the plan says. A plan that is
run again goes on, since VMs that run are there as soon as their gates say so. How many power-ons are under way at one
host is not decided here: the engine holds them back where they are made, so that what comes before them goes on.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase

from vrepl.model.failover_settings import FailoverSettings
from vrepl.model.plans import FailoverPlan, Gate, OnGateFailure, PlanGroup, PlannedVm, ScriptGate
from vrepl.model.selection import is_pattern

ALL = "all"
"""Name of the plan that every replica of a site is failed over by."""
REST = "the rest"
"""Name of the group of VMs that no plan names."""


class Stage(StrEnum):
    """How far one VM of a plan is."""

    WAITING = "waiting"
    STARTING = "starting"
    """Failing over, up to its power-on, and until its guest has the addresses that it was given."""
    BOOTING = "booting"
    """Its gates have not let it pass yet."""
    THERE = "there"
    FAILED = "failed"


UNDER_WAY = frozenset({Stage.STARTING, Stage.BOOTING})


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
    """VMs whose gates have had their time: they have failed."""
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
    now: float,
    running: AbstractSet[str] = frozenset(),
) -> PlanStep:
    """`began`: when each group that has begun did, by its index. `running`: VMs that run already, and know no delay."""
    stages = {vm.name: progress.get(vm.name, WAITING) for vm in plan.vms}
    overdue = tuple(vm.name for vm in plan.vms if _is_overdue(vm, stages[vm.name], now))
    failed = tuple(name for name, one in stages.items() if one.stage is Stage.FAILED or name in overdue)
    times = [
        stages[vm.name].since + _patience(vm) - now
        for vm in plan.vms
        if vm.gates and stages[vm.name].stage is Stage.BOOTING and vm.name not in overdue
    ]
    if failed and plan.on_failure is OnGateFailure.STOP:
        going = any(one.stage in UNDER_WAY for name, one in stages.items() if name not in overdue)
        return PlanStep(overdue=overdue, look_again_in=min(times, default=None), ended=not going, stopped_by=failed)
    given_up = dict.fromkeys(overdue, Progress(Stage.FAILED, now))
    group = current_group(plan, {**progress, **given_up})
    if group is None:
        return PlanStep(overdue=overdue, ended=True)
    start: list[str] = []
    for vm in plan.groups[group].vms:
        if stages[vm.name].stage is not Stage.WAITING:
            continue
        due = 0.0 if vm.name in running else began.get(group, now) + vm.delay - now
        if due > 0:
            times.append(due)
        else:
            start.append(vm.name)
    return PlanStep(start=tuple(start), overdue=overdue, look_again_in=min(times, default=None))


def current_group(plan: FailoverPlan, progress: Mapping[str, Progress]) -> int | None:
    """Index of the first group with VMs that are neither there nor, where the plan goes on without them, given up."""
    settled = {Stage.THERE} | ({Stage.FAILED} if plan.on_failure is OnGateFailure.CONTINUE else set())
    for index, group in enumerate(plan.groups):
        if any(progress.get(vm.name, WAITING).stage not in settled for vm in group.vms):
            return index
    return None


WAITING = Progress(Stage.WAITING)


def _patience(vm: PlannedVm) -> float:
    return max(gate.within for gate in vm.gates)


def _is_overdue(vm: PlannedVm, progress: Progress, now: float) -> bool:
    return bool(vm.gates) and progress.stage is Stage.BOOTING and now - progress.since >= _patience(vm)


# -- which plans count, where they lie beside the replicas ----------------------------------------------------------


def plans_that_count(kept: Iterable[FailoverSettings]) -> list[FailoverPlan]:
    """The plans of a site by the copies that runs left beside its replicas, in their order.

    Of two copies of one plan the one written later counts. A plan that a VM of its own was written without, later than
    any copy of it, is one no more.
    """
    documents = [one for one in kept if one.plans_since is not None]
    newest: dict[str, tuple[dt.datetime, FailoverPlan]] = {}
    for one in documents:
        for plan in one.plans:
            moment = one.plans_since or EARLIEST
            if plan.name not in newest or moment > newest[plan.name][0]:
                newest[plan.name] = (moment, plan)

    def was_dropped(moment: dt.datetime, plan: FailoverPlan) -> bool:
        return any(
            plan.means(one.source_name)
            and (one.plans_since or EARLIEST) > moment
            and all(other.name != plan.name for other in one.plans)
            for one in documents
        )

    counting = [plan for moment, plan in newest.values() if not was_dropped(moment, plan)]
    return sorted(counting, key=lambda plan: (plan.rank, plan.name))


EARLIEST = dt.datetime.min.replace(tzinfo=dt.UTC)


# -- which VMs a plan means -----------------------------------------------------------------------------------------


def resolved(plan: FailoverPlan, known: Iterable[str]) -> FailoverPlan:
    """The plan with names of VMs in the place of patterns.

    `known`: the source VMs of all replicas. A VM is in the group that names it, else in the first one with a pattern
    that means it. A name that is not known stays: that it has no replica is told when its turn comes. A group without
    a VM is left out.
    """
    free = dict.fromkeys(known)
    for name in plan.names:
        free.pop(name, None)
    groups: list[PlanGroup] = []
    for group in plan.groups:
        vms: list[PlannedVm] = []
        for vm in group.vms:
            if not is_pattern(vm.name):
                vms.append(vm)
                continue
            for name in [name for name in free if fnmatchcase(name, vm.name)]:
                del free[name]
                vms.append(replace(vm, name=name))
        if vms:
            groups.append(replace(group, vms=tuple(vms)))
    return replace(plan, groups=tuple(groups))


def narrowed(plan: FailoverPlan, names: AbstractSet[str]) -> FailoverPlan:
    """The plan with only these of its VMs."""
    groups = (replace(group, vms=tuple(vm for vm in group.vms if vm.name in names)) for group in plan.groups)
    return replace(plan, groups=tuple(group for group in groups if group.vms))


def plan_of_all(plans: Sequence[FailoverPlan], known: Sequence[str]) -> FailoverPlan:
    """One plan of every replica of a site: the plans one after another, then what none of them names.

    A VM that several plans have is in the group of the first one. Only VMs that are known are in it; scripts before and
    after belong to their own plans alone, and are left out. The tightest limit of power-ons counts, and what stops any
    of the plans stops them all.
    """
    left = dict.fromkeys(known)
    groups: list[PlanGroup] = []
    for plan in sorted(plans, key=lambda one: (one.rank, one.name)):
        for group in narrowed(resolved(plan, known), left.keys()).groups:
            groups.append(replace(group, name=f"{plan.name}/{group.name}"))
            for vm in group.vms:
                del left[vm.name]
    if left:
        groups.append(PlanGroup(REST, tuple(PlannedVm(name) for name in left)))
    stops = not plans or any(plan.on_failure is OnGateFailure.STOP for plan in plans)
    whole = FailoverPlan(ALL, tuple(groups), on_failure=OnGateFailure.STOP if stops else OnGateFailure.CONTINUE)
    return whole if not plans else replace(whole, power_ons_per_host=min(one.power_ons_per_host for one in plans))


def without_commands(plan: FailoverPlan) -> FailoverPlan:
    """The plan as it runs where none of its commands may be run on this machine."""
    groups = tuple(
        replace(
            group,
            vms=tuple(
                replace(vm, gates=tuple(gate for gate in vm.gates if not isinstance(gate, ScriptGate)))
                for vm in group.vms
            ),
        )
        for group in plan.groups
    )
    return replace(plan, groups=groups, before=(), after=())


def with_gates(plan: FailoverPlan, gates: tuple[Gate, ...]) -> FailoverPlan:
    """The plan with these gates for every VM."""
    groups = (replace(group, vms=tuple(replace(vm, gates=gates) for vm in group.vms)) for group in plan.groups)
    return replace(plan, groups=tuple(groups))


def left_alone(plan: FailoverPlan, chosen: AbstractSet[str]) -> tuple[str, ...]:
    """VMs of the plan that a failover of only some of it leaves out; none where it touches none, or all."""
    left = tuple(name for name in plan.names if name not in chosen)
    return left if len(left) < len(plan.names) else ()
