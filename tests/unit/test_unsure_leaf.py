"""Runs over a leaf of which nothing is sure: restore points removed by hand, mapped VMs, deaths in between."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.memory_site import MemoryVm
from tests.support.world import World, source
from vrepl.extents import GRAIN, Extent
from vrepl.model import PowerState, TransferKind
from vrepl.report.model import Result, VmReport
from vrepl.repository.commit_record import ReplicaMark, read_mark
from vrepl.transport import checkpoints

GRAINS = 40
CAPACITY = GRAINS * GRAIN + 512


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A checkpoint after every block, so that a death in mid-transfer leaves something to resume."""
    monkeypatch.setattr(checkpoints, "LEAST_BYTES", 1)
    monkeypatch.setattr(checkpoints, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "SHARE", 0)
    world = World(tmp_path / "repository")
    vm = world.source.add_vm("web-01", [CAPACITY])
    world.source.guest_write(vm, 0, 0, random.Random(1).randbytes(CAPACITY))
    return world


def assert_equal(world: World, name: str = "web-01-replica") -> None:
    ours, theirs = source(world).disks[0].disk.content(), world.replica(name).disks[0].disk.content()
    assert [at for at in range(GRAINS + 1) if ours[at * GRAIN :][:GRAIN] != theirs[at * GRAIN :][:GRAIN]] == []


def die_in_transfer(world: World, settled: int) -> None:
    """Once this run has settled so many bytes."""
    assert world.run_until(lambda where: where.startswith("transfer") and int(where.split()[-1]) >= settled) is None


def remove_restore_points(world: World, *, only_newest: bool = False) -> None:
    replica = world.replica()
    for snapshot in list(reversed(replica.snapshots))[: 1 if only_newest else None]:
        world.target.remove_snapshot(replica.ref, snapshot.ref)


# -- restore points removed by hand -----------------------------------------------------------------------------------


@pytest.mark.parametrize("deaths", [[0], [16 * GRAIN], [32 * GRAIN], [16 * GRAIN, 16 * GRAIN]])
@pytest.mark.parametrize("only_newest", [True, False])
@pytest.mark.slow
def test_removed_restore_points_and_deaths_leave_no_old_bytes(
    world: World, only_newest: bool, deaths: list[int]
) -> None:
    """The leaf then holds bytes that neither zeros nor an older restore point's digests speak of."""
    vm = source(world)
    world.run_vm()
    original = vm.disks[0].disk.read(30 * GRAIN, GRAIN)
    world.source.guest_write(vm, 0, 30 * GRAIN, b"B" * GRAIN)
    world.run_vm()
    remove_restore_points(world, only_newest=only_newest)
    for disk in world.replica().disks:  # so that it cannot tell that the leaf differs from the older restore point
        if disk.tracking is not None:
            disk.tracking.last_change.clear()
    world.source.guest_write(vm, 0, 30 * GRAIN, original)
    world.source.guest_unmap(vm, 0, Extent(33 * GRAIN, 2 * GRAIN))
    for settled in deaths:
        die_in_transfer(world, settled)
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert_equal(world)


def test_a_comparison_that_died_goes_on_where_it_stopped(world: World) -> None:
    world.run_vm()
    remove_restore_points(world)
    die_in_transfer(world, 32 * GRAIN)
    world.source.guest_write(source(world), 0, 2 * GRAIN, b"since then")
    report = world.run_vm()
    [disk] = report.disks
    assert disk.kind is TransferKind.COMPARE
    assert "resumes a comparison" in disk.reason
    assert disk.bytes_read is not None
    assert disk.bytes_read < CAPACITY
    assert_equal(world)


