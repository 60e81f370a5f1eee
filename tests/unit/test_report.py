"""Promises of the report: the documented keys, a loss-free way through JSON, exit codes, and amounts for people."""

from __future__ import annotations

import datetime as dt
import io
import json
from typing import ClassVar

import pytest
from rich.console import Console

from vrepl.errors import DiskError, LockedError
from vrepl.model import Consistency, TransferKind
from vrepl.ports import TransferProgress
from vrepl.report import console
from vrepl.report import format as words
from vrepl.report.disk import DiskReport, SideTransport
from vrepl.report.estimate import estimate, past_rates
from vrepl.report.flow import Flow
from vrepl.report.model import ErrorReport, Result, RunReport, VmReport
from vrepl.report.plan_view import show_plan
from vrepl.report.progress import LogProgress

START = dt.datetime(2025, 3, 1, 22, 0, tzinfo=dt.UTC)


def disk(**changes: object) -> DiskReport:
    made = DiskReport(
        index=0,
        label="Hard disk 1",
        kind=TransferKind.FULL,
        reason="no restore point yet",
        capacity=1 << 30,
        bytes_read=600 << 20,
        bytes_moved=500 << 20,
        seconds=4.0,
        waits={"source": 1.0, "target": 3.0},
        source=SideTransport("nbdssl", "reachable", "nbdssl", [("san", "no LUN seen")]),
        target=SideTransport("nbd", "listed", "hotadd", [], ["hotadd failed at 6 MiB: error 13"]),
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def vm(name: str = "web-01", result: Result = Result.SUCCESS, error: ErrorReport | None = None) -> VmReport:
    return VmReport(
        name=name,
        result=result,
        error=error,
        restore_point="20250301T220000Z-abcdef" if result is Result.SUCCESS else None,
        consistency=Consistency.QUIESCED,
        seconds=12.3,
        disks=[disk()],
    )


def report(*vms: VmReport, interrupted: bool = False) -> RunReport:
    return RunReport(
        job="demo",
        id="20250301T220000Z-123456",
        started=START,
        finished=START + dt.timedelta(seconds=13),
        vms=list(vms),
        interrupted=interrupted,
    )


def test_the_promised_keys() -> None:
    told = report(vm()).to_json()
    assert {"version", "run", "vms"} <= set(told)
    assert {"id", "job", "started", "finished", "result"} <= set(told["run"])
    assert {"name", "result", "error", "restore_point", "disks"} <= set(told["vms"][0])
    one = told["vms"][0]["disks"][0]
    assert {"index", "kind", "reason", "capacity", "bytes_read", "bytes_moved", "transport"} <= set(one)
    assert all({"mode", "reason"} <= set(one["transport"][side]) for side in ("source", "target"))
    assert told["run"]["started"] == "2025-03-01T22:00:00+00:00"


def test_a_report_survives_its_json() -> None:
    error = ErrorReport.of(DiskError("boom", hint="mend it").at(disk="disk 0", step="transfer"))
    told = report(vm(), vm("db-01", Result.FAILED, error)).to_json()
    assert RunReport.from_json(json.loads(json.dumps(told))).to_json() == told


def test_a_report_of_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="format 2"):
        RunReport.from_json({**report().to_json(), "version": 2})


LOCKED = ErrorReport.of(LockedError("locked"))
BROKEN = ErrorReport.of(DiskError("boom"))


@pytest.mark.parametrize(
    ("made", "result", "code"),
    [
        (report(vm(), vm("b")), Result.SUCCESS, 0),
        (report(vm(), vm("b", Result.FAILED, BROKEN)), Result.PARTIAL, 3),
        (report(vm(), vm("b", Result.SKIPPED, LOCKED)), Result.PARTIAL, 3),
        (report(vm("a", Result.FAILED, BROKEN), vm("b", Result.FAILED, BROKEN)), Result.FAILED, 1),
        (report(vm("a", Result.FAILED, BROKEN)), Result.FAILED, 1),
        (report(vm("a", Result.SKIPPED, LOCKED)), Result.FAILED, 11),
        (report(vm(), interrupted=True), Result.INTERRUPTED, 130),
    ],
)
def test_results_and_exit_codes(made: RunReport, result: Result, code: int) -> None:
    assert (made.result, made.exit_code) == (result, code)


