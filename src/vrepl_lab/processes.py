"""Starting simulators, and ending only those that this lab started.

A pid alone does not name a process: pids are reused. The pid together with the boot and the process's start time does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.02
END_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """`started` is the start time in clock ticks since the boot `boot_id`."""

    pid: int
    started: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """None if there is no such process, or only its unreaped rest."""
        started = start_ticks(pid)
        return None if started is None else cls(pid, started, boot_id())

    def is_alive(self) -> bool:
        return self.boot_id == boot_id() and start_ticks(self.pid) == self.started


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name, in parentheses, may hold anything; field 3 (state) follows the last parenthesis, start time is field 22.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def start(command: Sequence[str], log: Path, *, die_with_us: bool) -> subprocess.Popen[bytes]:
    """Start in a session of its own, output to `log`. With `die_with_us`, stdin is a pipe that closes when we end."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE if die_with_us else subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
        )


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def end(process: ProcessIdentity, child: subprocess.Popen[bytes] | None = None) -> bool:
    """SIGTERM, then SIGKILL, until it is gone. Returns whether it was alive; nothing else is ever signalled."""
    alive = process.is_alive()
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not process.is_alive():
            break
        try:
            os.kill(process.pid, number)
        except ProcessLookupError:
            break
        wait_until(lambda: is_gone(process, child), END_TIMEOUT_S)
    if child is not None:
        child.wait()
        if child.stdin:
            child.stdin.close()
    return alive


def is_gone(process: ProcessIdentity, child: subprocess.Popen[bytes] | None) -> bool:
    if child is not None:
        return child.poll() is not None
    return not process.is_alive()
