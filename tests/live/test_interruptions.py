"""Promises of runs that are stopped, killed or met by faults: the source is left clean, and the next run succeeds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from tests.support import plain_api, preloaded
from tests.support.plain_api import vm_named
from tests.support.vrepl_runs import GRAIN, VREPL, Runs, api_fault_fired, change, disk_calls, moved, until
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

DELAY_MS = 700
"""Long enough to find the call under way, and to kill the run meanwhile."""


@pytest.fixture(scope="module")
def lab_of_module(start_shared_lab: Callable[[LabSpec], Lab]) -> Lab:
    disks = [DiskSpec(6 * MIB, content="random", fill=0.9), DiskSpec(2 * MIB, content="random", fill=0.5)]
    vms = [VmSpec(name, disks=disks) for name in ("busy", "new-0", "new-1")]
    vms += [VmSpec(name, disks=disks[:1]) for name in ("one-0", "one-1", "held")]
    return start_shared_lab(LabSpec.of_vms(*vms, job_vms=[vm.name for vm in vms]))


@pytest.fixture
def quick_lab(lab_of_module: Lab) -> Iterator[Lab]:
    lab_of_module.set("lock_linger_s=0")
    yield lab_of_module
    lab_of_module.set("faults=none", "bandwidth_mib_s=0", "task_ms=0", "snapshot_ms=0", "lock_linger_s=3")


@pytest.fixture
def runs(quick_lab: Lab, tmp_path: Path) -> Runs:
    return Runs(quick_lab, tmp_path, vm="busy")


def start(runs: Runs, *options: str) -> subprocess.Popen[str]:
    config = str(runs.lab.config_file)
    return preloaded.start("-v", "--config", config, "replicate", "demo", "--vm", runs.vm, *options)


def find_on(site: str, lab: Lab, name: str) -> tuple[list[str], list[str]]:
    """Snapshots and disabled methods of a VM, asked by another client."""
    with plain_api.session(lab, site) as api:
        vm = vm_named(api, name)
        tree = vm.snapshot.rootSnapshotList if vm.snapshot else []
        return [node.name for node in tree], list(vm.disabledMethod)


def assert_source_clean(runs: Runs) -> None:
    snapshots, disabled = find_on("prod", runs.lab, runs.vm)
    assert snapshots == []
    assert "RelocateVM_Task" not in disabled


def assert_next_run_succeeds(runs: Runs) -> Any:
    """… holds what the source holds, on a replica and a source that are left as they should be."""
    report = runs.json("replicate", "demo", "--vm", runs.vm)["vms"][0]
    assert report["result"] == "success"
    assert_equal(runs, report)
    return report


def assert_equal(runs: Runs, report: Any) -> None:
    for index in range(len(report["disks"])):
        assert runs.restore_point(report["restore_point"], index) == runs.source(index)
    assert_source_clean(runs)
    assert "RelocateVM_Task" not in find_on("dr", runs.lab, f"{runs.vm}-replica")[1]
    assert runs.json("repository", "check")["sound"]


# -- killed -----------------------------------------------------------------------------------------------------------


def kill_in(runs: Runs, fault: str, under_way: Callable[[], bool]) -> None:
    """SIGKILL the run while the call that the fault holds up is under way; whatever it asked for still happens."""
    runs.lab.set(fault)
    process = start(runs)
    try:
        until(under_way, process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    time.sleep(DELAY_MS / 1000)
    runs.lab.set("faults=none")


FIRST_RUN_STEPS = [("prod", "ReconfigVM_Task"), ("dr", "CreateVM_Task")]
LONG = pytest.mark.long
STEPS = [
    pytest.param("prod", "CreateSnapshot_Task", False, id="prod-CreateSnapshot_Task-sent", marks=LONG),
    pytest.param("prod", "CreateSnapshot_Task", True, id="prod-CreateSnapshot_Task-running"),
    pytest.param("prod", "QueryChangedDiskAreas", False, id="prod-QueryChangedDiskAreas-sent"),
    pytest.param("prod", "RemoveSnapshot_Task", False, id="prod-RemoveSnapshot_Task-sent"),
    pytest.param("prod", "RemoveSnapshot_Task", True, id="prod-RemoveSnapshot_Task-running", marks=LONG),
    pytest.param("dr", "CreateSnapshot_Task", False, id="dr-CreateSnapshot_Task-sent", marks=LONG),
    pytest.param("dr", "CreateSnapshot_Task", True, id="dr-CreateSnapshot_Task-running"),
]
"""Both while the request is under way, and while the task that it started runs."""
DISK_STEPS = [
    ("prod", "prepare"),
    pytest.param("dr", "prepare", marks=LONG),
    pytest.param("prod", "open", marks=LONG),
    ("dr", "write"),
    ("dr", "close"),
]


@pytest.mark.parametrize(("number", "site", "method"), [(i, *step) for i, step in enumerate(FIRST_RUN_STEPS)])
def test_killed_in_a_step_of_the_first_run(number: int, site: str, method: str, quick_lab: Lab, tmp_path: Path) -> None:
    runs = Runs(quick_lab, tmp_path, vm=f"new-{number}")
    kill_in(runs, f"{site}.api_fault={method}:delay:{DELAY_MS}@1", lambda: api_fault_fired(quick_lab, site))
    assert_next_run_succeeds(runs)
    with plain_api.session(quick_lab, "dr") as api:
        view = api.content.viewManager.CreateContainerView(api.content.rootFolder, [vim.VirtualMachine], True)
        assert sum(vm.name.startswith(runs.vm) for vm in view.view) == 1, "no half-made replica is left beside it"


@pytest.mark.parametrize(("site", "method", "running"), STEPS)
def test_killed_in_a_call_of_a_later_run(site: str, method: str, running: bool, runs: Runs) -> None:
    runs.json("replicate", "demo", "--vm", runs.vm)
    change(runs)
    if running:
        runs.lab.set(f"{site}.task_ms={DELAY_MS}")
    delay = 1 if running else DELAY_MS
    kill_in(runs, f"{site}.api_fault={method}:delay:{delay}@1", lambda: api_fault_fired(runs.lab, site))
    runs.lab.set(f"{site}.task_ms=0")
    assert_next_run_succeeds(runs)


@pytest.mark.parametrize(("site", "call"), DISK_STEPS)
def test_killed_in_a_call_of_vddk(site: str, call: str, runs: Runs) -> None:
    runs.json("replicate", "demo", "--vm", runs.vm)
    change(runs)
    kill_in(runs, f"{site}.fault={call}:freeze:{DELAY_MS}@1", lambda: disk_calls(runs.lab, site) > 0)
    assert_next_run_succeeds(runs)


# -- asked to stop ----------------------------------------------------------------------------------------------------


def stop(process: subprocess.Popen[str]) -> float:
    """Ctrl-C; returns the seconds until the process has ended, with 130."""
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    return time.monotonic() - asked


def test_ctrl_c_in_mid_transfer(runs: Runs) -> None:
    runs.json("replicate", "demo", "--vm", runs.vm)
    change(runs)
    runs.lab.set("bandwidth_mib_s=1", "dr.fault=write:freeze:1@1x*")
    process = start(runs)
    until(lambda: disk_calls(runs.lab, "dr") > 0, process)
    took = stop(process)
    print(f"\nCtrl-C in mid-transfer: ended after {took:.1f} s")
    assert_source_clean(runs)
    assert runs.json("history")["runs"][0]["result"] == "interrupted"
    runs.lab.set("bandwidth_mib_s=0", "faults=none")
    assert assert_next_run_succeeds(runs)["disks"][0]["resumed"]


@pytest.mark.parametrize(
    ("site", "method"),
    [
        pytest.param("prod", "CreateSnapshot_Task", marks=LONG),
        ("prod", "RemoveSnapshot_Task"),
        pytest.param("dr", "CreateSnapshot_Task", marks=LONG),
    ],
)
def test_ctrl_c_while_a_task_never_ends(site: str, method: str, runs: Runs) -> None:
    """The run does not wait for it any longer, and the source is as clean as it can be."""
    runs.json("replicate", "demo", "--vm", runs.vm)
    change(runs)
    runs.lab.set(f"{site}.api_fault={method}:task_hang@1")
    process = start(runs)
    until(lambda: api_fault_fired(runs.lab, site), process)
    time.sleep(0.3)
    took = stop(process)
    print(f"\nCtrl-C while {method} of {site} never ends: ended after {took:.1f} s")
    runs.lab.set("faults=none")
    assert_source_clean(runs)
    assert_next_run_succeeds(runs)


def test_ctrl_c_while_the_disk_stands_still(runs: Runs) -> None:
    runs.json("replicate", "demo", "--vm", runs.vm)
    change(runs)
    runs.lab.set("dr.fault=write:freeze:60000@2")
    process = start(runs)
    until(lambda: disk_calls(runs.lab, "dr") >= 2, process)
    took = stop(process)
    print(f"\nCtrl-C while a write stands still: ended after {took:.1f} s")
    runs.lab.set("faults=none")
    assert_source_clean(runs)
    assert_next_run_succeeds(runs)


def test_ctrl_c_while_a_dead_run_still_holds_the_disk(quick_lab: Lab, tmp_path: Path) -> None:
    """The dead run's snapshot goes, its lock stays for minutes, and nobody is made to wait for that."""
    runs = Runs(quick_lab, tmp_path, vm="held")
    runs.json("replicate", "demo", "--vm", runs.vm)
    change(runs)
    runs.lab.set("lock_linger_s=300", "bandwidth_mib_s=1", "dr.fault=write:freeze:1@1x*")
    killed = start(runs)
    until(lambda: disk_calls(runs.lab, "dr") > 0, killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    said: list[str] = []
    process = start(runs)
    assert process.stderr is not None
    while not any("retrying consolidate" in line for line in said):
        said.append(process.stderr.readline())
        assert said[-1], said
    took = stop(process)
    print(f"\nCtrl-C while a dead run holds the disk: ended after {took:.1f} s")
    assert_source_clean(runs)
    locks = runs.lab.control("prod").get("/status")["locks"]
    assert [lock["vm"] for lock in locks if lock["lingering"]] == ["held"]


# -- met by faults ----------------------------------------------------------------------------------------------------


def replicate_under(vms: Sequence[Runs], *faults: str) -> tuple[list[Any], str]:
    """Reports and stderr of a run over these VMs, which must succeed all the same."""
    lab = vms[0].lab
    chosen = [option for runs in vms for option in ("--vm", runs.vm)]
    vms[0].json("replicate", "demo", *chosen)
    for runs in vms:
        change(runs)
    for site in ("prod", "dr"):
        lab.reset_soap_calls(site)
    lab.set(*faults)
    done = preloaded.run("--config", str(lab.config_file), "replicate", "demo", *chosen, "--json", timeout=250)
    fired = sum(rule["fired"] for site in ("prod", "dr") for rule in lab.control(site).get("/faults"))
    calls = sum(lab.soap_calls(site)["total"] for site in ("prod", "dr"))
    lab.set("faults=none")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    print(f"\n{fired} of {calls} API calls failed ({fired / calls:.0%})")
    reports = json.loads(done.stdout)["vms"]
    for runs, report in zip(vms, reports, strict=True):
        assert_equal(runs, report)
    return reports, done.stderr


@pytest.mark.parametrize("seed", [pytest.param(1, marks=LONG), 2])
def test_a_fifth_of_all_calls_fails_and_each_disk_loses_a_mover(seed: int, quick_lab: Lab, tmp_path: Path) -> None:
    """Each VM has one disk here, so a rule of its own."""
    vms = [Runs(quick_lab, tmp_path, vm=name) for name in ("one-0", "one-1")]
    shares = ("http_503", "drop", "fault:HostCommunication", "expire_session")
    faults = [f"api_fault=*:{action}@1x*,p=0.065,seed={seed * 10 + n}" for n, action in enumerate(shares)]
    crashes = [f"dr.fault=write:crash@2,vm={runs.vm}-replica" for runs in vms]
    reports, said = replicate_under(vms, *faults, *crashes)
    assert [disk["attempts"] >= 2 for report in reports for disk in report["disks"]] == [True, True]
    assert all(moved(report) >= 43 * GRAIN for report in reports)
    assert said.count("signal SIGSEGV") == 2
    assert "retrying" in said


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("prod.api_fault=*:expire_session@20", "the session has ended; logging in again"),
        ("prod.api_fault=*:http_503@8x3", "retrying"),
        ("dr.api_fault=*:drop@12x2", "retrying"),
        ("prod.api_fault=CreateSnapshot_Task:drop_reply@1", "retrying"),
        ("dr.api_fault=CreateSnapshot_Task:task_fault:TaskInProgress@1", "retrying"),
        ("prod.api_fault=RemoveSnapshot_Task:task_fault:HostCommunication@1", "retrying"),
    ],
)
def test_what_passes_is_tried_again_and_said(fault: str, said: str, runs: Runs) -> None:
    _, stderr = replicate_under([runs], fault)
    assert said in stderr


