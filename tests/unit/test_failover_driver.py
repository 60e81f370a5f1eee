"""Failovers of a replica with real bytes, killed before and after every call: they end, and harm no restore point."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.memory_site import MemoryVm
from tests.support.world import World, source
from vrepl.engine.events import SilentEvents
from vrepl.engine.failover.driver import FailoverDriver
from vrepl.engine.failover.states import ReplicaStates
from vrepl.errors import NotReadyError
from vrepl.extents import GRAIN
from vrepl.model import PowerState, ReplicaState
from vrepl.model.failover import KEPT_STATE, Commit, FailoverRecord, Start, Undo, Wish
from vrepl.report.model import Result
from vrepl.transport.hooks import SimulatedKill


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path / "repository")
    vm = world.source.add_vm("web-01", [8 * GRAIN, 2 * GRAIN])
    for number in range(3):
        world.source.guest_write(vm, 0, number * GRAIN, bytes([number + 1]) * GRAIN)
        assert world.run_vm().result is Result.SUCCESS
    return world


def patiently(_what: str, action: Callable[[], None]) -> None:
    action()


def fail_over(world: World, wish: Wish) -> FailoverRecord:
    """As a new process would: it knows nothing but what lies at the replica."""
    world.dead = False
    states = ReplicaStates(world.target, "test")
    replica = world.target._view(world.replica())
    vm = source(world)
    record = states.read(replica) or FailoverRecord(
        world.repository.id, "prod", vm.instance_uuid, vm.name, replica.instance_uuid
    )
    driver = FailoverDriver(world.target, states, lambda _: None, SilentEvents(), lambda: None, patiently)
    return driver.go(replica.ref, record, wish)[0]


def contents(vm: MemoryVm) -> list[object]:
    return [disk.disk.content() for disk in vm.disks]


def guest_writes(world: World) -> None:
    world.target.guest_write(world.replica(), 0, 5 * GRAIN, b"\xee" * GRAIN)


def test_a_failed_over_replica_is_its_restore_point_and_runs(world: World) -> None:
    points = world.restore_point_contents()
    older = sorted(points)[1]
    record = fail_over(world, Start(older))
    assert record.state is ReplicaState.FAILED_OVER
    assert record.base_change_ids is not None
    assert all(record.base_change_ids.values()), "failback will ask what changed since"
    assert contents(world.replica()) == points[older]
    assert world.replica().power is PowerState.ON


def test_undone_it_is_the_newest_restore_point_and_the_next_run_is_incremental(world: World) -> None:
    points = world.restore_point_contents()
    fail_over(world, Start(sorted(points)[0]))
    guest_writes(world)
    assert fail_over(world, Undo()).state is ReplicaState.READY
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
    assert fail_over(world, Commit()).state is ReplicaState.COMMITTED
    assert world.replica().snapshots == []
    assert contents(world.replica()) == ran


def test_what_somebody_powered_on_by_hand_is_named_and_adopted(world: World) -> None:
    world.replica().power = PowerState.ON
    with pytest.raises(NotReadyError, match="powered on the replica of web-01 by hand"):
        fail_over(world, Start())
    record = fail_over(world, Start(adopt=True))
    assert (record.state, record.adopted) == (ReplicaState.FAILED_OVER, True)
    assert fail_over(world, Undo()).state is ReplicaState.READY


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
                record = fail_over(fresh, wish)
            except SimulatedKill:
                died = True
                record = fail_over(fresh, wish)
        fresh.kill_at = lambda _: False
        ends = {Start: ReplicaState.FAILED_OVER, Undo: ReplicaState.READY, Commit: ReplicaState.COMMITTED}
        assert record.state is ends[type(wishes[-1])]
        if not isinstance(wishes[-1], Commit):
            assert fresh.restore_point_contents() == points
        if isinstance(wishes[-1], Undo):
            assert fresh.run_vm().result is Result.SUCCESS
            assert contents(fresh.replica()) == contents(source(fresh))
        if not died:
            break
    assert death > 10, "there are many places to die at"
