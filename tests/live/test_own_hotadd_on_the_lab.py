"""HotAdd without VDDK: whole runs on the lab, where disks attached to the proxy VM appear as devices of its guest."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import plain_api, proxy_vm
from tests.support.plain_api import vm_named, wait
from tests.support.vrepl_runs import GRAIN, Runs, kinds, moved, until
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, PROXY_VM, DiskSpec, LabSpec, VmSpec

pytestmark = pytest.mark.slow

StartRuns = Callable[..., Runs]


@pytest.fixture
def start_runs(start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> StartRuns:
    def start(mib: int = 16, *, disks: int = 1, vddk: bool = False) -> Runs:
        made = tuple(DiskSpec(mib * MIB, content="random", fill=0.7, thin=bool(n % 2)) for n in range(disks))
        spec = replace(LabSpec.of_vms(VmSpec("web-01", disks=made), job_vms=["web-01"]), vddk=vddk)
        runs = Runs(start_lab(spec), tmp_path)
        runs.track_exactly()
        runs.lab.set("lock_linger_s=1")
        runs.set_in_job('proxy = "hotadd"')
        return runs

    return start


def roads(report: Any) -> list[tuple[str, str]]:
    return [(road(disk, "source"), road(disk, "target")) for disk in report["disks"]]


def road(disk: Any, side: str) -> str:
    return f"{disk['transport'][side]['engine']} {disk['transport'][side]['mode']}"


def assert_sealed(runs: Runs, report: Any) -> None:
    assert report["result"] == "success", report
    for disk in report["disks"]:
        assert runs.restore_point(report["restore_point"], disk["index"]) == runs.source(disk["index"])
    proxy_vm.assert_bare(runs.lab)
    (vm,) = [vm for vm in runs.json("vms", "prod")["vms"] if vm["name"] == runs.vm]
    assert vm["snapshots"] == []


BOTH = ("own hotadd", "own hotadd")


def test_disks_cross_as_block_devices_at_both_ends(start_runs: StartRuns) -> None:
    runs = start_runs(disks=2)
    assert not list(runs.lab.folder.rglob("libvixDiskLib*")), "there is no VDDK anywhere"
    planned = runs.plan()
    assert roads(planned) == [BOTH, BOTH]
    assert "the proxy is VM vrepl-proxy" in planned["disks"][0]["transport"]["source"]["reason"]
    first = runs.replicate()
    assert (kinds(first), roads(first)) == (["full", "full"], [BOTH, BOTH])
    assert first["disks"][1]["bytes_read"] < 15 * MIB, "change tracking tells what is allocated"
    assert_sealed(runs, first)
    runs.write(3, 5)
    second = runs.replicate()
    assert (kinds(second), roads(second)) == (["incremental"] * 2, [BOTH, BOTH])
    assert moved(second) == 5 * GRAIN
    assert_sealed(runs, second)
    assert runs.json("verify")["vms"][0]["result"] == "success"
    proxy_vm.assert_bare(runs.lab)


def test_a_device_that_needs_a_scan_and_comes_late_is_waited_for(start_runs: StartRuns) -> None:
    runs = start_runs(4)
    runs.lab.set("hotadd_rescan=yes", "hotadd_delay_ms=500")
    report = runs.replicate()
    assert roads(report) == [BOTH]
    assert_sealed(runs, report)


def test_a_proxy_that_cannot_tell_disks_apart_or_has_snapshots_is_not_used(start_runs: StartRuns) -> None:
    runs = start_runs(4)
    proxy_vm.set_disk_uuids(runs.lab, "prod", "FALSE")
    with plain_api.session(runs.lab, "dr") as api:
        wait(vm_named(api, PROXY_VM).CreateSnapshot_Task(name="mine", memory=False, quiesce=False))
    report = runs.replicate()
    assert roads(report) == [("own nbdssl", "own nbdssl")]
    sides = report["disks"][0]["transport"]
    why = {side: {one["mode"]: one["reason"] for one in sides[side]["ruled_out"]}["hotadd"] for side in sides}
    assert "set disk.EnableUUID = TRUE" in why["source"]
    assert "has snapshots" in why["target"]


def test_a_disk_that_is_pulled_in_mid_copy_goes_on_over_the_network(start_runs: StartRuns) -> None:
    runs = start_runs(32)
    runs.set_in_job('bandwidth = "12 MiB/s"')
    process = runs.start()
    until(lambda: len(proxy_vm.hanging(runs.lab, "dr")) == 1, process)
    time.sleep(1.0)
    proxy_vm.pull(runs.lab, "dr")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, output + errors
    [point] = runs.json("restore-points", "web-01")["restore_points"]
    assert runs.restore_point(point["id"]) == runs.source()
    proxy_vm.assert_bare(runs.lab)
    [vm] = runs.json("report")["vms"]
    target = vm["disks"][0]["transport"]["target"]
    assert (target["chosen"], target["mode"]) == ("hotadd", "nbdssl")
    assert "hotadd failed" in target["fallbacks"][0]
