"""Programs and files in the lab's guests: login, upload, exit code, output, what hangs (docs/lab.md)."""

from __future__ import annotations

import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from tests.support import plain_api
from tests.support.plain_api import vm_named, wait
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

SPEC = LabSpec.of_vms(
    VmSpec("app-01", disks=(DiskSpec(MIB, content="empty"),)),
    VmSpec("off-01", disks=(DiskSpec(MIB, content="empty"),), power="poweredOff"),
)
LOGIN = vim.vm.guest.NamePasswordAuthentication(username="root", password="guest", interactiveSession=False)


@pytest.fixture(scope="module")
def vcenter(start_shared_lab: Callable[[LabSpec], Lab]) -> Lab:
    return start_shared_lab(SPEC)


@pytest.fixture
def api(vcenter: Lab) -> Iterator[Any]:
    with plain_api.session(vcenter) as instance:
        yield instance
    vcenter.set("guests=none")


def transfer(vcenter: Lab, url: str, body: bytes | None = None) -> bytes:
    context = ssl.create_default_context(cafile=str(vcenter.folder / "ca.pem"))
    request = urllib.request.Request(url.replace("*", "127.0.0.1"), body, method="PUT" if body is not None else "GET")
    with urllib.request.urlopen(request, context=context, timeout=20) as reply:
        content: bytes = reply.read()
    return content


class Guest:
    def __init__(self, vcenter: Lab, api: Any, name: str) -> None:
        self.lab, self.vm = vcenter, vm_named(api, name)
        self.files = api.content.guestOperationsManager.fileManager
        self.processes = api.content.guestOperationsManager.processManager

    def put(self, path: str, content: bytes, mode: int = 0o700, *, overwrite: bool = False) -> None:
        attributes = vim.vm.guest.FileManager.PosixFileAttributes(permissions=mode)
        url = self.files.InitiateFileTransferToGuest(self.vm, LOGIN, path, attributes, len(content), overwrite)
        transfer(self.lab, url, content)

    def read(self, path: str) -> bytes:
        told = self.files.InitiateFileTransferFromGuest(self.vm, LOGIN, path)
        content = transfer(self.lab, told.url)
        assert len(content) == told.size
        return content

    def start(self, program: str, arguments: str = "") -> int:
        spec = vim.vm.guest.ProcessManager.ProgramSpec(programPath=program, arguments=arguments)
        return int(self.processes.StartProgramInGuest(self.vm, LOGIN, spec))

    def ended(self, pid: int) -> Any:
        deadline = time.monotonic() + 30
        while True:
            (process,) = self.processes.ListProcessesInGuest(self.vm, LOGIN, [pid])
            if process.endTime is not None:
                return process
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.fixture
def guest(vcenter: Lab, api: Any) -> Guest:
    return Guest(vcenter, api, "app-01")


def test_a_script_is_uploaded_run_and_its_exit_code_and_output_come_back(guest: Guest) -> None:
    folder = guest.files.CreateTemporaryDirectoryInGuest(guest.vm, LOGIN, "vrepl-", "")
    assert folder.startswith("/tmp/vrepl-")
    script = f"{folder}/freeze.sh"
    guest.put(script, b"#!/bin/sh\necho frozen $1\necho trouble >&2\nexit 3\n")
    with pytest.raises(vim.fault.FileAlreadyExists):
        guest.put(script, b"x")
    guest.put(script, b"#!/bin/sh\necho frozen $1; echo trouble >&2; exit 4\n", overwrite=True)
    process = guest.ended(guest.start(script, f"now > {folder}/out 2> {folder}/err"))
    assert (process.exitCode, process.name, process.owner) == (4, "freeze.sh", "root")
    assert guest.read(f"{folder}/out") == b"frozen now\n"
    assert guest.read(f"{folder}/err") == b"trouble\n"
    assert (guest.lab.guest_folder("prod", "app-01") / folder.lstrip("/") / "out").read_bytes() == b"frozen now\n"
    guest.files.DeleteDirectoryInGuest(guest.vm, LOGIN, folder, True)
    with pytest.raises(vim.fault.FileNotFound):
        guest.read(f"{folder}/out")


def test_a_program_that_hangs_is_killed_with_what_it_started(guest: Guest) -> None:
    pid = guest.start("/bin/sh", "-c 'sleep 100; echo never'")
    (process,) = guest.processes.ListProcessesInGuest(guest.vm, LOGIN, [pid])
    assert process.endTime is None
    guest.processes.TerminateProcessInGuest(guest.vm, LOGIN, pid)
    assert guest.ended(pid).exitCode != 0
    with pytest.raises(vim.fault.GuestProcessNotFound):
        guest.processes.TerminateProcessInGuest(guest.vm, LOGIN, pid)
    assert guest.processes.ListProcessesInGuest(guest.vm, LOGIN, [99]) == []


