"""Promises of the pages: one file, nothing from elsewhere, no script, names are text, 90 days of 200 VMs fit."""

from __future__ import annotations

import datetime as dt
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("pygal")

from tests.support.estates import NOW, add_replica, add_run, estate, job_table, run_report, vm_report
from vrepl.app.pages import write_pages
from vrepl.report import format as words
from vrepl.report.charts import binary_steps
from vrepl.report.chronicle import Day, chronicle
from vrepl.report.model import Result, RunReport
from vrepl.report.pages import History, page

DAY = dt.timedelta(days=1)
HOUR = dt.timedelta(hours=1)


def simulated(days: int, vms: int) -> list[RunReport]:
    """One run a day, of which some fail, and each day some VM of it."""
    reports = []
    for day in range(days):
        started = NOW - (days - 1 - day) * DAY
        names = [f"vm-{number:03}" for number in range(vms)]
        machines = [
            vm_report(name, Result.FAILED, "no space on dr-01") if (day * 7 + number) % 53 == 0 else vm_report(name)
            for number, name in enumerate(names)
        ]
        if day % 30 == 17:
            machines = [vm_report(name, Result.FAILED, "vcenter does not answer") for name in names]
        reports.append(run_report("web", started, machines))
    return reports


def test_what_runs_say_together() -> None:
    reports = [
        run_report("web", NOW - 3 * DAY, [vm_report("a"), vm_report("b")]),
        run_report("web", NOW - 1 * DAY, [vm_report("a", Result.FAILED, "x"), vm_report("b")]),
        run_report("web", NOW - 1 * DAY + HOUR, [vm_report("a", Result.FAILED, "x")]),
        run_report("web", NOW, [vm_report("a"), vm_report("b")]),
    ]
    made = chronicle(reversed(reports))
    assert [day.isoformat() for day in made.days] == ["2025-02-26", "2025-02-27", "2025-02-28", "2025-03-01"]
    assert {row.vm: list(row.days) for row in made.calendar} == {
        "a": [Day.GOOD, Day.NONE, Day.FAILED, Day.GOOD],
        "b": [Day.GOOD, Day.NONE, Day.GOOD, Day.GOOD],
    }
    assert [age.seconds / 3600 for age in made.ages["web"]] == [48, 49, 72], "the oldest of the job's VMs"
    assert chronicle([]).days == []


def test_names_are_text_and_nothing_comes_from_elsewhere() -> None:
    name = "<script>alert(1)</script>\n[/x]\u202e"
    run = run_report(name, NOW, [vm_report(name, Result.FAILED, name)])
    text = page(NOW, run=run, history=History(chronicle([run]), {name: 60.0}))
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\n[/x]\\u202e" in text
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", text)
    assert "@import" not in text
    assert "url(" not in text


@pytest.mark.slow
def test_a_folder_of_pages(tmp_path: Path) -> None:
    loaded, repository = estate(tmp_path, job_table("web", ["a"], 'rpo = "30m"'))
    add_replica(repository, "a", "web", NOW - DAY)
    pages = tmp_path / "pages"
    for number in range(3):
        run = run_report("web", NOW - number * HOUR, [vm_report("a")])
        add_run(repository, run)
        write_pages(pages, loaded, repository, NOW, run)
    index = (pages / "index.html").read_text()
    links = re.findall(r'href="([^"]+\.html)"', index)
    assert sorted(links) == sorted(path.name for path in pages.glob("2*.html"))
    assert len(links) == 3
    assert "a (web): last good copy 1 d 0 h old, objective 30 min" in index
    assert (pages / "index.html").stat().st_mode & 0o777 == 0o644
    (repository.path / "runs" / links[0].replace(".html", ".json")).unlink()
    write_pages(pages, loaded, repository, NOW, None)
    assert links[0] not in (pages / "index.html").read_text()
    assert not (pages / links[0]).exists()


def test_a_cause_that_several_vms_have_is_said_once() -> None:
    names = [f"vm-{number}" for number in range(50)]
    run = run_report("web", NOW, [vm_report(name, Result.FAILED, "the vCenter is silent") for name in names])
    text = page(NOW, run=run)
    assert text.count("the vCenter is silent") == 1
    assert "<b>50 VMs</b>" in text
    assert ", ".join(names) in text


def test_nothing_of_a_table_is_cut_off_on_paper() -> None:
    """Rules of the same weight: the last one counts, so that of print must come after what it takes back."""
    style = page(NOW).partition("<style>")[2].partition("</style>")[0]
    on_paper = style.index(".wide { max-height: none; overflow: visible; }")
    assert "@media print" in style[:on_paper]
    assert style.rindex("max-height: 26rem") < on_paper


@pytest.mark.parametrize(
    ("most", "steps"),
    [
        (0, ["0 B"]),
        (4 << 30, ["0 B", "1 GiB", "2 GiB", "3 GiB", "4 GiB"]),
        (900 << 20, ["0 B", "200 MiB", "400 MiB", "600 MiB", "800 MiB", "1000 MiB"]),
        (1023 << 30, ["0 B", "500 GiB", "1000 GiB", "1.5 TiB"]),
    ],
)
def test_an_axis_of_bytes_is_round_in_their_units(most: int, steps: list[str]) -> None:
    assert [words.size(step) for step in binary_steps(most)] == steps


@pytest.mark.slow
def test_ninety_days_of_two_hundred_vms(tmp_path: Path) -> None:
    """Under 2 MB; and a browser finds nothing wrong, and asks nobody."""
    reports = simulated(90, 200)
    text = page(NOW, run=reports[-1], history=History(chronicle(reports), {"web": 86400.0}))
    file = tmp_path / "report.html"
    file.write_text(text)
    print(f"\n{len(text.encode()) / 1e6:.2f} MB")
    assert len(text.encode()) < 2_000_000
    assert text.count('class="d g"') + text.count("class='d g'") > 15_000
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no chromium")
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
         f"--user-data-dir={tmp_path}/profile", "--virtual-time-budget=5000", "--dump-dom", file.as_uri()],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert "</html>" in done.stdout
    assert ":CONSOLE" not in done.stderr
