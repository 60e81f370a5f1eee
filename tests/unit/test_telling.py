"""Promises of notices and metrics: each thing is told once, names the VM, and a dead notifier fails nothing."""

from __future__ import annotations

import datetime as dt
import http.server
import json
import logging
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.support.estates import NOW, add_replica, add_run, estate, job_table, run_report, vm_report
from vrepl.app.files import write_readable
from vrepl.app.protection import protection
from vrepl.app.telling import Teller
from vrepl.cli import main
from vrepl.errors import ConnectionFailedError, LockedError
from vrepl.notify import command
from vrepl.report.metrics import exposition
from vrepl.report.model import Result, RunReport
from vrepl.report.notices import Key, due
from vrepl.report.protection import Protection, ReplicaStanding, VmProtection
from vrepl.secrets import Secrets

MINUTE = dt.timedelta(minutes=1)
EXAMPLES = Path(__file__).parents[2] / "examples" / "prometheus"


def seen(name: str, age: float, result: Result = Result.SUCCESS) -> VmProtection:
    return VmProtection(
        name, "web", ReplicaStanding("ready"), "point", NOW - age * MINUTE,
        rpo=1800.0, last_result=result, error="no room",
    )  # fmt: skip


def kinds(vm: VmProtection, told: frozenset[Key]) -> tuple[list[str], frozenset[Key]]:
    notices, now = due(Protection.of(NOW, [vm]), told)
    return [notice.kind for notice in notices], now


def test_each_thing_is_told_once_and_its_end_too() -> None:
    history = [
        (seen("a", 10), []),
        (seen("a", 10, Result.FAILED), ["failure"]),
        (seen("a", 20, Result.FAILED), []),
        (seen("a", 40, Result.FAILED), ["rpo-missed"]),
        (seen("a", 50, Result.FAILED), []),
        (seen("a", 50, Result.SKIPPED), []),  # says nothing about the failure
        (seen("a", 5), ["recovery"]),
        (seen("a", 5), []),
        (seen("a", 40), ["rpo-missed"]),  # a timer that died: nothing failed
        (seen("a", 1), ["recovery"]),
    ]
    told: frozenset[Key] = frozenset()
    for vm, expected in history:
        found, told = kinds(vm, told)
        assert found == expected, vm


def test_a_vm_that_left_its_job_is_forgotten() -> None:
    assert due(Protection.of(NOW, []), frozenset({("web", "a", "failure")})) == ([], frozenset())


def teller(folder: Path, *lines: str, now: dt.datetime = NOW) -> Teller:
    loaded, repository = estate(folder, job_table("web", ["a", "b"], 'rpo = "30m"') + "\n" + "\n".join(lines))
    return Teller(loaded, repository, lambda: now, Secrets({}))


def on_finish(folder: Path) -> str:
    script = folder / "told"
    script.write_text(f"#!/bin/sh\ncat >> {folder}/heard\necho >> {folder}/heard\n")
    script.chmod(0o700)
    return f'[notify]\non_finish = "{script}"'


def heard(folder: Path) -> list[Any]:
    file = folder / "heard"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_on_finish_gets_the_report_and_what_is_new(tmp_path: Path) -> None:
    tell = teller(tmp_path, on_finish(tmp_path))
    _, repository = estate(tmp_path, job_table("web", ["a", "b"], 'rpo = "30m"') + on_finish(tmp_path))
    add_replica(repository, "a", "web", NOW - MINUTE)
    add_replica(repository, "b", "web", NOW - MINUTE)
    report = run_report("web", NOW - MINUTE, [vm_report("a"), vm_report("b", Result.FAILED, "no space")])
    add_run(repository, report)
    assert tell.around("web", ["a", "b"], lambda: report) is report
    [first] = heard(tmp_path)
    assert first["run"]["id"] == report.id
    assert [vm["name"] for vm in first["vms"]] == ["a", "b"]
    assert [(one["kind"], one["vm"]) for one in first["notices"]] == [("failure", "b")]
    assert first["status"]["exit_code"] == 3
    tell.around("web", ["a", "b"], lambda: report)
    assert heard(tmp_path)[1]["notices"] == []


