"""The main road on two real vCenters, off by default: docs/real-vsphere-tests.md says how to run it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.two_sites import MIB, TwoSites, snapshots

pytestmark = pytest.mark.vsphere
VARIABLE = "VREPL_TEST_CONFIG"


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoSites]:
    """A fresh VM with some content; it and its replica are gone afterwards."""
    if VARIABLE not in os.environ:
        pytest.skip(f"{VARIABLE} does not name a configuration with a job between two sites")
    made = TwoSites(Path(os.environ[VARIABLE]), tmp_path_factory.mktemp("vsphere"))
    try:
        made.make()
        made.write(0, (0, 12 * MIB, 1), (30 * MIB, 6 * MIB, 2))
        made.write(1, (8 * MIB, MIB, 3))
        yield made
    finally:
        made.clean_up()


def test_check_finds_nothing_wrong(sites: TwoSites) -> None:
    assert [one for one in sites.json("check")["checks"] if one["status"] == "failed"] == []


def test_the_first_run_copies_what_is_there(sites: TwoSites) -> None:
    report = sites.replicate()
    assert {disk["kind"] for disk in report["disks"]} == {"full"}
    assert report["disks"][0]["bytes_moved"] >= 18 * MIB
    sites.assert_equal(report)
    assert [vm["result"] for vm in sites.json("verify")["vms"]] == ["success"]


def test_later_runs_move_what_changed(sites: TwoSites) -> None:
    """New bytes, zeros, and bytes that come back to what they were."""
    sites.write(0, (2 * MIB, MIB, 4), (31 * MIB, MIB, None))
    report = sites.replicate()
    assert {disk["kind"] for disk in report["disks"]} == {"incremental"}
    assert sum(disk["bytes_read"] for disk in report["disks"]) <= 4 * MIB
    sites.assert_equal(report)
    sites.write(0, (0, 12 * MIB, 1))
    sites.assert_equal(sites.replicate())
    assert sites.replicate()["disks"][0]["bytes_moved"] == 0


def test_retention_keeps_two_restore_points(sites: TwoSites) -> None:
    points = [one["id"] for one in sites.json("restore-points", sites.name)["restore_points"]]
    assert len(points) == 2
    there = [node.name for node in snapshots(sites.target.vm(f"{sites.name}-replica"))]
    assert there == [f"vrepl {point}" for point in points]


def test_a_killed_run_is_made_good_by_the_next(sites: TwoSites) -> None:
    sites.write(0, (4 * MIB, 40 * MIB, 5))
    process = subprocess.Popen(
        sites.command("-v", "replicate", "test"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert any(f"{sites.name}: transfer" in line for line in process.stderr)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    sites.assert_equal(sites.replicate())
