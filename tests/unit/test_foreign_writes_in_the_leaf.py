"""A replica's leaf that somebody else wrote to, or of which the repository has lost track, is never sealed as it is."""

from __future__ import annotations

import datetime as dt
import itertools
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.memory_disk import MemoryDisk
from tests.support.world import World, folder_of, source
from vrepl.engine.run import Engine
from vrepl.errors import VsphereError
from vrepl.extents import GRAIN
from vrepl.model import OnResize, TransferKind
from vrepl.report.model import Result, VmReport
from vrepl.transport import checkpoints

GRAINS = 48
CAPACITY = GRAINS * GRAIN


def make_world(folder: Path, cbt_unit: int = GRAIN) -> World:
    world = World(folder, cbt_unit=cbt_unit)
    vm = world.source.add_vm("web-01", [CAPACITY])
    world.source.guest_write(vm, 0, 0, b"\x01" * CAPACITY)
    return world


@pytest.fixture(autouse=True)
def eager_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "LEAST_BYTES", 1)
    monkeypatch.setattr(checkpoints, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "SHARE", 0)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path / "repository")


def succeed(world: World) -> VmReport:
    """A run that succeeds; what it sealed is what the source holds."""
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert report.restore_point is not None
    [held] = world.restore_point_contents()[report.restore_point]
    expected = source(world).disks[0].disk.content()
    assert [at for at in range(GRAINS) if held[at * GRAIN :][:GRAIN] != expected[at * GRAIN :][:GRAIN]] == []
    return report


def die_in_transfer(world: World, settled: int) -> None:
    """Right after a checkpoint that holds so many bytes or more."""

    def kill_at(where: str) -> bool:
        return where.startswith("transfer recorded") and int(where.split()[-1]) >= settled

    assert world.run_until(kill_at) is None


def write_to_replica(world: World, grain: int) -> None:
    world.target.guest_write(world.replica(), 0, grain * GRAIN, b"\x09" * 512)


# -- written by somebody else -----------------------------------------------------------------------------------------


def test_a_leaf_written_by_hand_while_its_run_was_unfinished_is_reverted(world: World) -> None:
    world.run_vm()
    world.source.guest_write(source(world), 0, 0, b"\x02" * (40 * GRAIN))
    die_in_transfer(world, 16 * GRAIN)
    write_to_replica(world, 45)
    report = succeed(world)
    assert any("written by something else" in note and "reverted" in note for note in report.notes)


def test_what_was_written_beside_a_run_s_own_writes_is_told_from_the_size_of_cbt_s_blocks(world: World) -> None:
    """Change tracking only says where to look: a digest that differs proves somebody's write, and reverts the leaf."""
    world.run_vm()
    world.source.guest_write(source(world), 0, 0, b"\x02" * (32 * GRAIN))
    die_in_transfer(world, 32 * GRAIN)
    write_to_replica(world, 32)
    report = succeed(world)
    assert any("written by something else" in note and "reverted" in note for note in report.notes)
    assert report.disks[0].bytes_moved == 32 * GRAIN


def test_cbt_blocks_larger_than_what_was_written_do_not_end_a_resumption(tmp_path: Path) -> None:
    world = make_world(tmp_path / "repository", cbt_unit=16 * GRAIN)
    world.run_vm()
    world.source.guest_write(source(world), 0, 0, b"\x02" * (40 * GRAIN))
    die_in_transfer(world, 16 * GRAIN)
    report = succeed(world)
    assert "resumes" in report.disks[0].reason
    assert (report.disks[0].bytes_moved or 0) <= 32 * GRAIN


@pytest.mark.parametrize("unfinished", [False, True])
def test_a_replica_without_change_tracking_is_reverted_before_it_is_written(world: World, unfinished: bool) -> None:
    world.run_vm()
    world.source.guest_write(source(world), 0, 0, b"\x02" * (20 * GRAIN))
    if unfinished:
        die_in_transfer(world, 16 * GRAIN)
    world.target.disable_cbt(world.replica().ref)
    write_to_replica(world, 45)
    report = succeed(world)
    assert any("reverted to restore point" in note for note in report.notes)
    assert report.disks[0].kind is TransferKind.INCREMENTAL


def test_a_disk_taken_off_the_replica_comes_back_by_a_revert(world: World) -> None:
    world.run_vm()
    world.source.guest_write(source(world), 0, 0, b"\x02" * (2 * GRAIN))
    world.replica().disks.clear()
    report = succeed(world)
    assert any("disk 0 (Hard disk 1) is gone from the replica" in note for note in report.notes)
    assert report.disks[0].kind is TransferKind.INCREMENTAL
    assert report.disks[0].bytes_moved == 2 * GRAIN