def test_a_job_whose_timer_died_is_told_by_name_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By cron's `vrepl status --notify`, or at the end of any other job's run."""
    monkeypatch.chdir(tmp_path)
    _, repository = estate(tmp_path, job_table("web", ["a", "b"], 'rpo = "30m"') + on_finish(tmp_path))
    add_replica(repository, "a", "web", dt.datetime.now(dt.UTC) - 5 * MINUTE)
    add_replica(repository, "b", "web", dt.datetime.now(dt.UTC) - 50 * MINUTE)
    for _ in range(2):
        result = CliRunner().invoke(main, ["status", "--notify"])
        assert result.exit_code == 3, result.output
        assert "b: last good copy 50 min" in result.stdout
    [told] = heard(tmp_path)
    assert [(one["kind"], one["vm"]) for one in told["notices"]] == [("rpo-missed", "b")]


def test_a_run_that_fails_as_a_whole_is_kept_and_told(tmp_path: Path) -> None:
    tell = teller(tmp_path, on_finish(tmp_path))
    loaded, repository = estate(tmp_path, job_table("web", ["a", "b"]) + on_finish(tmp_path))

    def refused() -> RunReport:
        raise ConnectionFailedError("vcenter does not answer", hint="is it on?")

    with pytest.raises(ConnectionFailedError):
        tell.around("web", ["a", "b"], refused)
    assert [vm["error"] for vm in heard(tmp_path)[0]["vms"]] == ["vcenter does not answer"] * 2
    [run] = repository.runs()
    assert run["run"]["result"] == "failed"
    assert [vm.error for vm in protection(loaded, repository, NOW).vms] == ["vcenter does not answer"] * 2

    def locked() -> RunReport:
        raise LockedError("another run goes on")

    with pytest.raises(LockedError):
        tell.around("web", ["a", "b"], locked)
    assert len(repository.runs()) == len(heard(tmp_path)) == 1


@pytest.mark.parametrize(
    ("lines", "warning"),
    [
        ('[notify]\non_finish = "/nowhere/tell"', "cannot be run: No such file"),
        ('[notify]\non_finish = ["sh", "-c", "echo broken >&2; exit 3"]', "ended with status 3: broken"),
        ('[notify]\non_finish = ["sleep", "60"]', "did not end within"),
        ('[metrics]\ntextfile = "/nowhere/vrepl.prom"', "cannot be written: No such file"),
        ('[notify]\nping = { file = "absent" }', "cannot be read"),
    ],
)
@pytest.mark.slow
def test_a_dead_notifier_is_a_warning(
    tmp_path: Path, lines: str, warning: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "SECONDS", 0.3)
    monkeypatch.setattr(logging.getLogger("vrepl"), "propagate", True)
    report = run_report("web", NOW, [vm_report("a")])
    assert teller(tmp_path, lines).around("web", ["a"], lambda: report) is report
    assert warning in caplog.text
    assert {record.levelname for record in caplog.records} == {"WARNING"}


@pytest.fixture
def listener() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """An address, and what was posted there."""
    posted: list[tuple[str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append((self.path, self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", posted
    server.shutdown()
    server.server_close()


def secret(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    (folder / name).chmod(0o600)
    return f'{{ file = "{folder / name}" }}'


@pytest.mark.slow
def test_pings(tmp_path: Path, listener: tuple[str, list[tuple[str, str]]]) -> None:
    address, posted = listener
    tell = teller(tmp_path, f"[notify]\nping = {secret(tmp_path, 'url', address + '/key/vrepl-{job}')}")
    tell.around("web", ["a"], lambda: run_report("web", NOW, [vm_report("a")]))
    tell.around("web", ["a"], lambda: run_report("web", NOW, [vm_report("a", Result.FAILED, "no space")]))
    deadline = time.monotonic() + 10
    while len(posted) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(posted) == [
        ("/key/vrepl-web", ""),
        ("/key/vrepl-web/fail", "a: no space"),
        ("/key/vrepl-web/start", ""),
        ("/key/vrepl-web/start", ""),
    ]


def test_no_message_holds_the_address_of_a_ping(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    tell = teller(tmp_path, f"[notify]\nping = {secret(tmp_path, 'url', 'http://127.0.0.1:1/key-17')}")
    logging.getLogger("vrepl").propagate = True
    tell.around("web", ["a"], lambda: run_report("web", NOW, [vm_report("a")]))
    assert "the ping of job web was not taken" in caplog.text
    assert "key-17" not in caplog.text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.slow
def test_services_get_what_is_new(tmp_path: Path, listener: tuple[str, list[tuple[str, str]]]) -> None:
    pytest.importorskip("apprise")
    address, posted = listener
    tell = teller(
        tmp_path, f"[notify]\nurls = [{secret(tmp_path, 'url', address.replace('http', 'json', 1) + '/token')}]"
    )
    report = run_report("web", NOW, [vm_report("a", Result.FAILED, "no space")])
    _, repository = estate(tmp_path, job_table("web", ["a"]))
    add_run(repository, report)
    tell.around("web", ["a"], lambda: report)
    tell.around("web", ["a"], lambda: report)
    [(path, body)] = posted
    assert path == "/token"
    assert "a: last run failed: no space" in body


# -- metrics ----------------------------------------------------------------------------------------------------------

NAMES = {
    "vrepl_restore_point_timestamp_seconds", "vrepl_rpo_objective_seconds", "vrepl_last_run_success",
    "vrepl_last_run_timestamp_seconds", "vrepl_last_run_duration_seconds", "vrepl_last_run_bytes",
    "vrepl_replica_state", "vrepl_failover_test_timestamp_seconds", "vrepl_verify_timestamp_seconds",
    "vrepl_build_info",
}  # fmt: skip


def metrics_of(folder: Path) -> bytes:
    loaded, repository = estate(folder, job_table("web", ["a", '[/x]\n"b\\'], 'rpo = "30m"'))
    add_replica(repository, "a", "web", NOW - MINUTE)
    add_run(repository, run_report("web", NOW - MINUTE, [vm_report("a")]))
    return exposition(protection(loaded, repository, NOW), "1.2.3")


def test_the_promised_metrics(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    from prometheus_client.parser import text_string_to_metric_families

    loaded, repository = estate(tmp_path, job_table("web", ["a", "b"], 'rpo = "30m"'))
    add_replica(repository, "a", "web", NOW - MINUTE)
    add_run(repository, run_report("web", NOW - MINUTE, [vm_report("a")]))
    text = exposition(protection(loaded, repository, NOW), "1.2.3").decode()
    families = list(text_string_to_metric_families(text))
    assert {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")} == NAMES
    samples = {(one.name, *sorted(one.labels.items())): one.value for family in families for one in family.samples}
    a = (("job", "web"), ("vm", "a"))
    assert samples["vrepl_restore_point_timestamp_seconds", *a] == (NOW - MINUTE).timestamp()
    assert samples["vrepl_last_run_timestamp_seconds", *a] == (NOW + MINUTE).timestamp()
    assert samples["vrepl_last_run_bytes", *a] == 1 << 30
    assert samples["vrepl_replica_state", ("job", "web"), ("state", "ready"), ("vm", "a")] == 1
    assert samples["vrepl_build_info", ("version", "1.2.3")] == 1
    b = (("job", "web"), ("vm", "b"))
    assert samples["vrepl_rpo_objective_seconds", *b] == 1800
    assert ("vrepl_restore_point_timestamp_seconds", *b) not in samples, "no restore point is no series: see the alert"


def test_the_textfile_is_whole_and_readable(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    tell = teller(tmp_path, f'[metrics]\ntextfile = "{tmp_path}/vrepl.prom"')
    tell.around("web", ["a"], lambda: run_report("web", NOW, [vm_report("a")]))
    assert b"vrepl_build_info" in (tmp_path / "vrepl.prom").read_bytes()
    assert (tmp_path / "vrepl.prom").stat().st_mode & 0o777 == 0o644
    assert not list(tmp_path.glob(".vrepl*"))
    write_readable(tmp_path / "vrepl.prom", b"x")
    assert (tmp_path / "vrepl.prom").read_bytes() == b"x"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.slow
def test_promtool_accepts_metrics_rules_and_their_tests(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=metrics_of(tmp_path), capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    for arguments in (["check", "rules", "vrepl-alerts.yml"], ["test", "rules", "vrepl-alerts.test.yml"]):
        done = subprocess.run(["promtool", *arguments], cwd=EXAMPLES, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_rules_and_dashboard_use_metrics_that_there_are() -> None:
    import re

    for file in EXAMPLES.iterdir():
        assert set(re.findall(r"vrepl_\w+", file.read_text())) <= NAMES, file
    assert json.loads((EXAMPLES / "vrepl-dashboard.json").read_text())["panels"]
