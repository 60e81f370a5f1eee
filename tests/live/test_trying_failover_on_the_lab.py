"""Tests of failovers on the lab: guests boot in a network that leads nowhere, answer or not, and leave nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from tests.support import plain_api
from tests.support.vrepl_runs import Runs
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec


@pytest.fixture
def runs(start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> Runs:
    vm = VmSpec("web-01", disks=(DiskSpec(4 * MIB, content="random"),))
    return Runs(start_lab(LabSpec.of_vms(vm, job_vms=["web-01"])), tmp_path)


def tried(runs: Runs, *arguments: str, code: int = 0) -> Any:
    [vm] = runs.json("failover", "test", *arguments, code=code)["vms"]
    return vm


def left(runs: Runs) -> tuple[set[str], set[str]]:
    """VMs and port groups of tests."""
    with plain_api.session(runs.lab, "dr") as instance:
        content = instance.content
        view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine, vim.HostSystem], True)
        names = [one.name for one in view.view if isinstance(one, vim.VirtualMachine)]
        hosts: list[Any] = [one for one in view.view if isinstance(one, vim.HostSystem)]
        groups = {g.spec.name for host in hosts for g in host.configManager.networkSystem.networkInfo.portgroup}
    vms = {name for name in names if name.endswith("-test")}
    return vms, {name for name in groups if name.startswith("vrepl-test")}


@pytest.mark.slow
def test_a_test_measures_the_time_to_service_and_runs_go_on_under_a_kept_one(runs: Runs) -> None:
    runs.lab.set("dr.guest=web-01*,boot_ms=300,ports=8022", "dr.isolated_reachable=yes")
    first = runs.replicate()["restore_point"]
    sealed = runs.restore_point(first)
    done = tried(runs, "web-01", "--check", "heartbeat", "--check", "port:8022", "--timeout", "20s")
    assert (done["result"], done["state"], done["restore_point"]) == ("success", "ready", first), done
    assert [one["passed"] for one in done["test"]["checks"]] == [True, True]
    assert 0.2 < done["test"]["seconds_to_service"] < 20
    assert left(runs) == (set(), set())

    kept = tried(runs, "web-01", "--keep", "--timeout", "20s")
    assert kept["test"]["kept"]
    second = tried(runs, "web-01", code=3)
    assert "is kept already" in second["error"]
    runs.set_in_job("retention = { last = 1 }")
    runs.write(3)
    runs.replicate()
    assert runs.restore_point(first, vm="web-01-replica") == sealed, "held, although one would be enough"
    assert runs._export("dr", "web-01-replica-test", 0, None) == sealed
    [row] = runs.json("replicas")["replicas"]
    assert (row["state"], row["last_test"]["passed"], row["last_test"]["restore_point"]) == ("ready", True, first)
    [status] = runs.json("status")["vms"]
    assert status["last_test"] == row["last_test"]["time"]
    tried(runs, "stop", "web-01")
    assert left(runs) == (set(), set())
    runs.write(4)
    runs.replicate()
    assert len(runs.json("restore-points", "web-01")["restore_points"]) == 1


@pytest.mark.slow
def test_a_guest_that_does_not_come_up_fails_the_test_and_says_why(runs: Runs, tmp_path: Path) -> None:
    runs.lab.set("dr.guest=web-01*,boots=no")
    runs.replicate()
    script = tmp_path / "ask"
    script.write_text('#!/bin/sh\necho "$VREPL_VM $VREPL_CLONE" >&2; exit 9\n')
    script.chmod(0o755)
    done = tried(runs, "web-01", "--check", "heartbeat", "--check", f"script:{script}", "--timeout", "1s", code=1)
    assert "heartbeat: VMware Tools do not run" in done["error"]
    assert "ended with 9: web-01 web-01-replica-test" in done["error"]
    assert left(runs) == (set(), set())
    [row] = runs.json("replicas")["replicas"]
    assert (row["last_test"]["passed"], row["last_test"]["seconds"]) == (False, None)


@pytest.mark.slow
def test_killed_in_the_middle_the_next_test_throws_away_what_is_left(runs: Runs) -> None:
    runs.lab.set("dr.guest=web-01*,boots=no")
    runs.replicate()
    runs.kill_when(lambda: bool(left(runs)[0]), "failover", "test", "web-01", "--timeout", "60s")
    vms, networks = left(runs)
    assert vms
    assert networks
    runs.lab.set("dr.guest=web-01*,boots=yes,boot_ms=0")
    done = tried(runs, "web-01", "--timeout", "20s")
    assert done["result"] == "success", json.dumps(done)
    assert any("thrown away what a test that died had left" in note for note in done["notes"]) or vms
    assert left(runs) == (set(), set())
