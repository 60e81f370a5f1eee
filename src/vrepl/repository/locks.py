"""Locks by flock, with their owner inside. The kernel frees a dead owner's lock: that it can be taken proves the death.

What stands in the file is for people only; an owner that died leaves its name behind, and that means nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from vrepl.errors import LockedError
from vrepl.repository.files import FILE_MODE, make_directory, naming, write_all

_POLL_SECONDS = 0.1
_NAMELESS_SECONDS = 1.0
"""A lock without an owner's name is being taken or looked at (`is_held`) this moment: worth waiting for."""


@dataclass(frozen=True, slots=True)
class LockOwner:
    """Who took a lock: `command` as typed, without secrets (vrepl takes none there)."""

    pid: int
    host: str
    command: str

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}: {self.command}"


def this_process() -> LockOwner:
    return LockOwner(os.getpid(), socket.gethostname(), shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))


@contextmanager
def holding(
    path: Path,
    what: str,
    wait_seconds: float = 0,
    *,
    sleep: Callable[[float], None] = time.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> Iterator[None]:
    """Hold the lock file for the block, or raise LockedError, which says that `what` is locked and by whom.

    `wait_seconds`: how long to wait for another owner. Not re-entrant, threads of one process exclude each other too.
    """
    make_directory(path.parent)
    started = monotonic()
    with naming(path, "lock"):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            while not taken(descriptor):
                owner = read_owner(path)
                waited = monotonic() - started
                if waited >= (wait_seconds if owner else max(wait_seconds, _NAMELESS_SECONDS)):
                    raise LockedError(
                        f"{what} is locked by {owner or 'another process'}",
                        hint="wait until that run has ended, or end it; its lock goes with it",
                    )
                sleep(_POLL_SECONDS)
            _write_owner(descriptor, this_process())
        except BaseException:
            os.close(descriptor)
            raise
    try:
        yield
    finally:
        try:
            with naming(path, "unlock"):
                os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether some process holds the lock now. Changes nothing."""
    with naming(path, "look at the lock"):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return not taken(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)


def read_owner(path: Path) -> LockOwner | None:
    """Who wrote its name into a lock file last and did not take it back; it may be dead."""
    try:
        with naming(path, "read"):
            content = json.loads(path.read_bytes())
        return LockOwner(int(content["pid"]), str(content["host"]), str(content["command"]))
    except (ValueError, KeyError, TypeError):
        return None


def clear_dead(path: Path) -> bool:
    """Take a dead owner's name away; False if the owner lives."""
    with naming(path, "unlock"):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if not taken(descriptor):
                return False
            os.ftruncate(descriptor, 0)
            return True
        finally:
            os.close(descriptor)


def taken(descriptor: int, operation: int = fcntl.LOCK_EX) -> bool:
    """Whether the lock of an open file could be had at once."""
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_owner(descriptor: int, owner: LockOwner) -> None:
    os.ftruncate(descriptor, 0)
    write_all(descriptor, (json.dumps(asdict(owner)) + "\n").encode(), 0)
