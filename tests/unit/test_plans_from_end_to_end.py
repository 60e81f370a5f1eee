"""Plans beside the replicas, planned failovers and tests by plan: over VMs that runs of a job really replicated."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.support.memory_site import MemoryVm
from tests.support.plan_world import Guests, Machine
from tests.support.world import World
from vrepl.engine.context import FailoverContext
from vrepl.engine.failover.command import Failovers
from vrepl.engine.failover.plan_book import PlanBook, plan_book, runnable
from vrepl.engine.failover.plan_failover import PlanFailover
from vrepl.engine.failover.plan_test import PlanTest
from vrepl.engine.failover.planned import PlannedFailover
from vrepl.engine.failover.preview import preview_plan
from vrepl.engine.failover.replicas import by_name
from vrepl.engine.failover.testing import FailoverTests
from vrepl.errors import NotFoundError
from vrepl.extents import GRAIN
from vrepl.model import NetworkAdapter, PowerState
from vrepl.model.failover import Start, Undo
from vrepl.model.failover_tests import TestWish
from vrepl.model.plans import FailoverPlan, HeartbeatGate, OnGateFailure, PlanGroup, PlannedVm, ScriptGate
from vrepl.planner.plans import Stage
from vrepl.report.failover import FailoverReport
from vrepl.report.failover_preview import FailoverPreview
from vrepl.report.model import Result
from vrepl.report.plan import PlanReport, PlanResult

ADAPTER = NetworkAdapter(4000, "Network adapter 1", "vmxnet3", "VM Network", "00:50:56:00:00:01", False)
NAMES = ("web-01", "db-01", "dns-01")


def plan_of(within: float = 30.0, on_failure: OnGateFailure = OnGateFailure.STOP) -> FailoverPlan:
    gates = (HeartbeatGate(within),)
    return FailoverPlan(
        "site",
        (
            PlanGroup("base", (PlannedVm("dns-01", gates=gates),)),
            PlanGroup("data", (PlannedVm("db-*", gates=gates),)),
            PlanGroup("web", (PlannedVm("web-01", gates=gates),)),
        ),
        on_failure=on_failure,
    )


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path / "repository")
    world.job = replace(world.job, vms=NAMES, plans=(plan_of(),))
    for name in NAMES:
        vm = world.source.add_vm(name, [2 * GRAIN])
        vm.hardware = replace(vm.hardware, network_adapters=(ADAPTER,))
        world.source.guest_write(vm, 0, 0, name.encode().ljust(GRAIN, b"."))
    replicate(world)
    return world


def replicate(world: World) -> None:
    report = world.run()
    assert {vm.result for vm in report.vms} == {Result.SUCCESS}, [vm.error for vm in report.vms]


def failovers_of(world: World) -> Failovers:
    engine = world.engine()
    made = Failovers(FailoverContext(engine.services, world.target), engine.services.repository)
    made.source_runs = lambda record: the(world, record.source_name).power is PowerState.ON
    return made


def the(world: World, name: str) -> MemoryVm:
    return next(vm for vm in world.source.vms.values() if vm.name == name)


def book_of(world: World) -> PlanBook:
    """Of a command that has no configuration."""
    failovers = failovers_of(world)
    return plan_book((), failovers.find(), failovers.settings)


def walk_of(failovers: Failovers, plan: FailoverPlan) -> PlanFailover:
    machine = Machine()
    return PlanFailover(failovers, plan, by_name(failovers.find()), machine, machine, look_every=0.01)


# -- beside the replicas ---------------------------------------------------------------------------------------------


def test_a_plan_is_walked_by_the_copy_that_lies_beside_any_replica(world: World) -> None:
    book = book_of(world)
    assert book.from_replicas
    [plan] = book.plans
    assert [vm.name for vm in plan.vms] == ["dns-01", "db-01", "web-01"], "the pattern means what is there"
    files = world.replica("db-01-replica").files
    for name in NAMES:
        world.replica(f"{name}-replica").files = {}
    assert book_of(world).plans == ()
    world.replica("db-01-replica").files = files
    assert book_of(world).plans == (plan,)


def test_a_changed_plan_counts_from_the_next_run_on_and_one_that_was_dropped_no_more(world: World) -> None:
    groups = (PlanGroup("one", (PlannedVm("dns-01"), PlannedVm("db-01"))),)
    world.job = replace(world.job, vms=("db-01",), plans=(FailoverPlan("site", groups),))
    replicate(world)
    [plan] = book_of(world).plans
    assert [group.name for group in plan.groups] == ["one"]
    world.job = replace(world.job, vms=("dns-01",), plans=())
    replicate(world)
    assert book_of(world).plans == ()


def test_commands_of_a_copy_are_run_only_where_that_is_asked_for(world: World) -> None:
    gates = (HeartbeatGate(), ScriptGate(("ask", "it")))
    plan = FailoverPlan("site", (PlanGroup("g", (PlannedVm("web-01", gates=gates),)),), before=("begin",))
    world.job = replace(world.job, plans=(plan,))
    replicate(world)
    book = book_of(world)
    bare, notes = runnable(book, book.named("site"), None)
    assert bare.commands == ()
    assert bare.vms[0].gates == (HeartbeatGate(),)
    assert "its commands are not run (begin, ask); --scripts runs them" in notes[0]
    assert runnable(book, book.named("site"), True) == (plan, [])
    own = replace(book, from_replicas=False)
    assert runnable(own, plan, None) == (plan, [])
    assert runnable(own, plan, False)[0].commands == ()


def test_who_starts_a_part_of_a_plan_is_warned(world: World) -> None:
    book = book_of(world)
    [told] = book.warning(["db-01"])
    assert told.startswith("db-01 belongs to failover plan site, which is not started")
    assert "dns-01, web-01 left out; vrepl failover start --plan site" in told
    assert book.warning(NAMES) == []
    assert book.warning(["other"]) == []
    with pytest.raises(NotFoundError, match=r"no failover plan sit beside the replicas; did you mean site\?"):
        book.named("sit")


def test_what_a_plan_would_do_is_told_and_nothing_is_done(world: World) -> None:
    failovers = failovers_of(world)
    before = {vm.name: (vm.power, dict(vm.files)) for vm in world.target.vms.values()}
    plan = replace(plan_of(), groups=(*plan_of().groups, PlanGroup("lost", (PlannedVm("gone-01"),))))
    plan = book_of_names(plan, failovers)

    def told(wish: Start) -> dict[str, FailoverPreview]:
        replicas = by_name(failovers.find())
        report = preview_plan(failovers, plan, replicas, lambda _: wish, from_replicas=True)
        assert report.plan is not None
        assert report.plan.plan is plan
        assert report.exit_code != 0
        return {vm.name: vm for vm in report.vms}

    refused = {name: vm.error.message for name, vm in told(Start()).items() if vm.error is not None}
    assert list(refused) == ["dns-01", "db-01", "web-01", "gone-01"]
    assert "still runs at site prod" in refused["dns-01"]
    assert refused["gone-01"] == "it has no replica here"
    assert failovers.run_one(by_name(failovers.find())["dns-01"], Start(source_is_down=True)).result is Result.SUCCESS
    later = told(Start(source_is_down=True))
    assert [name for name, vm in later.items() if vm.error is not None] == ["gone-01"]
    assert later["dns-01"].state == "failed-over"
    newest = by_name(failovers.find())["db-01"].restore_points[-1]
    assert later["db-01"].restore_point == newest.id
    after = {vm.name: (vm.power, dict(vm.files)) for vm in world.target.vms.values() if "dns" not in vm.name}
    assert {name: before[name] for name in after} == after


def book_of_names(plan: FailoverPlan, failovers: Failovers) -> FailoverPlan:
    return plan_book((plan,), failovers.find(), failovers.settings).named(plan.name)


def test_all_go_back_to_one_moment_in_the_order_of_their_plan(world: World) -> None:
    points = world.restore_point_contents()
    moment = world.clock()
    for name in NAMES:
        world.source.guest_write(the(world, name), 0, GRAIN, b"encrypted by a stranger".ljust(GRAIN, b"!"))
    replicate(world)
    failovers = failovers_of(world)
    walk = walk_of(failovers, plan_book((), failovers.find(), failovers.settings).of_all())
    walk.wish = lambda _: Start(as_of=moment, source_is_down=True)
    report = walk.run()
    assert {vm.result for vm in report.vms} == {Result.SUCCESS}, [vm.error for vm in report.vms]
    assert [vm.name for vm in report.vms] == ["dns-01", "db-01", "web-01"]
    for vm in report.vms:
        assert vm.restore_point is not None
        assert [one.disk.content() for one in world.replica(vm.replica).disks] == points[vm.restore_point]
    undone = failovers.run(failovers.find(), lambda _: Undo())
    assert {vm.state for vm in undone.vms} == {"ready"}
    walk.wish = lambda _: Start(as_of=moment - dt.timedelta(days=400), source_is_down=True)
    refused = walk.run()
    assert refused.vms[0].error is not None
    assert refused.vms[0].error.message.startswith("dns-01 has no restore point of 2024-")


def test_a_start_of_others_takes_back_what_was_to_end_by_now(world: World) -> None:
    failovers = failovers_of(world)
    soon = world.clock() + dt.timedelta(seconds=1)
    for name in ("dns-01", "db-01"):
        row = failovers.run_one(by_name(failovers.find())[name], Start(source_is_down=True, deadline=soon))
        assert row.state == "failed-over"
    found = failovers_of(world).find()
    mine = [one for one in found if one.source_name == "dns-01"]
    [undone] = failovers_of(world).keep_deadlines(found, mine)
    assert (undone.name, undone.state) == ("db-01", "ready")
    assert "vrepl-undone" in {one.name for one in world.replica("db-01-replica").snapshots}
    assert world.replica("dns-01-replica").power is PowerState.ON, "of this one the operator speaks"


# -- planned ---------------------------------------------------------------------------------------------------------


@dataclass
class Move:
    """One planned failover by plan, and the order in which guests went down and came up."""

    world: World
    report: FailoverReport
    down: list[str]
    guests: Guests


def planned(world: World, plan: FailoverPlan, sync_fails_for: str = "") -> Move:
    engine = world.engine()
    failovers = failovers_of(world)
    down: list[str] = []
    real = world.source.shut_down_guest

    def shut_down_guest(vm_ref: str, *, within: float) -> None:
        real(vm_ref, within=within)
        vm = world.source.vms[vm_ref]
        world.source.guest_write(vm, 0, GRAIN, f"last words of {vm.name}".encode().ljust(GRAIN, b"."))
        down.append(vm.name)

    world.source.shut_down_guest = shut_down_guest  # type: ignore[method-assign]
    guests = Guests(world, boots_in=lambda _: 0.02)
    walk = walk_of(failovers, book_of_names(plan, failovers))
    moving = PlannedFailover(
        failovers,
        lambda _: world.source,
        lambda job, vms: engine.replicate(world.job, [vm for vm in vms if vm != sync_fails_for]),
        shutdown_seconds=1,
    )
    return Move(world, moving.run_plan(walk, Start(planned=True)), down, guests)


def test_planned_guests_go_down_in_the_reverse_order_and_nothing_is_lost(world: World) -> None:
    move = planned(world, plan_of())
    assert {vm.result for vm in move.report.vms} == {Result.SUCCESS}, [vm.error for vm in move.report.vms]
    assert move.down == ["web-01", "db-01", "dns-01"]
    assert sorted(move.guests.powered_on, key=move.guests.powered_on.__getitem__) == ["dns-01", "db-01", "web-01"]
    for name in NAMES:
        assert [one.disk.content() for one in world.replica(f"{name}-replica").disks] == [
            one.disk.content() for one in the(world, name).disks
        ]


def test_planned_nothing_is_shut_down_where_one_cannot_be_synced(world: World) -> None:
    move = planned(world, plan_of(), sync_fails_for="db-01")
    assert move.down == []
    assert not move.guests.powered_on
    assert {vm.name: vm.result for vm in move.report.vms} == {
        "dns-01": Result.SKIPPED, "db-01": Result.FAILED, "web-01": Result.SKIPPED,
    }  # fmt: skip
    assert move.report.plan is not None
    assert move.report.plan.error == "its sync failed, and nothing was shut down"


def test_planned_nothing_is_started_where_one_does_not_shut_down_unless_the_plan_goes_on(world: World) -> None:
    the(world, "db-01").tools_running = False
    move = planned(world, plan_of())
    assert (move.down, dict(move.guests.powered_on)) == (["web-01"], {})
    assert move.report.plan is not None
    assert move.report.plan.error == "not all could be shut down; off are: web-01"
    again = planned(world, plan_of(on_failure=OnGateFailure.CONTINUE))
    assert {vm.name: vm.result for vm in again.report.vms} == {
        "dns-01": Result.SUCCESS, "db-01": Result.FAILED, "web-01": Result.SUCCESS,
    }  # fmt: skip
    assert the(world, "db-01").power is PowerState.ON


# -- tests -----------------------------------------------------------------------------------------------------------


def tried(
    world: World, plan: FailoverPlan, wish: TestWish | None = None, watch: Callable[[PlanReport], None] | None = None
) -> FailoverReport:
    failovers = failovers_of(world)
    tests = FailoverTests(
        failovers.context.services, world.target, failovers.repository, Machine(), "host/1", lambda _: False,
        look_every=0.01,
    )  # fmt: skip
    made = PlanTest(tests, book_of_names(plan, failovers), by_name(tests.find()), wish or TestWish())
    made.watch = watch or made.watch
    return made.run()


def clones(world: World) -> set[str]:
    return {vm.name for vm in world.target.vms.values() if vm.stands_on is not None}


def test_a_plan_is_tested_on_clones_that_find_each_other_in_its_order_and_nothing_is_left(world: World) -> None:
    guests = Guests(world, boots_in=lambda _: 0.05)
    networks: set[str] = set()

    def look(method: str) -> None:
        if method == "guest_state" and len(clones(world)) == 3:
            for vm in world.target.vms.values():
                networks.update(one.network for one in vm.hardware.network_adapters if vm.stands_on is not None)

    world.target.before_call = look
    report = tried(world, plan_of())
    assert {(vm.result, vm.state) for vm in report.vms} == {(Result.SUCCESS, "ready")}, [vm.error for vm in report.vms]
    assert report.plan is not None
    groups = report.plan.groups
    for ahead, behind in itertools.pairwise(groups):
        assert ahead.there is not None
        assert behind.began is not None
        assert behind.began >= ahead.there
    assert set(guests.powered_on) == {f"{name}-replica-test" for name in NAMES}
    assert len(networks) == 1, "one network for them all"
    assert clones(world) == set()
    assert world.target.isolated_networks == set()
    assert {vm.test.seconds_to_service is not None for vm in report.vms if vm.test is not None} == {True}


@pytest.mark.slow
def test_a_plan_that_stops_in_its_test_tells_of_each_vm_and_leaves_nothing(world: World) -> None:
    Guests(world, sick={"db-01-replica-test"})
    report = tried(world, plan_of(within=0.3))
    assert report.plan is not None
    assert report.plan.result is PlanResult.STOPPED
    assert {vm.name: vm.result for vm in report.vms} == {
        "dns-01": Result.SUCCESS, "db-01": Result.FAILED, "web-01": Result.SKIPPED,
    }  # fmt: skip
    failed = next(vm for vm in report.vms if vm.name == "db-01")
    assert failed.error is not None
    assert "heartbeat: its heartbeat is red" in failed.error.message
    assert clones(world) == set()
    assert world.target.isolated_networks == set()


def test_a_test_of_a_plan_keeps_its_clones_where_it_is_asked_to(world: World) -> None:
    report = tried(world, plan_of(), TestWish(keep=True))
    assert report.exit_code == 0
    assert clones(world) == {f"{name}-replica-test" for name in NAMES}
    again = tried(world, plan_of())
    assert {vm.result for vm in again.vms} == {Result.SKIPPED}
    assert again.vms[0].error is not None
    assert "is kept already" in again.vms[0].error.message


def test_asked_to_stop_a_test_throws_all_away(world: World) -> None:
    Guests(world, sick={"db-01-replica-test"})
    failovers = failovers_of(world)
    services = failovers.context.services
    tests = FailoverTests(services, world.target, None, Machine(), "host/1", lambda _: False, look_every=0.01)

    def stop_at_the_second(report: PlanReport) -> None:
        if report.groups[1].count(Stage.BOOTING):
            services.stop.set()

    plan = book_of_names(plan_of(), failovers)
    report = PlanTest(tests, plan, by_name(tests.find()), TestWish(), stop_at_the_second).run()
    assert report.exit_code == 130
    assert clones(world) == set()
    assert world.target.isolated_networks == set()
