"""A proxy at each end: other Pythons than here, an engine for each, and ssh servers that go and come back."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import far_proxies
from tests.support.other_pythons import other_pythons
from tests.support.vrepl_runs import GRAIN, Runs
from vrepl_lab import machines
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

pytestmark = [
    pytest.mark.long,
    pytest.mark.lab,
    pytest.mark.skipif(shutil.which("ssh") is None, reason="no OpenSSH client on this machine"),
]
NAMES = ("prod-proxy-1", "dr-proxy-1")
DISKS = 2


@pytest.fixture(scope="module")
def lab(start_shared_lab: Callable[[LabSpec], Lab]) -> Lab:
    disk = DiskSpec(16 * MIB, content="random", fill=0.7)
    vm = VmSpec("web-01", disks=(disk,) * DISKS)
    return start_shared_lab(LabSpec.of_vms(vm, job_vms=["web-01"]).with_machines(1, 1))


@pytest.fixture
def runs(lab: Lab, tmp_path: Path) -> Iterator[Runs]:
    before = lab.config_file.read_text()
    yield Runs(lab, tmp_path)
    lab.config_file.write_text(before)
    lab.set("bandwidth_mib_s=0")


def install(runs: Runs) -> dict[str, str]:
    """Python of each proxy, by name."""
    told = runs.json("proxy", "install")["proxies"]
    return {one["name"]: one["python"] for one in told}


def assert_right(runs: Runs, report: Any) -> None:
    far_proxies.assert_equal_disks(runs, [report], DISKS)
    far_proxies.assert_nothing_is_left(runs, NAMES)


def test_another_python_at_each_end(runs: Runs) -> None:
    others = other_pythons()
    if not others:
        pytest.skip("this machine has no Python of 3.11 to 3.14 but the one that runs the tests")
    wanted = dict(zip(NAMES, [*others.items(), *others.items()], strict=False))
    for name, (_, python) in wanted.items():
        runs.set_in_proxy(name, f'python = "{python}"')
    found = install(runs)
    for name, (version, _) in wanted.items():
        assert found[name].startswith(f"{version}."), found
    report = runs.replicate()
    assert {(end["mode"], end["proxy"]) for end in ends(report)} == {("hotadd", name) for name in NAMES}
    assert_right(runs, report)


def ends(report: Any) -> list[Any]:
    return [disk["transport"][side] for disk in report["disks"] for side in ("source", "target")]


@pytest.mark.parametrize(("source", "target"), [("vddk", "own"), ("own", "vddk")])
def test_another_engine_at_each_end(runs: Runs, source: str, target: str) -> None:
    install(runs)
    for name, engine in zip(NAMES, (source, target), strict=True):
        runs.set_in_proxy(name, f'engine = "{engine}"')
    for index in range(DISKS):
        runs.write(8, 40, index, seed=f"{source} to {target}")
    report = runs.replicate()
    assert {(end["engine"], end["mode"], end["proxy"]) for end in ends(report)} == {
        (source, "hotadd", NAMES[0]),
        (target, "hotadd", NAMES[1]),
    }
    assert_right(runs, report)


@pytest.mark.parametrize("name", NAMES)
def test_an_ssh_server_that_goes_and_comes_back(runs: Runs, name: str) -> None:
    """The only proxy of its side: its disks wait, and go on from what this machine knows."""
    install(runs)
    for index in range(DISKS):
        runs.write(8, 160, index, seed=f"{name} goes")
    process = far_proxies.begin(runs, open_disks=DISKS)
    lab = runs.lab
    servers = [pid for pid in machines.processes_on(lab.folder, name) if "sshd" in far_proxies.command_of(pid)]
    port = int((machines.home_of(lab.folder, name).parent / "ssh-port").read_text())
    for pid in servers:
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while far_proxies.movers_on(lab, name, "vrepl."):
        assert time.monotonic() < deadline, "a data mover outlives its connection"
        time.sleep(0.05)
    time.sleep(5.0)
    address = machines.address_of(lab.folder, NAMES.index(name))
    machines.start(lab.folder, name, address, [site.process for site in lab.sites.values()], port)
    [vm], said = far_proxies.end(runs, process)
    assert all(disk["attempts"] > 1 for disk in vm["disks"])
    assert "no data mover starts on proxy" in said, "it was tried while the server was gone"
    assert sum(disk["bytes_moved"] for disk in vm["disks"]) <= DISKS * (160 * GRAIN + 4 * MIB)
    assert_right(runs, vm)


def test_a_line_that_is_closed_between_proxies_is_found_before_a_run(runs: Runs) -> None:
    install(runs)

    def streams(code: int) -> list[tuple[str, str]]:
        checks = runs.json("check", "demo", code=code)["checks"]
        return [(one["status"], one["detail"]) for one in checks if one["name"].startswith("stream from proxy prod")]

    [(status, where)] = streams(0)
    assert (status, where.split(",")[0]) == ("ok", f"open: {machines.address_of(runs.lab.folder, 1)}")
    nobody = machines.address_of(runs.lab.folder, 30)
    runs.set_in_proxy("dr-proxy-1", f'address = "{nobody}"')
    [(status, why)] = streams(1)
    assert status == "failed"
    assert f"proxy prod-proxy-1 cannot connect to {nobody}, where movers of proxy dr-proxy-1 listen" in why
    far_proxies.assert_nothing_is_left(runs, NAMES)
