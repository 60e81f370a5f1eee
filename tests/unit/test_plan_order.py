"""A failover plan starts groups in order, holds delays and gates, and stops where something failed."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from vrepl.model.failover_settings import FailoverSettings
from vrepl.model.plans import (
    FailoverPlan,
    HeartbeatGate,
    OnGateFailure,
    PlanGroup,
    PlannedVm,
    PortGate,
    ScriptGate,
)
from vrepl.planner.plans import (
    PlanStep,
    Progress,
    Stage,
    current_group,
    left_alone,
    next_step,
    plan_of_all,
    plans_that_count,
    resolved,
    without_commands,
)

PLAN = FailoverPlan(
    "site",
    (
        PlanGroup("base", (PlannedVm("dns", gates=(HeartbeatGate(60),)), PlannedVm("ad", delay=5))),
        PlanGroup("app", (PlannedVm("db", gates=(PortGate(5432, 100),)), PlannedVm("web"))),
    ),
)
THERE = Progress(Stage.THERE)


def step(progress: dict[str, Progress], now: float = 0.0, began: dict[int, float] | None = None) -> PlanStep:
    return next_step(PLAN, progress, began if began is not None else {0: 0.0, 1: 0.0}, now)


def test_the_first_group_starts_and_a_delay_is_waited_for() -> None:
    assert step({}) == PlanStep(start=("dns",), look_again_in=5)
    assert step({"dns": Progress(Stage.STARTING)}, now=5).start == ("ad",)


def test_the_next_group_waits_for_every_gate_of_the_one_before() -> None:
    booting = {"dns": Progress(Stage.BOOTING, since=10), "ad": THERE}
    assert step(booting, now=30) == PlanStep(look_again_in=40)
    assert step(booting | {"dns": THERE}, now=30).start == ("db", "web")


def test_a_gate_that_does_not_open_in_time_stops_the_plan_and_what_is_under_way_is_waited_for() -> None:
    late = {"dns": Progress(Stage.BOOTING, since=10), "ad": Progress(Stage.STARTING)}
    found = step(late, now=70)
    assert (found.overdue, found.stopped_by, found.start, found.ended) == (("dns",), ("dns",), (), False)
    stopped = {"dns": Progress(Stage.FAILED, reason="no heartbeat"), "ad": THERE}
    assert step(stopped, now=71) == PlanStep(ended=True, stopped_by=("dns",))


def test_a_plan_that_is_run_again_goes_on_after_what_is_there() -> None:
    assert step({"dns": THERE, "ad": THERE, "db": THERE}).start == ("web",)
    assert step(dict.fromkeys(("dns", "ad", "db", "web"), THERE)) == PlanStep(ended=True)


def test_a_vm_that_runs_already_knows_no_delay() -> None:
    assert next_step(PLAN, {}, {0: 0.0}, 0.0, {"ad"}).start == ("dns", "ad")


def test_a_plan_that_goes_on_gives_up_what_failed_and_begins_the_next_group_without_it() -> None:
    plan = replace(PLAN, on_failure=OnGateFailure.CONTINUE)
    late = {"dns": Progress(Stage.BOOTING, since=10), "ad": THERE}
    found = next_step(plan, late, {0: 0.0, 1: 70.0}, 70)
    assert (found.overdue, found.start, found.ended) == (("dns",), ("db", "web"), False)
    gone = {"dns": Progress(Stage.FAILED), "ad": THERE, "db": Progress(Stage.FAILED), "web": THERE}
    assert next_step(plan, gone, {}, 80).ended


def test_several_gates_have_the_time_of_the_most_patient_one() -> None:
    vm = PlannedVm("ad", gates=(HeartbeatGate(10), PortGate(389, 100)))
    plan = FailoverPlan("p", (PlanGroup("all", (vm,)),))
    booting = {"ad": Progress(Stage.BOOTING, since=0)}
    assert next_step(plan, booting, {0: 0.0}, 99) == PlanStep(look_again_in=1)
    assert next_step(plan, booting, {0: 0.0}, 100).overdue == ("ad",)


def test_patterns_stand_for_replicas_that_no_group_names() -> None:
    plan = FailoverPlan(
        "p",
        (
            PlanGroup("first", (PlannedVm("db-*", delay=3), PlannedVm("gone"))),
            PlanGroup("none", (PlannedVm("mail-*"),)),
            PlanGroup("last", (PlannedVm("*"), PlannedVm("db-02"))),
        ),
    )
    found = resolved(plan, ["web-01", "db-01", "db-02"])
    assert [(group.name, [vm.name for vm in group.vms]) for group in found.groups] == [
        ("first", ["db-01", "gone"]),
        ("last", ["web-01", "db-02"]),
    ]
    assert found.groups[0].vms[0].delay == 3
    assert not found.has_patterns


def test_all_replicas_go_by_one_plan_after_another_and_then_what_no_plan_names() -> None:
    second = FailoverPlan("web", (PlanGroup("1", (PlannedVm("dns"), PlannedVm("shop-*"))),), rank=1, after=("tell",))
    whole = plan_of_all([second, replace(PLAN, power_ons_per_host=2)], ["web", "shop-1", "dns", "odd", "ad"])
    assert [(group.name, [vm.name for vm in group.vms]) for group in whole.groups] == [
        ("site/base", ["dns", "ad"]),
        ("site/app", ["web"]),
        ("web/1", ["shop-1"]),
        ("the rest", ["odd"]),
    ]
    assert (whole.power_ons_per_host, whole.after) == (2, ())


def test_of_copies_beside_the_replicas_the_latest_counts_and_what_was_dropped_since_does_not() -> None:
    def kept(vm: str, day: int, *plans: FailoverPlan) -> FailoverSettings:
        return FailoverSettings("uuid", vm, plans=plans, plans_since=dt.datetime(2026, 1, day, tzinfo=dt.UTC))

    def plan(name: str, *vms: str, rank: int = 0) -> FailoverPlan:
        return FailoverPlan(name, (PlanGroup("g", tuple(PlannedVm(vm) for vm in vms)),), rank=rank)

    old, new = plan("site", "dns", "web"), plan("site", "dns", "web", "db", rank=1)
    before = plan("by-hand", "web", "db")
    assert plans_that_count([kept("dns", 1, old), kept("db", 3, new, before), kept("web", 2, old, before)]) == [
        before, new,
    ]  # fmt: skip
    assert plans_that_count([kept("web", 2, old, before), kept("dns", 3, new), kept("db", 4, new)]) == [new]
    assert plans_that_count([kept("web", 2, old), kept("dns", 3)]) == [], "taken out of the configuration"
    assert plans_that_count([kept("web", 2, old), kept("mail", 3)]) == [old], "mail never was in it"
    assert plans_that_count([FailoverSettings("uuid", "web")]) == []


def test_what_a_failover_of_some_leaves_out() -> None:
    assert left_alone(PLAN, {"web"}) == ("dns", "ad", "db")
    assert left_alone(PLAN, {"other"}) == ()
    assert left_alone(PLAN, {"dns", "ad", "db", "web", "other"}) == ()


def test_without_its_commands_a_plan_keeps_what_else_it_asks() -> None:
    gates = (HeartbeatGate(5), ScriptGate(("ask", "it")))
    plan = FailoverPlan("p", (PlanGroup("g", (PlannedVm("vm", gates=gates),)),), before=("begin",), after=("end",))
    assert plan.commands == (("begin",), ("ask", "it"), ("end",))
    bare = without_commands(plan)
    assert bare.commands == ()
    assert bare.vms == (PlannedVm("vm", gates=(HeartbeatGate(5),)),)


plans = st.builds(
    FailoverPlan,
    st.just("any"),
    st.lists(st.integers(1, 4), min_size=1, max_size=4).map(
        lambda sizes: tuple(
            PlanGroup(f"g{g}", tuple(PlannedVm(f"g{g}-{n}", delay=float(n)) for n in range(size)))
            for g, size in enumerate(sizes)
        )
    ),
)


@given(plans, st.data())
def test_whatever_happens_groups_start_in_order_and_all_start_once(plan: FailoverPlan, data: st.DataObject) -> None:
    progress: dict[str, Progress] = {}
    began: dict[int, float] = {}
    started: list[str] = []
    now = 0.0
    for _ in range(500):
        group = current_group(plan, progress)
        if group is not None:
            began.setdefault(group, now)
        found = next_step(plan, progress, began, now)
        if found.ended:
            break
        for name in found.start:
            started.append(name)
            progress[name] = Progress(Stage.STARTING, now)
        starting = sorted(name for name, one in progress.items() if one.stage is Stage.STARTING)
        name = data.draw(st.sampled_from(["", *starting]))
        if name:
            progress[name] = replace(THERE, since=now)
        else:
            now += found.look_again_in or 1.0
            if starting:
                progress[starting[0]] = replace(THERE, since=now)
    assert sorted(started) == sorted(vm.name for vm in plan.vms)
    groups = [plan.group_of(name) for name in started]
    assert groups == sorted(groups, key=lambda group: -1 if group is None else group)
