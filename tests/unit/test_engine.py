"""What a run promises, on two sites in memory with real bytes."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.world import World, folder_of, source
from vrepl.engine.events import SilentEvents
from vrepl.errors import InterruptedRunError, LockedError, NotFoundError, VsphereError
from vrepl.extents import GRAIN
from vrepl.model import PowerState, TransferKind
from vrepl.report.model import Result

CAPACITY = 20 * GRAIN + 512


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path / "repository")
    vm = world.source.add_vm("web-01", [CAPACITY, 4 * GRAIN])
    generator = random.Random(1)
    for grain in range(12):
        world.source.guest_write(vm, 0, grain * GRAIN, generator.randbytes(GRAIN))
    world.source.guest_write(vm, 0, 20 * GRAIN, generator.randbytes(512))
    return world


def assert_equal(world: World) -> None:
    replica = world.replica()
    for ours, theirs in zip(source(world).disks, replica.disks, strict=True):
        assert theirs.disk.content() == ours.disk.content()


def test_first_run_moves_what_is_allocated_and_not_zero(world: World) -> None:
    world.source.guest_write(source(world), 0, 15 * GRAIN, bytes(GRAIN))
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert_equal(world)
    first, second = report.disks
    assert first.kind is TransferKind.FULL
    assert first.bytes_read == 13 * GRAIN + 512
    assert first.bytes_moved == 12 * GRAIN + 512
    assert second.bytes_moved == 0
    assert world.our_source_snapshots() == []
    assert list(world.restore_point_contents()) == [report.restore_point]
    assert world.replica().power is PowerState.OFF


def test_second_run_moves_only_what_changed(world: World) -> None:
    world.run_vm()
    world.source.guest_write(source(world), 0, 3 * GRAIN + 100, b"x" * 5)
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert report.disks[0].kind is TransferKind.INCREMENTAL
    assert (report.disks[0].bytes_read, report.disks[0].bytes_moved) == (GRAIN, GRAIN)
    assert_equal(world)


def test_a_grain_that_is_written_back_the_same_is_not_moved(world: World) -> None:
    world.run_vm()
    vm = source(world)
    world.source.guest_write(vm, 0, 0, vm.disks[0].disk.read(0, GRAIN))
    report = world.run_vm()
    assert (report.disks[0].bytes_read, report.disks[0].bytes_moved) == (GRAIN, 0)


def test_unmapped_grains_become_zeros(world: World) -> None:
    world.run_vm()
    from vrepl.extents import Extent

    world.source.guest_unmap(source(world), 0, Extent(2 * GRAIN, 3 * GRAIN))
    world.run_vm()
    assert_equal(world)


@pytest.mark.slow
def test_retention_leaves_the_newest_restore_points_each_as_it_was(world: World) -> None:
    images: dict[str, list[bytes]] = {}
    for round_ in range(10):
        world.source.guest_write(source(world), 0, round_ * GRAIN, bytes([round_ + 1]) * GRAIN)
        report = world.run_vm()
        assert report.result is Result.SUCCESS, report.error
        assert report.restore_point
        images[report.restore_point] = [disk.disk.content() for disk in source(world).disks]
    kept = world.restore_point_contents()
    assert list(kept) == list(images)[-3:]
    assert all(kept[point] == images[point] for point in kept)


def test_cbt_reset_is_said_and_compares_by_digest(world: World) -> None:
    world.run_vm()
    world.source.reset_cbt(source(world), 0)
    world.source.guest_write(source(world), 0, 0, b"changed")
    plan = world.engine().plan(world.job).vms[0]
    report = world.run_vm()
    assert plan.disks[0].kind is TransferKind.COMPARE
    assert "CBT was reset" in plan.disks[0].reason
    assert report.disks[0].kind is TransferKind.COMPARE
    assert report.disks[0].bytes_moved == GRAIN
    assert_equal(world)


def test_vm_without_cbt_is_compared_by_digest(world: World) -> None:
    source(world).cbt_supported = False
    world.run_vm()
    source(world).cbt_enabled = False
    world.source.guest_write(source(world), 0, 5 * GRAIN, b"changed")
    report = world.run_vm()
    assert report.disks[0].kind is TransferKind.COMPARE
    assert report.disks[0].bytes_moved == GRAIN
    assert_equal(world)


def test_replica_that_was_deleted_starts_anew(world: World) -> None:
    world.run_vm()
    del world.target.vms[world.replica().ref]
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert any("is gone" in note for note in report.notes)
    assert_equal(world)
    assert len(world.repository.replica("prod", source(world).instance_uuid).restore_points()) == 1  # type: ignore[union-attr]


def test_powered_on_replica_is_refused(world: World) -> None:
    world.run_vm()
    world.replica().power = PowerState.ON
    report = world.run_vm()
    assert report.result is Result.SKIPPED
    assert report.error is not None
    assert "powered on the replica of web-01 by hand" in report.error.message
    assert world.our_source_snapshots() == []


def test_disk_written_by_hand_is_reverted(world: World) -> None:
    world.run_vm()
    world.target.guest_write(world.replica(), 0, 7 * GRAIN, b"by hand")
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert any("written by something else" in note for note in report.notes)
    assert_equal(world)


def test_restore_point_snapshot_removed_by_hand(world: World) -> None:
    world.run_vm()
    world.source.guest_write(source(world), 0, GRAIN, b"second")
    last = world.run_vm().restore_point
    replica = world.replica()
    newest = replica.snapshots[-1]
    replica.snapshots.remove(newest)
    replica.current = newest.parent_ref
    world.source.guest_write(source(world), 0, 2 * GRAIN, b"third")
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert last not in world.restore_point_contents()
    assert_equal(world)


def test_disk_added_to_the_source(world: World) -> None:
    world.run_vm()
    vm = source(world)
    disk = world.source._new_disk("web-01", 2, 3 * GRAIN)
    vm.disks.append(disk)
    world.source.guest_write(vm, 2, 0, b"new disk")
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert [one.kind for one in report.disks] == [
        TransferKind.INCREMENTAL,
        TransferKind.INCREMENTAL,
        TransferKind.FULL,
    ]
    assert_equal(world)
    world.source.guest_write(vm, 2, GRAIN, b"again")
    assert world.run_vm().result is Result.SUCCESS
    assert_equal(world)


def test_disk_removed_from_the_source(world: World) -> None:
    world.run_vm()
    source(world).disks.pop()
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert_equal(world)
    assert [len(one) for one in world.restore_point_contents().values()] == [2, 1]


def test_resized_disk_is_refused_or_replaced(world: World) -> None:
    from tests.support.memory_disk import MemoryDisk
    from vrepl.model import OnResize

    world.run_vm()
    vm = source(world)
    grown = MemoryDisk(30 * GRAIN)
    grown.write(0, vm.disks[0].disk.content())
    vm.disks[0].disk = grown
    vm.disks[0].tracking = None
    report = world.run_vm()
    assert report.result is Result.FAILED
    assert report.error is not None
    assert "resized" in report.error.message
    assert report.error.hint is not None
    assert "on_resize" in report.error.hint
    world.job = replace(world.job, on_resize=OnResize.RESTART)
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert sorted(one.disk.content() for one in world.replica().disks) == sorted(one.disk.content() for one in vm.disks)
    world.source.guest_write(vm, 0, 29 * GRAIN, b"tail")
    assert world.run_vm().result is Result.SUCCESS


def test_storage_vmotion_compares(world: World) -> None:
    world.run_vm()
    source(world).disks[0].base_path = "[other-ds] web-01/web-01_0.vmdk"
    report = world.run_vm()
    assert report.disks[0].kind is TransferKind.COMPARE
    assert "moved from" in report.disks[0].reason
    assert report.disks[0].bytes_moved == 0


def test_renamed_vm_keeps_its_replica(world: World) -> None:
    world.run_vm()
    source(world).name = "www-01"
    world.job = replace(world.job, vms=("www-01",))
    [report] = world.run().vms
    assert report.result is Result.SUCCESS, report.error
    assert any("renamed" in note for note in report.notes)
    assert report.disks[0].kind is TransferKind.INCREMENTAL
    assert len(world.target.vms) == 1


def test_another_vm_of_the_same_name_does_not_take_over_the_replica(world: World) -> None:
    world.run_vm()
    del world.source.vms[source(world).ref]
    world.source.add_vm("web-01", [CAPACITY])
    report = world.run_vm()
    assert report.result is Result.FAILED
    assert report.error is not None
    assert "already has the replica of another VM named web-01-replica" in report.error.message


def test_user_snapshots_on_the_source_stay(world: World) -> None:
    vm = source(world)
    world.source.create_snapshot(vm.ref, "mine", "before the upgrade", quiesce=False)
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert [one.name for one in vm.snapshots] == ["mine"]
    assert not vm.cbt_enabled
    world.source.guest_write(vm, 0, GRAIN, b"more")
    report = world.run_vm()
    assert report.disks[0].kind is TransferKind.COMPARE
    assert_equal(world)
    assert [one.name for one in vm.snapshots] == ["mine"]


def test_no_room_is_said_before_any_snapshot(world: World) -> None:
    world.target.free = 1000
    report = world.run_vm()
    assert report.result is Result.FAILED
    assert report.error is not None
    assert "free" in report.error.message
    assert "create_snapshot" not in world.source.calls
    assert list(world.target.vms) == []


def test_locked_job(world: World) -> None:
    with world.repository.job_lock("demo"), pytest.raises(LockedError):
        world.run()


def test_unknown_vm(world: World) -> None:
    with pytest.raises(NotFoundError):
        world.engine().replicate(replace(world.job, vms=("nope",)))
    with pytest.raises(NotFoundError):
        world.engine().replicate(world.job, ["nope"])


def test_plan_changes_nothing(world: World) -> None:
    plan = world.engine().plan(world.job)
    assert plan.vms[0].disks[0].kind is TransferKind.FULL
    assert not any(call.startswith(("create", "remove", "enable")) for call in world.source.calls + world.target.calls)
    assert list(world.target.vms) == []


def test_source_snapshot_goes_whatever_fails(world: World) -> None:
    from vrepl.errors import DiskError

    def fail(method: str) -> None:
        if method == "create_snapshot":
            raise DiskError("no")

    world.target.before_call = fail
    report = world.run_vm()
    assert report.result is Result.FAILED
    assert world.our_source_snapshots() == []


def test_waiting_for_another_run_is_said_and_can_be_stopped(world: World) -> None:
    engine = world.engine()
    said: list[str] = []

    class Said(SilentEvents):
        def note(self, vm: str, message: str) -> None:
            said.append(message)
            engine.stop()

    engine.services.events = Said()
    with world.repository.job_lock("demo"), pytest.raises(InterruptedRunError, match="waiting for another run of job"):
        engine.replicate(world.job, lock_wait=600)
    assert len(said) == 1
    assert "is locked by pid" in said[0]
    assert "waiting up to 10 min" in said[0]


def test_what_a_dead_run_left_is_named_and_undone(world: World) -> None:
    """Its snapshot, its access to both VMs, and files that its data mover still held when the snapshot went."""
    killed = world.run_until(lambda where: where.startswith("transfer write"))
    assert killed is None
    assert len(world.our_source_snapshots()) == 1
    vm = source(world)
    held = 2

    def mover_lingers(method: str) -> None:
        nonlocal held
        if method == "remove_snapshot" and held == 2:
            vm.readers = 1
        if method == "consolidate":
            held -= 1
            vm.readers = min(vm.readers, held)

    world.source.before_call = mover_lingers
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert [note for note in report.notes if "access to web-01 at prod" in note]
    assert [note for note in report.notes if "access to the replica web-01-replica at dr" in note]
    assert [note for note in report.notes if "removed the snapshot of web-01" in note]
    assert [note for note in report.notes if "consolidated the source's disks" in note]
    assert not vm.consolidation_needed
    assert not report.consolidation_needed


def leave_the_job(world: World) -> None:
    """web-01's run is killed in mid-transfer; then the job names another VM."""
    assert world.run_until(lambda where: where.startswith("transfer write")) is None
    assert len(world.our_source_snapshots()) == 1
    world.source.add_vm("db-01", [4 * GRAIN])
    world.job = replace(world.job, vms=("db-01",))