def test_a_retried_run_shows_each_vm_as_it_was_left() -> None:
    first = report(vm(), vm("b", Result.FAILED, BROKEN))
    second = RunReport(job="demo", id="later", started=START, finished=START, vms=[vm("b")])
    whole = first.followed_by(second)
    assert [(one.name, one.result) for one in whole.vms] == [("web-01", Result.SUCCESS), ("b", Result.SUCCESS)]
    assert (whole.id, whole.started, whole.exit_code) == ("later", START, 0)


def test_the_bottleneck_is_a_share_of_the_waits() -> None:
    assert report(vm(), vm("b")).bottleneck() == {"target": 0.75, "source": 0.25}
    assert report().bottleneck() == {}


def render(made: RunReport, width: int = 80) -> str:
    out = io.StringIO()
    console.show_run(Console(file=out, width=width, highlight=False, force_terminal=True, color_system=None), made)
    return out.getvalue()


def test_the_console_view_fits_80_columns_and_cuts_nothing() -> None:
    text = render(report(vm(), vm("db-01", Result.FAILED, ErrorReport("boom [x]", "mend [/it]"))))
    assert max(len(row) for row in text.splitlines()) <= 80
    for part in ("20250301T220000Z-abcdef", "nbdssl → nbd", "600 MiB", "quiesced", "hotadd failed at 6 MiB"):
        assert part in text
    assert "error: db-01: boom [x]" in text, "no markup is read out of messages"
    assert "hint: mend [/it]" in text
    assert render(report(), 80).count("error:") == 0
    assert "bottleneck: target 75 %, source 25 %" in text


def terminal(width: int) -> Console:
    return Console(file=io.StringIO(), width=width, highlight=False, force_terminal=True, color_system=None)


def test_ids_can_be_copied_from_a_narrow_terminal() -> None:
    out = terminal(40)
    listing = console.table("Restore point", "Consistency", "Verified")
    listing.add_row("20250301T220000Z-abcdef", "powered-off", "not yet")
    out.print(listing)
    assert "20250301T220000Z-abcdef" in out.file.getvalue()  # type: ignore[attr-defined]


def test_a_line_that_a_terminal_wraps_keeps_its_depth() -> None:
    out = terminal(24)
    console.line(out, "    not san: proxy bare does not see the LUN")
    rows = out.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [row.rstrip() for row in rows] == ["    not san: proxy bare", "    does not see the LUN"]


def test_notes_of_vms_side_by_side_do_not_run_into_each_other() -> None:
    class Stream(io.StringIO):
        pieces: ClassVar[list[str]] = []

        def write(self, text: str) -> int:
            self.pieces.append(text)
            return len(text)

    LogProgress(30.0, Stream()).note("web-01", "consolidated")
    assert Stream.pieces == ["web-01: consolidated\n"]


def test_progress_without_a_terminal_is_a_line_per_interval() -> None:
    clock, out = iter([0.0, 10.0, 30.0, 31.0, 61.0]), io.StringIO()
    view = LogProgress(30.0, out, lambda: next(clock))
    view.disk_started("web-01", 0, "disk 0 (Hard disk 1)", "full", "first run")
    for settled in (1, 2, 3, 4):
        view.disk_progress("web-01", 0, TransferProgress(8 << 20, settled << 20, settled << 20, 0))
    assert out.getvalue().splitlines() == [
        "web-01: disk 0 (Hard disk 1): full, first run",
        "web-01 disk 0: 2 MiB of 8 MiB (25 %), 68.3 KiB/s, 1 min 30 s left",
        "web-01 disk 0: 4 MiB of 8 MiB (50 %), 67.1 KiB/s, 1 min 01 s left",
    ]


def test_without_a_terminal_each_vm_is_a_line_per_start_step_and_finish() -> None:
    out = io.StringIO()
    view = LogProgress(30.0, out)
    view.run_started("r1", "demo", ["web-01"])
    view.vm_step("web-01", "source snapshot")
    view.vm_finished(vm())
    assert out.getvalue().splitlines()[:2] == ["job demo, run r1: web-01", "web-01: source snapshot"]
    assert out.getvalue().splitlines()[2].startswith("web-01: success, restore point ")
    assert "\x1b" not in out.getvalue()


