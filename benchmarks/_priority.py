"""A benchmark that runs with `nice -n -15` on a machine that others use: what it starts gets that priority too.

Where the kernel groups processes by session (sched(7), "The autogroup feature"), a nice value counts within its session
only, and both the lab's servers and data movers begin sessions of their own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def share_priority(pids: Iterable[int]) -> None:
    """Give their sessions, and this one, this process's nice value, if it has one; nothing without such groups."""
    nice = os.nice(0)
    if nice == 0:
        return
    for pid in (os.getpid(), *pids):
        with suppress(OSError):
            Path(f"/proc/{pid}/autogroup").write_text(str(nice))
