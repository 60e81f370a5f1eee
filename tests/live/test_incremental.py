"""What a second run costs, and what history, kills, resets and a lost repository do to it: on the lab, from outside."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import plain_api
from tests.support.plain_api import vm_named, wait
from tests.support.vrepl_runs import GRAIN, Image, Runs, kinds, moved
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

StartRuns = Callable[..., Runs]


@pytest.fixture
def start_runs(start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> StartRuns:
    def start(*disks: DiskSpec, **vm: Any) -> Runs:
        return Runs(start_lab(LabSpec.of_vms(VmSpec("web-01", disks=disks, **vm), job_vms=["web-01"])), tmp_path)

    return start


def small(mib: int = 8, fill: float = 0.5) -> DiskSpec:
    return DiskSpec(mib * MIB, content="random", fill=fill)


def source_snapshots(runs: Runs) -> list[str]:
    (vm,) = [vm for vm in runs.json("vms", "prod")["vms"] if vm["name"] == runs.vm]
    return list(vm["snapshots"])


def assert_sealed(runs: Runs, report: Any, images: list[Image] | None = None) -> None:
    """The restore point holds the source's disks, and the source is left as it was found."""
    disks = report["disks"]
    expected = images or [runs.source(disk["index"]) for disk in disks]
    assert [runs.restore_point(report["restore_point"], disk["index"]) for disk in disks] == expected
    assert source_snapshots(runs) == []


# -- what changed is what moves ---------------------------------------------------------------------------------------


def test_five_writes_in_a_large_disk_move_what_they_touched(start_runs: StartRuns) -> None:
    runs = start_runs(DiskSpec(2048 * MIB, content="random", fill=0.02))
    runs.track_exactly()
    runs.replicate()
    for grain in (0, 777, 9001, 20000, 32767):
        runs.write(grain)
    report = runs.replicate()
    assert kinds(report) == ["incremental"]
    assert 5 * GRAIN <= moved(report) <= 1.1 * 5 * GRAIN
    assert report["disks"][0]["bytes_read"] <= 1.1 * 5 * GRAIN
    assert_sealed(runs, report)


def test_retention_keeps_exactly_the_newest_each_as_the_source_was(start_runs: StartRuns) -> None:
    runs = start_runs(small(), small(2))
    runs.set_in_job("retention = { last = 3 }")
    images: dict[str, list[Image]] = {}
    removed: list[str] = []
    for number in range(10):
        runs.write(number * 12, seed=f"run {number}")
        runs.lab.unmap("prod", "web-01", 0, (number * 7 + 3) * GRAIN, GRAIN)
        runs.lab.write("prod", "web-01", 1, number * GRAIN, bytes([number + 1]) * 512)
        report = runs.replicate()
        images[report["restore_point"]] = [runs.source(0), runs.source(1)]
        removed += report["removed_restore_points"]
    listed = runs.json("restore-points", "web-01")["restore_points"]
    assert [one["id"] for one in listed] == list(images)[-3:]
    assert removed == list(images)[:-3]
    with plain_api.session(runs.lab, "dr") as api:
        replica = vm_named(api, "web-01-replica")
        assert len(names_in(replica.snapshot.rootSnapshotList)) == 3
    for point in list(images)[-3:]:
        assert [runs.restore_point(point, index) for index in (0, 1)] == images[point]
    assert all(one["consistency"] == "quiesced" and one["bytes_moved"] > 0 for one in listed)


def names_in(tree: Any) -> list[str]:
    return [name for node in tree for name in (node.name, *names_in(node.childSnapshotList))]


# -- interrupted ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first_run", [pytest.param(True, marks=pytest.mark.long), False])
def test_a_run_killed_at_60_percent_goes_on_there(start_runs: StartRuns, first_run: bool) -> None:
    runs = start_runs(DiskSpec(96 * MIB, content="random" if first_run else "empty", fill=0.9))
    if not first_run:
        runs.replicate()
        runs.write(0, count=16 * 84)
    planned = len(runs.source().grains) * GRAIN
    before = runs.written_on_target()
    runs.lab.set("prod.bandwidth_mib_s=12", "lock_linger_s=0")
    runs.kill_when(lambda: runs.written_on_target() - before >= 0.6 * planned)
    runs.lab.set("prod.bandwidth_mib_s=0")
    assert runs.plan()["disks"][0]["resumed"]
    runs.write(3, seed="written between the attempts")
    report = runs.replicate()
    assert "resumes" in report["disks"][0]["reason"]
    assert moved(report) <= 0.45 * planned
    assert_sealed(runs, report)
    print(f"\nresumed after 60 % of {planned} bytes: moved {moved(report)} ({moved(report) / planned:.1%})")


def test_a_resumed_run_needs_no_snapshot_of_the_killed_one(start_runs: StartRuns) -> None:
    runs = start_runs(DiskSpec(32 * MIB, content="random", fill=0.9))
    runs.lab.set("prod.bandwidth_mib_s=24", "lock_linger_s=0")
    runs.kill_when(lambda: runs.written_on_target() >= 16 * MIB)
    runs.lab.set("prod.bandwidth_mib_s=0")
    with plain_api.session(runs.lab) as api:
        wait(vm_named(api, "web-01").RemoveAllSnapshots_Task())
    runs.lab.unmap("prod", "web-01", 0, 0, 4 * GRAIN)
    report = runs.replicate()
    assert moved(report) < 24 * MIB
    assert_sealed(runs, report)