def test_what_a_dead_run_left_goes_even_if_its_vm_has_left_the_job(world: World) -> None:
    leave_the_job(world)
    report = world.run_vm()
    assert report.name == "db-01"
    assert report.result is Result.SUCCESS, report.error
    assert world.our_source_snapshots() == []
    assert [note for note in world.events.notes if "web-01: no longer in job demo: removed the snapshot" in note]

    world.job = replace(world.job, vms=("web-01", "db-01"))  # it comes back: the run goes on where it was
    assert [vm.result for vm in world.run().vms] == [Result.SUCCESS] * 2
    assert world.our_source_snapshots() == []
    assert_equal(world)


def test_a_vm_that_left_the_job_costs_the_others_nothing(world: World) -> None:
    """Neither when what its run left cannot be cleaned up, nor when it is gone, nor when another run holds it."""
    leave_the_job(world)

    web = source(world)
    refused: list[str] = []

    def refuse_once(method: str) -> None:
        if method == "remove_snapshot" and not refused:
            refused.append(method)
            raise VsphereError("the snapshot cannot be removed now", fault="InvalidState")

    world.source.before_call = refuse_once
    assert world.run_vm().result is Result.SUCCESS
    assert [note for note in world.events.notes if note.startswith("web-01: no longer in job demo, and what its")]
    assert len(world.our_source_snapshots()) == 1
    world.source.before_call = lambda method: None

    world.events.notes.clear()
    with folder_of(world).lock():
        assert world.run_vm().result is Result.SUCCESS
    assert len(world.our_source_snapshots()) == 1
    assert not [note for note in world.events.notes if "no longer" in note]

    del world.source.vms[web.ref]
    assert world.run_vm().result is Result.SUCCESS
    assert not [note for note in world.events.notes if "no longer" in note]


