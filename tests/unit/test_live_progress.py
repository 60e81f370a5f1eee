"""Promises of what is drawn on a terminal while a run goes on: it fits, and many who write at once lose nothing."""

from __future__ import annotations

import io
import re
import sys
import threading
import time

import pytest
from rich.console import Console

from vrepl.ports import TransferProgress
from vrepl.report.model import Result, VmReport
from vrepl.report.progress import LiveProgress


class Screen:
    """A terminal, as far as what is drawn over needs one."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.lines = [""]
        self.row = 0

    def feed(self, text: str) -> list[str]:
        column = 0
        for sequence, plain in re.findall(r"(\x1b\[[?\d;]*[A-Za-z]|[\r\n])|([^\x1b\r\n]+)", text):
            if plain:
                line = self.lines[self.row].ljust(column)
                self.lines[self.row] = line[:column] + plain + line[column + len(plain) :]
                column += len(plain)
                assert column <= self.width
            elif sequence == "\n":
                self.row, column = self.row + 1, 0
                self.lines += [""] * (self.row + 1 - len(self.lines))
            elif sequence == "\r":
                column = 0
            elif sequence.endswith("A"):
                self.row -= int(sequence[2:-1])
            elif sequence == "\x1b[2K":
                self.lines[self.row] = ""
            else:
                assert sequence[-1] in "hlm", sequence
        return [line.rstrip() for line in self.lines]


def on(terminal: io.StringIO) -> Console:
    return Console(file=terminal, width=80, height=40, force_terminal=True, color_system=None, highlight=False)


@pytest.mark.slow
def test_what_is_drawn_by_many_threads_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # the worse for those who do not take turns
    monkeypatch.setattr("vrepl.report.progress.REFRESH_SECONDS", 0.01)
    terminal = io.StringIO()
    vms = [f"vm-{number}" for number in range(6)]
    with LiveProgress(on(terminal)) as live:
        live.run_started("run", "web", vms)

        def work(vm: str) -> None:
            for step in range(3):
                live.vm_step(vm, f"step {step}")
                live.disk_started(vm, 0, "", "full", "")
                live.disk_progress(vm, 0, TransferProgress(planned=8 << 20, settled=step << 20))
                live.note(vm, f"note {step} " + "of many words " * 8)
                sys.stderr.write(f"{vm} logs {step}\n")
            live.vm_finished(VmReport(vm, Result.SUCCESS))

        threads = [threading.Thread(target=work, args=(vm,)) for vm in vms]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    sys.setswitchinterval(interval)
    seen = Screen(80).feed(terminal.getvalue())
    text = " ".join(seen)
    for vm in vms:
        assert all(f"{vm}: note {step} {'of many words ' * 8}".strip() in text for step in range(3))
        assert all(f"{vm} logs {step}" in seen for step in range(3))
    assert not any("step" in line or "disk" in line for line in seen), "nothing of what was drawn is left"


def test_bars_fit_into_80_columns_under_the_name_of_their_vm() -> None:
    terminal = io.StringIO()
    long = "a-name-that-is-much-too-long-for-a-line-of-its-own"
    now = [0.0]
    with LiveProgress(on(terminal), lambda: now[0]) as live:
        for vm in ("web-01", long):
            live.vm_step(vm, "transfer")
        for vm, disk in ((long, 0), ("web-01", 1), ("web-01", 0)):
            live.disk_started(vm, disk, "Hard disk", "incremental", "")
            now[0] += 1
            live.disk_progress(vm, disk, TransferProgress(planned=2 << 30, settled=1536 << 20))
        live.note("web-01", "drawn below this")
        deadline = time.monotonic() + 10
        while (text := terminal.getvalue()).rpartition("in all")[2].count("left") < 4:
            assert time.monotonic() < deadline, "it is drawn again and again"
            time.sleep(0.01)
    drawn = [line for line in Screen(80).feed(text) if line]
    drawn = drawn[drawn.index("web-01: drawn below this") + 1 :]
    assert [re.split(r"[━╺╸]| {3,}", line[2:])[0].rstrip() for line in drawn] == [
        "in all",
        "web-01",
        "  disk 0 incremental",
        "  disk 1 incremental",
        "a-name-that-is-much-too-l…",
        "  disk 0 incremental",
    ]
    for line in drawn:
        if "disk" in line:
            assert "1.5 of 2 GiB, 1.5 GiB/s, 0.3 s left" in line
            assert len(re.findall("[━╺╸]", line)) >= 8
