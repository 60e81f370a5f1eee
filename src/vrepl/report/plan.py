"""How far a failover plan is, while it runs and when it has ended: as JSON, and as a view of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from vrepl.planner.plans import UNDER_WAY, Stage
from vrepl.report.model import Json

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text


class PlanResult(StrEnum):
    RUNNING = "running"
    COMPLETED = "completed"
    """Every VM is there, or was given up where the plan goes on without."""
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class GateReport:
    gate: str
    """As it is written in a configuration."""
    passed: bool
    seconds: float
    """From power-on until it passed, or was asked last."""
    detail: str = ""
    """What was missing."""

    def to_json(self) -> Json:
        return {
            "gate": self.gate,
            "passed": self.passed,
            "seconds": round(self.seconds, 3),
            "detail": self.detail or None,
        }


@dataclass(frozen=True, slots=True)
class PlanVmReport:
    """One VM of a plan. Times are seconds from the plan's beginning."""

    name: str
    stage: Stage
    since: float = 0.0
    """When it came to its stage."""
    powered_on: float | None = None
    there: float | None = None
    gates: tuple[GateReport, ...] = ()
    reason: str = ""
    """Of a failure."""

    @property
    def waits_for(self) -> str:
        """The first gate that has not opened, and why not."""
        return next((f"{one.gate}: {one.detail}" for one in self.gates if not one.passed), "")

    def to_json(self) -> Json:
        return {
            "name": self.name,
            "stage": self.stage.value,
            "powered_on": None if self.powered_on is None else round(self.powered_on, 3),
            "there": None if self.there is None else round(self.there, 3),
            "gates": [gate.to_json() for gate in self.gates],
            "reason": self.reason or None,
        }


@dataclass(frozen=True, slots=True)
class PlanGroupReport:
    name: str
    vms: tuple[PlanVmReport, ...]
    began: float | None = None

    def count(self, *stages: Stage) -> int:
        return sum(vm.stage in stages for vm in self.vms)

    @property
    def there(self) -> float | None:
        """When its last VM was there; None before that."""
        times = [vm.there for vm in self.vms]
        return None if None in times else max((time for time in times if time is not None), default=None)

    def to_json(self) -> Json:
        return {
            "name": self.name,
            "began": None if self.began is None else round(self.began, 3),
            "there": None if self.there is None else round(self.there, 3),
            "vms": [vm.to_json() for vm in self.vms],
        }


@dataclass(frozen=True, slots=True)
class PlanReport:
    """One plan. Immutable: a view may keep it while the plan goes on."""

    name: str
    groups: tuple[PlanGroupReport, ...]
    result: PlanResult = PlanResult.RUNNING
    seconds: float = 0.0
    """From its beginning until now, or its end."""
    failed: tuple[str, ...] = ()
    """VMs that did not come up."""
    error: str = ""
    """Of its own scripts."""
    notes: tuple[str, ...] = field(default=())

    @property
    def vms(self) -> tuple[PlanVmReport, ...]:
        return tuple(vm for group in self.groups for vm in group.vms)

    def to_json(self) -> Json:
        return {
            "name": self.name,
            "result": self.result.value,
            "seconds": round(self.seconds, 3),
            "failed": list(self.failed),
            "error": self.error or None,
            "notes": list(self.notes),
            "groups": [group.to_json() for group in self.groups],
        }


MARKS = {Stage.WAITING: "·", Stage.STARTING: "»", Stage.BOOTING: "…", Stage.THERE: "✓", Stage.FAILED: "✗"}
STYLES = {Stage.STARTING: "cyan", Stage.BOOTING: "yellow", Stage.THERE: "green", Stage.FAILED: "bold red"}
WORDS = {Stage.STARTING: "starts", Stage.BOOTING: "boots", Stage.THERE: "there", Stage.FAILED: "failed"}
FRAME = 3
"""Lines of the live view that are no VM's: its head, and what is left out."""


def live_view(report: PlanReport, now: float, height: int) -> RenderableType:
    """The plan as it is: a line a group, and under each that is under way a line a VM, in `height` lines at the most.

    `now`: seconds from the plan's beginning. What is under way or failed is shown first where not all have room.
    """
    from rich.console import Group
    from rich.text import Text

    from vrepl.printable import printable
    from vrepl.report import format as words

    there = sum(vm.stage is Stage.THERE for vm in report.vms)
    lines = [Text(f"plan {printable(report.name)}: {there} of {len(report.vms)} there, {words.duration(now)}")]
    room = max(1, height - FRAME - len(report.groups))
    shown = set(_most_telling(report, room))
    for group in report.groups:
        lines.append(_group_line(group))
        for vm in group.vms:
            if vm.name in shown:
                text = Text(f"  {MARKS[vm.stage]} ", STYLES.get(vm.stage, ""))
                text.append(f"{printable(vm.name)} {WORDS.get(vm.stage, '')}", "")
                if vm.stage in UNDER_WAY:
                    text.append(f" {words.duration(now - vm.since)}")
                why = vm.reason or vm.waits_for
                text.append(f"  {printable(why)}" if why else "", "dim")
                lines.append(text)
    hidden = sum(_is_telling(vm) for vm in report.vms) - len(shown)
    if hidden > 0:
        lines.append(Text(f"  … and {hidden} more under way"))
    for one in lines:
        one.no_wrap, one.overflow = True, "ellipsis"
    return Group(*lines)


