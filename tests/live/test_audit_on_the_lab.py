"""Change tracking of the lab that lies in silence (`cbt_miss`) is caught, through the real commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.support.vrepl_runs import GRAIN, Runs, kinds
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec


def test_verify_source_catches_what_change_tracking_missed(start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> None:
    runs = Runs(
        start_lab(LabSpec.of_vms(VmSpec("web-01", disks=(DiskSpec(8 * MIB, content="random"),)), job_vms=["web-01"])),
        tmp_path,
    )
    runs.track_exactly()  # a false positive would carry what was missed
    runs.replicate()
    for grain in range(0, 64, 8):
        runs.write(grain, seed="unseen")
    runs.lab.set("prod.cbt_miss=1")
    report = runs.replicate()
    runs.lab.set("prod.cbt_miss=0")
    assert kinds(report) == ["incremental"]
    assert runs.restore_point(report["restore_point"]) != runs.source(), "the lie took"
    runs.json("verify", "web-01")  # replica and digests agree
    [found] = runs.json("verify", "--source", "web-01", code=1)["vms"]
    assert "change tracking missed changes" in found["error"]
    assert sum(extent["length"] for extent in found["disks"][0]["bad_extents"]) == 8 * GRAIN
    report = runs.replicate()
    assert kinds(report) == ["compare"]
    assert runs.restore_point(report["restore_point"]) == runs.source()
    runs.json("verify", "--source", "web-01", "--sample", "50%")
