"""The report as a page: self-contained, without a script, for any screen, paper, and the dark (docs/monitoring.md)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vrepl import __version__
from vrepl.errors import UsageError
from vrepl.printable import printable
from vrepl.report import charts
from vrepl.report import format as words
from vrepl.report.chronicle import Chronicle, Day, VmDays, objective_words
from vrepl.report.model import ErrorReport, RunReport, VmReport
from vrepl.report.protection import Need, Protection

TEMPLATES = Path(__file__).parent / "templates"
CELLS = {Day.GOOD: "<td class='d g'>+", Day.FAILED: "<td class='d f'>x", Day.NONE: "<td class='d n'>."}
MOST_RUNS = 200
"""Rows of the list of runs."""


@dataclass(frozen=True, slots=True)
class History:
    """What a page says beside one run."""

    chronicle: Chronicle
    objectives: Mapping[str, float | None] = field(default_factory=dict)
    """Seconds, by job."""
    protection: Protection | None = None
    pages: frozenset[str] = frozenset()
    """IDs of the runs that have a page beside this one."""


def page(now: dt.datetime, *, run: RunReport | None = None, history: History | None = None, back: bool = False) -> str:
    """HTML. `back`: a link to `index.html`. Raises UsageError where the extra `html` is not installed."""
    try:
        import jinja2

        charts.load()
    except ImportError as error:
        raise UsageError(
            f"pages take the package {error.name}, which is not installed",
            hint="pip install 'vrepl[html]', or drop `html` from [report] of the configuration",
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text: str = environment.get_template("page.html").render(
        title=f"vrepl: {run.job}, {run.id}" if run is not None else "vrepl: protection",
        version=__version__,
        now=words.moment(now),
        run=None if run is None else _run(run),
        history=None if history is None else _history(history),
        back=back,
    )
    return text


def _shown(value: Any) -> Any:
    """Names are data here too: on one line, nothing in them obeyed. What is markup already stays."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _run(report: RunReport) -> dict[str, Any]:
    shares = [f"{stage} {share * 100:.0f} %" for stage, share in report.bottleneck().items() if share >= 0.005]
    disks = sum(len(vm.disks) for vm in report.vms)
    return {
        "id": report.id,
        "job": report.job,
        "result": report.result.value,
        "took": words.duration(report.seconds),
        "moved": words.size(report.bytes_moved),
        "bottleneck": ", ".join(shares),
        "vms": [_vm(vm) for vm in report.vms],
        "errors": [_error(error, names) for error, names in report.causes()],
        "throughput": charts.throughput(report.vms),
        "throughput_words": f"The slowest {charts.MOST_BARS} of {disks}." if disks > charts.MOST_BARS else "",
    }


def _error(error: ErrorReport, names: Sequence[str]) -> dict[str, Any]:
    return {
        "who": names[0] if len(names) == 1 else f"{len(names)} VMs",
        "names": ", ".join(names) if len(names) > 1 else "",
        "place": ", ".join(part for part in (error.disk, error.step) if part),
        "error": error.message,
        "hint": error.hint,
    }


def _vm(vm: VmReport) -> dict[str, Any]:
    return {
        "name": vm.name,
        "result": vm.result.value,
        "point": vm.restore_point or "–",
        "consistency": vm.consistency.value if vm.consistency else "–",
        "read": words.size(sum(disk.bytes_read or 0 for disk in vm.disks)),
        "moved": words.size(sum(disk.bytes_moved or 0 for disk in vm.disks)),
        "took": words.duration(vm.seconds),
        "notes": vm.notes,
    }


def _history(history: History) -> dict[str, Any]:
    made = history.chronicle
    worst = [f"{job} {words.duration(max(age.seconds for age in ages))}" for job, ages in made.ages.items() if ages]
    return {
        "status": None if history.protection is None else _status(history.protection),
        "objectives": objective_words(history.objectives),
        "worst": f"At worst: {', '.join(worst)}." if worst else "",
        "ages": charts.ages(made.ages, history.objectives),
        "days": len(made.days),
        "first": f"{made.days[0]:%d %b %Y}" if made.days else "–",
        "last": f"{made.days[-1]:%d %b %Y}" if made.days else "–",
        "calendar": [_row(row) for row in made.calendar],
        "moved": charts.moved(made.runs),
        "durations": charts.durations(made.runs),
        "linked": bool(history.pages),
        "runs": [
            {
                "id": run.id,
                "job": run.job,
                "result": run.result.value,
                "moved": words.size(run.bytes_moved),
                "took": words.duration(run.seconds),
                "failed": run.failed,
                "linked": run.id in history.pages,
            }
            for run in list(reversed(made.runs))[:MOST_RUNS]
        ],
    }


def _row(row: VmDays) -> dict[str, Any]:
    return {"vm": row.vm, "good": row.good, "cells": "".join(CELLS[day] for day in row.days)}


def _status(protection: Protection) -> dict[str, Any]:
    needs = [vm.need(protection.now) for vm in protection.vms]
    complaints: Sequence[str] = [
        f"{vm.name} ({vm.job}): {complaint}" + (f". What to do: {vm.hint}" if vm.hint and vm.failed else "")
        for vm in protection.vms
        if (complaint := protection.complaint(vm)) is not None
    ]
    return {
        "count": len(protection.vms),
        "missed": needs.count(Need.OBJECTIVE_MISSED),
        "failed": sum(vm.failed for vm in protection.vms),
        "complaints": complaints,
    }
