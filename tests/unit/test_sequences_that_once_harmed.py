"""Sequences that once harmed a replica, lost a restore point, left something behind or told an untruth."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from tests.support.memory_disk import MemoryDisk
from tests.support.memory_site import MemorySite
from tests.support.world import MortalMovers, World, source
from tests.support.world import folder_of as folder
from vrepl.errors import CbtError, DiskError, MoverError, TransientVsphereError, VsphereError
from vrepl.extents import GRAIN
from vrepl.model import OnNotReplicable, OnResize, RetentionPolicy, TransferKind
from vrepl.report.model import Result
from vrepl.transport import checkpoints
from vrepl.transport.hooks import SimulatedKill

CAPACITY = 40 * GRAIN + 512


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path / "repository")
    vm = world.source.add_vm("web-01", [CAPACITY, 4 * GRAIN])
    generator = random.Random(2)
    for grain in range(36):
        world.source.guest_write(vm, 0, grain * GRAIN, generator.randbytes(GRAIN))
    world.source.guest_write(vm, 1, GRAIN, generator.randbytes(GRAIN))
    return world


@pytest.fixture(autouse=True)
def eager_checkpoints() -> object:
    """A checkpoint after every block, so that a transfer of little can be cut in two."""
    with mock.patch.multiple(checkpoints, LEAST_BYTES=1, LEAST_SECONDS=0.0, SHARE=0):
        yield


def after(where: str, times: int = 1) -> Callable[[str], bool]:
    """Dies at the n-th point whose name begins so."""
    left = times

    def kill_at(point: str) -> bool:
        nonlocal left
        left -= point.startswith(where)
        return left <= 0

    return kill_at


def assert_newest_holds_the_source(world: World) -> None:
    """The newest restore point, disk by disk as its own record says which is which, is the source as it is now."""
    point = folder(world).restore_points()[-1]
    [snapshot] = [one for one in world.replica().snapshots if one.name == point.snapshot_name]
    assert len(snapshot.disks) == len(point.disks)
    by_key = {disk.key: disk.disk.content() for disk in snapshot.disks}
    for disk in source(world).disks:
        of_point = point.disk(disk.key)
        if of_point is not None:
            assert by_key[of_point.target_key] == disk.disk.content(), disk.label


def resize(world: World, capacity: int) -> None:
    disk = source(world).disks[0]
    grown = MemoryDisk(capacity)
    grown.write(0, disk.disk.content()[:capacity])
    disk.disk = grown
    disk.tracking = None


# -- replica disks that come and go -------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["before dr revert_to_snapshot", "after dr revert_to_snapshot", "transfer opened"])
def test_disk_of_the_replica_removed_by_hand_and_its_return_cut_off(world: World, where: str) -> None:
    world.run_vm()
    world.replica().disks.pop(0)
    world.source.guest_write(source(world), 0, 3 * GRAIN, b"changed")
    assert world.run_until(after(where)) is None
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert_newest_holds_the_source(world)


def test_disk_resized_while_its_first_run_was_unfinished(world: World) -> None:
    assert world.run_until(after("transfer recorded")) is None
    resize(world, 50 * GRAIN)
    world.source.guest_write(source(world), 0, 49 * GRAIN, b"tail")
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert_newest_holds_the_source(world)
    assert len(world.replica().disks) == 2


def test_disk_resized_while_a_later_run_was_unfinished(world: World) -> None:
    world.job = replace(world.job, on_resize=OnResize.RESTART)
    world.run_vm()
    world.source.guest_write(source(world), 0, 0, b"changed" * 100)
    world.source.guest_write(source(world), 0, 30 * GRAIN, b"changed" * 100)
    assert world.run_until(after("transfer recorded")) is None
    resize(world, 50 * GRAIN)
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert_newest_holds_the_source(world)
    assert world.run_vm().result is Result.SUCCESS


def add_disk_to_the_source(world: World) -> None:
    vm = source(world)
    vm.disks.append(world.source._new_disk("web-01", 2, 30 * GRAIN))
    for grain in range(20):
        world.source.guest_write(vm, 2, grain * GRAIN, bytes([grain + 1]) * GRAIN)


def snapshot_by_hand(world: World) -> None:
    world.target.create_snapshot(world.replica().ref, "by hand", "", quiesce=False)


def test_disk_added_in_a_run_that_died_and_is_reverted(world: World) -> None:
    """The revert takes the new disk off the replica: it is made again, in the same run."""
    world.run_vm()
    add_disk_to_the_source(world)
    assert world.run_until(after("transfer recorded")) is None
    snapshot_by_hand(world)
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert_newest_holds_the_source(world)
    assert len(world.replica().disks) == 3


def test_disk_removed_in_a_run_that_died_and_is_reverted(world: World) -> None:
    """The revert brings the disk back: it goes again, and no restore point shows it."""
    world.run_vm()
    removed = source(world).disks.pop(0)
    world.source.guest_write(source(world), 0, 0, bytes([5]) * 3 * GRAIN)
    assert world.run_until(after("transfer recorded")) is None
    snapshot_by_hand(world)
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert_newest_holds_the_source(world)
    assert len(world.replica().disks) == 1
    source(world).disks.insert(0, removed)
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert_newest_holds_the_source(world)


def test_disk_added_to_a_vm_of_which_another_disk_is_left_out(world: World) -> None:
    world.job = replace(world.job, on_not_replicable=OnNotReplicable.SKIP_DISK)
    source(world).disks[0].mode = "independent_persistent"
    assert world.run_vm().result is Result.SUCCESS
    add_disk_to_the_source(world)
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert_newest_holds_the_source(world)


def replica_disk_removed_by_hand(world: World) -> None:
    world.replica().disks.pop(0)


def source_disk_resized(world: World) -> None:
    world.job = replace(world.job, on_resize=OnResize.RESTART)
    resize(world, 50 * GRAIN)


def another_disk_in_the_place(world: World) -> None:
    """The same device key, another disk."""
    disk = world.source._new_disk("web-01", 0, CAPACITY)
    disk.base_path = disk.base_path.replace(".vmdk", "-new.vmdk")
    source(world).disks[0] = disk
    for grain in range(10, 30):
        world.source.guest_write(source(world), 0, grain * GRAIN, bytes([grain]) * GRAIN)


def replica_snapshot_by_hand(world: World) -> None:
    add_disk_to_the_source(world)
    world.run_until(after("transfer recorded"))
    snapshot_by_hand(world)


@pytest.mark.slow
@pytest.mark.parametrize("steps", range(1, 46, 3))
@pytest.mark.parametrize(
    "change",
    [
        add_disk_to_the_source,
        replica_disk_removed_by_hand,
        source_disk_resized,
        another_disk_in_the_place,
        replica_snapshot_by_hand,
    ],
)
def test_deaths_on_the_way_of_a_disk_that_changes(world: World, change: Callable[[World], None], steps: int) -> None:
    world.run_vm()
    sealed = world.restore_point_contents()
    change(world)
    for further in (0, 7):
        if world.run_until(after("", steps + further)) is not None:
            break
        world.source.guest_write(source(world), 0, (steps % 30) * GRAIN, b"meanwhile")
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert_newest_holds_the_source(world)
    assert len(world.replica().disks) == len(source(world).disks)
    held = world.restore_point_contents()
    assert all(held[point] == contents for point, contents in sealed.items() if point in held)
    verified = world.engine().verify(world.repository.replicas()).vms[0]
    assert verified.result is Result.SUCCESS, verified.error


# -- restore points -----------------------------------------------------------------------------------------------


def test_clock_that_goes_backwards_loses_no_restore_point(world: World) -> None:
    world.job = replace(world.job, retention=RetentionPolicy(last=1))
    world.run_vm()
    world.clock.now -= dt.timedelta(hours=3)
    world.source.guest_write(source(world), 0, 0, b"later")
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    # By the target's clock the first one is the newer: it stays, since no single clock decides what is removed.
    assert max(world.restore_point_contents()) == report.restore_point
    assert any("clock" in note for note in report.notes)
    assert_newest_holds_the_source(world)
    world.source.guest_write(source(world), 0, GRAIN, b"later still")
    report = world.run_vm()
    assert report.disks[0].kind is TransferKind.INCREMENTAL
    assert not any("revert" in note for note in report.notes)
    assert max(world.restore_point_contents()) == report.restore_point
    world.clock.now += dt.timedelta(hours=4)
    report = world.run_vm()
    assert list(world.restore_point_contents()) == [report.restore_point], "once both clocks agree, all older ones go"


def test_seal_whose_reply_is_lost_is_no_failure(world: World) -> None:
    lost = [True]

    def lose(method: str) -> None:
        if method == "create_snapshot" and lost:
            lost.pop()
            raise TransientVsphereError("the connection is gone")

    world.target.after_call = lose
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert list(world.restore_point_contents()) == [report.restore_point]
    assert [point.id for point in folder(world).restore_points()] == [report.restore_point]


def test_chain_that_is_full_is_pruned_before_the_next_seal(world: World) -> None:
    """Were retention only asked after a seal, a chain that takes no more snapshots could never be shortened."""
    world.job = replace(world.job, retention=RetentionPolicy(last=28))
    for _ in range(6):
        world.run_vm()

    def refuse(method: str) -> None:
        if method == "create_snapshot" and len(world.replica().snapshots) >= 6:
            raise VsphereError("too many snapshots", fault="TooManySnapshotLevels")

    world.target.before_call = refuse
    world.job = replace(world.job, retention=RetentionPolicy(last=3))
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert len(world.restore_point_contents()) == 3


def test_restore_point_that_is_gone_does_not_count_for_what_is_kept(world: World) -> None:
    first = world.run_vm().restore_point
    second = world.run_vm().restore_point
    world.target.remove_snapshot(world.replica().ref, world.replica().snapshots[-1].ref)
    world.job = replace(world.job, retention=RetentionPolicy(last=1))

    def die(method: str) -> None:
        if method == "create_snapshot":
            raise VsphereError("no")

    world.source.before_call = die
    report = world.run_vm()
    assert report.result is Result.FAILED
    assert (list(world.restore_point_contents()), report.removed_restore_points) == ([first], []), second


def test_job_with_another_target_does_not_forget_the_replica(world: World) -> None:
    first = world.run_vm().restore_point
    other = MemorySite("dr2", world.clock)
    engine = world.engine()
    engine.sites = lambda name: {"prod": world.source, "dr": world.target, "dr2": other}[name]
    job = replace(world.job, target="dr2", placement=replace(world.job.placement, datastore="dr2-ds"))
    plan = engine.plan(job).vms[0]
    [report] = engine.replicate(job).vms
    assert (plan.result, report.result) == (Result.FAILED, Result.FAILED)
    assert report.error is not None
    assert "dr" in report.error.message
    assert other.vms == {}
    assert [point.id for point in folder(world).restore_points()] == [first]
    assert world.run_vm().disks[0].kind is TransferKind.INCREMENTAL


def test_restore_point_that_failed_verification_is_compared_by_the_next_run(world: World) -> None:
    world.run_vm()
    replica = world.replica()
    for disks in (replica.disks, replica.snapshots[0].disks):
        disks[0].disk.write(5 * GRAIN, b"rot")
    assert world.engine().verify(world.repository.replicas()).vms[0].result is Result.FAILED
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert report.disks[0].kind is TransferKind.COMPARE
    assert any("verification" in note for note in report.notes)
    assert_newest_holds_the_source(world)
    assert world.run_vm().disks[0].kind is TransferKind.INCREMENTAL


# -- what must not stay behind, and what must be said -------------------------------------------------------------


def test_source_snapshot_that_cannot_be_removed_is_said_in_the_report_of_a_failed_run(world: World) -> None:
    def fail(method: str) -> None:
        if method == "remove_snapshot":
            raise VsphereError("the disk is busy", fault="GenericVmConfigFault")

    world.source.before_call = fail
    report = world.run_vm()
    assert report.result is Result.FAILED
    assert any("could not remove the source snapshot" in note for note in report.notes)


def test_change_tracking_that_cannot_be_switched_on_is_no_failure(world: World) -> None:
    def refuse(method: str) -> None:
        if method == "enable_cbt":
            raise CbtError("enable change tracking: the VM has a shared disk")

    world.source.before_call = refuse
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert any("shared disk" in note for note in report.notes)
    assert_newest_holds_the_source(world)


class Access:
    """PrepareForAccess and EndAccess as a vCenter keeps them: of VMs that exist."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.held: set[tuple[str, str, str]] = set()
        self.lose_replies = 0

    def prepare(self, site: str, vm_ref: str, identity: str) -> None:
        self.held.add((site, vm_ref, identity))
        if self.lose_replies:
            self.lose_replies -= 1
            raise MoverError("the data mover died during prepare_for_access")

    def end(self, site: str, vm_ref: str, identity: str) -> None:
        if self._world.dead:
            raise SimulatedKill
        sites = {"prod": self._world.source, "dr": self._world.target}
        if vm_ref not in sites[site].vms:
            raise DiskError(f"EndAccess for {vm_ref}: the object has been deleted", code=13)
        self.held.discard((site, vm_ref, identity))


@pytest.fixture
def access(world: World, monkeypatch: pytest.MonkeyPatch) -> Access:
    made = Access(world)
    monkeypatch.setattr(MortalMovers, "prepare_for_access", lambda self, *of: made.prepare(*of))
    monkeypatch.setattr(MortalMovers, "end_access", lambda self, *of: made.end(*of))
    return made


def test_access_of_a_replica_that_was_deleted_since_stops_nothing(world: World, access: Access) -> None:
    world.run_vm()
    world.source.guest_write(source(world), 0, 0, b"changed")
    assert world.run_until(after("transfer")) is None
    assert len(access.held) == 2
    del world.target.vms[world.replica().ref]
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert {site for site, _, _ in access.held} <= {"dr"}
    assert_newest_holds_the_source(world)
