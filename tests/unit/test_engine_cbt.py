"""Change tracking of the source: per disk, repaired where one lacks it, and switched on as the job says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.world import World, source
from vrepl.extents import GRAIN
from vrepl.model import Consistency, EnableCbt, PowerState, Quiesce, TransferKind
from vrepl.report.model import Result, VmReport


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path / "repository")
    vm = world.source.add_vm("web-01", [16 * GRAIN, 16 * GRAIN])
    for index in (0, 1):
        world.source.guest_write(vm, index, 0, b"\x01" * (4 * GRAIN))
    return world


def succeed(world: World) -> VmReport:
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert world.our_source_snapshots() == []
    return report


def kinds(report: VmReport) -> list[TransferKind]:
    return [disk.kind for disk in report.disks]


def test_the_snapshot_that_tracking_begins_with_on_a_running_vm_is_not_quiesced(world: World) -> None:
    """It stuns the guest; a quiesced one failed, and with it the run."""
    [planned] = world.engine().plan(world.job).vms
    assert any("switched on while the VM runs" in note and "not quiesced" in note for note in planned.notes)
    report = succeed(world)
    assert report.consistency == Consistency.CRASH
    assert any("crash-consistent" in note for note in report.notes)
    world.source.guest_write(source(world), 0, 0, b"\x02" * GRAIN)
    again = succeed(world)
    assert again.consistency == Consistency.QUIESCED
    assert kinds(again) == [TransferKind.INCREMENTAL] * 2
    assert not any("switched on" in note for note in again.notes)


def test_where_quiescing_is_required_one_snapshot_without_it_comes_first(world: World) -> None:
    world.job = replace(world.job, quiesce=Quiesce.REQUIRE)
    report = succeed(world)
    assert report.consistency == Consistency.QUIESCED
    assert world.source.calls.count("create_snapshot") == 2
    succeed(world)
    assert world.source.calls.count("create_snapshot") == 3


@pytest.mark.parametrize("call", range(1, 8))
def test_killed_between_the_two_snapshots_nothing_stays(world: World, call: int) -> None:
    world.job = replace(world.job, quiesce=Quiesce.REQUIRE)
    seen: list[str] = []

    def kill_at(where: str) -> bool:
        if "prod" in where and world.events.steps[-1:] == ["enable CBT"]:
            seen.append(where)
        return len(seen) == call

    world.run_until(kill_at)
    if world.run_vm().result is not Result.SUCCESS:
        # Killed after it was switched on and before its first snapshot: the guest stands still in this run's.
        assert source(world).stun is False
    assert succeed(world).consistency == Consistency.QUIESCED


def test_tracking_is_left_off_where_the_job_says_so(world: World) -> None:
    world.job = replace(world.job, enable_cbt=EnableCbt.NEVER)
    report = succeed(world)
    assert "enable_cbt" not in world.source.calls
    assert report.consistency == Consistency.QUIESCED
    assert any('enable_cbt = "never"' in note for note in report.notes)
    assert kinds(succeed(world)) == [TransferKind.COMPARE] * 2


def test_tracking_is_switched_on_once_the_vm_is_off_where_the_job_says_so(world: World) -> None:
    world.job = replace(world.job, enable_cbt=EnableCbt.POWERED_OFF)
    succeed(world)
    assert "enable_cbt" not in world.source.calls
    source(world).power = PowerState.OFF
    succeed(world)
    assert "enable_cbt" in world.source.calls


def test_a_disk_that_lacks_tracking_is_repaired_at_the_next_chance(world: World) -> None:
    """The VM's own switch is on: by that alone the disk was compared, whole, at every run for ever."""
    world.source.enable_cbt(source(world).ref)
    source(world).tracked.discard(2001)
    first = succeed(world)
    assert first.disks[1].kind is TransferKind.FULL
    second = succeed(world)
    assert kinds(second) == [TransferKind.INCREMENTAL, TransferKind.COMPARE]
    assert any("Hard disk 2 is switched on" in note for note in second.notes)
    third = succeed(world)
    assert kinds(third) == [TransferKind.INCREMENTAL] * 2
    calls = world.source.calls.count("enable_cbt")
    succeed(world)
    assert world.source.calls.count("enable_cbt") == calls


def test_a_repair_waits_until_the_snapshots_of_others_are_gone(world: World) -> None:
    world.source.enable_cbt(source(world).ref)
    source(world).tracked.discard(2001)
    succeed(world)
    made = world.source.create_snapshot(source(world).ref, "mine", "", quiesce=False)
    calls = world.source.calls.count("enable_cbt")
    succeed(world)
    assert world.source.calls.count("enable_cbt") == calls
    world.source.remove_snapshot(source(world).ref, made.ref)
    succeed(world)
    assert world.source.calls.count("enable_cbt") == calls + 1


@pytest.mark.parametrize("died", [False, True], ids=["settled", "in mid-run"])
def test_a_vm_that_lost_power_is_compared_whatever_change_tracking_says(world: World, died: bool) -> None:
    """It has kept its change IDs, and lost what it had in memory: a run that resumes may not go by them either."""
    succeed(world)
    world.source.guest_write(source(world), 0, 5 * GRAIN, b"\x05" * (4 * GRAIN))
    if died:
        assert world.run_until(lambda where: where.startswith("transfer recorded")) is None
    world.source.cbt_misses = lambda index, offset: True
    for grain in (2, 6):
        world.source.guest_write(source(world), 0, grain * GRAIN, b"\x09" * GRAIN)
    world.source.cbt_misses = lambda index, offset: False
    source(world).power = PowerState.OFF
    source(world).lost_power = True
    [planned] = world.engine().plan(world.job).vms
    assert {disk.kind for disk in planned.disks} == {TransferKind.COMPARE}
    report = succeed(world)
    assert kinds(report) == [TransferKind.COMPARE] * 2
    assert "lost power" in report.disks[0].reason
    assert world.replica().disks[0].disk.content() == source(world).disks[0].disk.content()
