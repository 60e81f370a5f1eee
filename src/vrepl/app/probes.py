"""Asks from this machine whether a guest serves, and tells whether the process of a test lives."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

CONNECT_SECONDS = 3.0
SCRIPT_SECONDS = 60.0
"""What one call of a script may take; it is ended then, and asked again while its gate has time."""


class LocalProbe:
    """`ports.failover.ServiceProbe`."""

    def connects(self, address: str, port: int) -> bool:
        try:
            with socket.create_connection((address, port), timeout=CONNECT_SECONDS):
                return True
        except OSError:
            return False

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str]:
        try:
            done = subprocess.run(
                list(command),
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=SCRIPT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return 124, f"it did not end within {SCRIPT_SECONDS:.0f} s"
        except OSError as error:
            return 127, str(error.strerror)
        lines = (done.stderr or done.stdout)[-2000:].decode(errors="replace").strip().splitlines()
        return done.returncode, lines[-1] if lines else ""


def process_name(pid: int | None = None) -> str:
    """`HOST/BOOT/NAMESPACE/PID/START`: no other process has it, on any machine, at any time."""
    pid = os.getpid() if pid is None else pid
    return f"{_machine()}/{pid}/{_started(pid)}"


def process_has_ended(name: str) -> bool:
    """Whether a process of such a name is known to have ended: one of another machine never is."""
    machine, _, rest = name.rpartition("/")
    machine, _, pid = machine.rpartition("/")
    return machine == _machine() and pid.isdecimal() and _started(int(pid)) != rest


def is_of_this_machine(name: str) -> bool:
    """Whether a process of such a name runs, or ran, where this one does."""
    return name.rsplit("/", 2)[0] == _machine()


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    namespace = Path("/proc/self/ns/pid").stat().st_ino
    return f"{socket.gethostname()}/{boot}/{namespace}"


def _started(pid: int) -> str:
    """In clock ticks after boot: field 22 of proc(5)'s stat, whose second one may hold anything; "" for none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
