"""Promises of `vrepl status`: what is not protected comes first, is named with its reason, and is told by exit code."""

from __future__ import annotations

import datetime as dt
import io
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from tests.support.estates import NOW, add_replica, add_run, estate, job_table, moment_id, run_report, vm_report
from vrepl.app import protection as gathering
from vrepl.cli import main
from vrepl.report import console
from vrepl.report.model import Result
from vrepl.report.protection import Need, Protection, ReplicaStanding, VmProtection, nagios
from vrepl.report.status_view import show_status
from vrepl.repository.replica_folder import Verification

MINUTE = dt.timedelta(minutes=1)
READY = ReplicaStanding("ready")


def vm(
    name: str, age: float | None = 10, rpo: float | None = 30, result: Result | None = Result.SUCCESS
) -> VmProtection:
    """Ages and objectives in minutes."""
    moment = None if age is None else NOW - age * MINUTE
    return VmProtection(
        name, "web", None if age is None else READY,
        restore_point=None if moment is None else moment_id(moment), restore_point_time=moment,
        rpo=None if rpo is None else rpo * 60, last_result=result,
        error="no space" if result is Result.FAILED else None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("seen", "met", "need", "code", "plugin"),
    [
        (vm("a"), True, Need.NOTHING, 0, 0),
        (vm("a", age=30), True, Need.NOTHING, 0, 0),
        (vm("a", age=30.1), False, Need.OBJECTIVE_MISSED, 3, 2),
        (vm("a", age=None), False, Need.OBJECTIVE_MISSED, 3, 2),
        (vm("a", age=None, rpo=None, result=None), None, Need.NEVER_REPLICATED, 0, 0),
        (vm("a", result=Result.FAILED), True, Need.FAILED, 3, 1),
        (vm("a", rpo=None, result=Result.FAILED), None, Need.FAILED, 3, 2),
        (vm("a", rpo=None, age=10**6), None, Need.NOTHING, 0, 0),
        (vm("a", age=-5), True, Need.NOTHING, 0, 0),
        (vm("a", result=Result.SKIPPED), True, Need.NOTHING, 0, 0),
        (vm("a", result=Result.INTERRUPTED), True, Need.NOTHING, 0, 0),
    ],
)
def test_what_counts(seen: VmProtection, met: bool | None, need: Need, code: int, plugin: int) -> None:
    whole = Protection.of(NOW, [vm("fine"), seen])
    assert seen.objective_met(NOW) is met
    assert seen.need(NOW) is need
    assert whole.exit_code == code
    status, line = nagios(whole)
    assert status == plugin
    assert line.startswith(f"VREPL {['OK', 'WARNING', 'CRITICAL'][plugin]} - ")
    assert ("a (web): " in line) is (plugin > 0)
    assert "\n" not in line
    assert line.count("|") == 1


def test_what_needs_attention_comes_first() -> None:
    late, later, never = vm("late", age=40), vm("later", age=90), vm("never", age=None)
    failed, fine, old = vm("failed", result=Result.FAILED), vm("fine"), vm("old", age=29)
    shown = [one.name for one in Protection.of(NOW, [fine, old, failed, late, never, later]).vms]
    assert shown == ["never", "later", "late", "failed", "old", "fine"]


def test_a_replica_in_service_has_no_objective() -> None:
    """It is not replicated: an alarm for its age would ring until the day of failback."""
    used = replace(vm("a", age=10**4), standing=ReplicaStanding("failed-over"))
    whole = Protection.of(NOW, [used])
    assert (used.objective_met(NOW), used.need(NOW), whole.exit_code) == (None, Need.IN_USE, 0)
    assert whole.to_json()["vms"][0]["rpo_seconds"] == 1800
    tested = replace(vm("a", age=10**4), standing=ReplicaStanding("ready", NOW))
    assert tested.need(NOW) is Need.OBJECTIVE_MISSED


def test_nothing_to_watch_is_unknown() -> None:
    assert nagios(Protection.of(NOW, []))[0] == 3