def test_what_is_left_is_told_of_what_moves_and_not_of_capacity() -> None:
    now = [0.0]
    flow = Flow(lambda: now[0])
    flow.step("a", "transfer")
    for disk in (0, 1):
        flow.disk_started("a", disk, "incremental")
    now[0] = 10.0
    flow.disk_progress("a", 0, TransferProgress(planned=40 << 20, settled=10 << 20))
    flow.disk_progress("a", 1, TransferProgress(planned=60 << 20, settled=30 << 20))
    assert str(flow.total()) == "40 MiB of 100 MiB (40 %), 4 MiB/s, 15 s left"
    assert flow.lines() == [
        "a: transfer",
        "a disk 0 incremental: 10 MiB of 40 MiB (25 %), 1 MiB/s, 30 s left",
        "a disk 1 incremental: 30 MiB of 60 MiB (50 %), 3 MiB/s, 10 s left",
        "in all: 40 MiB of 100 MiB (40 %), 4 MiB/s, 15 s left",
    ]
    flow.finished("a")
    assert flow.total().planned == 100 << 20
    assert flow.lines()[0].startswith("in all: ")


def test_a_bottleneck_is_only_named_where_something_waited() -> None:
    idle = vm()
    for disk in idle.disks:
        disk.seconds, disk.waits = 100.0, {"source": 0.2, "target": 0.1}
    assert report(idle).bottleneck() == {}


def test_replicate_and_report_agree() -> None:
    """What is shown at once, and what is read back from the repository, hour for hour and rate for rate."""
    one = vm()
    one.disks[0].seconds = 0.00042
    made = report(one)
    made.finished = START + dt.timedelta(seconds=12.6)
    assert render(RunReport.from_json(made.to_json())) == render(made)
    assert "in 13 s" in render(made)


@pytest.mark.parametrize(
    ("amount", "text"),
    [(None, "–"), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (512 << 20, "512 MiB"), (5 << 40, "5 TiB")],
)
def test_sizes(amount: int | None, text: str) -> None:
    assert words.size(amount) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.44, "0.4 s"), (59.4, "59 s"), (185, "3 min 05 s"), (8040, "2 h 14 min"), (360000, "4 d 4 h")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert words.duration(seconds) == text


def test_times_are_utc_and_say_so() -> None:
    berlin = dt.timezone(dt.timedelta(hours=1))
    assert words.moment(dt.datetime(2025, 3, 1, 23, 0, tzinfo=berlin)) == "2025-03-01 22:00:00Z"


def planned(
    name: str, index: int, bound: int, last: int | None = None, kind: TransferKind = TransferKind.FULL
) -> VmReport:
    one = VmReport(name, Result.PLANNED, replica=f"{name}-replica")
    one.disks = [
        DiskReport(index, f"Hard disk {index + 1}", kind, "because", 1 << 40, bytes_bound=bound, last_bytes_moved=last)
    ]
    return one


def test_a_plan_is_estimated_by_past_rates() -> None:
    runs = [
        {"vms": [{"name": "a", "disks": [{"index": 0, "bytes_read": 100 << 20, "seconds": 10.0}]}]},
        {"vms": [{"name": "a", "disks": [{"index": 0, "bytes_read": 1, "seconds": 10.0}]}]},
        {"vms": [{"name": "b", "disks": [{"index": 0, "bytes_read": 5, "seconds": 0.001}]}]},
    ]
    rates = past_rates(runs)
    assert rates == {("a", 0): (100 << 20) / 10}
    incremental = TransferKind.INCREMENTAL
    plan = RunReport(job="demo", vms=[planned("a", 0, 1 << 40, 200 << 20, incremental), planned("b", 0, 50 << 20)])
    assert estimate(plan, rates, 1) == 25.0, "what moved last time, and at most so much where nothing moved"
    assert estimate(plan, rates, 8) == 20.0, "as long as the longest disk"
    assert estimate(plan, {}, 1) is None


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_a_plan_is_one_table_with_totals(width: int) -> None:
    plan = RunReport(
        job="demo", vms=[planned("web-01", 0, 8 << 30, 200 << 20, TransferKind.INCREMENTAL), planned("b", 0, 1 << 30)]
    )
    plan.estimate_seconds = 90.0
    brief, long = (io.StringIO() for _ in range(2))
    show_plan(console.make_console(brief, width=width), plan)
    show_plan(console.make_console(long, width=width), plan, reasons=True)
    assert "2 VMs, 2 disks: about 1.2 GiB to read, 1 min 30 s at the rates of past runs" in brief.getvalue()
    assert "because" not in brief.getvalue()
    assert long.getvalue().count("because") == 2
    assert max(map(len, brief.getvalue().split("2 VMs")[0].splitlines())) <= width