@pytest.fixture
def unquiesced(runs: Runs) -> Iterator[None]:
    """A quiesced snapshot that fails is one that goes on unquiesced; here the snapshot itself shall fail."""
    runs.set_in_job('quiesce = "never"')
    yield
    runs.set_in_job('quiesce = "prefer"')


def test_what_does_not_pass_is_not_tried_again(runs: Runs, unquiesced: None) -> None:
    runs.json("replicate", "demo", "--vm", runs.vm)
    runs.lab.set("prod.api_fault=CreateSnapshot_Task:task_fault:NotSupported@1x*,message=no way")
    done = runs.cli("replicate", "demo", "--vm", runs.vm)
    (rule,) = runs.lab.control("prod").get("/faults")
    runs.lab.set("faults=none")
    assert done.returncode == 1
    assert "no way" in done.stderr
    assert rule["fired"] == 1
    assert_source_clean(runs)
    assert_next_run_succeeds(runs)


def test_failed_vms_are_run_again_when_asked(runs: Runs, unquiesced: None) -> None:
    runs.json("replicate", "demo", "--vm", runs.vm)
    runs.lab.set("prod.api_fault=CreateSnapshot_Task:task_fault:NotSupported@1x2,message=not yet")
    done = runs.cli("replicate", "demo", "--vm", runs.vm, "--retry", "2", "--retry-wait", "0s")
    runs.lab.set("faults=none")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"failed: {runs.vm}; running again in 0.0 s") == 2
    assert_source_clean(runs)


def test_a_task_that_never_ends_fails_the_run_in_the_end(runs: Runs, unquiesced: None) -> None:
    """By the site's task_timeout_minutes; this test's minute is made of two seconds."""
    runs.json("replicate", "demo", "--vm", runs.vm)
    runs.lab.set("prod.api_fault=CreateSnapshot_Task:task_hang@1")
    patched = (
        "import vrepl.app.composition as w; from dataclasses import replace; s = w.Sites.settings;"
        "w.Sites.settings = lambda self, name: replace(s(self, name), task_timeout=2.0);"
        "from vrepl.cli import main; main()"
    )
    command = [VREPL[0], "-c", patched, "--config", str(runs.lab.config_file), "replicate", "demo", "--vm", runs.vm]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100, env=dict(os.environ))
    runs.lab.set("faults=none")
    assert done.returncode == 1
    assert "has not ended within 2 s" in done.stderr
    assert "task_timeout_minutes" in done.stderr
    assert_source_clean(runs)
    assert_next_run_succeeds(runs)