def test_a_run_of_some_vms_leaves_the_others_of_the_job_alone(world: World) -> None:
    leave_the_job(world)
    world.job = replace(world.job, vms=("web-01", "db-01"))
    (report,) = world.engine().replicate(world.job, ["db-01"]).vms
    assert report.result is Result.SUCCESS, report.error
    assert len(world.our_source_snapshots()) == 1


@pytest.mark.parametrize("tries_until_free", [1, 2, 99])
def test_a_disk_that_is_still_open_when_its_snapshot_goes(world: World, tries_until_free: int) -> None:
    world.run_vm()
    vm = source(world)
    tries = 0

    def somebody_reads(method: str) -> None:
        nonlocal tries
        tries += method == "consolidate"
        if method in {"remove_snapshot", "consolidate"}:
            vm.readers = int(tries < tries_until_free)

    world.source.before_call = somebody_reads
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert vm.consolidation_needed == report.consolidation_needed == (tries_until_free == 99)
    vm.readers = 0
    world.source.before_call = lambda method: None
    report = world.run_vm()
    assert not vm.consolidation_needed
    assert any("consolidated the source's disks" in note for note in report.notes) == (tries_until_free == 99)


def test_api_calls_per_vm_are_few(world: World) -> None:
    world.run_vm()
    before = len(world.source.calls), len(world.target.calls)
    world.run_vm()
    assert len(world.source.calls) - before[0] <= 7
    assert len(world.target.calls) - before[1] <= 10


