"""`on_resize = "restart"`: a source disk that has grown is followed, and what is sealed stays what it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.memory_disk import MemoryDisk
from tests.support.world import World, folder_of, source
from vrepl.engine.retirement import retire
from vrepl.errors import VsphereError
from vrepl.extents import GRAIN, SECTOR, Extent
from vrepl.model import OnResize, RetentionPolicy, TransferKind
from vrepl.ports import DigestFiles
from vrepl.report.model import Result, VmReport
from vrepl.repository.digest_sets import GrownDigestSet, open_lookup

SMALL = 16 * GRAIN
LARGE = 24 * GRAIN


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A disk of 16 grains, 12 of them written, and one that never changes; three restore points."""
    made = World(tmp_path / "repository", retention=9)
    made.source.add_vm("web-01", [SMALL, 4 * GRAIN])
    made.job = replace(made.job, on_resize=OnResize.RESTART)
    vm = source(made)
    for grain in range(12):
        made.source.guest_write(vm, 0, grain * GRAIN, bytes([grain + 1]) * GRAIN)
    made.source.guest_write(vm, 1, 0, b"other")
    for run in range(3):
        made.source.guest_write(vm, 0, run * GRAIN, bytes([100 + run]) * GRAIN)
        succeed(made)
    return made


def grow(world: World, capacity: int = LARGE) -> None:
    """As vSphere does: what was there stays, its change tracking begins anew."""
    disk = source(world).disks[0]
    larger = MemoryDisk(capacity)
    for extent in disk.disk.allocated(Extent(0, disk.disk.capacity)):
        larger.write(extent.offset, disk.disk.read(extent.offset, extent.length))
    disk.disk = larger
    world.source.reset_cbt(source(world), 0)


def succeed(world: World) -> VmReport:
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    return report


def assert_newest_is_the_source(world: World) -> None:
    newest = world.restore_point_contents()[folder_of(world).restore_points()[-1].id]
    assert newest == [disk.disk.content() for disk in source(world).disks]


def assert_nothing_is_left_behind(world: World) -> None:
    """Every file of a disk that still lies about is one that a VM or a snapshot refers to, or is known to be loose."""
    used = {
        path
        for vm in world.target.vms.values()
        for disk in (*vm.disks, *(one for snapshot in vm.snapshots for one in snapshot.disks))
        for path in (disk.path, disk.base_path)
    }
    assert set(world.target.loose_disks) <= used


def test_a_grown_disk_keeps_every_restore_point_and_sends_what_is_new(world: World) -> None:
    sealed = world.restore_point_contents()
    grow(world)
    world.source.guest_write(source(world), 0, 5 * GRAIN, b"n" * GRAIN)
    world.source.guest_write(source(world), 0, 20 * GRAIN, b"tail" * 100)
    report = succeed(world)
    assert any("made at the target of the last restore point's" in note for note in report.notes)
    assert report.disks[0].kind is TransferKind.COMPARE
    assert (report.disks[0].bytes_moved, report.disks[1].bytes_moved) == (2 * GRAIN, 0)
    assert report.disks[1].kind is TransferKind.INCREMENTAL
    held = world.restore_point_contents()
    assert {point: held[point] for point in sealed} == sealed
    assert len(held) == 4
    assert_newest_is_the_source(world)
    for point in folder_of(world).restore_points():
        [checked] = world.engine().verify([folder_of(world)], restore_point_id=point.id).vms
        assert checked.result is Result.SUCCESS, checked.error
    assert_nothing_is_left_behind(world)


def test_the_run_after_asks_change_tracking_again(world: World) -> None:
    grow(world)
    succeed(world)
    world.source.guest_write(source(world), 0, 23 * GRAIN, b"more")
    report = succeed(world)
    assert (report.disks[0].kind, report.disks[0].bytes_moved) == (TransferKind.INCREMENTAL, GRAIN)
    assert_newest_is_the_source(world)


def test_what_the_guest_zeroed_meanwhile_becomes_zeros(world: World) -> None:
    grow(world)
    world.source.guest_unmap(source(world), 0, Extent(2 * GRAIN, 4 * GRAIN))
    succeed(world)
    assert_newest_is_the_source(world)


