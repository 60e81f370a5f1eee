"""VMs whose names are markup, or many words: on a site they disturb nobody, and they can be replicated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.vrepl_runs import Runs
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

NAMES = ["[/x]", "[red]web[/red]", ":warning: größe 日本"]


@pytest.mark.slow
def test_names_are_data_from_end_to_end(start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> None:
    disk = DiskSpec(2 * MIB, content="random", fill=0.5)
    lab = start_lab(LabSpec.of_vms(*(VmSpec(name, disks=[disk]) for name in NAMES), job_vms=NAMES[:2]))
    runs = Runs(lab, tmp_path)
    listed = runs.cli("vms", "prod")
    assert listed.returncode == 0, listed.stderr
    assert all(name in listed.stdout for name in NAMES)
    replicated = runs.cli("replicate", "demo")
    assert replicated.returncode == 0, replicated.stderr
    assert "[/x]: success" in replicated.stderr
    assert "[red]web[/red]" in replicated.stdout
    for command in (["status"], ["replicas"], ["plan"], ["history"], ["report"], ["restore-points", "[/x]"]):
        done = runs.cli(*command)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    page = tmp_path / "page.html"
    assert runs.cli("report", "--html", str(page)).returncode == 0
    assert "[red]web[/red]" in page.read_text()
    status = json.loads(runs.cli("status", "--json").stdout)
    assert {vm["name"] for vm in status["vms"]} == set(NAMES[:2])
