"""Proxies that are machines of their own: two at each site, HotAdd at both ends, and what befalls them in mid-run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from tests.support import plain_api
from tests.support.plain_api import vm_named
from tests.support.vrepl_runs import Runs
from vrepl_lab import machines
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(shutil.which("ssh") is None, reason="no OpenSSH client on this machine"),
]
NAMES = ("prod-proxy-1", "prod-proxy-2", "dr-proxy-1", "dr-proxy-2")
DISK = DiskSpec(12 * MIB, content="random", fill=0.7)


def estate(vms: int, disks: int) -> LabSpec:
    names = [f"web-{number:02}" for number in range(1, vms + 1)]
    spec = LabSpec.of_vms(*(VmSpec(name, disks=(DISK,) * disks) for name in names), job_vms=names)
    return spec.with_machines(2, 2)


@pytest.fixture(scope="module")
def lab(start_shared_lab: Callable[[LabSpec], Lab]) -> Lab:
    lab = start_shared_lab(estate(4, 2))
    done = Runs(lab, lab.folder).cli("proxy", "install")
    assert done.returncode == 0, done.stderr
    return lab


@pytest.fixture
def runs(lab: Lab, tmp_path: Path) -> Iterator[Runs]:
    made = Runs(lab, tmp_path)
    made.set_in_job("parallel_vms = 4", "parallel_disks = 8", "nfc_budget_mib = 64")
    yield made
    lab.set("bandwidth_mib_s=0")


def replicated(runs: Runs, *options: str, code: int = 0) -> Any:
    return runs.json("replicate", "demo", *options, code=code)["vms"]


def assert_right(runs: Runs, vms: Any, disks: int = 2) -> None:
    """Every disk of every restore point is its source, and nothing is left anywhere."""
    for vm in vms:
        assert vm["result"] == "success", vm
        for index in range(disks):
            one = Runs(runs.lab, runs._scratch, vm["name"])
            assert one.restore_point(vm["restore_point"], index) == one.source(index), (vm["name"], index)
    for site in ("prod", "dr"):
        assert runs.lab.status()[site]["locks"] == []
        with plain_api.session(runs.lab, site) as instance:
            for name in NAMES:
                if name.startswith(site):
                    devices = vm_named(instance, name).config.hardware.device
                    assert sum(isinstance(one, vim.vm.device.VirtualDisk) for one in devices) == 1, name
    deadline = time.monotonic() + 20
    while any(movers_on(runs.lab, name) for name in NAMES):
        assert time.monotonic() < deadline, "a data mover is left on a proxy"
        time.sleep(0.1)


def movers_on(lab: Lab, name: str, what: str = "vrepl.movers.worker") -> list[int]:
    return [pid for pid in machines.processes_on(lab.folder, name) if what in command_of(pid)]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def change_everything(runs: Runs, seed: str) -> None:
    for number in range(1, 5):
        for index in (0, 1):
            Runs(runs.lab, runs._scratch, f"web-{number:02}").write(8, 150, index, seed=seed)


def in_mid_run(runs: Runs, act: Callable[[], None]) -> Any:
    """Start a run, act once bytes move on every proxy, and hear its report."""
    runs.lab.set("bandwidth_mib_s=1")
    process = runs.start()
    deadline = time.monotonic() + 90
    while len(runs.lab.status()["dr"]["locks"]) < 4:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(2.0)
    act()
    runs.lab.set("bandwidth_mib_s=0")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err[-3000:] + out[-3000:]
    return json.loads(out)["vms"]


def test_install_check_and_list_say_what_is_ready(lab: Lab) -> None:
    runs = Runs(lab, lab.folder)
    verdicts = {one["name"]: one for one in runs.json("proxy", "check", *NAMES)["proxies"]}
    assert all(one["ready"] for one in verdicts.values())
    assert verdicts["dr-proxy-2"]["vm"] == {"dr": "dr-proxy-2"}
    listed = {one["name"]: one for one in runs.json("proxy", "list")["proxies"]}
    assert (listed["prod-proxy-1"]["jobs"], listed["prod-proxy-1"]["sites"]) == (["demo"], ["prod"])


def test_disks_cross_by_hotadd_at_both_ends_over_all_proxies_and_show_no_secret(runs: Runs) -> None:
    """No secret in arguments, in an environment or in a file of a proxy, during the run and after it."""
    secrets = [runs.lab.password(site).encode() for site in ("prod", "dr")] + [b"PRIVATE KEY"]
    shown: list[bytes] = []
    seen: set[str] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.2):
            for name in NAMES:
                for pid in machines.processes_on(runs.lab.folder, name):
                    with suppress(OSError):
                        shown.extend(Path(f"/proc/{pid}/{what}").read_bytes() for what in ("cmdline", "environ"))
                    if "vrepl.movers.worker" in command_of(pid):
                        seen.add(name)
            shown.extend(kept_files(runs.lab))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        vms = replicated(runs)
    finally:
        over.set()
        watcher.join()
    shown.extend(kept_files(runs.lab))
    assert seen == set(NAMES)
    assert len(shown) > 100
    assert not [text[:80] for text in shown if any(secret in text for secret in secrets)]
    roads = {(d["transport"]["source"]["mode"], d["transport"]["target"]["mode"]) for vm in vms for d in vm["disks"]}
    assert roads == {("hotadd", "hotadd")}
    assert_right(runs, vms)


def kept_files(lab: Lab) -> list[bytes]:
    """What the machines hold, but for the vrepl that was put there."""
    homes = [machines.home_of(lab.folder, name) for name in NAMES]
    paths = [path for home in homes for path in home.rglob("*") if "site" not in path.parts]
    return [path.read_bytes() for path in paths if path.is_file() and not path.is_symlink()]


@pytest.mark.long
@pytest.mark.parametrize("site", ["prod", "dr"])
def test_a_killed_worker_costs_its_disks_a_retry(runs: Runs, site: str) -> None:
    change_everything(runs, f"killed at {site}")

    def kill() -> None:
        for pid in movers_on(runs.lab, f"{site}-proxy-1"):
            os.kill(pid, signal.SIGKILL)

    vms = in_mid_run(runs, kill)
    assert_right(runs, vms)
    assert any(disk["attempts"] > 1 for vm in vms for disk in vm["disks"])


def stall(runs: Runs, seconds: float) -> Callable[[], None]:
    """Nothing passes on any stream between the sites, and no answer on any ssh connection."""

    def act() -> None:
        pids = [
            pid
            for name in NAMES
            for pid in machines.processes_on(runs.lab.folder, name)
            if "proxy.host" in command_of(pid) or "vrepl_lab.sshd" in command_of(pid)
        ]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    return act


@pytest.mark.long
@pytest.mark.parametrize("seconds", [3.0, 60.0])
def test_a_silent_link_is_a_pause(runs: Runs, seconds: float) -> None:
    change_everything(runs, f"silent for {seconds}")
    vms = in_mid_run(runs, stall(runs, seconds))
    assert_right(runs, vms)
    assert all(disk["attempts"] == 1 for vm in vms for disk in vm["disks"])


def test_another_build_on_a_proxy_is_named_with_what_to_do(runs: Runs) -> None:
    [build] = (machines.home_of(runs.lab.folder, "dr-proxy-1") / ".local/share/vrepl").glob("*")
    away = build.with_name("away")
    build.rename(away)
    try:
        report = runs.json("proxy", "check", "dr-proxy-1", code=1)["proxies"][0]
        assert report["problems"][0]["hint"] == "vrepl proxy install dr-proxy-1"
        done = runs.cli("replicate", "demo")
        assert done.returncode == 0, done.stderr
        assert "proxy dr-proxy-1 is left out of this run" in done.stderr
    finally:
        away.rename(build)


def test_a_proxy_that_is_destroyed_in_mid_run_is_resumed_elsewhere(runs: Runs) -> None:
    """The last test of this lab: the machine stays lost. Nothing that a later run needs was on it."""
    change_everything(runs, "destroyed")
    planned = 4 * 2 * 150 * 65536
    vms = in_mid_run(runs, lambda: machines.destroy(runs.lab.folder, "prod-proxy-1"))
    retried = [disk for vm in vms for disk in vm["disks"] if disk["attempts"] > 1]
    assert retried
    # What had been issued and not settled is written again: of these small disks, up to what is on its way at once.
    on_its_way = len(retried) * 4 * MIB
    assert sum(disk["bytes_moved"] for vm in vms for disk in vm["disks"]) <= 1.1 * planned + on_its_way
    assert machines.processes_on(runs.lab.folder, "prod-proxy-1") == []
    with plain_api.session(runs.lab, "prod") as instance:
        devices = vm_named(instance, "prod-proxy-1").config.hardware.device
        assert sum(isinstance(one, vim.vm.device.VirtualDisk) for one in devices) == 1
    for vm in vms:
        one = Runs(runs.lab, runs._scratch, vm["name"])
        assert one.restore_point(vm["restore_point"]) == one.source()