def test_the_promised_keys() -> None:
    told = Protection.of(NOW, [vm("a")]).to_json()
    assert told["version"] == 1
    promised = {
        "name",
        "job",
        "state",
        "restore_point",
        "age_seconds",
        "rpo_seconds",
        "rpo_met",
        "last_result",
        "error",
    }
    [one] = told["vms"]
    assert set(promised) <= set(one)
    assert (one["state"], one["age_seconds"], one["rpo_seconds"], one["rpo_met"]) == ("ready", 600, 1800, True)
    assert one["last_test"] is None


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_screen_fits_and_names_what_is_wrong(width: int) -> None:
    text = io.StringIO()
    whole = Protection.of(NOW, [vm("web-01", age=300), vm("db-01", result=Result.FAILED), vm("mail-01")], ["left-01"])
    show_status(console.make_console(text, width=width), whole, {"web": "pid 7 on host"})
    table = text.getvalue().split("web-01: ")[0]
    assert all(len(line) <= width for line in table.splitlines())
    assert "failed" in table
    assert "success" in table
    said = text.getvalue()
    assert "web-01: last good copy 5 h 00 min old, objective 30 min" in said
    assert "db-01: last run failed: no space" in said
    assert "job web is running: pid 7 on host" in said
    assert "replicas without a job: left-01" in said


def test_it_is_gathered_from_the_repository_alone(tmp_path: Path) -> None:
    loaded, repository = estate(tmp_path, job_table("web", ["a", "b", "c"], 'rpo = "30m"'))
    add_replica(repository, "a", "web", NOW - 40 * MINUTE, NOW - 20 * MINUTE)
    add_replica(repository, "b", "web", NOW - 40 * MINUTE, NOW - 20 * MINUTE)
    add_replica(repository, "gone", "old", NOW - 900 * MINUTE)
    add_run(repository, run_report("web", NOW - 20 * MINUTE, [vm_report("a"), vm_report("b")]))
    add_run(repository, run_report("web", NOW - 5 * MINUTE, [vm_report("b", Result.FAILED, "no space")]))
    seen = {one.name: one for one in gathering.protection(loaded, repository, NOW).vms}
    assert seen["a"].last_result is Result.SUCCESS
    assert seen["a"].age(NOW) == 20 * 60
    assert (seen["b"].last_result, seen["b"].error) == (Result.FAILED, "no space")
    assert seen["c"].standing is None
    assert gathering.protection(loaded, repository, NOW).without_job == ["gone"]

    folder = repository.replica("prod", "uuid-a")
    assert folder is not None
    folder.mark_verified(moment_id(NOW - 20 * MINUTE), Verification(NOW, False, "3 grains differ"))
    [a] = [one for one in gathering.protection(loaded, repository, NOW).vms if one.name == "a"]
    assert a.age(NOW) == 40 * 60, "a restore point that differs is no good one"
    assert a.doubtful == moment_id(NOW - 20 * MINUTE)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, repository = estate(tmp_path, job_table("web", ["a"], 'rpo = "30m"'))
    empty = CliRunner().invoke(main, ["status"])
    assert empty.exit_code == 3
    assert "`vrepl plan` shows what would be done" in empty.stdout
    add_replica(repository, "a", "web", dt.datetime.now(dt.UTC) - 3 * MINUTE)
    assert CliRunner().invoke(main, ["status"]).exit_code == 0
    plugin = CliRunner().invoke(main, ["status", "--nagios"])
    assert (plugin.exit_code, plugin.stdout.split(" | ")[0]) == (0, "VREPL OK - 1 VMs protected")
    told = json.loads(CliRunner().invoke(main, ["status", "--json"]).stdout)
    assert told["vms"][0]["rpo_met"] is True
    assert CliRunner().invoke(main, ["status", "--watch", "--json"]).exit_code == 2
    (tmp_path / "repository" / "repository.json").write_text("{")
    broken = CliRunner().invoke(main, ["status", "--nagios"])
    assert broken.exit_code == 3
    assert broken.stdout.startswith("VREPL UNKNOWN - ")


