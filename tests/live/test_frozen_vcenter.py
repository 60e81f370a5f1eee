"""A vCenter that takes connections and does not answer: Ctrl-C ends a run within ten seconds, whatever it was doing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support import preloaded
from tests.support.vrepl_runs import Runs, api_fault_fired, change, disk_calls, until
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

DELAY_MS = 1500
LIMIT = 10.0
"""Seconds from Ctrl-C to the end of the process."""

PHASES = {
    "login": ("prod.api_fault=Login:delay:1500@1", "prod"),
    "reading the VM": ("prod.api_fault=RetrievePropertiesEx:delay:1500@4", "prod"),
    "prepare access": ("prod.fault=prepare:freeze:1500@1", "prod"),
    "prepare access at the target": ("dr.fault=prepare:freeze:1500@1", "dr"),
    "source snapshot": ("prod.api_fault=CreateSnapshot_Task:delay:1500@1", "prod"),
    "find changes": ("prod.api_fault=QueryChangedDiskAreas:delay:1500@1", "prod"),
    "transfer": ("dr.fault=write:freeze:1500@1", "dr"),
    "transfer, the source": ("prod.fault=open:freeze:1500@1", "prod"),
    "remove source snapshot": ("prod.api_fault=RemoveSnapshot_Task:delay:1500@1", "prod"),
    "seal": ("dr.api_fault=CreateSnapshot_Task:delay:1500@1", "dr"),
}
IN_EVERY_RUN = {("source snapshot", False)}


@pytest.fixture(scope="module")
def lab_of_module(start_shared_lab: Callable[[LabSpec], Lab]) -> Lab:
    disk = DiskSpec(6 * MIB, content="random", fill=0.9)
    return start_shared_lab(LabSpec.of_vms(VmSpec("one-0", disks=[disk]), job_vms=["one-0"]))


@pytest.fixture
def runs(lab_of_module: Lab, tmp_path: Path) -> Iterator[Runs]:
    lab_of_module.set("lock_linger_s=0")
    yield Runs(lab_of_module, tmp_path, vm="one-0")
    for pid in pids(lab_of_module).values():
        os.kill(pid, signal.SIGCONT)
    lab_of_module.set("faults=none")


def pids(lab: Lab) -> dict[str, int]:
    return {site: int(facts["pid"]) for site, facts in lab.status().items()}


@pytest.mark.parametrize(
    ("phase", "both"),
    [
        pytest.param(name, both, marks=pytest.mark.slow if (name, both) in IN_EVERY_RUN else pytest.mark.long)
        for name in PHASES
        for both in (False, True)
    ],
)
def test_ctrl_c_while_a_vcenter_is_frozen(phase: str, both: bool, runs: Runs) -> None:
    runs.json("replicate", "demo")
    change(runs)
    fault, site = PHASES[phase]
    sites = pids(runs.lab)
    runs.lab.set(fault)
    process = preloaded.start("-v", "--config", str(runs.lab.config_file), "replicate", "demo")
    try:
        until(
            lambda: api_fault_fired(runs.lab, site) if "api_fault" in fault else disk_calls(runs.lab, site) > 0, process
        )
        for name, pid in sites.items():
            if both or name == site:
                os.kill(pid, signal.SIGSTOP)
        time.sleep(DELAY_MS / 1000)  # what the fault held up is now held up for good
        asked = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=100)
        took = time.monotonic() - asked
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        for pid in sites.values():
            os.kill(pid, signal.SIGCONT)
    print(f"\nCtrl-C in {phase}, {'both sites' if both else site} frozen: ended after {took:.1f} s\n{said}")
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert took < LIMIT
    if phase not in {"login", "reading the VM"}:
        assert f"{site} does not answer" in said
        assert "could not" in said or "left to the next run" in said
    runs.lab.set("faults=none")
    report = runs.json("replicate", "demo")["vms"][0]
    assert report["result"] == "success"
