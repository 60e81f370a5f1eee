"""Failovers by plan: groups in order, held by gates; what does not come up stops it, and it can be gone on with."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.many_replicas import make_replicas
from tests.support.plan_world import Guests, Machine
from tests.support.world import World
from vrepl.engine.context import FailoverContext
from vrepl.engine.failover.command import Failovers
from vrepl.engine.failover.plan_failover import PlanFailover
from vrepl.model import PowerState
from vrepl.model.failover import Commit, Start, Undo
from vrepl.model.plans import (
    FailoverPlan,
    HeartbeatGate,
    OnGateFailure,
    PlanGroup,
    PlannedVm,
    PortGate,
    ScriptGate,
)
from vrepl.planner.plans import Stage, resolved
from vrepl.report.failover import FailoverReport
from vrepl.report.model import Result
from vrepl.report.plan import PlanReport, PlanResult
from vrepl.transport.hooks import SimulatedKill


def fail_over(
    world: World, plan: FailoverPlan, machine: Machine | None = None, watch: Callable[[PlanReport], None] | None = None
) -> FailoverReport:
    """As a new process does it."""
    engine = world.engine()
    failovers = Failovers(FailoverContext(engine.services, world.target), engine.services.repository)
    replicas = {one.source_name: one for one in failovers.find()}
    machine = machine or Machine()
    made = PlanFailover(
        failovers, resolved(plan, replicas), replicas, machine, machine, look_every=0.01,
        wish=lambda _: Start(source_is_down=True),
    )  # fmt: skip
    made.watch = watch or made.watch
    return made.run()


def plan_of(sizes: Sequence[int], within: float = 60.0) -> FailoverPlan:
    """Groups of VMs as `make_replicas` names them, each with a heartbeat for its gate."""
    names = iter(["web-01", *(f"vm-{number:03}" for number in range(1, 100))])
    gates = (HeartbeatGate(within),)
    return FailoverPlan(
        "site",
        tuple(
            PlanGroup(f"g{index}", tuple(PlannedVm(next(names), gates=gates) for _ in range(size)))
            for index, size in enumerate(sizes)
        ),
        power_ons_per_host=2,
    )


def stages(report: FailoverReport) -> dict[str, Stage]:
    assert report.plan is not None
    return {vm.name: vm.stage for vm in report.plan.vms}


@pytest.mark.slow
def test_thirty_vms_in_four_groups_are_powered_on_in_order_held_by_their_gates(tmp_path: Path) -> None:
    world = World(tmp_path / "repository")
    make_replicas(world, 30)
    guests = Guests(world, boots_in=lambda name: 0.02 + 0.01 * (int(name[-2:]) % 7), takes=0.03)
    plan = plan_of([3, 10, 12, 5])
    seen: list[PlanReport] = []
    report = fail_over(world, plan, watch=seen.append)
    assert {vm.result for vm in report.vms} == {Result.SUCCESS}, [vm.error for vm in report.vms if vm.error]
    assert report.plan is not None
    assert report.plan.result is PlanResult.COMPLETED
    assert set(guests.powered_on) == set(plan.names)
    assert set(guests.most.values()) == {plan.power_ons_per_host}, "as many at a host as it takes, and never more"
    for before, after in zip(plan.groups, plan.groups[1:], strict=False):
        served = max(guests.serves[vm.name] for vm in before.vms)
        assert min(guests.powered_on[vm.name] for vm in after.vms) >= served, after.name
    assert [vm.name for vm in report.vms] == list(plan.names)
    for one in seen:  # what looks on sees no group under way before the one ahead of it is there
        for ahead, behind in zip(one.groups, one.groups[1:], strict=False):
            assert ahead.there is not None or behind.count(Stage.WAITING) == len(behind.vms)


@pytest.mark.slow
def test_a_gate_that_stays_shut_stops_the_plan_with_what_is_up_and_the_same_command_goes_on(tmp_path: Path) -> None:
    world = World(tmp_path / "repository")
    make_replicas(world, 30)
    guests = Guests(world, sick={"vm-005"})
    plan = plan_of([3, 10, 12, 5], within=0.4)
    report = fail_over(world, plan)
    assert report.plan is not None
    assert (report.plan.result, report.plan.failed) == (PlanResult.STOPPED, ("vm-005",))
    up = {vm.name for group in plan.groups[:2] for vm in group.vms}
    assert set(guests.powered_on) == up
    results = {vm.name: vm for vm in report.vms}
    error = results["vm-005"].error
    assert (results["vm-005"].result, results["vm-005"].state) == (Result.FAILED, "failed-over")
    assert error is not None
    assert "heartbeat: its heartbeat is red, after 0.4 s" in error.message
    left = [vm for vm in report.vms if vm.name not in up]
    assert {vm.result for vm in left} == {Result.SKIPPED}
    assert left[0].error is not None
    assert left[0].error.message == "not started: plan site was stopped by vm-005"
    assert report.exit_code == 3

    guests.powered_on.clear()
    guests.sick.clear()
    again = fail_over(world, plan)
    assert {vm.result for vm in again.vms} == {Result.SUCCESS}
    assert set(guests.powered_on) == set(plan.names) - up, "what ran was left alone"


@pytest.mark.slow
def test_a_plan_may_go_on_without_what_does_not_come_up(tmp_path: Path) -> None:
    world = World(tmp_path / "repository")
    make_replicas(world, 4)
    Guests(world, sick={"web-01"})
    plan = replace(plan_of([2, 2], within=0.2), on_failure=OnGateFailure.CONTINUE)
    report = fail_over(world, plan)
    assert report.plan is not None
    assert (report.plan.result, report.plan.failed) == (PlanResult.COMPLETED, ("web-01",))
    assert stages(report) == {
        "web-01": Stage.FAILED, "vm-001": Stage.THERE, "vm-002": Stage.THERE, "vm-003": Stage.THERE,
    }  # fmt: skip
    assert report.exit_code == 3


def test_a_vm_without_a_replica_stops_what_comes_after_its_group(tmp_path: Path) -> None:
    world = World(tmp_path / "repository")
    make_replicas(world, 3)
    groups = (
        PlanGroup("a", (PlannedVm("web-01"),)),
        PlanGroup("b", (PlannedVm("forgotten"), PlannedVm("vm-001"))),
        PlanGroup("c", (PlannedVm("vm-*"),)),
    )
    report = fail_over(world, FailoverPlan("site", groups))
    assert stages(report) == {
        "web-01": Stage.THERE, "forgotten": Stage.FAILED, "vm-001": Stage.THERE, "vm-002": Stage.WAITING,
    }  # fmt: skip
    [lost] = [vm for vm in report.vms if vm.name == "forgotten"]
    assert lost.error is not None
    assert lost.error.message == "there is no replica of forgotten at site dr"


@pytest.mark.slow
def test_a_delay_is_held_and_not_for_what_runs_already(tmp_path: Path) -> None:
    world = World(tmp_path / "repository")
    make_replicas(world, 2)
    guests = Guests(world)
    plan = FailoverPlan("site", (PlanGroup("g", (PlannedVm("web-01"), PlannedVm("vm-001", delay=0.3))),))
    fail_over(world, plan)
    assert guests.powered_on["vm-001"] - guests.powered_on["web-01"] >= 0.25
    patient = replace(plan, groups=(replace(plan.groups[0], vms=(PlannedVm("vm-001", delay=600),)),))
    again = fail_over(world, patient)
    assert again.plan is not None
    assert again.plan.seconds < 60


@pytest.mark.slow
def test_ports_and_scripts_are_gates_and_scripts_stand_before_and_after(tmp_path: Path) -> None:
    world = World(tmp_path / "repository")
    make_replicas(world, 2)
    world.replica().address = "10.0.0.1"
    machine = Machine(status={"ask": 1})
    gates = (PortGate(5432, 0.3), ScriptGate(("ask", "it"), 0.3))
    plan = FailoverPlan(
        "site",
        (PlanGroup("db", (PlannedVm("web-01", gates=gates),)), PlanGroup("rest", (PlannedVm("vm-001"),))),
        before=("announce",),
        after=("switch-dns", "dr"),
    )
    stopped = fail_over(world, plan, machine)
    assert stopped.plan is not None
    assert "script:ask it: ask ended with 1: says the script" in str(stopped.vms[0].error)
    assert stopped.plan.vms[0].gates[0].passed
    assert machine.ran == [("announce",)], "nothing comes after what is not there"
    machine.status.clear()
    assert fail_over(world, plan, machine).exit_code == 0
    assert machine.ran == [("announce",), ("switch-dns", "dr")], "what was begun is announced once"
    assert machine.environments[1] == {"VREPL_PLAN": "site", "VREPL_MOMENT": "after"}
    assert set(machine.asked) == {("ask", "web-01")}


def test_where_the_script_before_fails_nothing_is_started(tmp_path: Path) -> None:
    world = World(tmp_path / "repository")
    make_replicas(world, 1)
    machine = Machine(status={"announce": 7})
    plan = FailoverPlan("site", (PlanGroup("g", (PlannedVm("web-01"),)),), before=("announce",), after=("tell",))
    report = fail_over(world, plan, machine)
    assert (report.vms[0].result, report.exit_code) == (Result.SKIPPED, 1)
    assert report.vms[0].error is not None
    assert "its script before, announce, ended with 7: says the command" in report.vms[0].error.message
    assert world.replica().power is PowerState.OFF
    assert machine.ran == [("announce",)]
    machine.status = {"tell": 1}
    done = fail_over(world, plan, machine)
    assert (done.vms[0].result, done.exit_code) == (Result.SUCCESS, 3)
    assert done.plan is not None
    assert "its script after, tell, ended with 1" in done.plan.error


def test_what_was_committed_meanwhile_counts_as_there(tmp_path: Path) -> None:
    world = World(tmp_path / "repository")
    make_replicas(world, 2)
    plan = plan_of([1, 1])
    assert fail_over(world, plan).exit_code == 0
    engine = world.engine()
    failovers = Failovers(FailoverContext(engine.services, world.target), engine.services.repository)
    [first, second] = failovers.find()
    assert failovers.run_one(first, Commit()).state == "committed"
    assert failovers.run_one(second, Undo()).state == "ready"
    again = fail_over(world, plan)
    assert {vm.result for vm in again.vms} == {Result.SUCCESS}, [vm.error for vm in again.vms]


def test_asked_to_stop_it_starts_nothing_more_and_says_what_runs(tmp_path: Path) -> None:
    world = World(tmp_path / "repository")
    make_replicas(world, 3)
    Guests(world, sick={"web-01"})
    engine = world.engine()
    failovers = Failovers(FailoverContext(engine.services, world.target), engine.services.repository)
    replicas = {one.source_name: one for one in failovers.find()}
    machine = Machine()

    def stop_once_it_boots(report: PlanReport) -> None:
        if report.vms[0].stage is Stage.BOOTING:
            engine.services.stop.set()

    report = PlanFailover(
        failovers, plan_of([1, 2]), replicas, machine, machine, stop_once_it_boots, 0.01,
        lambda _: Start(source_is_down=True),
    ).run()  # fmt: skip
    assert report.exit_code == 130
    assert [vm.result for vm in report.vms] == [Result.INTERRUPTED, Result.SKIPPED, Result.SKIPPED]
    assert report.vms[0].state == "failed-over"


class Mortal:
    """Kills a world's process at its Nth call to the target, whatever thread makes it."""

    def __init__(self, world: World, number: int) -> None:
        self.calls = 0
        self._number = number
        self._lock = threading.Lock()
        world.kill_at = self

    def __call__(self, where: str) -> bool:
        with self._lock:
            self.calls += 1
            return self.calls > self._number


