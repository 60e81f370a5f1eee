"""Change tracking where it is awkward: block sizes, pages, odd capacities, thousands of areas, none at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import plain_api
from tests.support.plain_api import vm_named, wait
from tests.support.vrepl_runs import GRAIN, Runs, kinds, moved
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

StartRuns = Callable[..., Runs]
ODD = MIB + 512
"""One sector past 1 MiB: the last grain and the last block of CBT are 512 bytes long."""


@pytest.fixture
def start_runs(start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> StartRuns:
    def start(*disks: DiskSpec, **vm: Any) -> Runs:
        return Runs(start_lab(LabSpec.of_vms(VmSpec("web-01", disks=disks, **vm), job_vms=["web-01"])), tmp_path)

    return start


def assert_replicated(runs: Runs, report: Any) -> None:
    for disk in report["disks"]:
        assert runs.restore_point(report["restore_point"], disk["index"]) == runs.source(disk["index"])


@pytest.mark.parametrize("block_kib", [64, 256, 1024])
def test_blocks_of_any_size_and_a_disk_of_one_sector_past_1_mib(start_runs: StartRuns, block_kib: int) -> None:
    runs = start_runs(DiskSpec(8 * MIB, content="random", fill=0.9), DiskSpec(ODD, content="random", fill=0.9))
    runs.track_exactly()
    runs.lab.set(f"cbt_block_kib={block_kib}")
    runs.replicate()
    block = block_kib * 1024
    offsets = (0, 5 * GRAIN + 100, 17 * GRAIN, 8 * MIB - 512)
    for offset in offsets:
        runs.lab.write_random("prod", "web-01", 0, offset, 512, f"at {offset}")
    runs.lab.write_random("prod", "web-01", 1, MIB, 512, "the last sector")
    report = runs.replicate()
    assert kinds(report) == ["incremental", "incremental"]
    first, second = report["disks"]
    touched = len({offset // block for offset in offsets}) * block
    assert len(offsets) * GRAIN <= first["bytes_read"] <= 1.1 * touched
    assert first["bytes_moved"] == len(offsets) * GRAIN
    assert (second["bytes_read"], second["bytes_moved"]) == (512, 512)
    assert_replicated(runs, report)


@pytest.mark.parametrize("page", [1, 2, 5])
@pytest.mark.parametrize("empty_pages", ["no", "yes"])
def test_a_page_that_ends_at_capacity_and_empty_pages(start_runs: StartRuns, page: int, empty_pages: str) -> None:
    """Asking on at capacity would be a fault, and a fault would make this a comparison."""
    runs = start_runs(DiskSpec(4 * MIB, content="random"), DiskSpec(ODD, content="random"))
    runs.replicate()
    runs.lab.set(f"cbt_page={page}", f"cbt_empty_page={empty_pages}")
    changed = (1, 9, 30, 31, 45, 63)
    for grain in changed:
        runs.write(grain)
    runs.lab.write_random("prod", "web-01", 1, MIB, 512, "the last sector")
    runs.lab.reset_soap_calls("prod")
    report = runs.replicate()
    assert kinds(report) == ["incremental", "incremental"]
    assert moved(report) == len(changed) * GRAIN + 512
    assert_replicated(runs, report)
    calls = runs.lab.soap_calls("prod")["by_method"]["QueryChangedDiskAreas"]
    least = -(-5 // page) + 1  # 30 and 31 are one area
    assert calls > least if empty_pages == "yes" else calls >= least


@pytest.mark.parametrize("areas", [500, pytest.param(4000, marks=pytest.mark.long)])
def test_scattered_areas(start_runs: StartRuns, areas: int) -> None:
    runs = start_runs(DiskSpec(2 * areas * GRAIN, content="empty"))
    runs.replicate()
    for number in range(areas):
        runs.lab.write("prod", "web-01", 0, number * 2 * GRAIN, b"%012d" % number + bytes(500))
    report = runs.replicate()
    assert kinds(report) == ["incremental"]
    assert moved(report) == areas * GRAIN
    assert_replicated(runs, report)
    source = runs.source()
    assert len(source.grains) == areas


def test_a_vm_whose_change_tracking_cannot_be_enabled_is_compared(start_runs: StartRuns) -> None:
    runs = start_runs(DiskSpec(4 * MIB, content="random"), DiskSpec(ODD, content="random"))
    with plain_api.session(runs.lab) as api:
        vm = vm_named(api, "web-01")
        wait(vm.CreateSnapshot_Task(name="mine", description="", memory=False, quiesce=False))
        first = runs.replicate()
        assert kinds(first) == ["full", "full"]
        assert any("CBT is off" in note for note in first["notes"])
        assert not vm.config.changeTrackingEnabled
        runs.write(7)
        runs.lab.write_random("prod", "web-01", 1, MIB, 512, "the last sector")
        plan = runs.plan()
        assert kinds(plan) == ["compare", "compare"]
        report = runs.replicate()
        assert (kinds(report), moved(report)) == (["compare", "compare"], GRAIN + 512)
        assert_replicated(runs, report)
        wait(vm.RemoveAllSnapshots_Task())
        assert kinds(runs.replicate()) == ["compare", "compare"]
        assert vm.config.changeTrackingEnabled
        runs.write(8)
        report = runs.replicate()
        assert (kinds(report), moved(report)) == (["incremental", "incremental"], GRAIN)
        assert_replicated(runs, report)


def test_a_source_that_lost_power_is_compared_and_its_next_power_on_resets_its_tracking(start_runs: StartRuns) -> None:
    runs = start_runs(DiskSpec(4 * MIB, content="random"))
    runs.lab.set("prod.cbt_false=0")
    runs.replicate()
    runs.write(3, seed="lost with the power")
    runs.lab.lose_power("prod", "web-01")
    [planned] = runs.plan()["disks"]
    assert planned["kind"] == "compare"
    assert "lost power" in planned["reason"]
    assert "the VM lost power" in runs.json("verify", "--source", "web-01", code=3)["vms"][0]["error"]
    report = runs.replicate()
    assert kinds(report) == ["compare"]
    assert "lost power" in report["disks"][0]["reason"]
    assert_replicated(runs, report)
    with plain_api.session(runs.lab) as api:
        wait(vm_named(api, "web-01").PowerOnVM_Task())
    report = runs.replicate()
    assert kinds(report) == ["compare"]
    assert "CBT was reset" in report["disks"][0]["reason"]
    assert_replicated(runs, report)
    runs.write(5, seed="tracked again")
    report = runs.replicate()
    assert kinds(report) == ["incremental"]
    assert_replicated(runs, report)
