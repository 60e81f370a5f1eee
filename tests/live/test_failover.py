"""The day it matters, on the lab: what lies at the target is enough, and what ran there can be taken back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import plain_api
from tests.support.target_alone import forget_all_but_the_target
from tests.support.vrepl_runs import VREPL, Runs, moved
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

StartRuns = Callable[..., Runs]


@pytest.fixture
def runs(start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> Runs:
    vm = VmSpec("web-01", disks=(DiskSpec(8 * MIB, content="random", fill=0.5), DiskSpec(2 * MIB)))
    return Runs(start_lab(LabSpec.of_vms(vm, job_vms=["web-01"])), tmp_path)


def failover(runs: Runs, *arguments: str, code: int = 0) -> Any:
    [vm] = runs.json("failover", *arguments, "--yes", code=code)["vms"]
    return vm


def test_with_the_source_the_repository_and_the_configuration_gone_the_target_is_enough(
    runs: Runs, tmp_path: Path
) -> None:
    runs.replicate()
    runs.write(3)
    older = runs.replicate()["restore_point"]
    at_that_time = runs.source()
    runs.write(4)
    runs.replicate()
    os.kill(int(runs.lab.status()["prod"]["pid"]), signal.SIGKILL)
    at_target = forget_all_but_the_target(runs.lab, tmp_path)
    done = subprocess.run(
        [*VREPL, "failover", "start", "web-01", "--restore-point", older, *at_target, "--yes", "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [vm] = json.loads(done.stdout)["vms"]
    assert set(vm) >= {"name", "replica", "result", "state", "restore_point", "seconds", "error"}
    assert (vm["name"], vm["replica"], vm["state"], vm["restore_point"]) == (
        "web-01", "web-01-replica", "failed-over", older,
    )  # fmt: skip
    with plain_api.session(runs.lab, "dr") as instance:
        assert plain_api.vm_named(instance, "web-01-replica").runtime.powerState == "poweredOn"
    assert runs.restore_point(older) == at_that_time


def test_undone_the_replica_is_its_restore_point_and_the_next_run_is_incremental(runs: Runs) -> None:
    older = runs.replicate()["restore_point"]
    runs.write(3)
    newest = runs.replicate()["restore_point"]
    sealed = {point: runs.restore_point(point) for point in (older, newest)}
    refused = failover(runs, "start", "web-01", code=3)
    assert "still runs at site prod" in refused["error"]
    assert failover(runs, "start", "web-01", "--source-is-down", "--restore-point", older)["state"] == "failed-over"
    runs.lab.write_random("dr", "web-01-replica", 0, 5 * MIB, MIB, "what the guest did")
    skipped = runs.replicate(code=3)
    assert "vrepl failover undo web-01" in skipped["hint"]
    assert failover(runs, "undo", "web-01", "--keep")["state"] == "ready"
    assert {point: runs.restore_point(point) for point in (older, newest)} == sealed
    runs.write(7)
    report = runs.replicate()
    assert moved(report) <= 1.1 * 65536
    assert runs.restore_point(report["restore_point"]) == runs.source()


def test_committed_it_is_a_vm_and_its_job_lets_it_be(runs: Runs) -> None:
    runs.replicate()
    failover(runs, "start", "web-01", "--source-is-down")
    assert failover(runs, "commit", "web-01")["state"] == "committed"
    assert runs.replicate(code=3)["restore_point"] is None
    again = failover(runs, "undo", "web-01", code=3)
    assert "cannot be undone" in again["error"]
