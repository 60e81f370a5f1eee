"""What a session promises: it trusts nobody blindly, says what is wrong, and tries again what passes."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_vcenter import PASSWORD, USER, FakeVcenter, fake_vcenter
from vrepl.errors import (
    AuthenticationError,
    CertificateError,
    ConfigError,
    ConnectionFailedError,
    InterruptedRunError,
    TransientVsphereError,
    VreplError,
    VsphereError,
)
from vrepl.vsphere import tls
from vrepl.vsphere.api import vim
from vrepl.vsphere.faults import OutcomeUnknownError
from vrepl.vsphere.retry import RetryPolicy
from vrepl.vsphere.session import Session, SiteSettings

Open = Callable[..., Session]
NOBODY = "AB:" * 31 + "AB"


@pytest.fixture
def slept() -> list[float]:
    return []


@pytest.fixture
def open_session(slept: list[float]) -> Iterator[Open]:
    with ExitStack() as stack:

        def make(fake: FakeVcenter | int, **changes: Any) -> Session:
            port = fake if isinstance(fake, int) else fake.port
            given: dict[str, Any] = {"password": PASSWORD, "retry": RetryPolicy(attempts=4), "timeout": 5.0}
            settings = SiteSettings(name="west", server="127.0.0.1", user=USER, port=port, **(given | changes))
            session = Session(settings, sleep=slept.append)
            stack.callback(session.close)
            return session

        yield make


@pytest.fixture
def vcenter(tmp_path: Path) -> Iterator[FakeVcenter]:
    with fake_vcenter(tmp_path) as fake:
        yield fake


def tell_time(session: Session) -> object:
    return session.object(vim.ServiceInstance, "ServiceInstance").CurrentTime()


# --- trust


def test_a_ca_file_is_enough(vcenter: FakeVcenter, tmp_path: Path, open_session: Open) -> None:
    session = open_session(vcenter, ca_file=tmp_path / "ca.pem")
    assert session.is_vcenter
    assert session.product == "VMware vCenter Server 8.0.2"
    assert tls.sha1_thumbprint(session.certificate()) == vcenter.certificate.sha1_thumbprint


def test_the_system_cas_do_not_know_a_private_ca(vcenter: FakeVcenter, open_session: Open) -> None:
    with pytest.raises(CertificateError, match="authority that is not trusted") as caught:
        open_session(vcenter).login()
    assert vcenter.certificate.sha256_thumbprint in (caught.value.hint or "")
    assert vcenter.calls == [], "nothing may be sent to a server that was not verified"


@pytest.mark.parametrize("kind", ["good", "expired", "self-signed"])
def test_a_pinned_thumbprint_is_enough_whatever_the_certificate(kind: str, tmp_path: Path, open_session: Open) -> None:
    with fake_vcenter(tmp_path, kind=kind, names=("other.example",)) as fake:
        session = open_session(fake, thumbprint=fake.certificate.sha256_thumbprint)
        session.login()
        assert tls.sha1_thumbprint(session.certificate()) == fake.certificate.sha1_thumbprint


@pytest.mark.parametrize(
    ("kind", "names", "said"),
    [
        ("expired", ("127.0.0.1",), r"has expired on \d{4}-\d\d-\d\d"),
        ("self-signed", ("127.0.0.1",), "self-signed"),
        ("good", ("vcenter.example",), "not for the name 127.0.0.1 but for vcenter.example"),
    ],
)
def test_a_bad_certificate_is_named_and_shown(
    kind: str, names: tuple[str, ...], said: str, tmp_path: Path, open_session: Open
) -> None:
    with fake_vcenter(tmp_path, kind=kind, names=names) as fake:
        with pytest.raises(CertificateError, match=said) as caught:
            open_session(fake, ca_file=tmp_path / "ca.pem").login()
        assert fake.certificate.sha256_thumbprint in (caught.value.hint or "")
        assert fake.calls == []


def test_a_wrong_thumbprint_shows_both(vcenter: FakeVcenter, open_session: Open, slept: list[float]) -> None:
    with pytest.raises(CertificateError, match="pinned") as caught:
        open_session(vcenter, thumbprint=NOBODY).login()
    assert NOBODY in (caught.value.hint or "")
    assert vcenter.certificate.sha256_thumbprint in (caught.value.hint or "")
    assert vcenter.calls == []
    assert slept == [], "a certificate does not get better by waiting"


def test_every_connection_is_checked_not_only_the_first(
    vcenter: FakeVcenter, tmp_path: Path, open_session: Open
) -> None:
    """pyVmomi's own pinning lets all connections but the first pass; a server that changes must be noticed."""
    session = open_session(vcenter, thumbprint=vcenter.certificate.sha256_thumbprint)
    session.login()
    with fake_vcenter(tmp_path / "impostor") as impostor:
        stub: Any = session._stub
        stub.port = impostor.port
        stub.DropConnections()
        before = list(impostor.calls)
        with pytest.raises(CertificateError):
            tell_time(session)
        assert impostor.calls == before
        stub.port = vcenter.port


