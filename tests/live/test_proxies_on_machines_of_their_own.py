"""Proxies that are machines of their own: two at each site, HotAdd at both ends, and what befalls them in mid-run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.far_proxies import (
    NAMES,
    assert_equal_disks,
    assert_nothing_is_left,
    command_of,
    disks_of_proxy,
    estate,
    in_mid_run,
    movers_on,
)
from tests.support.vrepl_runs import GRAIN, Runs
from vrepl_lab import machines
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, LabSpec

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(shutil.which("ssh") is None, reason="no OpenSSH client on this machine"),
]


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
    assert_equal_disks(runs, vms, disks)
    assert_nothing_is_left(runs)


def change_everything(runs: Runs, seed: str) -> None:
    for number in range(1, 5):
        for index in (0, 1):
            Runs(runs.lab, runs._scratch, f"web-{number:02}").write(8, 150, index, seed=seed)


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


@contextmanager
def another_build_on(lab: Lab, name: str) -> Iterator[None]:
    [build] = (machines.home_of(lab.folder, name) / ".local/share/vrepl").glob("*")
    away = build.rename(build.with_name("away"))
    try:
        yield
    finally:
        away.rename(build)


def test_another_build_on_a_proxy_is_named_with_what_to_do(runs: Runs) -> None:
    with another_build_on(runs.lab, "dr-proxy-1"):
        report = runs.json("proxy", "check", "dr-proxy-1", code=1)["proxies"][0]
    assert report["problems"][0]["hint"] == "vrepl proxy install dr-proxy-1"


@pytest.mark.long
def test_a_proxy_with_another_build_is_left_out_of_the_run(runs: Runs) -> None:
    with another_build_on(runs.lab, "dr-proxy-1"):
        done = runs.cli("replicate", "demo")
    assert done.returncode == 0, done.stderr
    assert "proxy dr-proxy-1 is left out of this run" in done.stderr


def test_a_proxy_that_is_destroyed_in_mid_run_is_resumed_elsewhere(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last test of this lab: the machine stays lost. Nothing that a later run needs was on it."""
    change_everything(runs, "destroyed")
    planned = 4 * 2 * 150 * GRAIN
    trace = tmp_path / "trace"
    monkeypatch.setenv("VREPL_TRACE", str(trace))
    vms = in_mid_run(runs, lambda: machines.destroy(runs.lab.folder, "prod-proxy-1"))
    retried = [disk for vm in vms for disk in vm["disks"] if disk["attempts"] > 1]
    assert retried
    resumed = [(left, moved) for left, moved in attempts_after_the_first(trace) if left]
    assert len(resumed) >= len(retried)
    assert sum(left for left, _ in resumed) < len(retried) * 150 * GRAIN, "something had been settled before"
    for left, moved in resumed:
        assert moved <= 1.1 * left
    # What had been issued and not settled is written again: of these small disks, up to what is on its way at once.
    on_its_way = len(retried) * 4 * MIB
    assert sum(disk["bytes_moved"] for vm in vms for disk in vm["disks"]) <= 1.1 * planned + on_its_way
    assert machines.processes_on(runs.lab.folder, "prod-proxy-1") == []
    assert disks_of_proxy(runs.lab, "prod-proxy-1") == 1
    assert_equal_disks(runs, vms, 2)


def attempts_after_the_first(trace: Path) -> list[tuple[int, int]]:
    """Of each transfer that went on from a checkpoint: bytes that were left by the repository, and bytes moved."""
    left: dict[tuple[int, int], int] = {}
    found = []
    for line in trace.read_text().splitlines():
        event = json.loads(line)
        if event["what"] not in {"to_mover", "from_mover"}:
            continue
        message = event["message"]
        key = (event["mover"], message.get("id", 0))
        if message.get("op") == "transfer" and message["order"]["attempt"] > 1:
            regions = message["order"]["regions"]
            assert not any(isinstance(region, str) for region in regions), "the trace cut a long list short"
            left[key] = sum(length for _, length in regions)
        elif key in left and "ok" in message and "op" not in message:
            found.append((left.pop(key), message["ok"]["bytes_moved"]))
    return found
