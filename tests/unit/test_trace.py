"""What is traced can be given away: no secret, whoever's it is, and a file for its owner alone."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from tests.support.fake_vcenter import PASSWORD, USER, fake_vcenter
from vrepl import trace
from vrepl.errors import AuthenticationError, UsageError
from vrepl.trace import HIDDEN, Trace
from vrepl.vsphere.session import Session, SiteSettings
from vrepl.vsphere.tracing import plain


@pytest.fixture
def traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(trace.VARIABLE, str(tmp_path / "trace"))
    return tmp_path / "trace"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def a_session(port: int, folder: Path, password: str = PASSWORD) -> Session:
    return Session(
        SiteSettings(
            name="prod", server="127.0.0.1", port=port, user=USER, password=password, ca_file=folder / "ca.pem"
        )
    )


@pytest.mark.slow
def test_every_call_is_told_and_no_secret(traced: Path, tmp_path: Path) -> None:
    with fake_vcenter(tmp_path) as vcenter:
        session = a_session(vcenter.port, tmp_path)
        now: Any = session.object(vim.ServiceInstance, "ServiceInstance").CurrentTime()
        session.close()
        calls = [line for line in lines(traced) if line["what"] == "api"]
        assert [call["method"] for call in calls] == vcenter.calls[1:], "the first is no SOAP"
        assert session.settings.password not in traced.read_text()
        assert str(vcenter.session) not in traced.read_text()
    login = next(call for call in calls if call["method"] == "Login")
    assert login["arguments"] == HIDDEN
    told = next(call for call in calls if call["method"] == "CurrentTime")
    assert (told["target"], told["arguments"], told["answer"]) == ("ServiceInstance:ServiceInstance", {}, "datetime")
    assert told["seconds"] >= 0
    assert now is not None


def test_a_refused_login_does_not_tell_the_password(traced: Path, tmp_path: Path) -> None:
    with fake_vcenter(tmp_path) as vcenter, pytest.raises(AuthenticationError):
        a_session(vcenter.port, tmp_path, "not the password").login()
    assert "not the password" not in traced.read_text()
    assert [line["error"] for line in lines(traced) if line["method"] == "Login"]


def test_the_file_is_its_owners_alone(traced: Path) -> None:
    traced.touch(0o644)
    Trace(str(traced)).event("api", {})
    assert stat.S_IMODE(traced.stat().st_mode) == 0o600


@pytest.mark.parametrize("kind", ["a folder that is not there", "a link"])
def test_a_file_that_cannot_be_is_said(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "none" / "trace"
    if kind == "a link":
        path = tmp_path / "trace"
        path.symlink_to(tmp_path / "elsewhere")
    monkeypatch.setenv(trace.VARIABLE, str(path))
    with pytest.raises(UsageError, match=trace.VARIABLE):
        trace.current()
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    "field", ["password", "Password", "passphrase", "ticket", "sslThumbprintTicket", "sessionID", "session_key",
              "cookie", "client_secret", "token", "userdata"],
)  # fmt: skip
def test_what_is_named_as_a_secret_is_left_out_however_deep(field: str, tmp_path: Path) -> None:
    Trace(str(tmp_path / "t")).event("x", {"a": [{"b": {field: "hush", "sha1_thumbprint": "AA:BB"}}]})
    assert lines(tmp_path / "t")[0]["a"] == [{"b": {field: HIDDEN, "sha1_thumbprint": "AA:BB"}}]


@pytest.mark.parametrize("password", ["hunter22", 'quo"te\\back', "ünïcode", "a longer one: hunter22"])
def test_a_known_password_is_left_out_wherever_it_stands(password: str, tmp_path: Path) -> None:
    written = Trace(str(tmp_path / "t"))
    written.hide("hunter22")
    written.hide(password)
    written.event("x", {"error": f"refused {password} of operator", "list": [password]})
    (line,) = lines(tmp_path / "t")
    assert line["error"] == f"refused {HIDDEN} of operator"
    assert line["list"] == [HIDDEN]


def test_the_key_of_a_session_is_left_out_of_references(tmp_path: Path) -> None:
    key = "52f1c3a0-94a2-77c3-6a5e-0b6b2a1d8f10"
    Trace(str(tmp_path / "trace")).event("api", {"target": f"ContainerView:session[{key}]52aa", "answer": ["[1]"]})
    [line] = lines(tmp_path / "trace")
    assert (line["target"], line["answer"]) == (f"ContainerView:session[{HIDDEN}]52aa", ["[1]"])


def test_long_lists_are_cut_and_counted(tmp_path: Path) -> None:
    Trace(str(tmp_path / "t")).event("x", {"regions": [[i, 1] for i in range(100_000)]})
    assert lines(tmp_path / "t")[0]["regions"][-1] == "… 100000 in all"
    assert os.stat(tmp_path / "t").st_size < 1000


def test_guests_settings_are_not_told_vrepls_own_are() -> None:
    spec = vim.vm.ConfigSpec(
        name="web-01",
        files=vim.vm.FileInfo(vmPathName="[a] web-01"),
        extraConfig=[
            vim.option.OptionValue(key="guestinfo.userdata", value="cGFzc3dvcmQ="),
            vim.option.OptionValue(key="vrepl.source", value="prod"),
        ],
    )
    assert plain(spec) == {
        "type": "ConfigSpec",
        "name": "web-01",
        "files": {"type": "FileInfo", "vmPathName": "[a] web-01"},
        "extraConfig": [
            {"type": "OptionValue", "key": "guestinfo.userdata", "value": HIDDEN},
            {"type": "OptionValue", "key": "vrepl.source", "value": "prod"},
        ],
    }
    move = vim.vm.RelocateSpec(host=vim.HostSystem("host-1"))
    assert plain([vim.VirtualMachine("vm-1"), move]) == [
        "VirtualMachine:vm-1",
        {"type": "RelocateSpec", "host": "HostSystem:host-1"},
    ]


def test_without_the_variable_nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(trace.VARIABLE, raising=False)
    assert trace.current() is None