@pytest.mark.parametrize("text", ["AB:CD", "12" * 20, "zz" * 32, ""])
def test_only_sha256_is_pinned(text: str) -> None:
    with pytest.raises(ConfigError, match="SHA-256"):
        tls.parse_thumbprint(text)


def test_a_missing_or_empty_ca_file_is_said(tmp_path: Path, open_session: Open) -> None:
    with pytest.raises(CertificateError, match="does not exist"):
        open_session(1, ca_file=tmp_path / "none.pem")
    (tmp_path / "empty.pem").write_text("")
    with pytest.raises(CertificateError, match="cannot be used"):
        open_session(1, ca_file=tmp_path / "empty.pem")


# --- bad addresses and logins


def test_a_wrong_password_is_an_authentication_error(
    vcenter: FakeVcenter, tmp_path: Path, open_session: Open, slept: list[float]
) -> None:
    session = open_session(vcenter, ca_file=tmp_path / "ca.pem", password="wrong")
    with pytest.raises(AuthenticationError, match="incorrect user name or password") as caught:
        session.login()
    assert caught.value.exit_code == 12
    assert "wrong" not in str(caught.value)
    assert vcenter.count("Login") == 1, "accounts are locked after a few wrong passwords"
    assert slept == []


def test_a_closed_port_is_said_at_once(open_session: Open, slept: list[float]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(ConnectionFailedError, match=f"127.0.0.1:{port}: connection refused"):
        open_session(port).login()
    assert slept == []


def test_an_unknown_name_is_said_at_once(open_session: Open, slept: list[float]) -> None:
    session = Session(SiteSettings("west", "no-such-vcenter.invalid", USER, PASSWORD), sleep=slept.append)
    with pytest.raises(ConnectionFailedError, match="cannot be resolved"):
        session.login()
    assert slept == []


def test_a_silent_address_is_not_waited_for_again(open_session: Open, slept: list[float]) -> None:
    """A firewall that drops: one limit, not one for each attempt."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(ConnectionFailedError, match="no answer in time"):
            open_session(silent.getsockname()[1], timeout=0.2).login()
    assert slept == []


@pytest.mark.parametrize("kind", ["drip", "flood"])
@pytest.mark.parametrize("method", ["vimServiceVersions.xml", "CurrentTime"])
def test_an_answer_without_end_is_bounded_in_time_and_bytes(
    method: str, kind: str, vcenter: FakeVcenter, tmp_path: Path, open_session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each piece comes in time, and there is always another one."""
    monkeypatch.setattr("vrepl.vsphere.session.LONGEST_ANSWER", 4 << 20)
    monkeypatch.setattr("vrepl.vsphere.plain_requests.LONGEST_VERSIONS", 4 << 20)
    monkeypatch.setattr("vrepl.vsphere.plain_requests.FIRST_ANSWER", 0.4)
    session = open_session(vcenter, ca_file=tmp_path / "ca.pem", timeout=0.4, retry=RetryPolicy(attempts=2))
    if method == "CurrentTime":
        session.login()
    vcenter.script[method] = [kind] * 10
    began = time.monotonic()
    with pytest.raises(
        VreplError, match=r"no answer in time|connection lost|broken HTTP reply|cannot be reached|longer than any"
    ):
        tell_time(session)
    assert time.monotonic() - began < 20


def test_a_server_too_old_is_said(vcenter: FakeVcenter, tmp_path: Path, open_session: Open) -> None:
    vcenter.versions = "<namespaces><namespace><name>urn:vim25</name><version>1.0</version></namespace></namespaces>"
    with pytest.raises(VsphereError, match="no API version"):
        open_session(vcenter, ca_file=tmp_path / "ca.pem").login()


@pytest.mark.parametrize("step", ["http:404", "html:"])
def test_another_web_server_is_no_vcenter(step: str, vcenter: FakeVcenter, tmp_path: Path, open_session: Open) -> None:
    vcenter.script["vimServiceVersions.xml"] = [step]
    with pytest.raises(VsphereError, match="neither a vCenter Server nor an ESXi host"):
        open_session(vcenter, ca_file=tmp_path / "ca.pem").login()


def test_a_port_that_speaks_no_tls_is_said(open_session: Open) -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain:

        def answer() -> None:
            peer, _ = plain.accept()
            with peer:
                peer.recv(100)
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        session = open_session(plain.getsockname()[1], retry=RetryPolicy(attempts=1))
        with pytest.raises(ConnectionFailedError, match="TLS failed") as caught:
            session.login()
        thread.join()
    assert "HTTPS port" in (caught.value.hint or "")


# --- retries


@pytest.mark.parametrize("step", ["http:503", "drop", "fault:HostCommunication", "fault:TaskInProgress"])
def test_what_passes_is_tried_again_and_said(
    step: str,
    vcenter: FakeVcenter,
    tmp_path: Path,
    open_session: Open,
    slept: list[float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    session = open_session(vcenter, ca_file=tmp_path / "ca.pem")
    session.login()
    vcenter.script["CurrentTime"] = [step, step]
    with caplog.at_level(logging.WARNING):
        assert tell_time(session) is not None
    assert vcenter.count("CurrentTime") == 3
    assert slept == [0.5, 1.0], "waits grow"
    assert sum("retrying CurrentTime" in record.getMessage() for record in caplog.records) == 2


def test_what_is_permanent_is_not_tried_again(
    vcenter: FakeVcenter, tmp_path: Path, open_session: Open, slept: list[float]
) -> None:
    session = open_session(vcenter, ca_file=tmp_path / "ca.pem")
    session.login()
    vcenter.script["CurrentTime"] = ["fault:NotSupported"]
    with pytest.raises(VsphereError) as caught:
        tell_time(session)
    assert caught.value.fault == "NotSupported"
    assert vcenter.count("CurrentTime") == 1
    assert slept == []


def test_it_gives_up_in_the_end(vcenter: FakeVcenter, tmp_path: Path, open_session: Open, slept: list[float]) -> None:
    session = open_session(vcenter, ca_file=tmp_path / "ca.pem")
    session.login()
    vcenter.script["CurrentTime"] = ["fault:HostCommunication"] * 9
    with pytest.raises(TransientVsphereError):
        tell_time(session)
    assert vcenter.count("CurrentTime") == 4
    assert len(slept) == 3


@pytest.fixture
def patient(vcenter: FakeVcenter, tmp_path: Path) -> Iterator[Session]:
    """A session that would wait a minute before it tries again."""
    retry = RetryPolicy(attempts=4, first_wait=60.0, longest_wait=60.0)
    place = {"server": "127.0.0.1", "port": vcenter.port, "ca_file": tmp_path / "ca.pem"}
    session = Session(SiteSettings(name="west", user=USER, password=PASSWORD, retry=retry, timeout=5.0, **place))  # type: ignore[arg-type]
    session.login()
    yield session
    session.close()


def when_it_waits(session: Session, caplog: pytest.LogCaptureFixture, then: Callable[[], None]) -> BaseException:
    """What a call of the session raises if `then` happens while it waits to try again."""
    raised: list[BaseException] = []

    def call() -> None:
        try:
            tell_time(session)
        except BaseException as error:
            raised.append(error)

    with caplog.at_level(logging.WARNING):
        caller = threading.Thread(target=call, daemon=True)
        caller.start()
        while "retrying CurrentTime" not in caplog.text:
            assert caller.is_alive()
            time.sleep(0.005)
        then()
        caller.join(30)
    assert raised, "it still waits"
    return raised[0]


def test_a_stop_ends_the_wait_to_try_again(
    vcenter: FakeVcenter, patient: Session, caplog: pytest.LogCaptureFixture
) -> None:
    vcenter.script["CurrentTime"] = ["http:503"]
    assert isinstance(when_it_waits(patient, caplog, patient.hurry), InterruptedRunError)
    assert vcenter.count("CurrentTime") == 1


def test_clean_up_after_a_stop_is_tried_again(
    vcenter: FakeVcenter, patient: Session, caplog: pytest.LogCaptureFixture
) -> None:
    """Its wait is ended by nothing but the session's own end."""
    patient.hurry()
    vcenter.script["CurrentTime"] = ["http:503"]
    error = when_it_waits(patient, caplog, patient.close)
    assert "was closed" in str(error)


def test_a_lost_connection_never_repeats_what_makes_something(
    vcenter: FakeVcenter, tmp_path: Path, open_session: Open
) -> None:
    session = open_session(vcenter, ca_file=tmp_path / "ca.pem")
    vm = session.object(vim.VirtualMachine, "vm-1")
    vcenter.script["CreateSnapshot_Task"] = ["drop-after"]
    with pytest.raises(OutcomeUnknownError):
        vm.CreateSnapshot_Task(name="x", memory=False, quiesce=False)
    assert vcenter.carried_out == ["CreateSnapshot_Task"]


def test_a_busy_server_may_be_asked_again_to_make_something(
    vcenter: FakeVcenter, tmp_path: Path, open_session: Open
) -> None:
    """A fault is an answer: nothing was made."""
    session = open_session(vcenter, ca_file=tmp_path / "ca.pem")
    vm = session.object(vim.VirtualMachine, "vm-1")
    vcenter.script["CreateSnapshot_Task"] = ["fault:TaskInProgress"]
    vm.CreateSnapshot_Task(name="x", memory=False, quiesce=False)
    assert vcenter.carried_out == ["CreateSnapshot_Task"]


# --- the life of a session


def test_a_dead_session_is_replaced_once(vcenter: FakeVcenter, tmp_path: Path, open_session: Open) -> None:
    session = open_session(vcenter, ca_file=tmp_path / "ca.pem")
    tell_time(session)
    first = session.generation
    vcenter.script["CurrentTime"] = ["expire"]
    assert tell_time(session) is not None
    assert vcenter.logins == 2
    assert session.generation == first + 1


def test_a_live_session_is_not_replaced(vcenter: FakeVcenter, tmp_path: Path, open_session: Open) -> None:
    """NotAuthenticated for want of a right must not fill vCenter's session table."""
    session = open_session(vcenter, ca_file=tmp_path / "ca.pem")
    session.login()
    vcenter.script["CurrentTime"] = ["fault:NotAuthenticated"] * 9
    with pytest.raises(VsphereError, match="although the session is alive"):
        tell_time(session)
    assert vcenter.logins == 1
    assert vcenter.count("CurrentTime") == 1


def test_every_call_is_counted(vcenter: FakeVcenter, tmp_path: Path, open_session: Open) -> None:
    session = open_session(vcenter, ca_file=tmp_path / "ca.pem")
    session.login()
    before = session.soap_calls
    vcenter.script["CurrentTime"] = ["http:503"]
    tell_time(session)
    assert session.soap_calls == before + 2
    assert session.soap_calls == sum(not call.endswith(".xml") for call in vcenter.calls)


def test_close_logs_out_and_ends_everything(vcenter: FakeVcenter, tmp_path: Path, open_session: Open) -> None:
    session = open_session(vcenter, ca_file=tmp_path / "ca.pem")
    session.login()
    session.close()
    session.close()
    assert vcenter.count("Logout") == 1
    with pytest.raises(InterruptedRunError):
        tell_time(session)


def test_the_password_is_in_no_representation(vcenter: FakeVcenter, tmp_path: Path, open_session: Open) -> None:
    assert PASSWORD not in repr(open_session(vcenter, ca_file=tmp_path / "ca.pem").settings)