def test_verify_reads_the_restore_point_back(world: World) -> None:
    world.run_vm()
    folder = world.repository.replicas()[0]
    report = world.engine().verify([folder])
    assert [vm.result for vm in report.vms] == [Result.SUCCESS], report.vms[0].error
    assert report.vms[0].disks[0].bytes_read == 12 * GRAIN + 512
    verification = folder.verification(report.vms[0].restore_point or "")
    assert verification is not None
    assert verification.good


def test_verify_finds_one_flipped_bit(world: World) -> None:
    world.run_vm()
    snapshot = world.replica().snapshots[0]
    good = snapshot.disks[0].disk.read(5 * GRAIN, 1)
    snapshot.disks[0].disk.write(5 * GRAIN, bytes([good[0] ^ 1]))
    report = world.engine().verify(world.repository.replicas())
    assert report.vms[0].result is Result.FAILED
    assert report.vms[0].disks[0].bad_extents == [(5 * GRAIN, GRAIN)]


def test_verify_finds_data_where_zeros_belong(world: World) -> None:
    world.run_vm()
    world.replica().snapshots[0].disks[1].disk.write(GRAIN, b"\1")
    report = world.engine().verify(world.repository.replicas())
    assert report.vms[0].disks[1].bad_extents == [(GRAIN, GRAIN)]


def test_repository_that_was_lost_is_rebuilt_and_the_next_run_is_incremental(world: World) -> None:
    import shutil

    from vrepl.repository.rebuild import FoundReplica, rebuild
    from vrepl.repository.store import Repository

    world.run_vm()
    world.source.guest_write(source(world), 0, GRAIN, b"second")
    world.run_vm()
    shutil.rmtree(world.folder)
    rebuilt = rebuild(Repository.open(world.folder), [FoundReplica("dr", vm) for vm in world.target.list_vms()])
    assert [(one.restore_points, one.problem) for one in rebuilt] == [(2, "")]
    world.repository = Repository.open(world.folder)
    world.source.guest_write(source(world), 0, 2 * GRAIN, b"third")
    plan = world.engine().plan(world.job).vms[0]
    assert [disk.kind for disk in plan.disks] == [TransferKind.INCREMENTAL] * 2
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert report.disks[0].kind is TransferKind.INCREMENTAL
    assert report.disks[0].bytes_moved == GRAIN
    assert_equal(world)
    world.source.reset_cbt(source(world), 0)
    report = world.run_vm()
    assert report.disks[0].kind is TransferKind.COMPARE
    assert "both sides are read" in report.disks[0].reason
    assert report.disks[0].bytes_moved == 0
    assert world.engine().verify(world.repository.replicas()).vms[0].result is Result.SKIPPED


def test_skip_disk_leaves_a_disk_out_but_saves_no_vm_that_takes_no_snapshot(world: World) -> None:
    from vrepl.model import OnNotReplicable

    source(world).disks[1].mode = "independent_persistent"
    refused = world.run_vm()
    assert refused.result is Result.FAILED
    assert not any("left out" in note for note in refused.notes)
    world.job = replace(world.job, on_not_replicable=OnNotReplicable.SKIP_DISK)
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert [disk.index for disk in report.disks] == [0]
    assert any("left out" in note for note in report.notes)
    source(world).template = True
    report = world.run_vm()
    assert report.result is Result.FAILED
    assert report.error is not None
    assert "template" in report.error.message
