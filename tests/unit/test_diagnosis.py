"""Promises of `vrepl diagnose`: everything that helps, and no secret, wherever it may have got into."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tests.support.estates import NOW, add_replica, add_run, estate, job_table, run_report, vm_report
from vrepl.cli import main
from vrepl.report.model import Result
from vrepl.report.redact import redact

SECRET = 'hunter2"\\ö'
TOKEN = "tok-17-abc"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in (
        ("password", SECRET),
        ("ping", f"https://hc.invalid/{TOKEN}"),
        ("url", f"mailtos://u:{TOKEN}@h.invalid"),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    notify = (
        f'[notify]\non_finish = ["tell", "--key={TOKEN}"]\nurls = [{{ file = "url" }}]\nping = {{ file = "ping" }}\n'
    )
    _, repository = estate(tmp_path, job_table("web", ["a"], 'rpo = "30m"') + notify)
    add_replica(repository, "a", "web", NOW)
    add_run(
        repository, run_report("web", NOW, [vm_report("a", Result.FAILED, f"login with {SECRET} refused; {TOKEN}")])
    )
    log = [
        f"Cookie: vmware_soap_session={TOKEN}2",
        f"password = {SECRET}",
        f"GET https://u:{SECRET}@host/x",
        "said web-01",
    ]
    (tmp_path / "vrepl.log").write_text("\n".join(log))
    return tmp_path


def bundle(*arguments: str) -> dict[str, str]:
    result = CliRunner().invoke(main, ["diagnose", "out.tar.gz", *arguments])
    assert result.exit_code == 0, result.output
    with tarfile.open("out.tar.gz") as opened:
        found = {}
        for entry in opened.getmembers():
            file = opened.extractfile(entry)
            assert file is not None
            found[entry.name.partition("/")[2]] = file.read().decode()
        return found


def test_no_secret_is_in_it_and_what_helps_is(folder: Path) -> None:
    texts = bundle("--offline", "--log", "vrepl.log")
    assert set(texts) == {
        "versions.json", "config.toml", "status.json", "repository.json", "logs/vrepl.log",
        "runs/20250301T220000Z-aaaaaa.json",
    }  # fmt: skip
    whole = "\n".join(texts.values())
    for secret in (SECRET, TOKEN, json.dumps(SECRET)[1:-1], "hunter2"):
        assert secret not in whole
    assert "said web-01" in texts["logs/vrepl.log"]
    assert json.loads(texts["status.json"])["vms"][0]["name"] == "a"
    assert "blake3" in json.loads(texts["versions.json"])["packages"]
    assert 'vms = ["a"]' in texts["config.toml"]
    assert (folder / "out.tar.gz").stat().st_mode & 0o777 == 0o600


def test_what_cannot_be_had_does_not_keep_the_rest(folder: Path) -> None:
    (folder / "repository" / "repository.json").write_text("{")
    texts = bundle("--offline")
    assert texts["status.json"].startswith("this could not be had: ")
    assert "vrepl" in json.loads(texts["versions.json"])


@pytest.mark.slow
def test_checks_are_taken_along(folder: Path) -> None:
    text = (folder / "vrepl.toml").read_text().replace("user =", "port = 1\nuser =")
    for server in ("vcenter.prod.invalid", "vcenter.dr.invalid"):
        text = text.replace(server, "127.0.0.1")
    (folder / "vrepl.toml").write_text(text)
    checks = json.loads(bundle()["checks.json"])
    assert {"this machine", "site prod", "site dr", "job web"} <= {check["group"] for check in checks}


@given(secret=st.text(min_size=4), before=st.text(), after=st.text())
def test_a_known_secret_never_stays(secret: str, before: str, after: str) -> None:
    for text in (secret, json.dumps(secret, ensure_ascii=False)[1:-1]):
        left = redact(f"{before} {text} {after}", [secret])
        if secret not in f"{before} {after}" and secret not in "***":
            assert f" {secret} " not in f" {left} " or secret in "***"


def test_shapes() -> None:
    key = "-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----"
    text = f'"api_key": "x1", token=y2 Authorization: Bearer z3\n{key}'
    assert not {"x1", "y2", "z3", "abc"} & set(
        io.StringIO(redact(text, [])).read().replace('"', " ").replace("=", " ").split()
    )