@pytest.mark.long
def test_what_a_killed_run_held_is_given_back_and_consolidated(start_runs: StartRuns) -> None:
    """Its data mover's locks outlive it: the snapshot goes at once, its files once the locks are gone."""
    runs = start_runs(DiskSpec(32 * MIB, content="random", fill=0.9))
    runs.lab.set("prod.bandwidth_mib_s=24", "lock_linger_s=15")
    runs.kill_when(lambda: runs.written_on_target() >= 8 * MIB)
    runs.lab.set("prod.bandwidth_mib_s=0")
    report = runs.replicate()
    for words in ("access to web-01 at prod", "access to the replica web-01-replica at dr", "snapshot of web-01"):
        assert any(words in note for note in report["notes"]), report["notes"]
    with plain_api.session(runs.lab) as api:
        vm = vm_named(api, "web-01")
        assert not vm.runtime.consolidationNeeded
        assert not vm.disabledMethod or "RelocateVM_Task" not in vm.disabledMethod
    with plain_api.session(runs.lab, "dr") as api:
        assert "RelocateVM_Task" not in vm_named(api, "web-01-replica").disabledMethod
    assert any("consolidated the source's disks" in note for note in report["notes"]), report["notes"]
    assert_sealed(runs, report)


def test_a_data_mover_that_crashes_costs_an_attempt_and_not_the_run(start_runs: StartRuns) -> None:
    runs = start_runs(DiskSpec(32 * MIB, content="random", fill=0.9))
    runs.lab.set("prod.bandwidth_mib_s=24", "lock_linger_s=0", "prod.fault=read:crash@10")
    report = runs.replicate()
    assert report["disks"][0]["attempts"] == 2
    assert_sealed(runs, report)


def test_sessions_and_connections_that_break_cost_nothing(start_runs: StartRuns) -> None:
    runs = start_runs(small())
    runs.replicate()
    runs.write(5)
    runs.lab.set("api_fault=*:http_503@7", "api_fault=*:drop_reply@12", "api_fault=WaitForUpdatesEx:expire_session@2")
    report = runs.replicate()
    runs.lab.set("faults=none")
    assert (kinds(report), moved(report)) == (["incremental"], GRAIN)
    assert_sealed(runs, report)


# -- when change tracking cannot be believed --------------------------------------------------------------------------


def test_reset_change_tracking_is_said_and_costs_what_really_changed(start_runs: StartRuns) -> None:
    runs = start_runs(DiskSpec(64 * MIB, content="random", fill=0.8))
    runs.replicate()
    before = runs.source()
    runs.lab.reset_cbt("prod", "web-01", 0)
    runs.write(17, count=3)
    runs.write(900)
    runs.lab.unmap("prod", "web-01", 0, 40 * GRAIN, 2 * GRAIN)
    planned = runs.plan()["disks"][0]
    assert planned["kind"] == "compare"
    assert "CBT was reset" in planned["reason"]
    changed = len(runs.source().grains_changed_since(before)) * GRAIN
    report = runs.replicate()
    disk = report["disks"][0]
    assert disk["kind"] == "compare"
    assert "CBT was reset" in disk["reason"]
    assert changed <= moved(report) <= 1.1 * changed
    assert_sealed(runs, report)
    runs.write(2)
    assert kinds(runs.replicate()) == ["incremental"]
    print(f"\nCBT reset: {changed} bytes really changed, {moved(report)} moved, {disk['bytes_read']} read")


def test_a_file_fault_of_change_tracking_is_said_and_compares(start_runs: StartRuns) -> None:
    runs = start_runs(small())
    runs.replicate()
    runs.write(9)
    runs.lab.set("prod.api_fault=QueryChangedDiskAreas:fault:FileFault@1x*")
    report = runs.replicate()
    runs.lab.set("faults=none")
    assert kinds(report) == ["compare"]
    assert "FileFault" in report["disks"][0]["reason"]
    assert moved(report) == GRAIN
    assert_sealed(runs, report)


# -- the repository is lost -------------------------------------------------------------------------------------------


def test_a_lost_repository_is_rebuilt_from_the_replicas_and_runs_stay_incremental(start_runs: StartRuns) -> None:
    runs = start_runs(small(), small(4))
    runs.track_exactly()  # digests are lost with the repository: what is read is moved
    runs.replicate()
    runs.write(1)
    runs.replicate()
    shutil.rmtree(runs.lab.folder / "repository")
    refused = runs.plan(code=1)
    assert "web-01-replica" in refused["error"]
    [rebuilt] = runs.json("repository", "rebuild")["replicas"]
    assert (rebuilt["restore_points"], rebuilt["problem"]) == (2, None)
    assert kinds(runs.plan()) == ["incremental", "incremental"]
    runs.write(2)
    report = runs.replicate()
    assert kinds(report) == ["incremental", "incremental"]
    assert moved(report) == GRAIN
    assert_sealed(runs, report)
    assert runs.cli("repository", "check").returncode == 0
