"""A run while it runs: bars on a terminal, lines elsewhere. Both listen as the engine's events.

They write to stderr only. All methods may be called from several threads.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import IO, TextIO

from rich.cells import cell_len, set_cell_size
from rich.console import Console, RenderableType
from rich.file_proxy import FileProxy
from rich.progress import BarColumn, Progress, SpinnerColumn, Task, TaskID, TextColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vrepl.ports import TransferProgress
from vrepl.printable import printable
from vrepl.report import format as words
from vrepl.report.console import make_console
from vrepl.report.flow import Disk, Figures, Flow
from vrepl.report.model import Result, VmReport
from vrepl.report.plan import PlanReport, PlanResult, changes, live_view

REFRESH_SECONDS = 0.1
NAME_COLUMNS = 26
"""That the name of a VM takes at most beside bars."""


class _DiskBar(BarColumn):
    """A bar for disks; VMs, whose steps have no length, have none."""

    def render(self, task: Task) -> ProgressBar | Text:  # type: ignore[override]
        return super().render(task) if task.total is not None else Text("")


def _shortened(text: str, columns: int) -> str:
    """The beginning of a text that is too long, with `…` where the rest was."""
    return text if cell_len(text) <= columns else f"{set_cell_size(text, columns - 1)}…"


class _Screen(Progress):
    """Lines for VMs and disks; while a failover plan is walked, the plan instead, which says more of its VMs.

    Lines stand where they belong, not in the order in which they came.
    """

    plan: PlanReport | None = None
    looked_at: float = 0.0
    """When it was told of, by `time.monotonic`: since then it has grown older."""

    def get_renderable(self) -> RenderableType:
        if self.plan is None:
            return super().get_renderable()
        now = self.plan.seconds
        if self.plan.result is PlanResult.RUNNING:
            now += time.monotonic() - self.looked_at
        return live_view(self.plan, now, self.console.height)

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        return super().make_tasks_table(sorted(tasks, key=lambda task: task.fields["place"]))


class _InTurn(FileProxy):
    """stderr while bars are drawn: what is written to it, logs for example, comes above them."""

    def __init__(self, console: Console, file: IO[str], drawing: threading.RLock) -> None:
        super().__init__(console, file)
        self.drawing = drawing

    def write(self, text: str) -> int:
        with self.drawing:
            return super().write(text)


class LiveProgress:
    """A line for all of it, then one per VM with its step, and under it a bar per disk in transfer.

    What does not fit on a low terminal is cut off below.

    rich works out how far the cursor must go back before it draws, and draws later: from two threads at once it loses
    lines and leaves old ones. So whoever draws here does it in turn, the refreshing too.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or make_console(stderr=True)
        self._progress = _Screen(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}", markup=False),
            _DiskBar(bar_width=20),
            TextColumn("{task.fields[figures]}", markup=False),
            console=self._console,
            transient=True,
            auto_refresh=False,
            redirect_stderr=False,
        )
        self._drawing = threading.RLock()
        self._ended = threading.Event()
        self._refresher = threading.Thread(target=self._refresh, name="progress", daemon=True)
        self._stderr = sys.stderr
        self._flow = Flow(clock)
        self._vms: dict[str, TaskID] = {}
        self._disks: dict[Disk, TaskID] = {}
        self._places: dict[str, int] = {}
        self._all = self._progress.add_task("in all", total=None, figures="", place=(0,), visible=False)
        self._several = False

    def __enter__(self) -> LiveProgress:
        self._stderr = sys.stderr
        if self._console.is_terminal:
            sys.stderr = _InTurn(self._console, sys.stderr, self._drawing)
        self._progress.start()
        self._refresher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._refresher.join()
        with self._drawing:
            self._progress.stop()
        sys.stderr.flush()
        sys.stderr = self._stderr

    def _refresh(self) -> None:
        while not self._ended.wait(REFRESH_SECONDS):
            with self._drawing:
                self._progress.refresh()

    def tell_now(self) -> None:
        """What is on the screen stays there as lines."""
        for line in self._flow.lines():
            self._print(line)

    def run_started(self, run_id: str, job: str, vms: list[str]) -> None:
        self._print(f"job {job}, run {run_id}: {', '.join(vms)}")

    def vm_step(self, vm: str, step: str) -> None:
        self._flow.step(vm, step)
        with self._drawing:
            task = self._line_of(vm)
        self._progress.update(task, figures=step)

    def _line_of(self, vm: str) -> TaskID:
        """Made if there is none: a verification has disks, and no steps. Wants the lock held, for it draws."""
        if vm not in self._vms:
            place = (1, self._places.setdefault(vm, len(self._places)))
            name = _shortened(printable(vm), NAME_COLUMNS)
            self._vms[vm] = self._progress.add_task(name, total=None, figures="", place=place)
        return self._vms[vm]

    def disk_started(self, vm: str, disk_index: int, title: str, kind: str, reason: str) -> None:
        del title, reason
        self._flow.disk_started(vm, disk_index, kind)
        with self._drawing:
            key = (vm, disk_index)
            if key not in self._disks:
                self._line_of(vm)
                place = (1, self._places[vm], disk_index)
                name = f"  disk {disk_index} {kind}"
                self._disks[key] = self._progress.add_task(name, total=None, figures="", place=place)

    def disk_progress(self, vm: str, disk_index: int, progress: TransferProgress) -> None:
        figures = self._flow.disk_progress(vm, disk_index, progress)
        task = self._disks.get((vm, disk_index))
        if task is None or figures is None:
            return
        self._show(task, figures)
        with self._drawing:
            self._several = self._several or len(self._disks) > 1
        if self._several:
            self._show(self._all, self._flow.total())

    def _show(self, task: TaskID, figures: Figures) -> None:
        self._progress.update(
            task,
            total=figures.planned or None,
            completed=figures.settled,
            figures=figures.beside_a_bar(),
            visible=True,
        )

    def note(self, vm: str, message: str) -> None:
        self._print(f"{vm}: {message}" if vm else message)

    def vm_finished(self, report: VmReport) -> None:
        self._flow.finished(report.name)
        with self._drawing:
            gone = [task for key, task in self._disks.items() if key[0] == report.name]
            self._disks = {key: task for key, task in self._disks.items() if key[0] != report.name}
            vm_task = self._vms.pop(report.name, None)
            for task in [*gone, *([vm_task] if vm_task is not None else [])]:
                self._progress.remove_task(task)
            self._print(finished_line(report))

    def plan_moved(self, plan: PlanReport) -> None:
        self._progress.looked_at = time.monotonic()
        self._progress.plan = plan

    def _print(self, text: str) -> None:
        with self._drawing:
            self._progress.print(Text(printable(text)))


