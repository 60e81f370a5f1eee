"""Promises of how commands go through jobs: whom one failure stops, what is tried again, what a signal does."""

from __future__ import annotations

import datetime as dt
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.support.estates import estate, job_table
from vrepl.app import routes, sites
from vrepl.cli import running
from vrepl.cli.state import State
from vrepl.config import LoadedConfig, parse
from vrepl.errors import ConnectionFailedError, DiskError, InterruptedRunError, LockedError, NotFoundError, UsageError
from vrepl.report.model import ErrorReport, Result, RunReport, VmReport

SITES = """
[sites.a]
server = "a"
user = "u"
password = { env = "P" }
[sites.b]
server = "b"
user = "u"
password = { env = "P" }
[repository]
path = "r"
"""
JOB = '[jobs.{name}]\nsource = "a"\ntarget = "b"\ntarget_datastore = "d"\nvms = [{vms}]\n'


def loaded(**jobs: str) -> LoadedConfig:
    text = SITES + "".join(JOB.format(name=name, vms=vms) for name, vms in jobs.items())
    return LoadedConfig(Path("/vrepl.toml"), parse(text, "vrepl.toml", Path("/")))


BOTH = loaded(one='"x", "y"', two='"z"')


@pytest.mark.parametrize(
    ("jobs", "vms", "expected"),
    [
        ((), (), [("one", ()), ("two", ())]),
        (("two",), (), [("two", ())]),
        ((), ("y",), [("one", ("y",))]),
        ((), ("y", "z"), [("one", ("y",)), ("two", ("z",))]),
    ],
)
def test_selection(jobs: tuple[str, ...], vms: tuple[str, ...], expected: list[tuple[str, tuple[str, ...]]]) -> None:
    assert [(one.job.name, one.vms) for one in running.select(BOTH, jobs, vms)] == expected


def test_a_vm_of_another_job_is_not_found() -> None:
    with pytest.raises(NotFoundError, match='no VM "z" in job one'):
        running.select(BOTH, ("one",), ("z",))


def report(job: str = "one", *, failed: tuple[str, ...] = (), good: tuple[str, ...] = ("x",)) -> RunReport:
    now = dt.datetime(2025, 3, 1, tzinfo=dt.UTC)
    error = ErrorReport.of(DiskError("boom"))
    return RunReport(
        job=job,
        id="run",
        started=now,
        finished=now,
        vms=[VmReport(name, Result.SUCCESS) for name in good]
        + [VmReport(n, Result.FAILED, error=error) for n in failed],
    )


def test_a_locked_job_does_not_keep_the_next_from_running() -> None:
    def act(selection: running.Selection) -> RunReport:
        if selection.job.name == "one":
            raise LockedError("locked")
        return report("two")

    outcomes = running.go_through(running.select(BOTH, (), ()), act, threading.Event())
    assert running.exit_code(outcomes) == 3
    told = running.to_json(outcomes)
    assert [one["run"]["result"] for one in told["runs"]] == ["failed", "success"]
    assert told["runs"][0]["error"]["exit_code"] == 11


def test_a_single_job_that_fails_fails_the_command() -> None:
    def act(_: running.Selection) -> RunReport:
        raise LockedError("locked")

    with pytest.raises(LockedError):
        running.go_through(running.select(BOTH, ("one",), ()), act, threading.Event())


def test_a_stop_ends_the_series() -> None:
    stopped = threading.Event()

    def act(selection: running.Selection) -> RunReport:
        stopped.set()
        done = report(selection.job.name)
        done.interrupted = True
        return done

    outcomes = running.go_through(running.select(BOTH, (), ()), act, stopped)
    assert [one.job for one in outcomes] == ["one"]
    assert running.exit_code(outcomes) == 130


def outcome(code: int) -> running.Outcome:
    if code == 0:
        return running.Outcome("j", report())
    error = {1: DiskError("x"), 11: LockedError("x"), 10: NotFoundError("x")}[code]
    return running.Outcome("j", None, error)


@pytest.mark.parametrize(("codes", "expected"), [([0, 0], 0), ([11, 11], 11), ([11, 10], 1), ([0, 11], 3), ([1, 1], 1)])
def test_exit_codes_of_several_jobs(codes: list[int], expected: int) -> None:
    assert running.exit_code([outcome(code) for code in codes]) == expected


class Runs:
    """Answers each run with the next of some reports or errors."""

    def __init__(self, *answers: RunReport | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, vms: tuple[str, ...]) -> RunReport:
        self.asked.append(vms)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def retry(runs: Runs, retries: int, stopped: threading.Event | None = None) -> RunReport:
    return running.with_retries(
        runs, (), retries=retries, wait=0.0, stopped=stopped or threading.Event(), tell=lambda _: None
    )


def test_only_what_failed_is_run_again() -> None:
    runs = Runs(report(good=("x",), failed=("y", "z")), report(good=("y",), failed=("z",)), report(good=("z",)))
    whole = retry(runs, 2)
    assert runs.asked == [(), ("y", "z"), ("z",)]
    assert whole.exit_code == 0


def test_retries_are_counted() -> None:
    runs = Runs(report(failed=("y",)), report(good=(), failed=("y",)))
    assert retry(runs, 1).exit_code == 3
    assert runs.answers == []