def test_a_disk_that_vrepl_put_in_anothers_place_is_not_taken_for_somebodys(world: World) -> None:
    """It has the key of the one before, and change tracking that does not reach back to the seal."""
    world.job = replace(world.job, on_resize=OnResize.RESTART)
    world.run_vm()
    disk = source(world).disks[0]
    disk.disk = MemoryDisk(CAPACITY + 16 * GRAIN)
    world.source.reset_cbt(source(world), 0)
    world.source.guest_write(source(world), 0, 0, b"\x04" * CAPACITY)
    die_in_transfer(world, 16 * GRAIN)
    report = succeed(world)
    assert "resumes an unfinished run, 25 %" in report.disks[0].reason
    assert report.disks[0].bytes_moved == 48 * GRAIN


# -- lost track of ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sealed_before", [False, True])
def test_a_lost_intent_leaves_nothing_to_be_believed(world: World, sealed_before: bool) -> None:
    if sealed_before:
        world.run_vm()
        world.source.guest_write(source(world), 0, 0, b"\x02" * CAPACITY)
    die_in_transfer(world, 32 * GRAIN)
    (folder_of(world).path / "intent.json").unlink()
    world.source.guest_write(source(world), 0, 0, bytes(CAPACITY))
    succeed(world)


@pytest.mark.parametrize("made", [True, False])
def test_a_first_seal_that_nobody_recorded_and_that_is_gone_leaves_nothing_to_be_believed(
    world: World, made: bool
) -> None:
    """Its snapshot removed by hand, the leaf is its base again, and no change tracking goes back to the seal."""
    moment = "after" if made else "before"
    assert world.run_until(lambda where: where == f"{moment} dr create_snapshot") is None
    replica = world.replica()
    assert len(replica.snapshots) == made
    if made:
        world.target.guest_write(replica, 0, 5 * GRAIN, b"by hand" * 20)
        world.target.remove_snapshot(replica.ref, replica.snapshots[0].ref)
    report = succeed(world)
    assert report.disks[0].bytes_moved == (GRAIN if made else 0), "both sides are read, and what differs is written"
    intent = folder_of(world).intent()
    assert intent is None or not intent.sealing


def test_a_first_seal_that_fails_is_resumed_as_any_other_run(world: World) -> None:
    def refuse(method: str) -> None:
        if method == "create_snapshot":
            raise VsphereError("no space left on the datastore")

    world.target.before_call = refuse
    assert world.run_vm().result is Result.FAILED
    world.target.before_call = lambda method: None
    report = succeed(world)
    assert "resumes the first run, 100 %" in report.disks[0].reason


def test_two_restore_points_of_one_second_are_told_apart(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = (dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=at) for at in itertools.count())
    names = (f"{0xFFFFFF - at:06x}" for at in itertools.count())  # the later the smaller
    make = world.engine

    def engine() -> Engine:
        made = make()
        made.services.clock, made.services.new_id = (lambda: next(moments)), (lambda: next(names))
        return made

    monkeypatch.setattr(world, "engine", engine)
    for number in range(4):
        world.source.guest_write(source(world), 0, number * GRAIN, b"\x03" * GRAIN)
        succeed(world)
    replica = world.replica()
    world.target.remove_snapshot(replica.ref, replica.snapshots[-1].ref)
    for disk in replica.disks:  # nothing but the order of the restore points tells that the leaf is not the last one's
        assert disk.tracking is not None
        disk.tracking.last_change.clear()
    report = succeed(world)
    assert report.disks[0].kind is TransferKind.COMPARE


def test_a_disk_added_while_the_run_was_preparing_is_not_left_out_in_silence(world: World) -> None:
    def add(method: str) -> None:
        if method == "create_snapshot" and len(source(world).disks) == 1:
            source(world).disks.append(world.source._new_disk("web-01", 1, GRAIN))

    world.source.before_call = add
    report = world.run_vm()
    assert report.result is Result.FAILED
    assert report.error is not None
    assert "was added to the source" in report.error.message
    assert world.our_source_snapshots() == []
    assert world.restore_point_contents() == {}
    assert len(world.run_vm().disks) == 2


# -- what a long-lived data mover holds -------------------------------------------------------------------------------


def open_digests() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            path = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if path.endswith((".digests", ".delta")):
            found.append(path)
    return found


def test_no_digest_file_stays_open_after_a_transfer_or_a_verification(world: World) -> None:
    for number in range(3):
        world.source.guest_write(source(world), 0, number * GRAIN, bytes([5 + number]) * GRAIN)
        succeed(world)
    world.engine().verify(world.repository.replicas())
    folder = str(folder_of(world).path)
    assert [path for path in open_digests() if path.startswith(folder)] == []
