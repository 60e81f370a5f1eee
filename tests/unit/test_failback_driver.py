"""Home again, with real bytes, killed before and after every call: nothing is missed, and all of it can be undone."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.coming_home import commands, commit, start, undo
from tests.support.memory_site import MemoryVm
from tests.support.world import World, folder_of, source
from vrepl.engine.context import FailoverContext
from vrepl.engine.failback.command import NewPlace
from vrepl.engine.failover.command import Failovers
from vrepl.engine.failover.planned import PlannedFailover
from vrepl.engine.failover.replicas import choose
from vrepl.errors import VreplError
from vrepl.extents import GRAIN
from vrepl.model import PowerState, ReplicaPlacement
from vrepl.model.failover import Start, Undo
from vrepl.report.failover import FailoverVm
from vrepl.report.model import Result
from vrepl.repository.failover import read_failover
from vrepl.transport.hooks import SimulatedKill

Command = Callable[[World], FailoverVm]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return replicated(tmp_path / "repository")


def replicated(folder: Path) -> World:
    world = World(folder)
    vm = world.source.add_vm("web-01", [8 * GRAIN, 2 * GRAIN])
    for number in range(3):
        world.source.guest_write(vm, 0, number * GRAIN, bytes([number + 1]) * GRAIN)
        assert world.run_vm().result is Result.SUCCESS
    return world


def fail_over(world: World, wish: Start | Undo | None = None) -> FailoverVm:
    services = world.engine().services
    failovers = Failovers(FailoverContext(services, world.target), services.repository)
    [replica] = choose(failovers.find(), ["web-01"])
    return failovers.run_one(replica, wish or Start())


def fail_over_planned(world: World) -> None:
    engine = world.engine()
    failovers = Failovers(FailoverContext(engine.services, world.target), engine.services.repository)
    failovers.source_runs = lambda _: source(world).power is PowerState.ON
    plan = PlannedFailover(
        failovers, lambda _: world.source, lambda job, vms: engine.replicate(world.job, vms), shutdown_seconds=1
    )
    [vm] = plan.run(choose(failovers.find(), ["web-01"]), Start(planned=True)).vms
    assert vm.state == "failed-over", vm.error


def lose_the_site(world: World) -> None:
    """Its last writes are on disk, and change tracking has forgotten them; nobody notices before the next power-on."""
    vm = source(world)
    remembered = [(dict(disk.tracking.last_change) if disk.tracking else None) for disk in vm.disks]
    world.source.guest_write(vm, 0, 4 * GRAIN, b"lost with the site".ljust(GRAIN, b"!"))
    world.source.guest_write(vm, 0, 5 * GRAIN, b"on both sides".ljust(GRAIN, b"!"))
    for disk, changes in zip(vm.disks, remembered, strict=True):
        if disk.tracking is not None and changes is not None:
            disk.tracking.last_change = changes
    vm.power = PowerState.OFF


def guest_writes_at_the_target(world: World) -> None:
    world.target.guest_write(world.replica(), 0, 5 * GRAIN, b"at the target".ljust(GRAIN, b"."))
    world.target.guest_write(world.replica(), 1, 0, b"the other disk".ljust(GRAIN, b"."))


def while_it_shuts_down(world: World) -> None:
    """The guest at the target writes until it is down."""

    call = world.target.before_call

    def before(method: str) -> None:
        call(method)
        if method == "shut_down_guest" and world.replica().power is PowerState.ON:
            world.target.guest_write(world.replica(), 0, 6 * GRAIN, b"last words".ljust(GRAIN, b"."))

    world.target.before_call = before


def contents(vm: MemoryVm) -> list[object]:
    return [disk.disk.content() for disk in vm.disks]


def lost_and_failed_over(world: World) -> None:
    lose_the_site(world)
    assert fail_over(world).state == "failed-over"
    guest_writes_at_the_target(world)


def moved(vm: FailoverVm) -> int:
    assert vm.crossed is not None
    return vm.crossed.bytes_moved


def test_after_a_loss_of_power_the_original_equals_the_replica_and_only_what_differs_crossed(world: World) -> None:
    lost_and_failed_over(world)
    while_it_shuts_down(world)
    points = world.restore_point_contents()
    done = start(world)
    assert (done.result, done.state) == (Result.SUCCESS, "failing-back"), done.error
    assert contents(source(world)) == contents(world.replica())
    assert (source(world).power, world.replica().power) == (PowerState.ON, PowerState.OFF)
    assert moved(done) == 4 * GRAIN, "two grains of either side, one of them on both, and the last words"
    assert done.crossed is not None
    assert done.crossed.downtime is not None
    assert world.restore_point_contents() == points
    last = [order for order in world.orders if order.target.site == "prod"][-1]
    assert sum(region.length for region in last.regions) == GRAIN, "downtime follows the last delta"


def test_after_a_planned_failover_only_what_changed_is_looked_at(world: World) -> None:
    fail_over_planned(world)
    guest_writes_at_the_target(world)
    while_it_shuts_down(world)
    before = len(world.orders)
    done = start(world)
    assert done.state == "failing-back", done.error
    assert contents(source(world)) == contents(world.replica())
    assert moved(done) == 3 * GRAIN
    crossings = [order for order in world.orders[before:] if order.target.site == "prod"]
    assert sum(region.length for order in crossings for region in order.regions) == 3 * GRAIN


def test_from_an_older_point_after_a_planned_failover_both_sides_changes_cross(world: World) -> None:
    """The union of what the replica wrote, and of what the original had written since that restore point."""
    fail_over_planned(world)
    assert fail_over(world, Undo()).state == "ready"
    older = sorted(world.restore_point_contents())[-2]
    assert fail_over(world, Start(older, planned=True)).state == "failed-over"
    guest_writes_at_the_target(world)
    assert start(world).state == "failing-back"
    assert contents(source(world)) == contents(world.replica())


def test_an_original_that_was_powered_on_since_the_planned_failover_is_read_whole(world: World) -> None:
    """Its tracking told of one write, and power was lost before it could tell of another."""
    fail_over_planned(world)
    world.source.guest_write(source(world), 0, 7 * GRAIN, b"told".ljust(GRAIN, b"."))
    lose_the_site(world)
    guest_writes_at_the_target(world)
    done = start(world)
    assert done.state == "failing-back", done.error
    assert contents(source(world)) == contents(world.replica())
    assert any("powered on since the failover" in note for note in done.notes)


def test_a_source_that_was_off_before_the_planned_failover_is_read_whole(world: World) -> None:
    """Nobody saw it shut down: it had lost power, and what its tracking held in memory."""
    lose_the_site(world)
    fail_over_planned(world)
    guest_writes_at_the_target(world)
    assert start(world).state == "failing-back"
    assert contents(source(world)) == contents(world.replica())


@pytest.mark.parametrize("moment", ["create_snapshot", "remove_snapshot", "shut_down_guest"])
def test_a_replica_that_loses_power_on_the_way_is_compared(world: World, moment: str) -> None:
    """It is off as if it had been shut down, and what it wrote last is in no change tracking."""
    fail_over_planned(world)
    guest_writes_at_the_target(world)
    call, once = world.target.before_call, [True]

    def before(method: str) -> None:
        call(method)
        if method == moment and once:
            once.clear()
            replica = world.replica()
            remembered = [dict(disk.tracking.last_change) for disk in replica.disks if disk.tracking]
            world.target.guest_write(replica, 0, 7 * GRAIN, b"in no tracking".ljust(GRAIN, b"."))
            for disk, changes in zip(replica.disks, remembered, strict=True):
                assert disk.tracking is not None
                disk.tracking.last_change = changes
            replica.power = PowerState.OFF
            raise VreplError("the host is gone")

    world.target.before_call = before
    start(world)
    world.target.before_call = call
    done = start(world)
    assert done.state == "failing-back", done.error
    assert contents(source(world)) == contents(world.replica())


def test_committed_the_job_goes_on_and_is_incremental_after_its_new_baseline(world: World) -> None:
    lost_and_failed_over(world)
    start(world)
    at_home = contents(world.replica())
    sealed = world.restore_point_contents()
    done = commit(world)
    assert (done.result, done.state) == (Result.SUCCESS, "ready"), done.error
    points = world.restore_point_contents()
    assert done.restore_point is not None
    again = commit(world)
    assert (again.result, again.state, again.restore_point) == (Result.SUCCESS, "ready", done.restore_point)
    assert points == {**sealed, done.restore_point: at_home}, "what the replica was before failback is a restore point"
    assert source(world).snapshots == []
    record = read_failover(folder_of(world))
    assert record is not None
    assert (record.failback, record.base_change_ids) == (None, None)
    world.source.guest_write(source(world), 0, 7 * GRAIN, b"home".ljust(GRAIN, b"."))
    before = len(world.orders)
    baseline = world.run_vm()
    assert not any(order.compare_with_target for order in world.orders[before:]), "the original alone is read"
    assert baseline.result is Result.SUCCESS, baseline.error
    assert {disk.kind.value for disk in baseline.disks} == {"compare"}
    assert sum(disk.bytes_moved or 0 for disk in baseline.disks) == GRAIN
    assert contents(world.replica()) == contents(source(world))
    world.source.guest_write(source(world), 0, 3 * GRAIN, b"again".ljust(GRAIN, b"."))
    following = world.run_vm()
    assert {disk.kind.value for disk in following.disks} == {"incremental"}
    assert sum(disk.bytes_moved or 0 for disk in following.disks) == GRAIN
    assert contents(world.replica()) == contents(source(world))
    assert fail_over(world, Start(source_is_down=True)).state == "failed-over"


def test_undone_the_original_is_as_before_and_the_replica_runs(world: World) -> None:
    lost_and_failed_over(world)
    before, ran = contents(source(world)), contents(world.replica())
    start(world)
    world.source.guest_write(source(world), 0, 0, b"after it came home".ljust(GRAIN, b"."))
    done = undo(world)
    assert (done.result, done.state) == (Result.SUCCESS, "failed-over"), done.error
    assert contents(source(world)) == before
    assert contents(world.replica()) == ran
    assert (source(world).power, world.replica().power) == (PowerState.OFF, PowerState.ON)
    assert source(world).snapshots == []
    guest_writes_at_the_target(world)
    assert start(world).state == "failing-back"
    assert contents(source(world)) == contents(world.replica())
    assert commit(world).state == "ready"


def test_a_failover_can_still_be_undone_after_its_failback_was(world: World) -> None:
    lost_and_failed_over(world)
    points = world.restore_point_contents()
    start(world)
    undo(world)
    assert fail_over(world, Undo()).state == "ready"
    assert world.restore_point_contents() == points
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert contents(world.replica()) == contents(source(world))


@pytest.mark.parametrize(
    ("arrange", "says"),
    [
        (lambda world: setattr(source(world), "power", PowerState.ON), "runs at site prod"),
        (lambda world: world.source.vms.clear(), "is gone from site prod"),
        (lambda world: source(world).disks.pop(), "is gone from the original"),
        (lambda world: fail_over(world, Undo()), "is not failed over"),
    ],
    ids=["runs", "gone", "other disks", "ready"],
)
def test_what_cannot_be_is_said_and_nothing_is_touched(
    world: World, arrange: Callable[[World], object], says: str
) -> None:
    lost_and_failed_over(world)
    arrange(world)
    state = fail_over_state(world)
    done = start(world)
    assert done.result is Result.SKIPPED
    assert done.error is not None
    assert says in done.error.message
    assert fail_over_state(world) == state


def fail_over_state(world: World) -> object:
    record = next(iter(world.target.vms.values())).files
    return dict(record), [contents(vm) for vm in world.source.vms.values()]


def test_a_guest_that_does_not_shut_down_keeps_running_until_it_is_allowed_to_be_powered_off(world: World) -> None:
    lost_and_failed_over(world)
    world.replica().tools_running = False
    done = start(world)
    assert (done.result, done.state) == (Result.FAILED, "failing-back")
    assert done.error is not None
    assert "--power-off" in (done.error.hint or "")
    assert world.replica().power is PowerState.ON
    assert start(world, power_off=True).result is Result.SUCCESS
    assert contents(source(world)) == contents(world.replica())


def test_what_the_replica_writes_after_it_was_powered_on_again_comes_along(world: World) -> None:
    """Somebody powered it on by hand between the last crossing and the power-on at home."""
    lost_and_failed_over(world)
    calls = world.source.before_call
    once = [True]

    def before(method: str) -> None:
        calls(method)
        if method == "power_on" and once.pop():
            raise VreplError("the host has no room")

    world.source.before_call = before
    assert start(world).result is Result.FAILED
    world.source.before_call = calls
    world.replica().power = PowerState.ON
    world.target.guest_write(world.replica(), 0, 7 * GRAIN, b"once more".ljust(GRAIN, b"."))
    assert start(world).result is Result.SUCCESS
    assert contents(source(world)) == contents(world.replica())


def test_where_the_original_is_gone_everything_crosses_into_a_new_vm_that_the_job_goes_on_with(world: World) -> None:
    lost_and_failed_over(world)
    gone = source(world)
    del world.source.vms[gone.ref]
    done = start(world, new=NewPlace(ReplicaPlacement(host=None, datastore="prod-ds")))
    assert (done.result, done.state) == (Result.SUCCESS, "failing-back"), done.error
    made = source(world)
    assert (made.instance_uuid, made.power) == (gone.instance_uuid, PowerState.ON)
    assert contents(made) == contents(world.replica())
    assert commit(world).state == "ready"
    assert not any(key.startswith("vrepl.") for key in made.extra_config)
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert contents(world.replica()) == contents(made)
    world.source.guest_write(made, 0, 3 * GRAIN, b"again".ljust(GRAIN, b"."))
    assert {disk.kind.value for disk in world.run_vm().disks} == {"incremental"}


def test_a_new_vm_beside_the_original_needs_a_name_and_is_removed_by_undo(world: World) -> None:
    lost_and_failed_over(world)
    before = contents(source(world))
    place = ReplicaPlacement(host=None, datastore="prod-ds")
    refused = start(world, new=NewPlace(place))
    assert refused.error is not None
    assert "--name" in (refused.error.hint or "")
    assert start(world, new=NewPlace(place, "x" * 81)).state == "failed-over", "nothing is begun that cannot be"
    assert start(world, new=NewPlace(place, "web-01-home")).state == "failing-back"
    made = next(vm for vm in world.source.vms.values() if vm.name == "web-01-home")
    assert contents(made) == contents(world.replica())
    assert undo(world).state == "failed-over"
    assert [vm.name for vm in world.source.vms.values()] == ["web-01"]
    assert contents(source(world)) == before


def test_an_adopted_replica_comes_home_too(world: World) -> None:
    """Nothing says what its leaf was when somebody powered it on."""
    lose_the_site(world)
    world.target.guest_write(world.replica(), 0, 2 * GRAIN, b"by hand".ljust(GRAIN, b"."))
    world.replica().power = PowerState.ON
    assert fail_over(world, Start(adopt=True)).state == "failed-over"
    guest_writes_at_the_target(world)
    assert start(world).result is Result.SUCCESS
    assert contents(source(world)) == contents(world.replica())
    assert commit(world).state == "ready"
    assert world.run_vm().result is Result.SUCCESS
    assert contents(world.replica()) == contents(source(world))


def test_without_digests_both_disks_are_read(world: World) -> None:
    lost_and_failed_over(world)
    for path in (folder_of(world).path / "disks").rglob("*.digests"):
        path.unlink()
    done = start(world)
    assert done.result is Result.SUCCESS, done.error
    assert contents(source(world)) == contents(world.replica())
    assert any("both disks are read" in note for note in done.notes)
    assert commit(world).state == "ready"
    assert world.run_vm().result is Result.SUCCESS
    assert contents(world.replica()) == contents(source(world))


def test_a_crossing_of_which_the_repository_has_lost_everything_is_compared(world: World) -> None:
    lost_and_failed_over(world)
    world.kill_at = lambda where: where.startswith("transfer write")
    with pytest.raises(SimulatedKill):
        start(world)
    world.kill_at = lambda _: False
    for path in (folder_of(world).path / "failback").rglob("*"):
        if path.is_file():
            path.unlink()
    world.target.guest_write(world.replica(), 0, 5 * GRAIN, bytes(GRAIN))
    assert start(world).result is Result.SUCCESS
    assert contents(source(world)) == contents(world.replica())


def test_home_from_an_older_point_its_branches_go_as_retention_says(world: World) -> None:
    older = min(world.restore_point_contents())
    lose_the_site(world)
    assert fail_over(world, Start(older)).state == "failed-over"
    guest_writes_at_the_target(world)
    assert start(world).result is Result.SUCCESS
    at_home = contents(world.replica())
    assert contents(source(world)) == at_home
    sealed = world.restore_point_contents()
    assert len(sealed) == 3
    home = commit(world).restore_point
    assert home is not None
    assert world.restore_point_contents() == {**sealed, home: at_home}, "newer points of the other branch stay, too"
    for number in range(4):
        world.source.guest_write(source(world), 0, number * GRAIN, bytes([100 + number]) * GRAIN)
        before = world.restore_point_contents()
        report = world.run_vm()
        assert report.result is Result.SUCCESS, report.error
        after = world.restore_point_contents()
        assert contents(world.replica()) == contents(source(world)) == after[report.restore_point or ""]
        assert all(after[point] == before[point] for point in before if point in after)
        assert len(after) == 3, "retention"
    assert home not in world.restore_point_contents()


def test_an_undo_without_the_snapshot_of_before_says_so(world: World) -> None:
    lost_and_failed_over(world)
    start(world)
    [snapshot] = source(world).snapshots
    world.source.remove_snapshot(source(world).ref, snapshot.ref)
    done = undo(world)
    assert done.state == "failed-over"
    assert any("somebody removed the snapshot" in note for note in done.notes)


def test_of_two_who_bring_the_same_vm_home_one_is_told(world: World, tmp_path: Path) -> None:
    """The other control host has a copy of the repository, and no lock."""
    lost_and_failed_over(world)
    shutil.copytree(world.folder, tmp_path / "elsewhere")
    elsewhere = World(tmp_path / "elsewhere")
    elsewhere.source, elsewhere.target = world.source, world.target
    failbacks, replicas = commands(elsewhere)
    call, once = world.target.after_call, [True]

    def meanwhile(method: str) -> None:
        call(method)
        if method == "write_vm_file" and once:
            once.clear()
            failbacks.start(replicas, lambda _: None, power_off=False)

    world.target.after_call = meanwhile
    done = start(world)
    world.target.after_call = call
    assert done.result is Result.SKIPPED
    assert start(world).state == "failing-back"
    assert contents(source(world)) == contents(world.replica())
    assert commit(world).state == "ready"
    assert source(world).snapshots == []


STEPS: dict[str, tuple[list[Command], str]] = {
    "start": ([start], "failing-back"),
    "undo": ([start, undo], "failed-over"),
    "commit": ([start, commit], "ready"),
}


class Template:
    """A replica that is failed over, made once and copied for each death."""

    def __init__(self, folder: Path, *, planned: bool) -> None:
        self.folder = folder
        world = World(folder / "template")
        vm = world.source.add_vm("web-01", [8 * GRAIN])
        world.source.guest_write(vm, 0, 0, bytes([1]) * 3 * GRAIN)
        assert world.run_vm().result is Result.SUCCESS
        if planned:
            fail_over_planned(world)
        else:
            lose_the_site(world)
            fail_over(world)
        world.target.guest_write(world.replica(), 0, 5 * GRAIN, b"at the target".ljust(GRAIN, b"."))
        self._world = world

    def copy(self, name: str) -> World:
        shutil.copytree(self._world.folder, self.folder / name)
        world = World(self.folder / name)
        world.clock.now = self._world.clock.now
        for ours, theirs in ((world.source, self._world.source), (world.target, self._world.target)):
            ours.vms = {ref: copied(vm) for ref, vm in theirs.vms.items()}
            ours._numbers = itertools.count(10_000)
        return world


def copied(vm: MemoryVm) -> MemoryVm:
    snapshots = [replace(one, disks=[disk.copy() for disk in one.disks]) for one in vm.snapshots]
    disks = [disk.copy() for disk in vm.disks]
    return replace(vm, disks=disks, snapshots=snapshots, files=dict(vm.files), extra_config=dict(vm.extra_config))


def changes_nothing(where: str) -> bool:
    """Dying before it is dying after whatever came before."""
    return any(word in where for word in (" read_", " find_", " list_", " changed_areas"))


def die_at(world: World, steps: list[Command], state: str, death: int) -> bool:
    """Whether there were so many moments to die at. The commands are given again, and all must be as it should."""
    before, points, ran = contents(source(world)), world.restore_point_contents(), contents(world.replica())
    left = death

    def kill_at(where: str) -> bool:
        nonlocal left
        left -= 0 if changes_nothing(where) else 1
        return left == 0

    died = False
    world.kill_at = kill_at
    for step in steps:
        try:
            done = step(world)
        except SimulatedKill:
            died = True
            if world.replica().power is PowerState.ON:  # the guest goes on where vrepl has died
                world.target.guest_write(world.replica(), 0, GRAIN, bytes([death % 250 + 1]) * GRAIN)
                ran = contents(world.replica())
            world.kill_at = lambda _: False
            done = step(world)
        assert done.result is Result.SUCCESS, done.error
    world.kill_at = lambda _: False
    assert done.state == state
    assert points.items() <= world.restore_point_contents().items()
    assert contents(world.replica()) == ran
    home = state != "failed-over"
    assert contents(source(world)) == (ran if home else before)
    running = (PowerState.ON, PowerState.OFF)
    assert (source(world).power, world.replica().power) == (running if home else running[::-1])
    assert not any(
        one.name.startswith("vrepl-source-") for one in (*world.replica().snapshots, *source(world).snapshots)
    )
    if state != "failing-back":
        assert source(world).snapshots == []
    if state == "ready":
        # What the restore point held that was failed over to: a digest that still speaks of that would suppress these.
        world.source.guest_write(source(world), 0, 0, bytes([1]) * GRAIN)
        world.source.guest_write(source(world), 0, 5 * GRAIN, bytes(GRAIN))
        assert world.run_vm().result is Result.SUCCESS
        assert contents(world.replica()) == contents(source(world))
    return died


def die_everywhere(folder: Path, name: str, *, planned: bool, first: int, every: int) -> int:
    """Returns the last death."""
    template = Template(folder, planned=planned)
    steps, state = STEPS[name]
    death, died = first, True
    while died:
        world = template.copy(str(death))
        try:
            died = die_at(world, steps, state, death)
        except BaseException as error:
            error.add_note(f"death {death} of {name}")
            raise
        death += every
    return death


@pytest.mark.slow
@pytest.mark.parametrize("planned", [True, False], ids=["planned", "power lost"])
@pytest.mark.parametrize("name", STEPS)
def test_killed_before_and_after_calls_it_ends_where_it_should(tmp_path: Path, name: str, planned: bool) -> None:
    assert die_everywhere(tmp_path, name, planned=planned, first=len(name) + planned, every=11) > 30


@pytest.mark.long
@pytest.mark.parametrize("planned", [True, False], ids=["planned", "power lost"])
@pytest.mark.parametrize("name", STEPS)
def test_killed_before_and_after_every_call_it_ends_where_it_should(tmp_path: Path, name: str, planned: bool) -> None:
    assert die_everywhere(tmp_path, name, planned=planned, first=1, every=1) > 30, "there are many places to die at"
