"""A disk of the source grows: the replica follows, what is sealed stays, and little crosses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from tests.support import plain_api
from tests.support.plain_api import vm_named, wait
from tests.support.vrepl_runs import GRAIN, Runs, kinds
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

pytestmark = pytest.mark.slow

GIB = 1024 * MIB
SPEC = LabSpec.of_vms(VmSpec("web-01", disks=(DiskSpec(MIB, content="random"), DiskSpec(GIB, content="empty"))))


@pytest.fixture
def runs(start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> Runs:
    """Three restore points of a disk of 1 GiB, of which 24 MiB hold something."""
    made = Runs(start_lab(SPEC), tmp_path)
    made.track_exactly()
    made.set_in_job("retention = { last = 4 }", 'on_resize = "restart"')
    for run in range(3):
        made.write(run * 2000, 128, index=1, seed=f"run {run}")
        made.replicate()
    return made


@pytest.fixture
def prod(runs: Runs) -> Iterator[Any]:
    with plain_api.session(runs.lab) as instance:
        yield instance


def grow(prod: Any, capacity: int) -> None:
    vm = vm_named(prod, "web-01")
    disk = [one for one in vm.config.hardware.device if isinstance(one, vim.vm.device.VirtualDisk)][1]
    disk.capacityInBytes, disk.capacityInKB = capacity, capacity // 1024  # type: ignore[assignment]
    change = vim.vm.device.VirtualDeviceSpec(device=disk, operation="edit")
    wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))


def points_of(runs: Runs) -> list[str]:
    return [one["id"] for one in runs.json("restore-points", "web-01")["restore_points"]]


def disk_files(runs: Runs) -> set[str]:
    """Descriptors in the replica's folder."""
    folder = runs.lab.folder / "dr" / "datastores"
    return {one.name for one in folder.glob("*/web-01-replica/*.vmdk") if not one.name.endswith("-flat.vmdk")}


def test_a_disk_grown_from_one_to_one_and_a_half_gib(runs: Runs, prod: Any) -> None:
    before = {point: (runs.restore_point(point, 0), runs.restore_point(point, 1)) for point in points_of(runs)}
    assert len(before) == 3
    grow(prod, GIB + GIB // 2)
    runs.write(20_000, 64, index=1, seed="in the new part")
    runs.write(5, 16, index=1, seed="in the old part")
    plan = runs.plan()
    assert any("made at the target of the last restore point's" in note for note in plan["notes"])
    report = runs.replicate()
    assert kinds(report) == ["incremental", "compare"]
    assert report["disks"][1]["bytes_moved"] <= 1.1 * 80 * GRAIN
    after = points_of(runs)
    assert after[:3] == list(before)
    assert {point: (runs.restore_point(point, 0), runs.restore_point(point, 1)) for point in before} == before
    assert [runs.restore_point(after[3], index) for index in (0, 1)] == [runs.source(0), runs.source(1)]
    for point in after:
        [checked] = runs.json("verify", "web-01", "--restore-point", point)["vms"]
        assert checked["result"] == "success"

    runs.write(21_000, 1, index=1)
    again = runs.replicate()
    assert (kinds(again)[1], again["disks"][1]["bytes_moved"]) == ("incremental", GRAIN)
    assert len(again["removed_restore_points"]) == 1

    # The old disk's files go with the last restore point that holds it, and not before.
    [folder] = (runs.lab.folder / "repository" / "replicas").iterdir()
    assert '"loose_files": []' not in (folder / "replica.json").read_text()
    runs.set_in_job("retention = { last = 2 }")
    report = runs.replicate()
    assert len(report["removed_restore_points"]) == 3
    assert '"loose_files": []' in (folder / "replica.json").read_text()
    assert runs.restore_point(report["restore_point"], 1) == runs.source(1)
    with plain_api.session(runs.lab, "dr") as dr:
        files = {one.name.rpartition("/")[2] for one in vm_named(dr, "web-01-replica").layoutEx.file}
    assert disk_files(runs) <= files


def test_killed_while_the_disk_is_copied(runs: Runs, prod: Any) -> None:
    """The copy goes on without vrepl: what is left of it is nobody's, and goes."""
    grow(prod, GIB + GIB // 2)
    runs.write(20_000, 4, index=1)
    runs.lab.set("task_ms=1000")
    folder = runs.lab.folder / "dr" / "datastores"
    runs.kill_when(lambda: any(folder.glob("*/web-01-replica/vrepl-*.vmdk")))
    runs.lab.set("task_ms=0")
    report = runs.replicate()
    assert kinds(report)[1] == "compare"
    assert runs.restore_point(report["restore_point"], 1) == runs.source(1)
    copies = {one for one in disk_files(runs) if one.startswith("vrepl-")}
    assert len({one.split("-")[1] for one in copies}) == 1
    assert runs.cli("replicas", "remove", "web-01", "--yes").returncode == 0
    assert not disk_files(runs)
