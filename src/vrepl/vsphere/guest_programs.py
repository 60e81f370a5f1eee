"""Programs in a guest, by GuestOperations: a script is uploaded, run, waited for, its output fetched, and removed.

vSphere Web Services API reference, GuestFileManager and GuestProcessManager: on Linux a program is started by the
shell, so that its arguments may redirect output; on Windows that takes `cmd.exe /c`. Files travel by HTTPS to a URL
that names the ESXi host (or `*`: the server that was asked), good for one transfer, without the session's cookie.
"""

from __future__ import annotations

import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException, HTTPSConnection
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from vrepl.errors import VreplError, VsphereError
from vrepl.model.guests import OUTPUT_KEPT, GuestLogin, GuestProcess, ProgramEnd, Script
from vrepl.vsphere import collector, tls
from vrepl.vsphere.api import vim
from vrepl.vsphere.session import Session

FIRST_LOOK, LONGEST_LOOK = 0.2, 2.0
"""Seconds between looks at a program that runs: no event tells of its end."""
OUTPUT_READ = 1 << 20
"""Bytes of the output that are fetched; what a script prints after that is left in the guest, and removed there."""
TRANSFER_TIMEOUT = 60.0
"""Seconds for each piece of a transfer."""

_HINTS = {
    "InvalidGuestLogin": "user and password of the guest's own system, in logins of [jobs.NAME.guest]",
    "GuestOperationsUnavailable": "are VMware Tools running in the guest?",
    "GuestPermissionDenied": "may the guest's user write to its temporary folder, and run what lies there (noexec)?",
    "OperationNotSupportedByGuest": "the guest's VMware Tools do not take guest operations; upgrade them",
}


@dataclass(frozen=True, slots=True)
class _Guest:
    """A guest and a login of it."""

    files: Any
    processes: Any
    vm: Any
    auth: Any

    def make_folder(self) -> str:
        return str(self.files.CreateTemporaryDirectoryInGuest(self.vm, self.auth, "vrepl-", ""))

    def remove_folder(self, folder: str) -> None:
        with suppress(VreplError):
            self.files.DeleteDirectoryInGuest(self.vm, self.auth, folder, True)

    def path(self, folder: str, name: str) -> str:
        return f"{folder}{chr(92) if chr(92) in folder else '/'}{name}"

    def start(self, program: str, arguments: str, folder: str) -> int:
        spec = vim.vm.guest.ProcessManager.ProgramSpec(
            programPath=program, arguments=arguments, workingDirectory=folder
        )
        return int(self.processes.StartProgramInGuest(self.vm, self.auth, spec))


