"""Charts as SVG by pygal: no script, nothing from elsewhere; colours by the page's variables, for dark and print."""

from __future__ import annotations

import datetime as dt
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from vrepl.printable import printable
from vrepl.report import format as words
from vrepl.report.chronicle import Age, RunFigures
from vrepl.report.disk import DiskReport
from vrepl.report.model import VmReport

MOST_BARS = 40
"""More disks than these, the slowest are shown."""


def load() -> Any:
    """The library, without the finder of map plug-ins that it puts into everybody's imports (of a kind that Python 3.12
    no longer knows)."""
    import pygal

    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "PluginImportFixer"]
    return pygal


def _config(title: str, **more: Any) -> dict[str, Any]:
    load()
    from pygal.style import Style

    style = Style(
        background="transparent",
        plot_background="transparent",
        foreground="var(--ink)",
        foreground_strong="var(--ink)",
        foreground_subtle="var(--faint)",
        guide_stroke_color="var(--line)",
        major_guide_stroke_color="var(--line)",
        colors=("var(--blue)", "var(--orange)", "var(--green)", "var(--purple)", "var(--red)"),
        font_family="inherit",
        label_font_size=11,
        major_label_font_size=11,
        legend_font_size=12,
        opacity=".8",
    )
    return {
        "title": None,
        "x_title": None,
        "style": style,
        "js": [],
        "width": 900,
        "height": 260,
        "margin": 8,
        "margin_bottom": 28,
        "legend_at_bottom": True,
        "legend_at_bottom_columns": 6,
        "disable_xml_declaration": True,
        "pretty_print": False,
        "no_data_text": f"no data for {title}",
        "show_minor_x_labels": False,
        "x_labels_major_count": 6,
        **more,
    }


def _svg(chart: Any) -> str:
    text: str = chart.render(is_unicode=True)
    # What its tooltips would read; there is no script in a page that is to be looked at anywhere.
    return re.sub(r"<script\b.*?</script>", "", text, flags=re.DOTALL)


def ages(ages: Mapping[str, Sequence[Age]], objectives: Mapping[str, float | None]) -> str:
    """Age of the oldest good copy over time, in hours, by job, and what it may be."""
    chart = load().DateTimeLine(
        **_config("ages", x_label_rotation=0),
        show_dots=False,
        x_value_formatter=lambda moment: f"{moment:%d %b}",
        value_formatter=lambda hours: f"{hours:g} h",
    )
    for job, points in ages.items():
        chart.add(printable(job), [(_naive(point.time), round(point.seconds / 3600, 2)) for point in points])
        objective = objectives.get(job)
        if objective is not None and points:
            ends = (points[0].time, points[-1].time)
            line = [(_naive(moment), round(objective / 3600, 2)) for moment in ends]
            chart.add(f"{printable(job)}: objective", line, stroke_style={"dasharray": "6, 4"})
    return _svg(chart)


def moved(runs: Sequence[RunFigures]) -> str:
    """Bytes per run."""
    most = max((run.bytes_moved or 0 for run in runs), default=0)
    return _per_run(runs, "moved", lambda run: run.bytes_moved, words.size, binary_steps(most))


def durations(runs: Sequence[RunFigures]) -> str:
    """Minutes per run."""
    return _per_run(runs, "durations", lambda run: run.seconds, words.duration)


def binary_steps(most: int) -> list[int]:
    """Where an axis of bytes up to `most` has its labels: round in the units that bytes are told in."""
    unit = 1
    while unit * 1024 <= most:
        unit *= 1024
    step = next(size * unit for size in (1, 2, 5, 10, 20, 50, 100, 200, 500) if most <= 5 * size * unit)
    return list(range(0, most + step, step))


def _per_run(runs: Sequence[RunFigures], title: str, of: Any, shown: Any, labels: Sequence[int] = ()) -> str:
    chart = load().DateTimeLine(
        **_config(title, x_label_rotation=0),
        show_dots=len(runs) < 100,
        dots_size=2,
        fill=False,
        x_value_formatter=lambda moment: f"{moment:%d %b}",
        value_formatter=lambda value: shown(round(value)),
        include_x_axis=True,
    )
    if labels:
        chart.y_labels = labels
    for job in dict.fromkeys(run.job for run in runs):
        chart.add(printable(job), [(_naive(run.started), of(run)) for run in runs if run.job == job])
    return _svg(chart)


def throughput(vms: Sequence[VmReport]) -> str | None:
    """Bytes a second, per disk of one run; None where nothing was read."""
    disks = [(vm.name, disk, rate) for vm in vms for disk in vm.disks if (rate := _rate(disk)) is not None]
    if not disks:
        return None
    disks = sorted(disks, key=lambda one: one[2])[:MOST_BARS]
    chart = load().HorizontalBar(
        **_config("throughput", height=60 + 22 * len(disks), show_legend=False, show_minor_x_labels=True),
        value_formatter=lambda value: f"{words.size(round(value))}/s",
        print_values=True,
        print_values_position="center",
    )
    chart.x_labels = [printable(f"{name} disk {disk.index}") for name, disk, _ in reversed(disks)]
    chart.add("rate", [round(rate) for _, _, rate in reversed(disks)])
    return _svg(chart)


def _rate(disk: DiskReport) -> float | None:
    return disk.bytes_read / disk.seconds if disk.bytes_read and disk.seconds else None


def _naive(moment: dt.datetime) -> dt.datetime:
    """UTC without saying so, which pygal's axes take."""
    return moment.astimezone(dt.UTC).replace(tzinfo=None)