def killed_and_gone_on_with(folder: Path, number: int) -> bool:
    """A plan that is killed at that call and then gone on with; whether it had got through before."""
    plan = plan_of([1, 1])
    world = World(folder)
    make_replicas(world, 2)
    points = world.restore_point_contents()
    Mortal(world, number)
    try:
        fail_over(world, plan)
        through = True
    except SimulatedKill:
        through = False
    world.kill_at = lambda where: False
    guests = Guests(world)
    again = fail_over(world, plan)
    assert {vm.result for vm in again.vms} == {Result.SUCCESS}, (number, [vm.error for vm in again.vms])
    if guests.powered_on.keys() >= {"web-01", "vm-001"}:
        assert guests.powered_on["vm-001"] > guests.powered_on["web-01"]
    assert {vm.power for vm in world.target.vms.values()} == {PowerState.ON}
    assert world.restore_point_contents() == points
    return through


@pytest.mark.slow
def test_killed_at_some_calls_the_same_command_ends_it(tmp_path: Path) -> None:
    """Every seventh; `test_killed_at_every_call_...` takes them all."""
    through = [killed_and_gone_on_with(tmp_path / str(number), number) for number in range(3, 45, 7)]
    assert not through[0]


@pytest.mark.long
def test_killed_at_every_call_the_same_command_ends_it(tmp_path: Path) -> None:
    """What came of it is the plan's end, and every restore point is as it was."""
    number = 0
    while not killed_and_gone_on_with(tmp_path / str(number), number):
        number += 1
    assert number > 30