def test_a_comparison_after_a_cbt_reset_that_died_goes_on_where_it_stopped(world: World) -> None:
    vm = source(world)
    world.run_vm()
    world.source.reset_cbt(vm, 0)
    world.source.guest_write(vm, 0, 30 * GRAIN, b"changed")
    assert world.run_until(lambda where: where == "before dr create_snapshot") is None
    world.source.guest_write(vm, 0, 2 * GRAIN, b"since then")
    report = world.run_vm()
    [disk] = report.disks
    assert disk.kind is TransferKind.COMPARE
    assert "CBT was reset" in disk.reason
    assert disk.bytes_read is not None
    assert disk.bytes_read < CAPACITY
    assert_equal(world)


def test_a_disk_that_a_dead_run_added_is_found_again_and_compared(world: World) -> None:
    world.run_vm()
    vm = source(world)
    vm.disks.append(world.source._new_disk("web-01", 1, 4 * GRAIN))
    world.source.guest_write(vm, 1, 0, b"new disk")
    assert world.run_until(lambda where: where == "after dr add_replica_disk") is None
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert any("is compared" in note for note in report.notes)
    assert len(world.replica().disks) == 2
    assert world.replica().disks[1].disk.content() == vm.disks[1].disk.content()


def test_cbt_that_was_enabled_beside_a_snapshot_is_not_believed(world: World) -> None:
    vm = source(world)
    world.source.create_snapshot(vm.ref, "mine", "", quiesce=False)
    world.run_vm()
    vm.cbt_enabled = True  # by hand: vrepl would not
    for _ in range(2):
        report = world.run_vm()
        assert report.disks[0].kind is TransferKind.COMPARE
        assert any("CBT was enabled while the snapshot mine existed" in note for note in report.notes)
    world.source.remove_snapshot(vm.ref, vm.snapshots[0].ref)
    assert world.run_vm().disks[0].kind is TransferKind.COMPARE
    world.source.guest_write(vm, 0, 3 * GRAIN, b"later")
    report = world.run_vm()
    assert (report.disks[0].kind, report.disks[0].bytes_moved) == (TransferKind.INCREMENTAL, GRAIN)
    world.source.create_snapshot(vm.ref, "taken with CBT on", "", quiesce=False)
    assert world.run_vm().disks[0].kind is TransferKind.INCREMENTAL
    assert_equal(world)


# -- mapping ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def seed(world: World) -> MemoryVm:
    """A VM at the target that was restored from an older copy of web-01."""
    vm = world.target.add_vm("from-tape", [CAPACITY], power=PowerState.OFF)
    world.target.guest_write(vm, 0, 0, source(world).disks[0].disk.content())
    world.source.guest_write(source(world), 0, 7 * GRAIN, b"newer" * 100)
    world.source.guest_unmap(source(world), 0, Extent(20 * GRAIN, GRAIN))
    world.target.guest_write(vm, 0, 11 * GRAIN, b"written at the target")
    return vm


def mapped(world: World, name: str = "from-tape") -> VmReport:
    return world.run_vm(map_to=name)


def test_a_mapped_vm_becomes_the_replica_and_only_what_differs_crosses(world: World, seed: MemoryVm) -> None:
    [planned] = world.engine().plan(world.job, replica_map={"web-01": "from-tape"}).vms
    assert (planned.replica, planned.disks[0].kind) == ("from-tape", TransferKind.COMPARE)
    assert seed.extra_config == {}
    report = mapped(world)
    assert report.result is Result.SUCCESS, report.error
    assert report.replica == "from-tape"
    assert report.disks[0].bytes_moved == 3 * GRAIN
    assert_equal(world, "from-tape")
    assert list(world.target.vms) == [seed.ref]
    assert seed.cbt_enabled
    mark = read_mark(seed.extra_config)
    assert mark == ReplicaMark(
        world.repository.id, "prod", source(world).instance_uuid, replica_instance_uuid=seed.instance_uuid
    )
    world.source.guest_write(source(world), 0, 0, b"next")
    second = world.run_vm()
    assert (second.disks[0].kind, second.disks[0].bytes_moved) == (TransferKind.INCREMENTAL, GRAIN)
    assert_equal(world, "from-tape")
    assert mapped(world).disks[0].kind is TransferKind.INCREMENTAL
    assert world.engine().verify(world.repository.replicas()).vms[0].result is Result.SUCCESS


