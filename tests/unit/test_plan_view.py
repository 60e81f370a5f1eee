"""A plan while it runs fits a terminal of 80 columns and few lines, and shows what is under way and what failed."""

from __future__ import annotations

import io

from rich.console import Console

from vrepl.planner.plans import Stage
from vrepl.report.console import make_console
from vrepl.report.failover import FailoverReport, FailoverVm, show_failover
from vrepl.report.model import Result
from vrepl.report.plan import (
    GateReport,
    PlanGroupReport,
    PlanReport,
    PlanResult,
    PlanVmReport,
    changes,
    ending,
    live_view,
)
from vrepl.report.progress import LiveProgress, LogProgress

SHUT = GateReport("port:5432", False, 12.0, "10.2.0.17 port 5432 does not answer")
LONG = "sql-cluster-node-with-a-very-long-name-that-somebody-gave-it-01"


def vm(
    name: str, stage: Stage, *, since: float = 0.0, gates: tuple[GateReport, ...] = (), reason: str = ""
) -> PlanVmReport:
    there = since if stage is Stage.THERE else None
    powered_on = None if stage in {Stage.WAITING, Stage.STARTING} else 1.0
    return PlanVmReport(name, stage, since, powered_on, there, gates, reason)


PLAN = PlanReport(
    "site",
    (
        PlanGroupReport("base", (vm("dns-01", Stage.THERE, since=40),), 0.0),
        PlanGroupReport(
            "data",
            (
                vm(LONG, Stage.BOOTING, since=45, gates=(SHUT,)),
                vm("db-02", Stage.FAILED, since=50, reason="there is no replica of db-02 at site dr"),
                vm("db-03", Stage.STARTING, since=41),
            ),
            40.0,
        ),
        PlanGroupReport("web", tuple(vm(f"web-{number:02}", Stage.WAITING) for number in range(30))),
    ),
    seconds=57.0,
    failed=("db-02",),
)


def drawn(report: PlanReport, height: int, width: int = 80) -> list[str]:
    out = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    out.print(live_view(report, 57.0, height))
    text = out.file.getvalue()  # type: ignore[attr-defined]
    return [line.rstrip() for line in text.splitlines()]


def test_the_view_is_a_line_a_group_and_a_line_for_what_is_under_way() -> None:
    lines = drawn(PLAN, 24)
    assert lines == [
        "plan site: 1 of 34 there, 57 s",
        "✓ base: 1 of 1 there after 40 s",
        "✗ data: 0 of 3 there, 1 failed",
        f"  … {LONG} boots 12 s …",
        "  ✗ db-02 failed  there is no replica of db-02 at site dr",
        "  » db-03 starts 16 s",
        "· web: 30 wait",
    ]
    wide = drawn(PLAN, 24, width=160)
    assert wide[3] == f"  … {LONG} boots 12 s  port:5432: 10.2.0.17 port 5432 does not answer"


def test_where_there_is_little_room_what_failed_comes_first() -> None:
    lines = drawn(PLAN, 8)
    assert len(lines) <= 8
    assert any("db-02" in line for line in lines)
    assert lines[-1].endswith("and 1 more under way")


def test_a_hundred_vms_under_way_fit_a_screen() -> None:
    many = PlanReport("p", (PlanGroupReport("all", tuple(vm(f"v{n}", Stage.BOOTING) for n in range(100)), 0.0),))
    lines = drawn(many, 24)
    assert len(lines) <= 24
    assert lines[-1] == "  … and 80 more under way"


def test_on_a_terminal_the_plan_takes_the_place_of_the_lines_of_its_vms() -> None:
    file = io.StringIO()
    console = Console(file=file, width=80, height=24, force_terminal=True, color_system=None)
    with LiveProgress(console) as live:
        live.vm_step("dns-01", "power on")
        live.plan_moved(PLAN)
        live.note("dns-01", "a note")
        live._progress.refresh()
    shown = file.getvalue()
    assert "✗ data: 0 of 3 there, 1 failed" in shown
    assert "dns-01: a note" in shown


def test_elsewhere_what_has_happened_is_a_line_each() -> None:
    before = PlanReport(
        "site", (PlanGroupReport("data", (vm("db-01", Stage.STARTING), vm("db-02", Stage.STARTING)), 0.0),)
    )
    assert changes(None, before) == ["plan site: group data: db-01, db-02"]
    opened = GateReport("heartbeat", True, 5.0)
    now = PlanReport(
        "site",
        (
            PlanGroupReport(
                "data",
                (vm("db-01", Stage.THERE, since=6.0, gates=(opened,)), vm("db-02", Stage.FAILED, reason="no room")),
                0.0,
            ),
        ),
    )
    assert changes(before, now) == ["db-01: there, 5.0 s after its power-on", "db-02: failed: no room"]
    lines: list[str] = []
    log = LogProgress(write=lines.append)
    log.plan_moved(before)
    log.plan_moved(now)
    log.plan_moved(now)
    assert len(lines) == 3


def test_in_the_end_every_vm_has_its_row_and_what_is_up_and_what_is_not_is_said() -> None:
    stopped = PlanReport(**{**{name: getattr(PLAN, name) for name in PLAN.__slots__}, "result": PlanResult.STOPPED})
    assert ending(stopped).startswith(f"stopped by db-02; up: dns-01, {LONG}, db-02; not up: db-03, web-00")
    file = io.StringIO()
    out = make_console(file=file, width=80)
    rows = [FailoverVm(one.name, f"{one.name}-replica", Result.SUCCESS, "failed-over") for one in PLAN.vms]
    show_failover(out, FailoverReport(rows, plan=stopped))
    shown = file.getvalue()
    assert max(len(line) for line in shown.splitlines() if "─" in line) <= 80
    assert "plan site: stopped by db-02" in shown
    done = PlanReport("p", (PlanGroupReport("g", (vm("a", Stage.THERE, since=2),), 0.0),), PlanResult.COMPLETED, 2.0)
    assert ending(done) == "1 of 1 are there after 2.0 s"