def test_a_size_that_is_no_multiple_of_a_grain(world: World) -> None:
    """The last grain of the smaller disk has a digest of fewer bytes: it says nothing of the larger one's."""
    grow(world, 17 * GRAIN + 3 * SECTOR)
    world.source.guest_write(source(world), 0, 17 * GRAIN, b"e" * 3 * SECTOR)
    succeed(world)
    sealed = world.restore_point_contents()
    grow(world, 20 * GRAIN + SECTOR)
    world.source.guest_write(source(world), 0, 20 * GRAIN, b"f" * SECTOR)
    report = succeed(world)
    assert report.disks[0].bytes_moved == GRAIN + SECTOR
    assert_newest_is_the_source(world)
    held = world.restore_point_contents()
    assert {point: held[point] for point in sealed} == sealed


def test_a_disk_that_shrank_is_copied_whole(world: World) -> None:
    sealed = world.restore_point_contents()
    disk = source(world).disks[0]
    smaller = MemoryDisk(8 * GRAIN)
    smaller.write(0, disk.disk.read(0, 8 * GRAIN))
    disk.disk = smaller
    world.source.reset_cbt(source(world), 0)
    report = succeed(world)
    assert (report.disks[0].kind, report.disks[0].bytes_moved) == (TransferKind.FULL, 8 * GRAIN)
    held = world.restore_point_contents()
    assert {point: held[point] for point in sealed} == sealed
    assert_newest_is_the_source(world)


def test_a_target_that_does_not_copy_disks_gets_it_whole(world: World) -> None:
    world.target.copy_fault = VsphereError("not here", fault="NotSupported")
    grow(world)
    report = succeed(world)
    assert any("does not copy disks" in note for note in report.notes)
    assert report.disks[0].kind is TransferKind.FULL
    assert_newest_is_the_source(world)
    assert_nothing_is_left_behind(world)


def test_no_room_for_the_copy_changes_nothing(world: World) -> None:
    world.target.copy_fault = VsphereError("no room", fault="NoDiskSpace")
    grow(world)
    before = [disk.path for disk in world.replica().disks]
    report = world.run_vm()
    assert report.result is Result.FAILED
    assert [disk.path for disk in world.replica().disks] == before
    world.target.copy_fault = None
    succeed(world)
    assert_newest_is_the_source(world)
    assert_nothing_is_left_behind(world)


def test_without_digests_both_sides_are_compared(world: World) -> None:
    for disk in folder_of(world).disk_folders():
        for file in (*disk.path.glob("*.digests"), *disk.path.glob("*.delta")):
            file.unlink()
    grow(world)
    world.source.guest_write(source(world), 0, 20 * GRAIN, b"tail" * 100)
    report = succeed(world)
    assert report.disks[0].kind is TransferKind.COMPARE
    assert "both sides are read" in report.disks[0].reason
    assert report.disks[0].bytes_moved == GRAIN
    assert_newest_is_the_source(world)


def test_grown_twice_before_a_run_got_through(world: World) -> None:
    grow(world)
    world.source.guest_write(source(world), 0, 20 * GRAIN, b"tail" * 100)
    assert world.run_until(lambda where: where.startswith("transfer recorded")) is None
    grow(world, 2 * LARGE)
    world.source.guest_write(source(world), 0, 40 * GRAIN, b"more" * 100)
    report = succeed(world)
    assert report.disks[0].bytes_moved == 2 * GRAIN
    assert_newest_is_the_source(world)
    assert_nothing_is_left_behind(world)


def test_files_of_the_old_disk_go_with_the_last_restore_point_that_holds_it(world: World) -> None:
    grow(world)
    world.job = replace(world.job, retention=RetentionPolicy(last=3))
    old = [world.replica().snapshots[0].disks[0].base_path, world.replica().disks[0].path]
    report = succeed(world)
    assert len(report.removed_restore_points) == 1
    assert old[1] not in world.target.loose_disks  # the leaf: nothing refers to it any more
    assert old[0] in world.target.loose_disks
    succeed(world)
    assert old[0] in world.target.loose_disks
    succeed(world)
    assert old[0] not in world.target.loose_disks
    assert folder_of(world).record.loose_files == ()
    assert_newest_is_the_source(world)
    assert_nothing_is_left_behind(world)


