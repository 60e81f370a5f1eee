"""HotAdd without VDDK: whole runs on the lab, where disks attached to the proxy VM appear as devices of its guest."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import plain_api, proxy_vm
from tests.support.plain_api import vm_named, wait
from tests.support.vrepl_runs import GRAIN, Runs, kinds, moved, until
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, PROXY_VM, DiskSpec, LabSpec, VmSpec

pytestmark = pytest.mark.slow

StartRuns = Callable[..., Runs]


@pytest.fixture
def start_runs(start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> StartRuns:
    def start(mib: int = 16, *, disks: int = 1, vddk: bool = False) -> Runs:
        made = tuple(
            DiskSpec(mib * MIB, content="random", fill=0.2 if n else 0.7, thin=bool(n % 2)) for n in range(disks)
        )
        spec = replace(LabSpec.of_vms(VmSpec("web-01", disks=made), job_vms=["web-01"]), vddk=vddk)
        runs = Runs(start_lab(spec), tmp_path)
        runs.track_exactly()
        runs.lab.set("lock_linger_s=1")
        runs.set_in_job('proxy = "hotadd"')
        return runs

    return start


def roads(report: Any) -> list[tuple[str, str]]:
    return [(road(disk, "source"), road(disk, "target")) for disk in report["disks"]]


def road(disk: Any, side: str) -> str:
    return f"{disk['transport'][side]['engine']} {disk['transport'][side]['mode']}"


def assert_sealed(runs: Runs, report: Any) -> None:
    assert report["result"] == "success", report
    for disk in report["disks"]:
        assert runs.restore_point(report["restore_point"], disk["index"]) == runs.source(disk["index"])
    proxy_vm.assert_bare(runs.lab)
    (vm,) = [vm for vm in runs.json("vms", "prod")["vms"] if vm["name"] == runs.vm]
    assert vm["snapshots"] == []


BOTH = ("own hotadd", "own hotadd")


def test_disks_cross_as_block_devices_at_both_ends(start_runs: StartRuns) -> None:
    runs = start_runs(disks=2)
    assert not list(runs.lab.folder.rglob("libvixDiskLib*")), "there is no VDDK anywhere"
    planned = runs.plan()
    assert roads(planned) == [BOTH, BOTH]
    assert "the proxy is VM vrepl-proxy" in planned["disks"][0]["transport"]["source"]["reason"]
    first = runs.replicate()
    assert (kinds(first), roads(first)) == (["full", "full"], [BOTH, BOTH])
    assert first["disks"][1]["bytes_read"] < 10 * MIB, "change tracking tells what is allocated"
    assert_sealed(runs, first)
    runs.write(3, 5)
    runs.lab.set("hotadd_rescan=yes", "hotadd_delay_ms=300")  # devices come late, and only if the bus is scanned
    second = runs.replicate()
    assert (kinds(second), roads(second)) == (["incremental"] * 2, [BOTH, BOTH])
    assert moved(second) == 5 * GRAIN
    assert_sealed(runs, second)
    runs.lab.set("hotadd_rescan=no", "hotadd_delay_ms=0")
    assert runs.json("verify")["vms"][0]["result"] == "success"
    proxy_vm.assert_bare(runs.lab)


def test_a_proxy_that_cannot_tell_disks_apart_or_has_snapshots_is_not_used(start_runs: StartRuns) -> None:
    runs = start_runs(4)
    proxy_vm.set_disk_uuids(runs.lab, "prod", "FALSE")
    with plain_api.session(runs.lab, "dr") as api:
        wait(vm_named(api, PROXY_VM).CreateSnapshot_Task(name="mine", memory=False, quiesce=False))
    report = runs.replicate()
    assert roads(report) == [("own nbdssl", "own nbdssl")]
    sides = report["disks"][0]["transport"]
    why = {side: {one["mode"]: one["reason"] for one in sides[side]["ruled_out"]}["hotadd"] for side in sides}
    assert "set disk.EnableUUID = TRUE" in why["source"]
    assert "has snapshots" in why["target"]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_what_the_api_does_while_disks_are_attached_and_detached_is_survived(start_runs: StartRuns) -> None:
    """The first reconfiguration attaches; the second one at the source detaches, at the target a later one does."""
    runs = start_runs(8)
    for number, fault in enumerate(
        f"{site}.api_fault=ReconfigVM_Task:{what}{when}"
        for what in ("drop_reply", "http_503", "expire_session", "task_fault:GenericVmConfigFault")
        for site in ("prod", "dr")
        for when in ("@1", "@2", "@3")
    ):
        runs.write(number, 60, seed=fault)
        runs.lab.set("faults=none", fault)
        report = runs.replicate()
        runs.lab.set("faults=none")
        assert report["result"] == "success", (fault, report)
        assert_sealed(runs, report)


def in_mid_copy(runs: Runs, act: Callable[[int], None]) -> None:
    """A run that ends well, whatever was done once its disk hung on the proxy; `act` gets its process."""
    runs.set_in_job('bandwidth = "6 MiB/s"')
    process = runs.start()
    until(lambda: len(proxy_vm.hanging(runs.lab, "dr")) == 1, process)
    time.sleep(1.0)
    act(process.pid)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, output + errors


def test_a_disk_that_is_pulled_in_mid_copy_goes_on_over_the_network(start_runs: StartRuns) -> None:
    runs = start_runs(32)
    in_mid_copy(runs, lambda _: proxy_vm.pull(runs.lab, "dr"))
    [point] = runs.json("restore-points", "web-01")["restore_points"]
    assert runs.restore_point(point["id"]) == runs.source()
    proxy_vm.assert_bare(runs.lab)
    [vm] = runs.json("report")["vms"]
    target = vm["disks"][0]["transport"]["target"]
    assert (target["chosen"], target["mode"]) == ("hotadd", "nbdssl")
    assert "hotadd failed" in target["fallbacks"][0]


def test_a_run_that_was_killed_leaves_disks_that_the_next_takes_off(start_runs: StartRuns) -> None:
    """Also a run of another proxy, and of VDDK's engine: the mark on the proxy's VM says whose they are."""
    runs = start_runs(32)
    runs.set_in_job('bandwidth = "8 MiB/s"')
    runs.kill_when(lambda: len(proxy_vm.hanging(runs.lab, "dr")) == 1)
    assert proxy_vm.hanging(runs.lab, "prod")
    assert proxy_vm.marks(runs.lab, "dr")
    runs.set_in_job('bandwidth = "unlimited"', 'proxy = "bare"')
    report = runs.replicate()
    assert roads(report) == [("own nbdssl", "own nbdssl")]
    assert any("left on the proxy by HotAdd" in note for note in report["notes"])
    assert_sealed(runs, report)


@pytest.mark.long
def test_a_verification_that_was_killed_is_cleaned_up_after(start_runs: StartRuns) -> None:
    runs = start_runs(32)
    first = runs.replicate()
    runs.set_in_site("dr", 'bandwidth = "4 MiB/s"')
    runs.kill_when(lambda: len(proxy_vm.hanging(runs.lab, "dr")) == 1, "verify")
    runs.set_in_site("dr", 'bandwidth = "unlimited"')
    report = runs.replicate()
    assert any("left on the proxy by HotAdd" in note for note in report["notes"])
    assert_sealed(runs, report)
    assert first["result"] == "success"


def test_runs_alternate_between_vddk_and_vrepls_own_hotadd(start_runs: StartRuns) -> None:
    runs = start_runs(8, vddk=True)
    for number, engine in enumerate(("vddk", "own", "vddk")):
        runs.set_engine(engine)
        runs.write(7 * number, 2 + number, seed=f"run {number}")
        report = runs.replicate()
        assert roads(report) == [(f"{engine} hotadd", f"{engine} hotadd")]
        if number:
            assert (kinds(report), moved(report)) == (["incremental"], (2 + number) * GRAIN)
        assert_sealed(runs, report)
    for engine in ("vddk", "own"):
        runs.set_engine(engine)
        assert runs.json("verify")["vms"][0]["result"] == "success"


def killed_and_again(runs: Runs, kills: int, seed: int) -> None:
    print(f"seed {seed}")
    chance = random.Random(seed)
    runs.replicate()
    runs.write(0, 1)
    began = time.monotonic()
    runs.replicate()
    usual = time.monotonic() - began
    for number in range(kills):
        runs.write(chance.randrange(100), chance.randrange(1, 120), seed=f"kill {number}")
        process = runs.start()
        time.sleep(chance.uniform(0.3, usual * 1.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        report = runs.replicate()
        assert_sealed(runs, report)


@pytest.mark.long
def test_what_failed_over_comes_home_over_hotadd(start_runs: StartRuns) -> None:
    runs = start_runs(16, disks=2)
    runs.replicate()
    runs.lab.lose_power("prod", "web-01")
    for command in (("failover", "start", "web-01", "--source-is-down"), ("failback", "start", "web-01")):
        done = runs.cli(*command, "--yes")
        assert done.returncode == 0, done.stdout + done.stderr
        if command[0] == "failover":
            runs.lab.write_random("dr", "web-01-replica", 1, 3 * GRAIN, 4 * GRAIN, "there")
    there = runs.replica(1)
    done = runs.cli("failback", "commit", "web-01", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert runs.source(1) == there
    proxy_vm.assert_bare(runs.lab)
    assert_sealed(runs, runs.replicate())


def reconfigurations(lab: Lab) -> int:
    """Of both proxy VMs and of all others: attached, detached, and change tracking."""
    return sum(lab.soap_calls(site)["by_method"].get("ReconfigVM_Task", 0) for site in ("prod", "dr"))


@pytest.mark.parametrize(
    "numbers",
    [pytest.param((2,), marks=pytest.mark.long), pytest.param((1, 3, 4), marks=pytest.mark.long)],
    ids=["one", "all others"],
)
def test_killed_at_a_call_that_attaches_or_detaches(start_runs: StartRuns, numbers: tuple[int, ...]) -> None:
    """Two disks come and go; each task takes its time, so that some are under way as the run dies."""
    runs = start_runs(4)
    runs.replicate()
    runs.lab.set("task_ms=150")
    for number in numbers:
        runs.write(2 * number, seed=f"kill {number}")
        before = reconfigurations(runs.lab)
        runs.kill_when(lambda: reconfigurations(runs.lab) - before >= number)  # noqa: B023
        assert_sealed(runs, runs.replicate())


def test_a_data_mover_that_is_killed_costs_no_more_than_an_attempt(start_runs: StartRuns) -> None:
    def kill(run: int) -> None:
        [mover] = [pid for pid in children(run) if "vrepl.movers.worker" in command_line(pid)]
        os.kill(mover, signal.SIGKILL)

    runs = start_runs(32)
    in_mid_copy(runs, kill)
    [report] = runs.json("report")["vms"]
    assert report["disks"][0]["attempts"] == 2
    assert roads(report) == [BOTH]
    assert_sealed(runs, report)


def children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


def command_line(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


@pytest.mark.long
def test_what_cannot_be_attached_is_reached_over_the_network(start_runs: StartRuns) -> None:
    runs = start_runs(4)
    runs.lab.set("dr.fault=open:error:fail@1x*,mode=hotadd,vm=web-01-replica")
    report = runs.replicate()
    assert roads(report) == [("own hotadd", "own nbdssl")]
    assert "the lab was asked to refuse it" in report["disks"][0]["transport"]["target"]["fallbacks"][0]
    assert_sealed(runs, report)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("part", range(8))
def test_killed_forty_times(start_runs: StartRuns, part: int) -> None:
    """In parts of five, each on a lab of its own: other moments each time."""
    runs = start_runs(16)
    runs.set_in_job("retention = { last = 3 }", 'bandwidth = "20 MiB/s"')
    killed_and_again(runs, kills=5, seed=time.time_ns() + part)


def test_a_proxy_that_a_job_names_takes_no_disks(start_runs: StartRuns) -> None:
    """Its own snapshots would take them along."""
    runs = start_runs(4)
    runs.set_in_job('vms = ["web-01", "vrepl-*"]')
    planned = runs.json("plan", "demo", "--vm", "web-01")["vms"][0]["disks"][0]["transport"]["source"]
    assert planned["mode"] == "nbdssl"
    assert any("is replicated by job demo" in one["reason"] for one in planned["ruled_out"])
