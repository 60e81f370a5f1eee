"""What many runs say together: how old copies were, which days have a restore point, what moved, how long it took."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from vrepl.report.model import Result, RunReport

LONGEST_CALENDAR = 92
"""Days."""


class Day(StrEnum):
    """What a VM's day came to."""

    GOOD = "good"
    FAILED = "failed"
    """There were runs, and none made a restore point."""
    NONE = "none"
    """No run."""


@dataclass(frozen=True, slots=True)
class Age:
    """Of the oldest good copy of a job's VMs when a run of it began, in seconds: a peak, for it falls after that."""

    time: dt.datetime
    seconds: float


@dataclass(frozen=True, slots=True)
class RunFigures:
    id: str
    job: str
    started: dt.datetime
    seconds: float
    bytes_moved: int
    result: Result
    failed: int


@dataclass(frozen=True, slots=True)
class VmDays:
    job: str
    vm: str
    days: Sequence[Day]

    @property
    def good(self) -> int:
        return sum(day is Day.GOOD for day in self.days)


@dataclass(slots=True)
class Chronicle:
    """Runs oldest first; days in UTC."""

    days: list[dt.date] = field(default_factory=list)
    runs: list[RunFigures] = field(default_factory=list)
    ages: dict[str, list[Age]] = field(default_factory=dict)
    """By job."""
    calendar: list[VmDays] = field(default_factory=list)


def chronicle(reports: Iterable[RunReport]) -> Chronicle:
    """Of reports in any order; those without times (of plans) are passed over."""
    dated = [(report.started, report) for report in reports if report.started is not None and report.id is not None]
    dated.sort(key=lambda pair: pair[0])
    if not dated:
        return Chronicle()
    last = max(started.astimezone(dt.UTC).date() for started, _ in dated)
    first = max(
        min(started.astimezone(dt.UTC).date() for started, _ in dated), last - dt.timedelta(LONGEST_CALENDAR - 1)
    )
    made = Chronicle([first + dt.timedelta(number) for number in range((last - first).days + 1)])
    newest: dict[tuple[str, str], dt.datetime] = {}
    seen: dict[tuple[str, str], dict[dt.date, Day]] = {}
    for started, report in dated:
        made.runs.append(_figures(started, report))
        ages = [(started - newest[key]).total_seconds() for key in _keys(report) if key in newest]
        if ages:
            made.ages.setdefault(report.job, []).append(Age(started, max(ages)))
        for vm in report.vms:
            key = (report.job, vm.name)
            good = vm.result is Result.SUCCESS
            if good:
                newest[key] = started
            days = seen.setdefault(key, {})
            day = started.astimezone(dt.UTC).date()
            days[day] = Day.GOOD if good or days.get(day) is Day.GOOD else Day.FAILED
    for (job, name), days in sorted(seen.items()):
        made.calendar.append(VmDays(job, name, [days.get(day, Day.NONE) for day in made.days]))
    return made


def _keys(report: RunReport) -> list[tuple[str, str]]:
    return [(report.job, vm.name) for vm in report.vms]


def _figures(started: dt.datetime, report: RunReport) -> RunFigures:
    return RunFigures(
        report.id or "",
        report.job,
        started,
        report.seconds or 0.0,
        report.bytes_moved,
        report.result,
        sum(vm.result is Result.FAILED for vm in report.vms),
    )


def objective_words(objectives: Mapping[str, float | None]) -> str:
    from vrepl.report import format as words

    return ", ".join(f"{job} {words.period(rpo)}" for job, rpo in objectives.items() if rpo is not None)
