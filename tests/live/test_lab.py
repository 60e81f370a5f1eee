"""What a lab promises to whoever tries vrepl on it."""

from __future__ import annotations

import hashlib
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import plain_api
from tests.support.plain_api import vm_named, wait
from vrepl_lab.errors import LabError
from vrepl_lab.folder import read_state
from vrepl_lab.guests import find_tool, make_images, random_bytes
from vrepl_lab.lab import Lab
from vrepl_lab.processes import ProcessIdentity
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, SiteSpec, VmSpec

ODD = MIB + 512
TINY = LabSpec.of_vms(
    VmSpec(
        "raw-01",
        disks=(
            DiskSpec(4 * MIB, content="random"),
            DiskSpec(ODD, content="random"),
            DiskSpec(2 * MIB, content="empty"),
        ),
    ),
    VmSpec("file-01", disks=(DiskSpec(8 * MIB, fill=0.4),), power="poweredOff", tools="notRunning"),
)


@pytest.fixture(scope="module")
def tiny(start_shared_lab: Callable[[LabSpec], Lab]) -> Lab:
    return start_shared_lab(TINY)


@pytest.fixture
def session(tiny: Lab) -> Iterator[Any]:
    with plain_api.session(tiny) as instance:
        yield instance


def exported(lab: Lab, vm: str, index: int, out: Path, snapshot: str | None = None) -> bytes:
    return lab.export("prod", vm, index, out, snapshot).read_bytes()


def run_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from vrepl.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# ── disks ──


@pytest.mark.parametrize(("index", "capacity"), [(0, 4 * MIB), (1, ODD)])
def test_an_export_equals_the_image_that_was_seeded(tiny: Lab, tmp_path: Path, index: int, capacity: int) -> None:
    vm = TINY.prod.vms[0]
    images = make_images("prod", SiteSpec(vms=(vm,)), tmp_path / "seeded", TINY.seed)
    content = exported(tiny, "raw-01", index, tmp_path / "out.img")
    assert len(content) == capacity
    # Other tests of this module write below 2 MiB and only to disks 0 and 2.
    if index == 0:
        assert content[2 * MIB :] == images["raw-01", 0].read_bytes()[2 * MIB :]
    else:
        assert content == images["raw-01", 1].read_bytes()


