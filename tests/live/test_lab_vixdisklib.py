"""The lab as an independent VDDK client sees it: simulator, library and datastores together.

The client is plain ctypes (tests/support/vddk_client.py) in a process of its own, and shares no code with vrepl.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import plain_api
from tests.support.plain_api import disk_path, vm_named, wait
from tests.support.vddk_processes import Client
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

SPEC = LabSpec.of_vms(
    VmSpec("on-01", disks=(DiskSpec(2 * MIB, content="random", thin=False),)),
    VmSpec("off-01", disks=(DiskSpec(2 * MIB, content="random", thin=False),), power="poweredOff", tools="notRunning"),
    VmSpec("nfs-01", disks=(DiskSpec(MIB, content="random"),), power="poweredOff", datastore="nfs-01"),
)


@pytest.fixture(scope="module")
def disks(start_shared_lab: Callable[[LabSpec], Lab]) -> Lab:
    return start_shared_lab(SPEC)


@pytest.fixture
def api(disks: Lab) -> Iterator[Any]:
    with plain_api.session(disks) as instance:
        yield instance


@pytest.fixture
def client(disks: Lab, tmp_path: Path) -> Client:
    return Client(disks, tmp_path)


READ = """
handle = opened(snapshot=s.get("snapshot"))
Path(s["out"]).write_bytes(handle.read(0, 2 << 20))
answer(handle.mode())
handle.close()
"""


@pytest.mark.parametrize(
    ("proxy", "modes", "mode"),
    [
        ("bare", "san:hotadd:nbdssl", "nbdssl"),
        ("hotadd", "san:hotadd:nbdssl", "hotadd"),
        ("san", "san:hotadd:nbdssl", "san"),
        ("san", "nbd", "nbd"),
    ],
)
def test_a_snapshot_reads_the_same_in_every_mode(
    disks: Lab, api: Any, client: Client, tmp_path: Path, proxy: str, modes: str, mode: str
) -> None:
    vm = vm_named(api, "on-01")
    snapshot = wait(vm.CreateSnapshot_Task(name="reading", description="", memory=False, quiesce=False))
    try:
        frozen = disks.export("prod", "on-01", 0, tmp_path / "frozen.img", "reading").read_bytes()
        disks.write("prod", "on-01", 0, 0, os.urandom(65536))
        out = tmp_path / "read.img"
        used = client.run(
            READ, vm, proxy=proxy, modes=modes, path=disk_path(snapshot.config), snapshot=snapshot._moId, out=str(out)
        )
        assert used == mode
        assert out.read_bytes() == frozen
    finally:
        if mode == "hotadd":
            client.run("answer(library.c.VixDiskLib_Cleanup(c.byref(params), None, None))", vm, proxy=proxy)
        wait(vm.RemoveAllSnapshots_Task())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_a_client_writes_is_what_an_export_reads(
    disks: Lab, api: Any, client: Client, tmp_path: Path, asynchronous: bool
) -> None:
    vm = vm_named(api, "off-01")
    body = """
handle = opened(read_only=False)
data = bytes([s["byte"]]) * 131072
if s["asynchronous"]:
    handle.start(True, 65536, buffer(data))
    handle.wait()
else:
    handle.write(65536, data)
