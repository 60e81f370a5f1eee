"""A commit record is read back and compared: what did not survive is no commit, and no restore point is lost by it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.world import World, folder_of, source
from vrepl.engine.marks import restore_point_snapshot_name
from vrepl.extents import GRAIN
from vrepl.model import TransferKind
from vrepl.report.model import Result, VmReport
from vrepl.repository.commit_record import COMMIT_KEYS, is_header
from vrepl.repository.rebuild import FoundReplica, rebuild
from vrepl.repository.store import Repository

DISKS = 60


def make_world(folder: Path, disks: int) -> World:
    world = World(folder)
    vm = world.source.add_vm("web-01", [4 * GRAIN] * disks)
    for index in range(disks):
        world.source.guest_write(vm, index, 0, bytes([index + 1]) * GRAIN)
    return world


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path / "repository", 2)


def succeed(world: World) -> VmReport:
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert report.restore_point is not None
    expected = [disk.disk.content() for disk in source(world).disks]
    assert world.restore_point_contents()[report.restore_point] == expected
    return report


def headers(world: World) -> list[bool]:
    return [is_header(snapshot.description) for snapshot in world.replica().snapshots]


def test_a_short_record_stands_in_the_description(world: World) -> None:
    succeed(world)
    assert headers(world) == [False]
    assert not [key for key in world.replica().extra_config if key.startswith(COMMIT_KEYS)]


@pytest.mark.slow
def test_60_disks_on_one_vm_are_sealed_rebuilt_and_go_on_by_their_changes(tmp_path: Path) -> None:
    """21 KB of record: in a description that a host cuts they would have been lost, and with them the restore point."""
    world = make_world(tmp_path / "repository", DISKS)
    world.target.description_limit = 255
    first = succeed(world)
    assert headers(world) == [True]
    world.folder = tmp_path / "another"
    world.repository = Repository.open(world.folder)
    vms = world.target.list_vms()
    settings = {one.ref: world.target.read_snapshot(one.ref).extra_config for vm in vms for one in vm.snapshots}
    [rebuilt] = rebuild(world.repository, [FoundReplica("dr", vm, snapshot_settings=settings) for vm in vms])
    assert (rebuilt.problem, rebuilt.restore_points) == ("", 1)
    world.source.guest_write(source(world), 7, GRAIN, b"\x77" * 512)
    report = succeed(world)
    assert {disk.kind for disk in report.disks} == {TransferKind.INCREMENTAL}
    assert sum(disk.bytes_moved or 0 for disk in report.disks) == GRAIN
    assert [point.id for point in folder_of(world).restore_points()] == [first.restore_point, report.restore_point]
    assert headers(world) == [True, True]


def test_a_description_that_is_cut_sends_the_record_to_extra_config(world: World) -> None:
    world.target.description_limit = 200
    report = succeed(world)
    assert any("was cut" in note for note in report.notes)
    assert headers(world) == [True]
    assert len(world.replica().snapshots) == 1, "the one that was cut is gone"
    again = succeed(world)
    assert not any("was cut" in note for note in again.notes), "what was learnt at the first seal is done at the next"


def test_where_nothing_keeps_the_record_the_run_fails_before_it_counts(world: World) -> None:
    first = succeed(world)
    world.target.description_limit = world.target.value_limit = 150
    world.source.guest_write(source(world), 0, 0, b"\x09" * GRAIN)
    report = world.run_vm()
    assert report.result is Result.FAILED
    assert report.error is not None
    assert "could not be read back" in report.error.message
    assert [snapshot.name for snapshot in world.replica().snapshots] == [
        restore_point_snapshot_name(first.restore_point or "")
    ]
    assert [point.id for point in folder_of(world).restore_points()] == [first.restore_point]
    world.target.description_limit = world.target.value_limit = None
    report = succeed(world)
    assert sum(disk.bytes_moved or 0 for disk in report.disks) == 0, "what was transferred is kept"


@pytest.mark.parametrize("call", range(1, 12))
def test_killed_at_any_call_of_a_seal_that_is_cut(world: World, call: int) -> None:
    """The snapshot whose record was cut is found by the next run, and what it held is not lost."""
    first = succeed(world)
    world.target.description_limit = 200
    world.source.guest_write(source(world), 0, 0, b"\x09" * GRAIN)
    seen: list[str] = []

    def kill_at(where: str) -> bool:
        if where.split()[:2] == ["before", "dr"] and "seal" in world.events.steps[-1]:
            seen.append(where)
        return len(seen) == call

    world.run_until(kill_at)
    report = succeed(world)
    assert not any("by hand" in note or "something else" in note for note in report.notes), report.notes
    contents = world.restore_point_contents()
    assert first.restore_point in contents
    names = {snapshot.name for snapshot in world.replica().snapshots}
    assert names == {restore_point_snapshot_name(point) for point in contents}, "no snapshot without a record stays"
    assert [point.id for point in folder_of(world).restore_points()] == sorted(contents)


@pytest.mark.slow
def test_parts_of_an_older_record_do_not_stay(tmp_path: Path) -> None:
    world = make_world(tmp_path / "repository", DISKS)
    succeed(world)
    world.target.set_extra_config(world.replica().ref, {f"{COMMIT_KEYS}99": "left"})
    succeed(world)
    assert f"{COMMIT_KEYS}1" in world.replica().extra_config
    assert f"{COMMIT_KEYS}99" not in world.replica().extra_config