def test_a_file_that_another_vm_has_stays(world: World) -> None:
    grow(world)
    succeed(world)
    replica = world.replica()
    clone = world.target.clone_linked(replica.ref, replica.snapshots[0].ref, "somebody's", {})
    path = replica.snapshots[0].disks[0].base_path
    world.target.vms[clone.ref].stands_on = None  # nothing that vrepl's own tests would know of
    world.job = replace(world.job, retention=RetentionPolicy(last=1))
    succeed(world)
    assert len(replica.snapshots) == 1
    assert path in world.target.loose_disks
    assert path in folder_of(world).record.loose_files


def test_a_replica_that_is_removed_takes_the_old_disks_files_along(world: World) -> None:
    grow(world)
    succeed(world)
    loose = set(folder_of(world).record.loose_files)
    assert loose & set(world.target.loose_disks)
    retire(world.engine().services, folder_of(world), world.target, world.source, keep_vm=False)
    assert not world.target.vms
    assert not loose & set(world.target.loose_disks)


def test_the_plan_says_what_a_run_will_do(world: World) -> None:
    grow(world)
    calls = len(world.target.calls)
    [planned] = world.engine().plan(world.job).vms
    assert "the replica's new disk is made of the last restore point's" in planned.disks[0].reason
    assert any("made at the target" in note for note in planned.notes)
    assert not {"copy_disk", "attach_replica_disk"} & set(world.target.calls[calls:])


def nth(steps: int) -> Callable[[str], bool]:
    left = [steps]

    def kill(where: str) -> bool:
        left[0] -= 1
        return left[0] == 0

    return kill


@pytest.mark.slow
@pytest.mark.parametrize(
    "steps", [pytest.param(step, marks=() if step % 3 == 0 else pytest.mark.long) for step in range(12, 46)]
)
def test_death_at_any_step_is_followed_by_a_run_that_gets_through(world: World, steps: int) -> None:
    sealed = world.restore_point_contents()
    grow(world)
    world.source.guest_write(source(world), 0, 20 * GRAIN, b"tail" * 100)
    world.job = replace(world.job, retention=RetentionPolicy(last=4))
    for further in (0, 1, 2):
        if world.run_until(nth(steps + further)) is not None:
            break
        world.source.guest_write(source(world), 0, (steps % 20) * GRAIN, bytes([steps]) * GRAIN)
    succeed(world)
    assert_newest_is_the_source(world)
    held = world.restore_point_contents()
    assert {point: held[point] for point in sealed if point in held} == {
        point: content for point, content in sealed.items() if point in held
    }
    assert len(held) == 4
    for _ in range(4):  # the old disk's last restore point goes
        succeed(world)
    assert_newest_is_the_source(world)
    assert_nothing_is_left_behind(world)
    assert folder_of(world).record.loose_files == ()


def test_digests_of_a_copy_that_was_made_larger(world: World) -> None:
    last = folder_of(world).restore_points()[-1].id
    files = folder_of(world).digest_files(2000, last)
    smaller = open_lookup(files, SMALL)
    grown = open_lookup(replace(files, grown_from=SMALL), LARGE)
    assert isinstance(grown, GrownDigestSet)
    assert [grown.digest_of(grain) for grain in range(16)] == [smaller.digest_of(grain) for grain in range(16)]
    assert grown.digests_of(14, 10) == smaller.digests_of(14, 2) + bytes(16 * 8)
    assert list(grown.not_zero(Extent(0, LARGE))) == [Extent(0, 12 * GRAIN)]
    assert list(grown.unknown()) == []
    smaller.close()
    grown.close()
    nothing = open_lookup(DigestFiles(base=None, grown_from=SMALL), LARGE)
    assert not nothing.known
    assert nothing.digest_of(0) is None
