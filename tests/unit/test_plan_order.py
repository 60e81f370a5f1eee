"""A failover plan starts groups in order, holds delays, gates and hosts, and stops where something failed."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from vrepl.model.plans import FailoverPlan, HeartbeatGate, PlanGroup, PlannedVm, PortGate
from vrepl.planner.plans import PlanStep, Progress, Stage, current_group, next_step

PLAN = FailoverPlan(
    "site",
    (
        PlanGroup("base", (PlannedVm("dns", gate=HeartbeatGate(60)), PlannedVm("ad", delay=5))),
        PlanGroup("app", (PlannedVm("db", gate=PortGate(5432, 100)), PlannedVm("web"))),
    ),
)
THERE = Progress(Stage.THERE)


def step(progress: dict[str, Progress], now: float = 0.0, began: dict[int, float] | None = None) -> PlanStep:
    return next_step(PLAN, progress, began if began is not None else {0: 0.0, 1: 0.0}, {}, now)


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


def test_power_ons_under_way_are_held_to_a_number_per_host() -> None:
    plan = FailoverPlan("p", (PlanGroup("all", tuple(PlannedVm(f"vm{n}") for n in range(6))),), power_ons_per_host=2)
    hosts = {f"vm{n}": f"esx{n % 2}" for n in range(6)}
    assert next_step(plan, {}, {}, hosts, 0).start == ("vm0", "vm1", "vm2", "vm3")
    busy = {"vm0": Progress(Stage.STARTING), "vm2": Progress(Stage.BOOTING), "vm1": THERE, "vm3": THERE}
    assert next_step(plan, busy, {}, hosts, 0).start == ("vm4", "vm5")


plans = st.builds(
    FailoverPlan,
    st.just("any"),
    st.lists(st.integers(1, 4), min_size=1, max_size=4).map(
        lambda sizes: tuple(
            PlanGroup(f"g{g}", tuple(PlannedVm(f"g{g}-{n}", delay=float(n)) for n in range(size)))
            for g, size in enumerate(sizes)
        )
    ),
    st.integers(1, 3),
)


@given(plans, st.data())
def test_whatever_happens_groups_start_in_order_limits_hold_and_all_start_once(
    plan: FailoverPlan, data: st.DataObject
) -> None:
    progress: dict[str, Progress] = {}
    began: dict[int, float] = {}
    hosts = {vm.name: f"esx{index % 2}" for index, vm in enumerate(plan.vms)}
    started: list[str] = []
    now = 0.0
    for _ in range(500):
        group = current_group(plan, progress)
        if group is not None:
            began.setdefault(group, now)
        found = next_step(plan, progress, began, hosts, now)
        if found.ended:
            break
        for name in found.start:
            started.append(name)
            progress[name] = Progress(Stage.STARTING, now)
        for host in set(hosts.values()):
            on_host = [n for n, p in progress.items() if p.stage is Stage.STARTING and hosts[n] == host]
            assert len(on_host) <= plan.power_ons_per_host
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