class LogProgress:
    """A line for each VM's start, steps and finish, and one per disk in transfer each `interval` seconds."""

    def __init__(
        self,
        interval: float = 30.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        write: Callable[[str], None] | None = None,
    ) -> None:
        """`write` takes a line, instead of `stream` (default: stderr)."""
        self._interval = interval
        self._stream = stream
        self._write = write
        self._flow = Flow(clock)
        self._plan: PlanReport | None = None

    def __enter__(self) -> LogProgress:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def tell_now(self) -> None:
        for line in self._flow.lines():
            self._say(line)

    def run_started(self, run_id: str, job: str, vms: list[str]) -> None:
        self._say(f"job {job}, run {run_id}: {', '.join(vms)}")

    def vm_step(self, vm: str, step: str) -> None:
        self._flow.step(vm, step)
        self._say(f"{vm}: {step}")

    def disk_started(self, vm: str, disk_index: int, title: str, kind: str, reason: str) -> None:
        self._flow.disk_started(vm, disk_index, kind)
        self._say(f"{vm}: {title}: {kind}, {reason}")

    def disk_progress(self, vm: str, disk_index: int, progress: TransferProgress) -> None:
        figures = self._flow.disk_progress(vm, disk_index, progress, self._interval)
        if figures is not None:
            self._say(f"{vm} disk {disk_index}: {figures}")

    def note(self, vm: str, message: str) -> None:
        self._say(f"{vm}: {message}" if vm else message)

    def vm_finished(self, report: VmReport) -> None:
        self._flow.finished(report.name)
        self._say(finished_line(report))

    def plan_moved(self, plan: PlanReport) -> None:
        before, self._plan = self._plan, plan
        for line in changes(before, plan):
            self._say(line)

    def _say(self, text: str) -> None:
        if self._write is not None:
            self._write(text)
            return
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
