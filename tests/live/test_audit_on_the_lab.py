"""Change tracking of the lab that lies in silence (`cbt_miss`) is caught, through the real commands."""

from __future__ import annotations

import datetime as dt
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.vrepl_runs import GRAIN, Image, Runs, kinds
from vrepl.repository.documents import with_checksum
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

DAYS = 2
"""The job's audit: so many runs, a day apart, read all of the disk."""
DISK = DAYS * 64 * MIB
"""A day's part is the least that is worth reading."""


def one_vm(disk: DiskSpec) -> LabSpec:
    return LabSpec.of_vms(VmSpec("web-01", disks=(disk,)), job_vms=["web-01"])


def test_verify_source_catches_what_change_tracking_missed(start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> None:
    runs = Runs(start_lab(one_vm(DiskSpec(8 * MIB, content="random"))), tmp_path)
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
    runs.write(100, 2, seed="seen")
    [found] = runs.json("verify", "--source", "web-01", code=1)["vms"]
    assert "change tracking missed changes" in found["error"]
    assert sum(extent["length"] for extent in found["disks"][0]["bad_extents"]) == 8 * GRAIN
    assert found["disks"][0]["bytes_changed"] == 2 * GRAIN, "no restore point holds that yet, and none is judged by it"
    assert found["disks"][0]["not_judged_extents"] == [{"offset": 100 * GRAIN, "length": 2 * GRAIN}]
    assert "not judged: 128 KiB changed at the source since" in runs.cli("verify", "--source", "web-01").stdout
    report = runs.replicate()
    assert kinds(report) == ["compare"]
    assert runs.restore_point(report["restore_point"]) == runs.source()
    runs.json("verify", "--source", "web-01", "--sample", "50%")


def a_day_passes(lab: Lab) -> None:
    """For the audit alone: what it has been paid for lies a day further back."""
    [path] = (lab.folder / "repository" / "replicas").glob("*/audit.json")
    content: dict[str, Any] = json.loads(path.read_text())
    for audit in content["disks"].values():
        audit["paid"] = (dt.datetime.fromisoformat(audit["paid"]) - dt.timedelta(days=1)).isoformat()
    path.write_text(json.dumps(with_checksum(content)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long), pytest.param(3, marks=pytest.mark.long)])
def test_the_audit_within_runs_finds_a_tenth_of_changes_that_are_missed(
    seed: int, start_lab: Callable[[LabSpec], Lab], tmp_path: Path
) -> None:
    """Within the runs that its arithmetic says, though change tracking also calls changed what did not change."""
    draw = random.Random(seed)
    runs = Runs(start_lab(one_vm(DiskSpec(DISK, content="empty"))), tmp_path)
    runs.set_in_job(f'audit = "{DAYS}d"', "retention = { last = 20 }")
    runs.write(0, DISK // GRAIN // 8, seed="before")
    runs.replicate()
    runs.lab.set("prod.cbt_miss=0.1", "prod.cbt_false=0.05")
    points: list[str] = []
    wrong: dict[str, set[int]] = {}
    """Restore point -> grains in which it is not what the source was."""
    truth: Image = runs.source()
    alarms = 0
    for number in range(2 * DAYS + 2):
        if number < DAYS + 2:
            for grain in draw.sample(range(DISK // GRAIN), 12):
                runs.write(grain, seed=str(number))
        truth = runs.source()
        a_day_passes(runs.lab)
        done = runs.cli("replicate", "demo", "--json")
        [report] = json.loads(done.stdout)["vms"]
        assert report["result"] == "success"
        points.append(report["restore_point"])
        wrong[points[-1]] = runs.restore_point(points[-1]).grains_changed_since(truth)
        missed = report["audit"]["bytes_missed"]
        assert done.returncode == (3 if missed else 0)
        if missed:
            alarms += 1
            assert kinds(report) == ["compare"]
            assert not wrong[points[-1]], "the run that finds it compares the whole disk"
            assert any("change tracking had missed" in note and str(missed) in note for note in report["notes"])
        else:
            assert kinds(report) == ["incremental"]
        # What was missed stays so until it is found, or carried by chance: never longer than one round.
        if len(points) > DAYS:
            assert not set.intersection(*(wrong[point] for point in points[-DAYS - 1 :]))
        found_now = wrong[points[-2]] - wrong[points[-1]] if missed and len(points) > 1 else set()
        doubts = {row["id"]: row["doubt"] for row in runs.json("restore-points", "web-01")["restore_points"]}
        for point in points[:-1]:
            if wrong[point] & found_now:
                assert doubts[point] is not None, f"{point} is wrong in {sorted(wrong[point] & found_now)}"
        assert doubts[points[-1]] is None
    assert alarms, "no change was missed: the test showed nothing"
    assert not wrong[points[-1]]
    runs.lab.set("prod.cbt_miss=0", "prod.cbt_false=0")
    runs.json("verify", "--source", "web-01")
