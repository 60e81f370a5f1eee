"""Failovers of a replica with real bytes, killed before and after every call: they end, and harm no restore point."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.memory_site import MemoryVm
from tests.support.world import World, folder_of, source
from vrepl.engine.context import FailoverContext
from vrepl.engine.failover.command import Failovers
from vrepl.engine.failover.planned import PlannedFailover
from vrepl.engine.failover.replicas import choose
from vrepl.errors import NotFoundError, PermissionDeniedError, UsageError
from vrepl.extents import GRAIN
from vrepl.model import PowerState
from vrepl.model.failover import KEPT_STATE, Commit, Start, Undo, Wish
from vrepl.report.failover import FailoverVm
from vrepl.report.model import Result, VmReport
from vrepl.repository.failover import read_failover
from vrepl.transport.hooks import SimulatedKill


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path / "repository")
    vm = world.source.add_vm("web-01", [8 * GRAIN, 2 * GRAIN])
    for number in range(3):
        world.source.guest_write(vm, 0, number * GRAIN, bytes([number + 1]) * GRAIN)
        assert world.run_vm().result is Result.SUCCESS
    return world


def fail_over(world: World, wish: Wish, *, repository: bool = True) -> FailoverVm:
    """As a new process would: it knows nothing but what lies at the replica, and the repository if that is there."""
    engine = world.engine()
    context = FailoverContext(engine.services, world.target)
    failovers = Failovers(context, engine.services.repository if repository else None)
    [replica] = choose(failovers.find(), ["web-01"])
    return failovers.run_one(replica, wish)


def contents(vm: MemoryVm) -> list[object]:
    return [disk.disk.content() for disk in vm.disks]


def guest_writes(world: World) -> None:
    world.target.guest_write(world.replica(), 0, 5 * GRAIN, b"\xee" * GRAIN)


def test_a_failed_over_replica_is_its_restore_point_and_runs(world: World) -> None:
    points = world.restore_point_contents()
    older = sorted(points)[1]
    done = fail_over(world, Start(older))
    assert (done.result, done.state, done.restore_point) == (Result.SUCCESS, "failed-over", older), done.error
    record = read_failover(folder_of(world))
    assert record is not None
    assert record.base_change_ids is not None
    assert all(record.base_change_ids.values()), "failback will ask what changed since"
    assert contents(world.replica()) == points[older]
    assert world.replica().power is PowerState.ON


def test_undone_it_is_the_newest_restore_point_and_the_next_run_is_incremental(world: World) -> None:
    points = world.restore_point_contents()
    fail_over(world, Start(sorted(points)[0]))
    guest_writes(world)
    assert fail_over(world, Undo()).state == "ready"
    assert world.restore_point_contents() == points
    assert contents(world.replica()) == points[max(points)]
    world.source.guest_write(source(world), 0, 7 * GRAIN, b"\x77" * GRAIN)
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert contents(world.replica()) == contents(source(world))
    assert sum(disk.bytes_moved or 0 for disk in report.disks) == GRAIN


def test_what_ran_is_kept_where_it_is_asked_for(world: World) -> None:
    fail_over(world, Start())
    guest_writes(world)
    ran = contents(world.replica())
    fail_over(world, Undo(keep_state=True))
    [kept] = [one for one in world.replica().snapshots if one.name == KEPT_STATE]
    assert [disk.disk.content() for disk in kept.disks] == ran
    assert world.run_vm().result is Result.SUCCESS


def test_committed_it_is_a_vm_without_snapshots(world: World) -> None:
    fail_over(world, Start())
    guest_writes(world)
    ran = contents(world.replica())
    assert fail_over(world, Commit()).state == "committed"
    assert world.replica().snapshots == []
    assert contents(world.replica()) == ran


def test_what_somebody_powered_on_by_hand_is_named_and_adopted(world: World) -> None:
    world.replica().power = PowerState.ON
    refused = fail_over(world, Start())
    assert refused.result is Result.SKIPPED
    assert refused.error is not None
    assert "powered on the replica of web-01 by hand" in refused.error.message
    assert fail_over(world, Start(adopt=True)).state == "failed-over"
    assert fail_over(world, Undo()).state == "ready"


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize(
    "wishes",
    [[Start()], [Start(), Undo()], [Start(), Undo(keep_state=True)], [Start(), Commit()]],
    ids=["start", "undo", "undo and keep", "commit"],
)
def test_killed_before_and_after_every_call_it_ends_where_it_should(
    tmp_path: Path, world: World, wishes: list[Wish]
) -> None:
    del world
    death = 0
    while True:
        death += 1
        fresh = World(tmp_path / f"repository-{death}")
        vm = fresh.source.add_vm("web-01", [8 * GRAIN])
        for number in range(2):
            fresh.source.guest_write(vm, 0, number * GRAIN, bytes([number + 1]) * GRAIN)
            fresh.run_vm()
        points = fresh.restore_point_contents()
        left = death

        def kill_at(_where: str) -> bool:
            nonlocal left
            left -= 1
            return left == 0

        died = False
        fresh.kill_at = kill_at
        for wish in wishes:
            try:
                done = fail_over(fresh, wish)
            except SimulatedKill:
                died = True
                done = fail_over(fresh, wish)
        fresh.kill_at = lambda _: False
        ends = {Start: "failed-over", Undo: "ready", Commit: "committed"}
        assert (done.result, done.state) == (Result.SUCCESS, ends[type(wishes[-1])]), done.error
        if not isinstance(wishes[-1], Commit):
            assert fresh.restore_point_contents() == points
        if isinstance(wishes[-1], Undo):
            assert fresh.run_vm().result is Result.SUCCESS
            assert contents(fresh.replica()) == contents(source(fresh))
        if not died:
            break
    assert death > 10, "there are many places to die at"


@pytest.mark.parametrize("wish", [Start(), Commit()], ids=["failed over", "committed"])
def test_a_run_refuses_a_replica_that_is_not_ready_and_says_what_to_type(world: World, wish: Wish) -> None:
    fail_over(world, Start())
    fail_over(world, wish)
    points = world.restore_point_contents()
    report = world.run_vm()
    assert report.result is Result.SKIPPED
    assert report.error is not None
    assert "vrepl failover" in (report.error.hint or "")
    assert world.restore_point_contents() == points


def run_with(world: World, moment: int, elsewhere: Callable[[], None]) -> tuple[VmReport, bool]:
    """A run, before whose call of this number something happens elsewhere; and whether it came so far."""
    sites = (world.source, world.target)
    calls = [site.before_call for site in sites]
    left = moment

    def restore() -> None:
        for site, call in zip(sites, calls, strict=True):
            site.before_call = call

    def count(_method: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            restore()
            elsewhere()

    for site in sites:
        site.before_call = count
    report = world.run_vm()
    restore()
    return report, left <= 0


@pytest.mark.slow
def test_a_run_whose_replica_is_failed_over_elsewhere_meanwhile_ends_and_touches_nothing_more(world: World) -> None:
    """The other control host has no repository of this one, and no lock: every call of the run is a moment for it."""
    moment, happened = 0, True
    while happened:
        moment += 1
        world.source.guest_write(source(world), 0, 6 * GRAIN, bytes([moment % 250 + 1]) * GRAIN)
        points = world.restore_point_contents()
        report, happened = run_with(world, moment, lambda: fail_over_newest(world))
        if not happened:
            break
        done = other_host(world, Start())  # where the leaf was still open for writing, it could not revert
        assert (done.result, done.state) == (Result.SUCCESS, "failed-over"), done.error
        kept = world.restore_point_contents()
        sealed = set(kept) - set(points)
        assert all(kept[point] == contents(source(world)) for point in sealed), "what was sealed in time is whole"
        assert {report.restore_point} - {None} <= sealed
        assert {point: kept[point] for point in kept if point in points}.items() <= points.items()
        assert contents(world.replica()) == kept[done.restore_point or ""], f"at call {moment}"
        assert world.replica().power is PowerState.ON
        assert world.our_source_snapshots() == []
        assert other_host(world, Undo()).state == "ready"
        assert world.run_vm().result is Result.SUCCESS
        assert contents(world.replica()) == contents(source(world))
    assert moment > 20, "a run has many moments"


def fail_over_newest(world: World) -> None:
    other_host(world, Start())


def other_host(world: World, wish: Wish) -> FailoverVm:
    """Another machine, while this one's run goes on: a world's `engine()` would end that."""
    elsewhere = World(world.folder.with_name("elsewhere"))
    services = elsewhere.engine().services
    failovers = Failovers(FailoverContext(services, world.target), None)
    [replica] = choose(failovers.find(), ["web-01"])
    return failovers.run_one(replica, wish)


def test_replicas_are_chosen_by_name_job_or_all(world: World) -> None:
    found = Failovers(FailoverContext(world.engine().services, world.target), None).find()
    assert [one.vm.name for one in choose(found, [], every=True)] == ["web-01-replica"]
    assert choose(found, [], job="demo") == choose(found, ["web-01"]) == choose(found, ["web-01-replica"])
    with pytest.raises(NotFoundError, match="did you mean web-01"):
        choose(found, ["web-1"])
    with pytest.raises(NotFoundError, match="job nightly"):
        choose(found, [], job="nightly")
    with pytest.raises(UsageError, match="say which VMs"):
        choose(found, [])


def test_a_deadline_that_passed_is_kept_by_the_next_run_with_what_ran(world: World) -> None:
    """The control host that failed it over is dead since."""
    fail_over(world, Start(deadline=world.clock() + dt.timedelta(minutes=60)))
    guest_writes(world)
    ran = contents(world.replica())
    assert world.run_vm().result is Result.SKIPPED, "it is not over yet"
    world.clock.now += dt.timedelta(minutes=61)
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert any("it is undone" in note for note in report.notes)
    [kept] = [one for one in world.replica().snapshots if one.name == KEPT_STATE]
    assert [disk.disk.content() for disk in kept.disks] == ran
    assert contents(world.replica()) == contents(source(world))


def test_people_see_the_state_in_vsphere_and_nothing_fails_where_it_cannot_be_shown(world: World) -> None:
    [point, *_] = sorted(world.restore_point_contents())
    assert world.replica().shown_state == "", "it was never failed over"
    until = world.clock() + dt.timedelta(minutes=60)
    fail_over(world, Start(point, deadline=until))
    shown = world.replica().shown_state
    assert shown.startswith(f"failed-over to {point}, until {until:%Y-%m-%d %H:%M} UTC, epoch ")
    world.clock.now += dt.timedelta(minutes=61)
    world.run_vm()
    assert world.replica().shown_state.startswith("ready, epoch ")

    def refuse(method: str) -> None:
        if method == "show_state":
            raise PermissionDeniedError("not allowed", privilege="Global.SetCustomField")

    world.target.before_call = refuse
    done = fail_over(world, Start())
    assert (done.result, done.state) == (Result.SUCCESS, "failed-over")
    assert any("cannot be shown" in note for note in done.notes)


def planned(world: World) -> FailoverVm:
    engine = world.engine()
    failovers = Failovers(FailoverContext(engine.services, world.target), engine.services.repository)
    failovers.source_runs = lambda _: source(world).power is PowerState.ON
    plan = PlannedFailover(
        failovers, lambda _: world.source, lambda job, vms: engine.replicate(world.job, vms), shutdown_seconds=1
    )
    [vm] = plan.run(choose(failovers.find(), ["web-01"]), Start(planned=True)).vms
    return vm


def test_planned_nothing_is_lost_that_the_guest_wrote_until_it_was_down(world: World) -> None:
    def while_it_shuts_down(method: str) -> None:
        if method == "shut_down_guest":
            world.source.guest_write(source(world), 0, 4 * GRAIN, b"last words".ljust(GRAIN, b"."))

    world.source.before_call = while_it_shuts_down
    done = planned(world)
    assert (done.result, done.state) == (Result.SUCCESS, "failed-over"), done.error
    assert source(world).power is PowerState.OFF
    assert contents(world.replica()) == contents(source(world))
    record = read_failover(folder_of(world))
    assert record is not None
    assert record.planned


def test_planned_a_guest_that_does_not_shut_down_keeps_running_and_is_not_failed_over(world: World) -> None:
    source(world).tools_running = False
    done = planned(world)
    assert (done.result, done.state) == (Result.FAILED, "ready")
    assert done.error is not None
    assert done.error.step == "shut down the source"
    assert source(world).power is PowerState.ON
    assert world.replica().power is PowerState.OFF