def test_a_mebibyte_of_output_and_windows_paths(guest: Guest) -> None:
    pid = guest.start("C:\\Windows\\System32\\cmd.exe", '/c "head -c 1048576 /dev/zero > C:\\tmp\\big.txt"')
    assert guest.ended(pid).exitCode == 0
    assert guest.read("C:\\tmp\\big.txt") == bytes(MIB)
    listed = guest.files.ListFilesInGuest(guest.vm, LOGIN, "/tmp")
    assert [(one.path, one.size) for one in listed.files] == [("big.txt", MIB)]
    guest.files.DeleteFileInGuest(guest.vm, LOGIN, "/tmp/big.txt")


def test_who_may_not_or_cannot(vcenter: Lab, api: Any, guest: Guest) -> None:
    auth = api.content.guestOperationsManager.authManager
    auth.ValidateCredentialsInGuest(guest.vm, LOGIN)
    wrong = vim.vm.guest.NamePasswordAuthentication(username="root", password="no", interactiveSession=False)
    spec = vim.vm.guest.ProcessManager.ProgramSpec(programPath="/bin/true", arguments="")
    with pytest.raises(vim.fault.InvalidGuestLogin):
        guest.processes.StartProgramInGuest(guest.vm, wrong, spec)
    vcenter.set("prod.guest=app-*,login=backup:s3cret")
    with pytest.raises(vim.fault.InvalidGuestLogin):
        auth.ValidateCredentialsInGuest(guest.vm, LOGIN)
    vcenter.set("guests=none")
    for program in ("/bin/no-such", "/tmp/no-such", "relative"):
        with pytest.raises(vim.fault.FileNotFound):
            guest.start(program)
    guest.put("/tmp/plain", b"no program", 0o600)
    with pytest.raises(vim.fault.GuestPermissionDenied):
        guest.start("/tmp/plain")
    guest.files.DeleteFileInGuest(guest.vm, LOGIN, "/tmp/plain")
    with pytest.raises(vim.fault.InvalidPowerState):
        auth.ValidateCredentialsInGuest(vm_named(api, "off-01"), LOGIN)
    vcenter.set_tools("prod", "app-01", "notRunning")
    with pytest.raises(vim.fault.GuestOperationsUnavailable):
        guest.start("/bin/true")
    vcenter.set_tools("prod", "app-01", "running")
    vcenter.set("prod.missing_privileges=VirtualMachine.GuestOperations.Execute")
    with pytest.raises(vim.fault.NoPermission):
        guest.start("/bin/true")
    vcenter.set("prod.missing_privileges=none")
    assert guest.ended(guest.start("/bin/true")).exitCode == 0


def test_a_transfer_serves_once_and_out_of_the_guest_nothing_is_reached(guest: Guest) -> None:
    attributes = vim.vm.guest.FileManager.FileAttributes()
    url = guest.files.InitiateFileTransferToGuest(guest.vm, LOGIN, "/tmp/once", attributes, 3, True)
    with pytest.raises(urllib.error.HTTPError):
        transfer(guest.lab, url, b"four")
    with pytest.raises(urllib.error.HTTPError):
        transfer(guest.lab, url, b"one")
    guest.put("/tmp/../../../../../tmp/inside", b"x")
    assert guest.read("/tmp/inside") == b"x"
    with pytest.raises(vim.fault.FileNotFound):
        guest.read("/proc/self/environ")
    with pytest.raises(vmodl.fault.InvalidArgument):
        guest.processes.StartProgramInGuest(
            guest.vm,
            vim.vm.guest.SAMLTokenAuthentication(token="x", interactiveSession=False),
            vim.vm.guest.ProcessManager.ProgramSpec(programPath="/bin/true", arguments=""),
        )


def test_a_power_off_ends_what_ran(vcenter: Lab, api: Any, guest: Guest) -> None:
    vcenter.set("boot_ms=10")
    pid = guest.start("/bin/sh", "-c 'sleep 100'")
    wait(guest.vm.PowerOffVM_Task())
    wait(guest.vm.PowerOnVM_Task())
    deadline = time.monotonic() + 20
    while guest.vm.guest.toolsRunningStatus != "guestToolsRunning":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert guest.processes.ListProcessesInGuest(guest.vm, LOGIN, [pid]) == []
    vcenter.set("boot_ms=500")