def test_nothing_failed_nothing_repeated() -> None:
    runs = Runs(report())
    assert retry(runs, 5).exit_code == 0


def test_a_connection_that_fails_is_tried_again_and_a_lock_is_not() -> None:
    assert retry(Runs(ConnectionFailedError("x"), report()), 1).exit_code == 0
    with pytest.raises(LockedError):
        retry(Runs(LockedError("x"), report()), 1)
    with pytest.raises(ConnectionFailedError):
        retry(Runs(ConnectionFailedError("x")), 0)


def test_a_stop_ends_the_waiting() -> None:
    stopped = threading.Event()
    stopped.set()
    runs = Runs(report(failed=("y",)), report())
    assert retry(runs, 3, stopped).interrupted
    assert len(runs.asked) == 1
    with pytest.raises((InterruptedRunError, ConnectionFailedError)):
        retry(Runs(ConnectionFailedError("x"), report()), 3, stopped)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_for_a_stop_and_leaves_the_handlers_as_they_were(number: signal.Signals) -> None:
    asked, stopped = threading.Event(), threading.Event()
    before = signal.getsignal(number)
    with running.stop_on_signals(asked.set, stopped):
        os.kill(os.getpid(), number)
        assert asked.wait(5)
    assert stopped.is_set()
    assert signal.getsignal(number) is before


def test_sigusr1_tells_where_a_run_is(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with running.events_for(State()) as events:
        events.vm_step("web-01", "transfer")
        os.kill(os.getpid(), signal.SIGUSR1)
        deadline = time.monotonic() + 10
        said = ""
        while said.count("web-01: transfer") < 2 and time.monotonic() < deadline:
            said += capfd.readouterr().err
            time.sleep(0.01)
    assert said.count("web-01: transfer\n") == 2
    assert signal.getsignal(signal.SIGUSR1) is before


@pytest.mark.slow
def test_the_third_signal_gives_up() -> None:
    code = (
        "import os, signal, threading, time\n"
        "from vrepl.cli.running import stop_on_signals\n"
        "with stop_on_signals(lambda: None, threading.Event()):\n"
        "    for _ in range(3):\n"
        "        os.kill(os.getpid(), signal.SIGINT); time.sleep(0.05)\n"
        "    print('still here')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert "still here" not in done.stdout
    assert done.stderr.count("\n") == 2


@pytest.mark.parametrize(
    ("moment", "now", "hours"),
    [
        ("06:00", "2025-03-01T22:00:00+01:00", 8),
        ("06:00", "2025-03-01T05:30:00+01:00", 0.5),
        ("06:00", "2025-03-01T06:00:00+01:00", 24),
    ],
)
def test_the_time_to_stop_at_is_the_next_one(moment: str, now: str, hours: float) -> None:
    assert running.seconds_until(dt.time.fromisoformat(moment), dt.datetime.fromisoformat(now)) == hours * 3600


def test_at_the_time_a_run_is_stopped_and_some_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "seconds_until", lambda moment, now: 0.05)
    stopped, asked = threading.Event(), threading.Event()
    deadline = running.Deadline(dt.time(6))
    with deadline.watch(asked.set, stopped):
        assert asked.wait(10)
    assert stopped.is_set()
    assert [deadline.exit_code(code) for code in (0, 1, 3, 130)] == [0, 1, 3, 3]
    assert running.Deadline(None).exit_code(130) == 130


def test_root_does_not_write_into_another_users_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, _ = estate(tmp_path, job_table("web", ["a"]))
    path = loaded.config.repository.path
    with monkeypatch.context() as other:
        other.setattr(os, "geteuid", lambda: 0)
        other.setattr(Path, "stat", lambda self: os.stat_result((0o40700, 0, 0, 1, 65534, 0, 0, 0, 0, 0)))
        with pytest.raises(UsageError, match=f"{path} belongs to user nobody, and this is root") as caught:
            sites.open_repository_to_write(loaded)
    assert caught.value.hint == "sudo -u nobody vrepl …"
    sites.open_repository_to_write(loaded)


@pytest.mark.parametrize(
    ("lines", "warned"),
    [
        ("", []),
        ('[vddk]\nlibdir = "gone"\n', ["gone"]),
        ('[vddk]\nlibdir = "gone"\nengine = "own"\n', []),
        ('[proxies.p]\nlibdir = "elsewhere"\n', ["elsewhere"]),
        ('[proxies.p]\nlibdir = "elsewhere"\nengine = "own"\n', []),
        ('[vddk]\nlibdir = "gone"\n[proxies.p]\n', ["gone"]),
    ],
)
def test_vddk_that_was_to_be_there_is_missed(
    lines: str, warned: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for a machine, and not where nobody said that there is some, or that it is to be used."""
    text = job_table("web", ["a"], 'proxy = "p"' if "proxies" in lines else "") + lines
    loaded, _ = estate(tmp_path, text)
    told: list[str] = []
    monkeypatch.setattr(routes.logger, "warning", lambda said, reason: told.append(reason))
    routes.warn_of_missed_vddk(routes.route_of(loaded, loaded.job("web")))
    assert told == [f"no VDDK in {tmp_path / name}" for name in warned]