class GuestPrograms:
    """VMs are named by their refs."""

    def __init__(
        self,
        session: Session,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`sleep` is no pause of the session's: a guest is thawed although the operator asked to stop."""
        self._session = session
        self._monotonic = monotonic
        self._sleep = sleep

    def run(self, vm_ref: str, login: GuestLogin, script: Script, *, within: float) -> ProgramEnd:
        until = self._monotonic() + within
        with _hints(), _temporary_folder(guest := self._guest(vm_ref, login)) as folder:
            path, output = guest.path(folder, script.name), guest.path(folder, "output")
            self._upload(guest, path, script)
            pid = guest.start(*_command(path, output), folder)
            status = self._wait_for_end(guest.processes, guest.vm, guest.auth, pid, until)
            said, cut = self._output(guest.files, guest.vm, guest.auth, output)
            return ProgramEnd(status, said, cut)

    def run_later(self, vm_ref: str, login: GuestLogin, script: Script, *, seconds: float) -> GuestProcess:
        guest = self._guest(vm_ref, login)
        with _hints():
            folder = guest.make_folder()
            try:
                path = guest.path(folder, script.name)
                self._upload(guest, path, script)
                pid = guest.start(*_later(path, guest.path(folder, "output"), max(1, round(seconds))), folder)
            except BaseException:
                guest.remove_folder(folder)
                raise
        return GuestProcess(pid, folder)

    def forget(self, vm_ref: str, login: GuestLogin, process: GuestProcess) -> None:
        """Without its files there is nothing left to run, even where the process does not end."""
        guest = self._guest(vm_ref, login)
        with suppress(VreplError):
            guest.processes.TerminateProcessInGuest(guest.vm, guest.auth, process.pid)
        guest.remove_folder(process.folder)

    def _guest(self, vm_ref: str, login: GuestLogin) -> _Guest:
        operations = self._session.content.guestOperationsManager
        return _Guest(
            files=operations.fileManager,
            processes=operations.processManager,
            vm=self._session.object(vim.VirtualMachine, vm_ref),
            auth=vim.vm.guest.NamePasswordAuthentication(
                username=login.user, password=login.password, interactiveSession=False
            ),
        )

    def _upload(self, guest: _Guest, path: str, script: Script) -> None:
        attributes = (
            vim.vm.guest.FileManager.FileAttributes()
            if "\\" in path
            else vim.vm.guest.FileManager.PosixFileAttributes(permissions=0o700)
        )
        url = guest.files.InitiateFileTransferToGuest(
            guest.vm, guest.auth, path, attributes, len(script.content), False
        )
        self._exchange(guest.vm, "PUT", url, f"upload {script.name} to the guest", script.content)

    def _wait_for_end(self, processes: Any, vm: Any, auth: Any, pid: int, until: float) -> int | None:
        pause = FIRST_LOOK
        while True:
            listed = processes.ListProcessesInGuest(vm, auth, [pid])
            if not listed:
                raise VsphereError(f"process {pid} is gone from the guest: did the guest restart?")
            if listed[0].endTime is not None:
                return int(listed[0].exitCode)
            left = until - self._monotonic()
            if left <= 0:
                with suppress(VreplError):
                    processes.TerminateProcessInGuest(vm, auth, pid)
                return None
            self._sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_LOOK)

    def _output(self, files: Any, vm: Any, auth: Any, path: str) -> tuple[bytes, bool]:
        """Its last OUTPUT_KEPT bytes (of the first OUTPUT_READ), and whether there was more."""
        try:
            told = files.InitiateFileTransferFromGuest(vm, auth, path)
            said = self._exchange(vm, "GET", told.url, "fetch the script's output")
        except VreplError as error:
            # How it ended is known, and counts for more.
            return f"(the output could not be fetched: {error.message})".encode(), False
        return said[-OUTPUT_KEPT:], int(told.size) > OUTPUT_KEPT

    def _exchange(self, vm: Any, method: str, url: str, what: str, body: bytes | None = None) -> bytes:
        settings = self._session.settings
        parts = urlsplit(url)
        named = parts.hostname or "*"
        server = settings.server if named == "*" else named
        port = parts.port or 443
        if named == "*" or (server, port) == (settings.server, settings.port):
            context = tls.make_context(ca_file=settings.ca_file, thumbprint=settings.thumbprint)
        else:
            context = self._context_of_host(vm)
        connection = HTTPSConnection(server, port, context=context, timeout=TRANSFER_TIMEOUT)
        try:
            headers = {"Content-Type": "application/octet-stream"} if body is not None else {}
            connection.request(method, f"{parts.path}?{parts.query}", body=body, headers=headers)
            reply = connection.getresponse()
            kept = _last_of(iter(lambda: reply.read(65536), b""))
        except ssl.SSLCertVerificationError as cause:
            raise tls.certificate_error(
                cause, server=server, port=port, pinned=context.pinned.hex() if context.pinned else None, timeout=10.0
            ) from cause
        except (OSError, HTTPException) as cause:
            raise VsphereError(
                f"{what}: {server}:{port}: {cause}",
                hint="files travel straight to the ESXi host: is its port 443 open, and its name known here?",
            ) from cause
        finally:
            connection.close()
        if reply.status not in {200, 201, 204}:
            raise VsphereError(f"{what}: {server}:{port}: HTTP {reply.status}")
        return kept

    def _context_of_host(self, vm: Any) -> tls.VerifiedContext:
        """Pinned to the certificate that the vCenter, itself verified, knows of the VM's host."""
        found = collector.along(self._session, vm, "runtime.host", {vim.HostSystem: ["config.certificate"]})
        known = found[0].get("config.certificate") if found else None
        if not known:
            raise VsphereError("the vCenter does not tell the certificate of the VM's ESXi host")
        pem = bytes(byte & 0xFF for byte in known).decode("ascii", errors="replace")
        return tls.make_context(
            ca_file=None, thumbprint=tls.sha256_thumbprint(ssl.PEM_cert_to_DER_cert(pem.strip("\0")))
        )


@contextmanager
def _temporary_folder(guest: _Guest) -> Iterator[str]:
    folder = guest.make_folder()
    try:
        yield folder
    finally:
        guest.remove_folder(folder)


@contextmanager
def _hints() -> Iterator[None]:
    try:
        yield
    except VsphereError as error:
        error.hint = _HINTS.get(error.fault or "", error.hint)
        raise


def _command(path: str, output: str) -> tuple[str, str]:
    """Program and arguments that run a script with all that it prints in a file."""
    match PurePosixPath(path.replace("\\", "/")).suffix.lower():
        case ".ps1":
            inner = f'powershell.exe -NonInteractive -ExecutionPolicy Bypass -File "{path}"'
        case ".cmd" | ".bat":
            inner = f'"{path}"'
        case _:
            return path, f'> "{output}" 2>&1'
    # With outer quotes: `cmd /?` tells that only the first and the last are taken away.
    return r"C:\Windows\System32\cmd.exe", f'/c "{inner} > "{output}" 2>&1"'


def _later(path: str, output: str, seconds: int) -> tuple[str, str]:
    """The same after a while. (Windows' `timeout` wants a console: `ping` is what waits without one.)"""
    program, arguments = _command(path, output)
    if program != path:
        return program, f'/c "ping -n {seconds + 1} 127.0.0.1 > nul & {arguments.removeprefix("/c ")[1:-1]}"'
    return "/bin/sh", f"-c 'sleep {seconds}; \"{path}\" {arguments}'"


def _last_of(chunks: Iterator[bytes]) -> bytes:
    """At the most OUTPUT_KEPT bytes, the last of the first OUTPUT_READ."""
    kept: deque[bytes] = deque()
    total = 0
    for chunk in chunks:
        kept.append(chunk)
        total += len(chunk)
        while sum(map(len, kept)) - len(kept[0]) >= OUTPUT_KEPT:
            kept.popleft()
        if total >= OUTPUT_READ:
            break
    return b"".join(kept)[-OUTPUT_KEPT:]
