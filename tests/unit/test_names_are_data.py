"""Names come from outside: nothing in them is markup, breaks a line, or is obeyed by a terminal, in any view."""

from __future__ import annotations

import io
import logging
import re
from pathlib import Path

import pytest

from vrepl.cli.logs import LineFormatter
from vrepl.errors import VreplError
from vrepl.printable import printable
from vrepl.report import console
from vrepl.report.model import ErrorReport, Result, RunReport, VmReport
from vrepl.report.plan_view import show_plan
from vrepl.report.progress import LiveProgress, LogProgress

NASTY = [
    "[/x]",
    "[red]web[/red]",
    ":warning:",
    "two\nlines",
    "tab\tand\rreturn",
    "\x1b[31mred\x1b[0m",
    "\x9b31m",
    "txt.\u202eexe",
    "line\u2028separator",
    "lone \ud800 surrogate",
    "null\x00",
]


@pytest.mark.parametrize("name", NASTY)
def test_every_view_shows_a_name_whole_and_on_one_line(name: str) -> None:
    shown = printable(name)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\ud800-\udfff]", shown)

    report = RunReport(job=name, id="20250301T220000Z-1a2b3c")
    report.vms = [
        VmReport(name=name, result=Result.FAILED, error=ErrorReport.of(VreplError(name, hint=name)), notes=[name])
    ]
    text = io.StringIO()
    out = console.make_console(text, width=200)
    console.show_run(out, report)
    show_plan(out, report)
    assert shown in text.getvalue()
    assert text.getvalue().count(shown) >= 6
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", text.getvalue())

    lines = io.StringIO()
    watch = LogProgress(stream=lines)
    watch.note(name, name)
    assert lines.getvalue() == f"{shown}: {shown}\n"

    terminal = io.StringIO()
    live = LiveProgress(console.make_console(terminal, width=200))
    with live:
        live.run_started("run", name, [name])
        live.vm_step(name, "start")
        live.note(name, name)
        live.vm_finished(report.vms[0])
    assert f"{shown}: {shown}" in terminal.getvalue()

    record = logging.LogRecord("vrepl", logging.INFO, __file__, 1, "VM %s", (name,), None)
    assert LineFormatter("%(message)s").format(record) == f"VM {shown}"


def test_ordinary_names_stay_as_they_are() -> None:
    for name in ("web-01", "größe", "日本", "a b", "👩‍💻", "100%", "x=1|y"):
        assert printable(name) == name


def test_text_becomes_output_in_one_place() -> None:
    """A console of one's own would take names for markup again, a plain print their line ends."""
    source = Path(console.__file__).parents[1]
    allowed = {"report/console.py": r"Console\(", "cli/streams.py": r"click\.echo\("}
    for file in source.rglob("*.py"):
        place = str(file.relative_to(source))
        text = file.read_text()
        for pattern in (r"(?<![A-Za-z_])Console\(", r"(?<![\w.])print\("):
            if not re.search(pattern, text) or allowed.get(place, "") == pattern.removeprefix("(?<![A-Za-z_])"):
                continue
            raise AssertionError(f"{place}: {pattern}")