@pytest.mark.parametrize(
    "where",
    [
        "after dr set_extra_config",
        "before dr enable_cbt",
        "before dr reconcile_replica",
        "before prod create_snapshot",
        "transfer",
        "before dr create_snapshot",
    ],
)
def test_a_mapping_that_died_never_loses_what_the_vm_held(world: World, seed: MemoryVm, where: str) -> None:
    def kill_at(here: str) -> bool:
        return here.startswith(where) and (where != "transfer" or int(here.split()[-1]) >= 16 * GRAIN)

    assert world.run_until(kill_at, map_to="from-tape") is None
    world.source.guest_unmap(source(world), 0, Extent(35 * GRAIN, GRAIN))
    report = mapped(world)
    assert report.result is Result.SUCCESS, report.error
    assert list(world.target.vms) == [seed.ref]
    assert_equal(world, "from-tape")


def powered_on(world: World, seed: MemoryVm) -> None:
    seed.power = PowerState.ON


def another_capacity(world: World, seed: MemoryVm) -> None:
    seed.disks[0] = world.target._new_disk("from-tape", 0, CAPACITY + GRAIN)


def another_number_of_disks(world: World, seed: MemoryVm) -> None:
    seed.disks.append(world.target._new_disk("from-tape", 1, GRAIN))


def somebody_elses_replica(world: World, seed: MemoryVm) -> None:
    seed.extra_config = ReplicaMark(world.repository.id, "prod", "another").to_extra_config()


def another_repositorys_replica(world: World, seed: MemoryVm) -> None:
    seed.extra_config = ReplicaMark("elsewhere", "prod", source(world).instance_uuid).to_extra_config()


def with_snapshots(world: World, seed: MemoryVm) -> None:
    world.target.create_snapshot(seed.ref, "before", "", quiesce=False)


def independent(world: World, seed: MemoryVm) -> None:
    seed.disks[0].mode = "independent_persistent"


def beside_a_replica(world: World, seed: MemoryVm) -> None:
    world.run_vm()


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (powered_on, "is poweredOn"),
        (another_capacity, "do not match"),
        (another_number_of_disks, "do not match"),
        (somebody_elses_replica, "is the replica of VM another"),
        (another_repositorys_replica, "in repository elsewhere"),
        (with_snapshots, "has 1 snapshots"),
        (independent, "independent"),
        (beside_a_replica, "has the replica web-01-replica already"),
    ],
)
def test_a_vm_that_cannot_be_the_replica_is_refused_untouched(
    world: World, seed: MemoryVm, spoil: Callable[[World, MemoryVm], None], complaint: str
) -> None:
    spoil(world, seed)
    before = replace(seed), dict(seed.extra_config), [disk.disk.content() for disk in seed.disks]
    report = mapped(world)
    assert report.result is Result.FAILED
    assert report.error is not None
    assert complaint in report.error.message
    assert report.error.hint
    assert (replace(seed), dict(seed.extra_config), [disk.disk.content() for disk in seed.disks]) == before


def test_a_mapped_vm_that_does_not_exist_is_said(world: World) -> None:
    report = mapped(world, "nobody")
    assert report.error is not None
    assert "nobody" in report.error.message


def test_a_mapped_vm_whose_repository_was_lost_is_not_taken_for_a_leftover(world: World, seed: MemoryVm) -> None:
    """vrepl removes replicas that its own dead runs half-made; it did not make this one."""
    world.job = replace(world.job, replica_name="from-tape")
    assert world.run_until(lambda where: where == "before prod create_snapshot", map_to="from-tape") is None
    folder = world.repository.replicas()[0]
    folder.save_record(replace(folder.record, target_instance_uuid="", target_name=""))
    report = world.run_vm()
    assert report.result is Result.FAILED
    assert report.error is not None
    assert "--map" in (report.error.hint or "")
    assert list(world.target.vms) == [seed.ref]
