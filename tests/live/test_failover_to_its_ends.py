"""A failover's ways out, on the lab: its deadline passes, its process dies at any step, it is final and reprotected."""

from __future__ import annotations

import re
import signal
import subprocess
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import plain_api
from tests.support.vrepl_runs import VREPL, Runs, kinds, moved
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec


@pytest.fixture
def runs(start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> Runs:
    vm = VmSpec("web-01", disks=(DiskSpec(8 * MIB, content="random", fill=0.5), DiskSpec(2 * MIB)))
    made = Runs(start_lab(LabSpec.of_vms(vm, job_vms=["web-01"])), tmp_path)
    made.lab.set("dr.guest=*,boot_ms=0")
    made.replicate()
    return made


def failover(runs: Runs, *arguments: str, code: int = 0) -> Any:
    [vm] = runs.json("failover", *arguments, "--yes", code=code)["vms"]
    return vm


@pytest.mark.long
def test_a_deadline_that_passed_is_kept_by_the_next_run_and_what_ran_is_kept(runs: Runs) -> None:
    failover(runs, "start", "web-01", "--source-is-down", "--rollback-after", "3s")
    runs.lab.write_random("dr", "web-01-replica", 0, 5 * MIB, MIB, "what the guest did")
    time.sleep(4)
    done = runs.replicate()
    assert any("it is undone" in note for note in done["notes"])
    with plain_api.session(runs.lab, "dr") as instance:
        replica = plain_api.vm_named(instance, "web-01-replica")
        names = re.findall(r"name = '([^']+)'", str(replica.snapshot.rootSnapshotList))
        assert "vrepl-undone" in names
        assert replica.runtime.powerState == "poweredOff"
    assert runs.restore_point(done["restore_point"]) == runs.source()


@pytest.mark.long
def test_made_final_and_reprotected_it_is_replicated_back_and_only_what_differs_crosses(runs: Runs) -> None:
    failover(runs, "start", "web-01", "--planned")
    runs.lab.write_random("dr", "web-01-replica", 0, 5 * MIB, 65536, "what the guest did")
    report = runs.json("failover", "commit", "web-01", "--reprotect", "--yes")
    [back] = report["reprotect"]
    assert back["command"] == "vrepl replicate demo-back --map web-01-replica=web-01"
    assert runs.json("failover", "commit", "web-01", "--reprotect", "--yes")["reprotect"] == [back], "or later"
    assert tomllib.loads(back["toml"])["jobs"]["demo-back"]["source"] == "dr"
    config = runs.lab.config_file
    config.write_text(f"{config.read_text()}\n{back['toml']}")
    [vm] = runs.json(*back["command"].split()[1:])["vms"]
    assert moved(vm) <= 1.1 * 65536
    assert kinds(vm) == ["compare", "compare"]
    exported = runs._export("prod", "web-01", 0, f"vrepl {vm['restore_point']}")
    assert exported == runs._export("dr", "web-01-replica", 0, None)
    runs.lab.write_random("dr", "web-01-replica", 0, MIB, 65536, "later")
    [again] = runs.json("replicate", "demo-back")["vms"]
    assert moved(again) <= 1.1 * 65536


STEPS = re.compile(r"^web-01: (?!\d)(.+)$")


def steps_of(runs: Runs, *arguments: str, kill_at: int | None = None) -> int:
    """Runs a command of failovers, killed when it tells its Nth step; how many it told."""
    command = [*VREPL, "--config", str(runs.lab.config_file), "failover", *arguments, "--yes", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    told = 0
    assert process.stderr is not None
    for line in process.stderr:
        if STEPS.match(line):
            told += 1
            if told == kill_at:
                process.send_signal(signal.SIGKILL)
                break
    process.wait()
    process.stderr.close()
    return told


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("command", "state"),
    [(("start", "web-01", "--source-is-down"), "failed-over"), (("undo", "web-01", "--keep"), "ready")],
    ids=["start", "undo"],
)
def test_killed_at_each_of_its_steps_the_same_command_ends_where_it_should(
    runs: Runs, command: tuple[str, ...], state: str
) -> None:
    """Whatever steps there are: it is killed at the first, then at the second, until it ends before it can be."""
    [point] = [one["id"] for one in runs.json("restore-points", "web-01")["restore_points"]]
    sealed = runs.restore_point(point)
    number = 1
    while True:
        if command[0] == "undo":
            failover(runs, "start", "web-01", "--source-is-down")
        told = steps_of(runs, *command, kill_at=number)
        assert failover(runs, *command)["state"] == state
        assert runs.restore_point(point) == sealed
        if command[0] == "start":
            failover(runs, "undo", "web-01")
        if told < number:
            break
        number += 1
    assert number > 3
    report = runs.replicate()
    assert runs.restore_point(report["restore_point"]) == runs.source()