def _is_telling(vm: PlanVmReport) -> bool:
    return vm.stage in UNDER_WAY or vm.stage is Stage.FAILED


def _most_telling(report: PlanReport, room: int) -> Sequence[str]:
    telling = [vm for vm in report.vms if _is_telling(vm)]
    telling.sort(key=lambda vm: (vm.stage is not Stage.FAILED, vm.stage is not Stage.BOOTING))
    return [vm.name for vm in telling[:room]]


def _group_line(group: PlanGroupReport) -> Text:
    from rich.text import Text

    from vrepl.printable import printable
    from vrepl.report import format as words

    done, failed = group.count(Stage.THERE), group.count(Stage.FAILED)
    if group.began is None:
        return Text(f"{MARKS[Stage.WAITING]} {printable(group.name)}: {len(group.vms)} wait", "dim")
    mark = Stage.FAILED if failed else Stage.THERE if done == len(group.vms) else Stage.BOOTING
    text = Text(f"{MARKS[mark]} ", STYLES[mark])
    text.append(f"{printable(group.name)}: {done} of {len(group.vms)} there", "")
    if failed:
        text.append(f", {failed} failed", "bold red")
    if group.there is not None:
        text.append(f" after {words.duration(group.there - group.began)}")
    return text


def changes(before: PlanReport | None, now: PlanReport) -> list[str]:
    """What has happened in between, a line each."""
    from vrepl.report import format as words

    lines: list[str] = []
    stages = {vm.name: vm.stage for vm in before.vms} if before is not None else {}
    for index, group in enumerate(now.groups):
        if group.began is not None and (before is None or before.groups[index].began is None):
            lines.append(f"plan {now.name}: group {group.name}: {', '.join(vm.name for vm in group.vms)}")
        for vm in group.vms:
            if vm.stage is stages.get(vm.name, Stage.WAITING) or vm.stage is Stage.STARTING:
                continue
            line = f"{vm.name}: {WORDS[vm.stage]}"
            if vm.stage is Stage.THERE and vm.powered_on is not None and vm.gates:
                line += f", {words.duration((vm.there or 0.0) - vm.powered_on)} after its power-on"
            lines.append(line + (f": {vm.reason}" if vm.reason else ""))
    return lines


def show_plan(out: Console, report: PlanReport) -> None:
    """What became of it: a row a VM in the order of the plan, then how it ended."""
    from vrepl.report import console
    from vrepl.report import format as words

    def time(seconds: float | None) -> str:
        return "–" if seconds is None else words.duration(seconds)

    listing = console.table(
        "Group", "VM", "Stage", "On after", "There after", "Why not",
        right=("On after", "There after"), gives_way=("On after",), dense=True,
    )  # fmt: skip
    for group in report.groups:
        for vm in group.vms:
            why = vm.reason or ("" if vm.stage is Stage.THERE else vm.waits_for)
            listing.add_row(group.name, vm.name, vm.stage.value, time(vm.powered_on), time(vm.there), why)
    out.print(listing)
    for note in report.notes:
        console.line(out, f"plan {report.name}: {note}")
    console.line(out, f"plan {report.name}: {ending(report)}", "" if report.result is PlanResult.COMPLETED else "bold")


def ending(report: PlanReport) -> str:
    """How it ended, in words: what is up and what is not."""
    from vrepl.report import format as words

    up = [vm.name for vm in report.vms if vm.powered_on is not None]
    there = sum(vm.stage is Stage.THERE for vm in report.vms)
    took = words.duration(report.seconds)
    if report.result is PlanResult.COMPLETED and not report.error:
        without = f", without {', '.join(report.failed)}" if report.failed else ""
        return f"{there} of {len(report.vms)} are there after {took}{without}"
    if report.error:
        head = report.error
    elif report.failed:
        head = f"stopped by {', '.join(report.failed)}"
    else:
        head = str(report.result)
    off = [vm.name for vm in report.vms if vm.powered_on is None]
    return f"{head}; up: {', '.join(up) or 'none'}; not up: {', '.join(off) or 'none'}"