@pytest.mark.slow
def test_a_thousand_vms_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a question to a site: neither exists. The time is printed; on a busy machine it would be no test."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # it is only read
    names = [f"vm-{number:04}" for number in range(1000)]
    _, repository = estate(tmp_path, job_table("web", names, 'rpo = "30m"'))
    for name in names:
        add_replica(repository, name, "web", NOW - 20 * MINUTE)
    add_run(repository, run_report("web", NOW, [vm_report(name) for name in names]))
    code = "from vrepl.cli import main; main()"
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, "status", "--json"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    print(f"\nstatus over 1000 VMs: {time.monotonic() - began:.2f} s")
    assert len(json.loads(done.stdout)["vms"]) == 1000
    assert done.returncode == 3


@pytest.mark.parametrize("width", [40, 60, 80, 200])
@pytest.mark.parametrize(
    ("command", "kept"),
    [
        (["history"], ["Result", "failed"]),
        (["replicas"], ["State", "ready"]),
        (["restore-points", "web-01"], ["Verified", "not yet"]),
        (["report"], ["Result", "failed"]),
        (["status"], ["Result", "failed"]),
    ],
)
def test_the_result_is_the_last_column_to_go(
    command: list[str], kept: list[str], width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vrepl.cli.state.stdout_console", lambda: console.make_console(width=width))
    _, repository = estate(tmp_path, job_table("a-job-with-a-long-name", ["web-01"]))
    add_replica(repository, "web-01", "a-job-with-a-long-name", NOW - MINUTE)
    failed = vm_report("web-01", Result.FAILED, "no space")
    add_run(repository, run_report("a-job-with-a-long-name", NOW, [failed]))
    shown = CliRunner().invoke(main, command).stdout
    table = [
        line for line in shown.splitlines() if not line.startswith(("web-01: ", "error: ", "hint: ", "job ", "bottl"))
    ]
    assert all(len(line.rstrip()) <= width for line in table), shown
    assert all(word in shown for word in kept), shown


@pytest.mark.parametrize(
    ("height", "options", "listed", "said"),
    [
        (100, [], 30, "30 VMs, 29 well"),
        (24, [], 1, "30 VMs, 29 well; 29 of these are not listed: `vrepl status -v` lists every VM"),
        (24, ["-v"], 30, "30 VMs, 29 well"),
    ],
)
def test_on_a_terminal_it_is_one_screen(
    height: int, options: list[str], listed: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def terminal() -> Console:
        return Console(width=120, height=height, force_terminal=True, color_system=None, highlight=False)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vrepl.cli.state.stdout_console", terminal)
    names = [f"vm-{number:02}" for number in range(30)]
    _, repository = estate(tmp_path, job_table("web", names, 'rpo = "30m"'))
    for name in names:
        add_replica(repository, name, "web", dt.datetime.now(dt.UTC) - (60 if name == "vm-07" else 5) * MINUTE)
    shown = CliRunner().invoke(main, [*options, "status"]).stdout
    assert sum(line.startswith("vm-") and ": " not in line for line in shown.splitlines()) == listed
    assert "vm-07: last good copy 1 h 00 min old, objective 30 min" in shown
    assert shown.splitlines()[-1].strip() == said


def test_what_several_failed_of_is_said_once() -> None:
    out = io.StringIO()
    ages = {"a": 5, "b": 40, "c": 50}
    vms = [replace(vm(name, age, result=Result.FAILED), hint="make some") for name, age in ages.items()]
    show_status(console.make_console(out, width=80), Protection.of(NOW, vms), {})
    told = "3 VMs (2 past their objective): last run failed: no space\n  c, b, a\n  hint: make some\n3 VMs, 0 well\n"
    assert out.getvalue().endswith(told)


def test_many_that_are_late_are_counted() -> None:
    out = io.StringIO()
    vms = [vm(f"vm-{number}", 40 + number) for number in range(21)]
    show_status(console.make_console(out, width=80), Protection.of(NOW, [*vms, vm("b", 40, result=Result.FAILED)]), {})
    said = out.getvalue().splitlines()[-3:]
    assert said[0] == "21 VMs past their objective; vm-20 has a last good copy 1 h 00 min old"
    assert said[1] == "b: last good copy 40 min 00 s old, objective 30 min; last run failed: no space"