def test_a_guests_file_system_is_clean_and_holds_its_files(tiny: Lab, tmp_path: Path) -> None:
    image = tiny.export("prod", "file-01", 0, tmp_path / "out.img")
    checked = subprocess.run([find_tool("e2fsck"), "-fn", image], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    dumped = subprocess.run(
        [find_tool("debugfs"), "-R", "cat /srv/data/file-0000.bin", image], capture_output=True, check=True
    ).stdout
    expected = random_bytes(f"{TINY.seed}/prod/file-01/0/0", len(dumped))
    assert len(dumped) == int(8 * MIB * 0.4)
    assert hashlib.sha256(dumped).digest() == hashlib.sha256(expected).digest()


def test_what_a_guest_writes_is_what_an_export_reads(tiny: Lab, tmp_path: Path) -> None:
    before = exported(tiny, "raw-01", 0, tmp_path / "before.img")
    tiny.write("prod", "raw-01", 0, 100_352, b"guest" * 200)
    after = exported(tiny, "raw-01", 0, tmp_path / "after.img")
    assert after == before[:100_352] + b"guest" * 200 + before[101_352:]


def test_random_writes_are_decided_by_their_seed(tiny: Lab, tmp_path: Path) -> None:
    tiny.write_random("prod", "raw-01", 0, MIB, 65536, "7")
    assert exported(tiny, "raw-01", 0, tmp_path / "out.img")[MIB : MIB + 65536] == random_bytes("7", 65536)


def test_an_empty_disk_is_all_zeros_and_takes_no_space(tiny: Lab, tmp_path: Path) -> None:
    out = tiny.export("prod", "raw-01", 2, tmp_path / "out.img")
    assert out.read_bytes() == bytes(2 * MIB)
    assert out.stat().st_blocks == 0


def test_unmapped_bytes_read_as_zeros(tiny: Lab, tmp_path: Path) -> None:
    tiny.write("prod", "raw-01", 0, 0, b"x" * 131072)
    tiny.unmap("prod", "raw-01", 0, 65536, 65536)
    content = exported(tiny, "raw-01", 0, tmp_path / "out.img")
    assert content[:131072] == b"x" * 65536 + bytes(65536)


def test_a_snapshot_exports_as_the_disk_was_and_removal_keeps_the_newest(
    tiny: Lab, session: Any, tmp_path: Path
) -> None:
    vm = vm_named(session, "raw-01")
    tiny.write("prod", "raw-01", 0, 0, b"old" + bytes(509))
    frozen = exported(tiny, "raw-01", 0, tmp_path / "before.img")
    wait(vm.CreateSnapshot_Task(name="frozen", description="", memory=False, quiesce=False))
    tiny.write("prod", "raw-01", 0, 0, b"new" + bytes(509))
    assert exported(tiny, "raw-01", 0, tmp_path / "snapshot.img", "frozen") == frozen
    now = exported(tiny, "raw-01", 0, tmp_path / "now.img")
    assert now[:3] == b"new"
    assert now[512:] == frozen[512:]
    wait(vm.RemoveAllSnapshots_Task())
    assert exported(tiny, "raw-01", 0, tmp_path / "removed.img") == now


@pytest.mark.parametrize(("vm", "index", "complaint"), [("nobody", 0, "nobody"), ("raw-01", 9, "3 disks")])
def test_a_disk_that_is_not_there_is_named(tiny: Lab, tmp_path: Path, vm: str, index: int, complaint: str) -> None:
    with pytest.raises(LabError, match=complaint):
        tiny.export("prod", vm, index, tmp_path / "out.img")


def test_a_write_past_the_end_is_refused(tiny: Lab) -> None:
    with pytest.raises(LabError, match="prod"):
        tiny.write("prod", "raw-01", 1, ODD - 512, bytes(1024))


# ── the API ──


def test_the_certificate_is_signed_by_the_labs_own_ca(tiny: Lab) -> None:
    context = ssl.create_default_context(cafile=str(tiny.folder / "ca.pem"))
    url = f"https://localhost:{tiny.sites['prod'].port}/sdk/vimServiceVersions.xml"
    with urllib.request.urlopen(url, context=context) as reply:
        assert b"urn:vim25" in reply.read()


def test_only_the_labs_password_logs_in(tiny: Lab) -> None:
    from pyVim.connect import SmartConnect
    from pyVmomi import vim

    context = ssl.create_default_context(cafile=str(tiny.folder / "ca.pem"))
    with pytest.raises(vim.fault.InvalidLogin):
        SmartConnect(
            host="127.0.0.1",
            port=tiny.sites["prod"].port,
            user="vrepl@vsphere.local",
            pwd=tiny.password("dr"),
            sslContext=context,
        )


def test_an_api_fault_fires_at_its_call_and_no_other(tiny: Lab, session: Any) -> None:
    vm = vm_named(session, "raw-01")

    def snapshot() -> None:
        wait(vm.CreateSnapshot_Task(name="s", description="", memory=False, quiesce=False))

    tiny.set("prod.api_fault=CreateSnapshot_Task:task_fault:FileFault@2,vm=raw-01,message=injected")
    try:
        snapshot()
        with pytest.raises(Exception, match="injected"):
            snapshot()
        snapshot()
    finally:
        tiny.set("faults=none")
        wait(vm.RemoveAllSnapshots_Task())


def test_api_faults_of_two_calls_add_up(tiny: Lab, session: Any) -> None:
    from pyVmomi import vim

    tiny.set("prod.api_fault=PowerOnVM_Task:fault:InvalidState")
    tiny.set("prod.api_fault=PowerOffVM_Task:fault:InvalidState")
    vm = vm_named(session, "file-01")
    try:
        for method in (vm.PowerOnVM_Task, vm.PowerOffVM_Task):
            with pytest.raises(vim.fault.InvalidState):
                method()
    finally:
        tiny.set("faults=none")


def test_soap_calls_are_counted(tiny: Lab, session: Any) -> None:
    tiny.reset_soap_calls("prod")
    session.CurrentTime()
    session.CurrentTime()
    assert tiny.soap_calls("prod")["by_method"]["CurrentTime"] == 2


def test_a_wrong_assignment_changes_nothing(tiny: Lab) -> None:
    before = tiny.settings_file("prod").read()
    with pytest.raises(LabError, match="no setting"):
        tiny.set("latency_us=5", "nonsense=1")
    assert tiny.settings_file("prod").read() == before


def test_nfc_limits_and_settings_show_in_the_status(tiny: Lab) -> None:
    host = tiny.sites["dr"].hosts[0]
    tiny.set("dr.nfc_limit_mib=8", f"dr.nfc_limit_mib={host}:16", "prod.latency_us=3")
    try:
        status = tiny.status()
        limits = {entry["host"]: entry["limit_kib"] for entry in status["dr"]["nfc"]}
        assert limits == {name: (16 if name == host else 8) * 1024 for name in tiny.sites["dr"].hosts}
        assert status["prod"]["settings"]["latency_us"] == 3
        assert status["dr"]["settings"]["latency_us"] == 0
    finally:
        tiny.set("nfc_limit_mib=48", "latency_us=0")


# ── starting and ending ──


def test_a_configuration_is_left_that_vrepl_takes(tiny: Lab) -> None:
    done = run_cli("--config", str(tiny.config_file), "config", "validate")
    assert done.returncode == 0, done.stderr
    for path in (tiny.folder / "secrets").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600


def test_labs_stand_beside_each_other_and_end_alone(tiny: Lab, start_lab: Callable[[LabSpec], Lab]) -> None:
    other = start_lab(LabSpec.of_vms())
    assert not {site.port for site in other.sites.values()} & {site.port for site in tiny.sites.values()}
    assert not set(other.sites["prod"].hosts) & set(tiny.sites["prod"].hosts)
    assert other.stop() == ["prod", "dr"]
    assert other.stop() == []
    assert tiny.status()["prod"]["pid"] == tiny.sites["prod"].process.pid


def test_up_set_status_down_from_the_command_line(tiny: Lab, lab_folders: Callable[[], Path]) -> None:
    folder = str(lab_folders())
    up = run_cli("lab", "up", "--dir", folder, "--disk-mib", "16")
    try:
        assert up.returncode == 0, up.stderr
        assert up.stdout == f"{folder}/vrepl.toml\n"
        first = read_state(Path(folder))
        again = run_cli("lab", "up", "--dir", folder)
        assert again.returncode == 0
        assert "already" in again.stderr
        assert read_state(Path(folder)) == first
        assert run_cli("lab", "set", "--dir", folder, "latency_us=1000").returncode == 0
        wrong = run_cli("lab", "set", "--dir", folder, "latency_us=soon")
        assert wrong.returncode == 1
        assert "latency_us=soon" in wrong.stderr
        write = ("--offset", "64KiB", "--length", "64KiB", "--seed", "5")
        assert run_cli("lab", "disk", "write", "--dir", folder, "prod", "web-01", "0", *write).returncode == 0
        out = Path(folder) / "web.img"
        exported = run_cli("lab", "disk", "export", "--dir", folder, "prod", "web-01", "0", str(out))
        assert exported.returncode == 0, exported.stderr
        assert out.read_bytes()[65536:131072] == random_bytes("5", 65536)
    finally:
        down = run_cli("lab", "down", "--dir", folder)
    assert down.returncode == 0, down.stderr
    assert first is not None
    assert not any(site.process.is_alive() for site in first.values())
    assert out.exists()
    assert run_cli("lab", "status", "--dir", folder).returncode == 1
    assert tiny.status()


def test_a_lab_may_lie_deep(tiny: Lab, tmp_path: Path) -> None:
    folder = tmp_path / ("deep-" * 20) / ("deeper-" * 20)
    with Lab.start(folder, LabSpec.of_vms(), say=lambda line: None) as deep:
        assert deep.status()["dr"]["port"] == deep.sites["dr"].port
    assert tiny.status()


def test_simulators_die_with_the_process_that_started_them(tiny: Lab, lab_folders: Callable[[], Path]) -> None:
    folder = lab_folders()
    code = (
        "import sys; from pathlib import Path; from vrepl_lab.lab import Lab; from vrepl_lab.spec import LabSpec\n"
        "Lab.start(Path(sys.argv[1]), LabSpec.of_vms()); print('up', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    sites = read_state(folder)
    assert sites
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    deadline = time.monotonic() + 20
    while any(site.process.is_alive() for site in sites.values()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [ProcessIdentity.of(site.process.pid) for site in sites.values()] == [None, None]
