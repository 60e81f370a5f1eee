"""What stands in the way of many VMs is said once, with all of them, before anything is changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.vrepl_runs import Runs
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

COUNT = 40


@pytest.mark.slow
@pytest.mark.parametrize("command", ["plan", "replicate"])
def test_a_port_group_that_is_missing_for_40_vms(
    command: str, start_lab: Callable[[LabSpec], Lab], tmp_path: Path
) -> None:
    names = [f"vm-{number:02}" for number in range(COUNT)]
    spec = LabSpec.of_vms(
        *(VmSpec(name, disks=(DiskSpec(MIB, content="empty"),), power="poweredOff") for name in names), job_vms=names
    )
    runs = Runs(start_lab(spec), tmp_path)
    runs.set_in_job('networks = { "VM Network" = "nowhere" }')
    vms_before = {site: runs.json("vms", site)["vms"] for site in ("prod", "dr")}
    done = runs.cli(command, "demo")
    assert done.returncode == 2, done.stderr
    [error] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert f"{COUNT} VMs" in error
    assert "has no network nowhere" in error
    said = done.stderr.replace("\n", " ")
    assert all(name in said for name in names)
    assert {site: runs.json("vms", site)["vms"] for site in ("prod", "dr")} == vms_before
