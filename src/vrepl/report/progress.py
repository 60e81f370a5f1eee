"""A run while it runs: bars on a terminal, a line now and then elsewhere. Both listen as the engine's events.

They write to stderr only. All methods may be called from several threads.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, Task, TaskID, TextColumn
from rich.progress_bar import ProgressBar
from rich.text import Text

from vrepl.ports import TransferProgress
from vrepl.printable import printable
from vrepl.report import format as words
from vrepl.report.console import make_console
from vrepl.report.model import Result, VmReport

log = logging.getLogger(__name__)

Disk = tuple[str, int]


class _DiskBar(BarColumn):
    """A bar for disks; VMs, whose steps have no length, have none."""

    def render(self, task: Task) -> ProgressBar | Text:  # type: ignore[override]
        return super().render(task) if task.total is not None else Text("")


class LiveProgress:
    """One line per VM with its step, and under it a bar per disk in transfer."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or make_console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}", markup=False),
            _DiskBar(bar_width=20),
            TextColumn("{task.fields[figures]}", markup=False),
            console=self._console,
            transient=True,
        )
        self._vms: dict[str, TaskID] = {}
        self._disks: dict[Disk, TaskID] = {}
        self._started: dict[Disk, float] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> LiveProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def run_started(self, run_id: str, job: str, vms: list[str]) -> None:
        self._print(f"job {job}, run {run_id}: {', '.join(vms)}")

    def vm_step(self, vm: str, step: str) -> None:
        with self._lock:
            task = self._vms.get(vm)
            if task is None:
                task = self._vms[vm] = self._progress.add_task(printable(vm), total=None, figures="")
        self._progress.update(task, figures=step)

    def disk_started(self, vm: str, disk_index: int, title: str, kind: str, reason: str) -> None:
        del reason
        with self._lock:
            key = (vm, disk_index)
            self._started[key] = time.monotonic()
            if key not in self._disks:
                title = printable(f"  {vm} disk {disk_index} {kind}")
                self._disks[key] = self._progress.add_task(title, total=None, figures="")

    def disk_progress(self, vm: str, disk_index: int, progress: TransferProgress) -> None:
        key = (vm, disk_index)
        task, started = self._disks.get(key), self._started.get(key)
        if task is None or started is None:
            return
        seconds = time.monotonic() - started
        self._progress.update(
            task,
            total=progress.planned or None,
            completed=progress.settled,
            figures=f"{words.size(progress.settled)} of {words.size(progress.planned)}, "
            f"read {words.rate(progress.bytes_read, seconds)}",
        )

    def note(self, vm: str, message: str) -> None:
        self._print(f"{vm}: {message}" if vm else message)

    def vm_finished(self, report: VmReport) -> None:
        with self._lock:
            gone = [task for key, task in self._disks.items() if key[0] == report.name]
            self._disks = {key: task for key, task in self._disks.items() if key[0] != report.name}
            vm_task = self._vms.pop(report.name, None)
        for task in [*gone, *([vm_task] if vm_task is not None else [])]:
            self._progress.remove_task(task)
        self._print(finished_line(report))

    def _print(self, text: str) -> None:
        self._progress.print(Text(printable(text)))


@dataclass(slots=True)
class _Transfer:
    kind: str
    started: float
    told: float
    progress: TransferProgress = field(default_factory=TransferProgress)


class LogProgress:
    """A line per disk in transfer each `interval` seconds; notes at once; steps go to the log (`-v` shows them)."""

    def __init__(
        self,
        interval: float = 30.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._interval = interval
        self._stream = stream
        self._clock = clock
        self._transfers: dict[Disk, _Transfer] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> LogProgress:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def run_started(self, run_id: str, job: str, vms: list[str]) -> None:
        log.info("job %s, run %s: %s", job, run_id, ", ".join(vms))

    def vm_step(self, vm: str, step: str) -> None:
        log.info("%s: %s", vm, step)

    def disk_started(self, vm: str, disk_index: int, title: str, kind: str, reason: str) -> None:
        log.info("%s: %s: %s, %s", vm, title, kind, reason)
        now = self._clock()
        with self._lock:
            self._transfers[vm, disk_index] = _Transfer(kind, now, now)

    def disk_progress(self, vm: str, disk_index: int, progress: TransferProgress) -> None:
        now = self._clock()
        with self._lock:
            transfer = self._transfers.get((vm, disk_index))
            if transfer is None or now - transfer.told < self._interval:
                return
            transfer.told = now
        share = f" ({100 * progress.settled // progress.planned} %)" if progress.planned else ""
        self._say(
            f"{vm} disk {disk_index} {transfer.kind}: {words.size(progress.settled)} of "
            f"{words.size(progress.planned)}{share}, read {words.rate(progress.bytes_read, now - transfer.started)}"
        )

    def note(self, vm: str, message: str) -> None:
        self._say(f"{vm}: {message}" if vm else message)

    def vm_finished(self, report: VmReport) -> None:
        with self._lock:
            self._transfers = {key: value for key, value in self._transfers.items() if key[0] != report.name}
        log.info("%s", finished_line(report))

    def _say(self, text: str) -> None:
        stream = self._stream or sys.stderr
        stream.write(f"{printable(text)}\n")  # in one piece: VMs side by side write at the same time
        stream.flush()


def finished_line(report: VmReport) -> str:
    """`web-01: success, restore point …, 12 MiB moved in 3 s`."""
    moved = sum(disk.bytes_moved or 0 for disk in report.disks)
    parts = [f"{report.name}: {report.result.value}"]
    if report.restore_point:
        parts.append(f"restore point {report.restore_point}")
    if report.result is Result.SUCCESS:
        parts.append(f"{words.size(moved)} moved in {words.duration(report.seconds)}")
    if report.error is not None:
        parts.append(report.error.message)
    return ", ".join(parts)
