"""Labs whose proxies are machines of their own: what runs there, what is left there, and the line between the sites."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyVmomi import vim

from tests.support import plain_api
from tests.support.plain_api import vm_named
from tests.support.shaper import Shaper
from tests.support.vrepl_runs import Runs
from vrepl_lab import machines
from vrepl_lab.lab import SERVER, Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

NAMES = ("prod-proxy-1", "prod-proxy-2", "dr-proxy-1", "dr-proxy-2")
DISK = DiskSpec(12 * MIB, content="random", fill=0.7)
PORTS = (47100, 47131)
"""That movers of a machine listen on where the line between the sites is shaped: each has an address of its own."""


def estate(vms: int, disks: int, disk: DiskSpec = DISK) -> LabSpec:
    names = [f"web-{number:02}" for number in range(1, vms + 1)]
    spec = LabSpec.of_vms(*(VmSpec(name, disks=(disk,) * disks) for name in names), job_vms=names)
    return spec.with_machines(2, 2)


def movers_on(lab: Lab, name: str, what: str = "vrepl.movers.worker") -> list[int]:
    return [pid for pid in machines.processes_on(lab.folder, name) if what in command_of(pid)]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def kill_a_busy_mover(lab: Lab, name: str) -> None:
    """One that moves bytes: its disk stays on the proxy VM until somebody looks after it."""
    deadline = time.monotonic() + 60
    while True:
        before = {pid: bytes_through(pid) for pid in movers_on(lab, name)}
        time.sleep(0.5)
        moved = {pid: bytes_through(pid) - count for pid, count in before.items()}
        busiest = max(moved, key=lambda pid: moved[pid], default=None)
        if busiest is not None and moved[busiest] > MIB // 8:
            os.kill(busiest, signal.SIGKILL)
            return
        assert time.monotonic() < deadline, f"no data mover on {name} moves anything"


def bytes_through(pid: int) -> int:
    """Read and written by a process so far; 0 once it is gone."""
    try:
        figures = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    except OSError:
        return 0
    return int(figures["rchar"]) + int(figures["wchar"])


def disks_of_proxy(lab: Lab, name: str) -> int:
    """How many hang on its VM, its own among them."""
    with plain_api.session(lab, name.partition("-")[0]) as instance:
        devices = vm_named(instance, name).config.hardware.device
        return sum(isinstance(one, vim.vm.device.VirtualDisk) for one in devices)


KEPT = (".local/share/vrepl/", ".local/state/vrepl/vddk/")
"""What stays on a proxy: the vrepl that was put there, and VDDK's own folder (docs/configuration.md)."""


def files_on(lab: Lab, name: str) -> set[str]:
    """What else the machine keeps."""
    home = machines.home_of(lab.folder, name)
    found = {str(path.relative_to(home)) for path in home.rglob("*") if not path.is_dir()}
    return {path for path in found if not path.startswith(KEPT)}


def assert_nothing_is_left(runs: Runs, names: Sequence[str] = NAMES) -> None:
    """Neither at the sites nor on the proxies."""
    for site in ("prod", "dr"):
        assert runs.lab.status()[site]["locks"] == []
        for name in names:
            if name.startswith(site):
                assert disks_of_proxy(runs.lab, name) == 1, name
    for vm in runs.json("vms", "prod")["vms"]:
        assert vm["snapshots"] == [], vm["name"]
    deadline = time.monotonic() + 20
    while any(movers_on(runs.lab, name, "vrepl.") for name in names):
        assert time.monotonic() < deadline, "a process of a run is left on a proxy"
        time.sleep(0.1)


def assert_equal_disks(runs: Runs, vms: Any, disks: int) -> None:
    """Every disk of every restore point is its source, byte by byte."""
    for vm in vms:
        assert vm["result"] == "success", vm
        for index in range(disks):
            one = Runs(runs.lab, runs._scratch, vm["name"])
            assert one.restore_point(vm["restore_point"], index) == one.source(index), (vm["name"], index)


def begin(runs: Runs, open_disks: int = 4) -> Any:
    """A slow run in the background, once so many disks are open at the target and bytes move."""
    runs.lab.set("bandwidth_mib_s=1")
    process = runs.start()
    wait_for_open_disks(runs, process, open_disks)
    time.sleep(2.0)
    return process


def wait_for_open_disks(runs: Runs, process: Any, count: int) -> None:
    deadline = time.monotonic() + 120
    while sum(lock["write"] for lock in runs.lab.status()["dr"]["locks"]) < count:
        assert process.poll() is None, process.communicate()
        if time.monotonic() > deadline:
            process.send_signal(signal.SIGINT)
            raise AssertionError(f"never {count} disks open: {process.communicate()}")
        time.sleep(0.05)


def end(runs: Runs, process: Any, seconds: float = 240) -> tuple[Any, str]:
    """As fast as it can from here on; its report, and what it said."""
    runs.lab.set("bandwidth_mib_s=0")
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        raise AssertionError(f"the run does not end: {process.communicate()}") from None
    assert process.returncode == 0, err[-6000:] + out[-3000:]
    return json.loads(out)["vms"], err


def in_mid_run(runs: Runs, act: Callable[[], None]) -> Any:
    """Start a run, act once bytes move on every proxy, and hear its report."""
    process = begin(runs)
    act()
    return end(runs, process)[0]


@contextmanager
def line_between_sites(runs: Runs) -> Iterator[Shaper]:
    """All that crosses between the sites goes over a line that can be cut: streams, ssh to the source's proxies, and
    calls of the source's vCenter. vrepl runs at the target."""
    lab = runs.lab
    before, ssh = lab.config_file.read_text(), machines.ssh_config(lab.folder).read_text()
    shaper = Shaper()
    try:
        servers = {}
        for position, name in enumerate(NAMES):
            real = machines.address_of(lab.folder, position)
            on_the_line = machines.address_of(lab.folder, position + len(NAMES))
            port = int((machines.home_of(lab.folder, name).parent / "ssh-port").read_text())
            servers[name] = (real, port)
            if name.startswith("prod"):
                servers[name] = (on_the_line, shaper.lead((on_the_line, 0), (real, port)))
                continue
            for each in range(PORTS[0], PORTS[1] + 1):
                shaper.lead((on_the_line, each), (real, each))
            runs.set_in_proxy(name, f'address = "{on_the_line}"')
            runs.set_in_proxy(name, f'ports = "{PORTS[0]}-{PORTS[1]}"')
        machines.write_ssh_config(lab.folder, servers)
        lead_calls_of_the_source(runs, shaper)
        yield shaper
    finally:
        shaper.close()
        lab.config_file.write_text(before)
        machines.ssh_config(lab.folder).write_text(ssh)


def lead_calls_of_the_source(runs: Runs, shaper: Shaper) -> None:
    """VDDK on the proxies is told the port that vrepl has, so the lab's must know it as well."""
    port = runs.lab.sites["prod"].port
    on_the_line = shaper.lead((SERVER, 0), (SERVER, port))
    runs.set_in_site("prod", f"port = {on_the_line}")
    for conf in (runs.lab.folder / "proxies").glob("*/vddk/lib64/lab.conf"):
        lines = conf.read_text().splitlines()
        known = [line for line in lines if line.startswith(f"server {SERVER} {port} ")]
        assert known
        more = [line.replace(f" {port} ", f" {on_the_line} ", 1) for line in known]
        conf.write_text("\n".join([*lines, *more]) + "\n")