handle.flush()
answer(handle.mode())
handle.close()
"""
    byte = 1 + asynchronous
    assert client.run(body, vm, asynchronous=asynchronous, byte=byte) == "nbdssl"
    content = disks.export("prod", "off-01", 0, tmp_path / "out.img").read_bytes()
    assert content[65536 : 65536 + 131072] == bytes([byte]) * 131072


@pytest.mark.parametrize(
    ("vm_name", "values", "code"),
    [
        ("on-01", {}, 1),
        ("off-01", {"password": "wrong"}, 3014),
        ("off-01", {"path": "[prod-vmfs-01] off-01/none.vmdk"}, 4),
        ("off-01", {"moref": "vm-99999"}, 13),
        ("off-01", {"thumbprint": "00:" * 19 + "00"}, 1),
        ("nfs-01", {"modes": "san", "proxy": "san"}, None),
        ("off-01", {"modes": "hotadd", "proxy": "bare"}, None),
    ],
)
def test_refusals(api: Any, client: Client, vm_name: str, values: dict[str, Any], code: int | None) -> None:
    answer = client.run("opened().close(); answer('opened')", vm_named(api, vm_name), **values)
    assert answer[0] == "error"
    assert code is None or answer[1] == code


def test_a_closed_nfc_port_refuses_nbd_until_it_opens(disks: Lab, api: Any, client: Client) -> None:
    vm = vm_named(api, "off-01")
    body = "opened().close(); answer('opened')"
    disks.set("prod.nfc_closed=all")
    try:
        assert client.run(body, vm) == ["error", 14009]
    finally:
        disks.set("nfc_closed=none")
    assert client.run(body, vm) == "opened"


def test_an_open_writer_keeps_snapshots_away_and_a_killed_ones_lock_lingers(
    disks: Lab, api: Any, client: Client
) -> None:
    from pyVmomi import vim

    vm = vm_named(api, "off-01")
    disks.set("lock_linger_s=1")
    child = client.start("handle = opened(read_only=False); answer('open'); time.sleep(60)", vm)
    try:
        assert child.stdout is not None
        assert json.loads(child.stdout.readline()) == "open"
        assert [lock["vm"] for lock in disks.status()["prod"]["locks"]] == ["off-01"]
        with pytest.raises((vim.fault.FileLocked, vim.fault.GenericVmConfigFault)):
            wait(vm.CreateSnapshot_Task(name="no", description="", memory=False, quiesce=False))
        assert client.run("opened(); answer('opened')", vm) == ["error", 15]
        child.send_signal(signal.SIGKILL)
        child.wait()
        lingered = False
        deadline = time.monotonic() + 20
        while (locks := disks.status()["prod"]["locks"]) and time.monotonic() < deadline:
            lingered = lingered or locks[0]["lingering"]  # once the host has noticed
            time.sleep(0.05)
        assert lingered
        assert client.run("opened().close(); answer('opened')", vm) == "opened"
    finally:
        child.kill()
        child.communicate()
        disks.set("lock_linger_s=5")


def test_an_injected_fault_reaches_an_open_handle(disks: Lab, api: Any, client: Client) -> None:
    vm = vm_named(api, "off-01")
    body = """
handle = opened()
answer("open")
codes = []
time.sleep(1.5)
for _ in range(4):
    try:
        handle.read(0, 512)
        codes.append(0)
    except VixError as error:
        codes.append(error.code & 0xFFFF)
answer(codes)
handle.close()
"""
    child = client.start(body, vm)
    try:
        assert child.stdout is not None
        assert json.loads(child.stdout.readline()) == "open"
        disks.set("prod.fault=read:error:14011@2x2,vm=off-01", "prod.fault=read:crash@1,vm=other")
        assert json.loads(child.stdout.readline()) == [0, 14011, 14011, 0]
        assert child.wait(20) == 0
    finally:
        disks.set("faults=none")
        child.kill()
        child.communicate()


def test_nfc_memory_of_a_host_runs_out(disks: Lab, api: Any, client: Client) -> None:
    vm = vm_named(api, "off-01")
    disks.set("prod.nfc_limit_mib=2")
    try:
        assert client.run("opened().close(); answer('opened')", vm)[0] == "error"
    finally:
        disks.set("prod.nfc_limit_mib=48")
    assert client.run("opened().close(); answer('opened')", vm) == "opened"


def test_prepare_for_access_forbids_relocation_until_end(api: Any, client: Client) -> None:
    vm = vm_named(api, "off-01")
    for name, disabled in (("PrepareForAccess", True), ("EndAccess", False)):
        body = f"answer(library.c.VixDiskLib_{name}(c.byref(params), b'test'))"
        assert client.run(body, vm) == 0
        assert ("RelocateVM_Task" in vm.disabledMethod) is disabled
