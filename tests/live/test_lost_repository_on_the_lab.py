"""A run is killed in mid-transfer, and its repository is lost with it: what it left outside stops nobody for long."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import plain_api
from tests.support.plain_api import vm_named
from tests.support.vrepl_runs import Runs, disk_calls, kinds
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec


@pytest.fixture
def runs(start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> Runs:
    spec = LabSpec.of_vms(VmSpec("web-01", disks=(DiskSpec(8 * MIB, content="random", fill=0.9),)), job_vms=["web-01"])
    runs = Runs(start_lab(spec), tmp_path)
    runs.lab.set("lock_linger_s=0")
    return runs


def left_outside(runs: Runs, site: str, vm: str) -> tuple[list[str], bool]:
    """Names of the VM's snapshots, and whether it is kept from being moved, as another client sees it."""
    with plain_api.session(runs.lab, site) as api:
        found = vm_named(api, vm)
        tree = found.snapshot.rootSnapshotList if found.snapshot else []
        return [node.name for node in tree], "RelocateVM_Task" in found.disabledMethod


def killed_in_mid_transfer(runs: Runs) -> None:
    runs.lab.set("bandwidth_mib_s=1", "dr.fault=write:freeze:1@1x*")
    runs.kill_when(lambda: disk_calls(runs.lab, "dr") > 2)
    runs.lab.set("bandwidth_mib_s=0", "faults=none")


@pytest.mark.slow
@pytest.mark.parametrize(
    "sealed_before", [pytest.param(True, marks=pytest.mark.long), False], ids=["a later run", "the first run"]
)
def test_killed_in_mid_transfer_and_the_repository_lost_with_it(runs: Runs, sealed_before: bool) -> None:
    kept = []
    if sealed_before:
        kept = [runs.replicate()["restore_point"]]
        before = runs.source()
        runs.write(0, 100, seed="dies with the run")
    killed_in_mid_transfer(runs)
    snapshots, held = left_outside(runs, "prod", "web-01")
    assert len(snapshots) == 1
    assert held, "the kill left nothing to find"
    shutil.rmtree(runs.lab.folder / "repository")
    runs.json("repository", "rebuild")
    runs.write(90, 20, seed="since")
    report = runs.replicate()
    assert runs.restore_point(report["restore_point"]) == runs.source()
    assert left_outside(runs, "prod", "web-01") == ([], False)
    assert not left_outside(runs, "dr", "web-01-replica")[1]
    listed = runs.json("restore-points", "web-01")["restore_points"]
    assert sorted(row["id"] for row in listed) == sorted([*kept, report["restore_point"]])
    if kept:
        assert runs.restore_point(kept[0]) == before, "the last good restore point was harmed"
    assert runs.json("repository", "check")["sound"]
    runs.write(3)
    report = runs.replicate()
    assert kinds(report) == ["incremental"]
    assert runs.restore_point(report["restore_point"]) == runs.source()
