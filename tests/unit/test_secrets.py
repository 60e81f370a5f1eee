"""Promises of the secrets: every source works, careless keeping is refused, and no message holds a password."""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import keyring
import keyring.backend
import pytest

from vrepl import secrets
from vrepl.errors import UsageError
from vrepl.secrets import SecretReference, Secrets


def private(path: Path, text: str = "s3cret\n", mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def resolve(kind: str, *value: str, environment: dict[str, str] | None = None) -> str:
    return Secrets(environment or {}).resolve(SecretReference(kind, value)).get_secret_value()


def test_a_file_gives_its_text_without_the_line_end(tmp_path: Path) -> None:
    assert resolve("file", str(private(tmp_path / "p", " sp aces \r\n"))) == " sp aces "


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o601])
def test_a_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = private(tmp_path / "p", mode=mode)
    with pytest.raises(UsageError, match="open to group or others") as caught:
        resolve("file", str(path))
    assert caught.value.hint == f"chmod 600 {path}"
    assert caught.value.exit_code == 2


def test_a_link_is_judged_by_what_it_points_to(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(private(tmp_path / "p", mode=0o644))
    with pytest.raises(UsageError, match="open to group or others"):
        resolve("file", str(link))


@pytest.mark.parametrize("text", ["", "\n"])
def test_an_empty_password_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="is empty"):
        resolve("file", str(private(tmp_path / "p", text)))


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        resolve("file", str(tmp_path / "absent"))


def test_an_environment_variable_is_taken_out_and_remembered() -> None:
    environment = {"PW": "s3cret", "OTHER": "x"}
    known = Secrets(environment)
    reference = SecretReference("env", ("PW",))
    assert known.resolve(reference).get_secret_value() == "s3cret"
    assert environment == {"OTHER": "x"}, "a data mover would inherit it"
    assert known.resolve(reference).get_secret_value() == "s3cret"


def test_an_unset_variable_says_so() -> None:
    with pytest.raises(UsageError, match="PW, which should hold a password, is not set"):
        resolve("env", "PW")


def test_a_command_gives_its_first_line_and_sees_no_shell() -> None:
    code = "import sys; print(sys.argv[1]); print('second')"
    assert resolve("command", sys.executable, "-c", code, "$HOME; echo") == "$HOME; echo"


def test_a_failing_command_shows_neither_its_output_nor_its_complaint() -> None:
    with pytest.raises(UsageError, match="ended with status 3") as caught:
        Secrets().resolve(SecretReference("command", ("sh", "-c", "echo hunter2; echo token-17 >&2; exit 3")))
    assert "hunter2" not in f"{caught.value} {caught.value.hint}"
    assert "token-17" not in f"{caught.value} {caught.value.hint}"


def test_a_command_that_prints_without_end_is_ended() -> None:
    """Neither its bytes nor its time are unbounded; what it started goes with it."""
    began = time.monotonic()
    with pytest.raises(UsageError, match="prints more than 65536 bytes"):
        Secrets().resolve(SecretReference("command", ("sh", "-c", "yes hunter2 | cat")))
    assert time.monotonic() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 1 << 21


@pytest.mark.slow
def test_a_command_that_drips_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vrepl.secrets.COMMAND_TIMEOUT", 0.5)
    drip = "import time\nwhile True: print('x', end='', flush=True); time.sleep(0.05)"
    with pytest.raises(UsageError, match="did not end"):
        Secrets().resolve(SecretReference("command", (sys.executable, "-c", drip)))


@pytest.mark.slow
def test_a_command_whose_child_keeps_the_pipe_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vrepl.secrets.COMMAND_TIMEOUT", 0.5)
    with pytest.raises(UsageError, match="did not end"):
        Secrets().resolve(SecretReference("command", ("sh", "-c", "echo hunter2; sleep 60 &")))


def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "secret", 0o600)
    with pytest.raises(UsageError, match="is no regular file"):
        Secrets().resolve(SecretReference("file", (str(tmp_path / "secret"),)))


def test_a_file_that_is_too_long_is_no_password(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x" * (64 * 1024 + 1))
    (tmp_path / "secret").chmod(0o600)
    with pytest.raises(UsageError, match="more than 65536 bytes"):
        Secrets().resolve(SecretReference("file", (str(tmp_path / "secret"),)))


@pytest.mark.parametrize("text", ["two\nlines", "tab\tin it", "nul\0", "carriage\rreturn", "\x1b[0m", "\x9b"])
def test_control_characters_are_refused_at_home(tmp_path: Path, text: str) -> None:
    (tmp_path / "secret").write_text(text)
    (tmp_path / "secret").chmod(0o600)
    with pytest.raises(UsageError, match="control character") as caught:
        Secrets().resolve(SecretReference("file", (str(tmp_path / "secret"),)))
    assert text not in str(caught.value)


@pytest.mark.slow
def test_a_command_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "COMMAND_TIMEOUT", 0.2)
    with pytest.raises(UsageError, match="did not end within"):
        resolve("command", sys.executable, "-c", "import time; time.sleep(60)")


def test_a_command_that_is_not_there_says_so() -> None:
    with pytest.raises(UsageError, match="cannot be run"):
        resolve("command", "/nowhere/at/all")


def test_a_systemd_credential(tmp_path: Path) -> None:
    private(tmp_path / "prod", mode=0o440)
    assert resolve("credential", "prod", environment={"CREDENTIALS_DIRECTORY": str(tmp_path)}) == "s3cret"
    with pytest.raises(UsageError, match="CREDENTIALS_DIRECTORY is not set"):
        resolve("credential", "prod")


class OneEntryKeyring(keyring.backend.KeyringBackend):
    priority = 1.0

    def get_password(self, service: str, username: str) -> str | None:
        return "s3cret" if (service, username) == ("vrepl/prod", "admin@vsphere.local") else None

    def set_password(self, service: str, username: str, password: str) -> None:
        raise NotImplementedError

    def delete_password(self, service: str, username: str) -> None:
        raise NotImplementedError


def test_the_keyring() -> None:
    before = keyring.get_keyring()
    make: Any = OneEntryKeyring  # whose inherited constructor is untyped
    keyring.set_keyring(make())
    try:
        assert resolve("keyring", "vrepl/prod/admin@vsphere.local") == "s3cret"
        with pytest.raises(UsageError, match="has no password") as caught:
            resolve("keyring", "vrepl/prod/nobody")
    finally:
        keyring.set_keyring(before)
    assert caught.value.hint == "keyring set vrepl/prod nobody"


def test_a_secret_does_not_show(tmp_path: Path) -> None:
    secret = Secrets({}).resolve(SecretReference("file", (str(private(tmp_path / "p")),)))
    assert "s3cret" not in f"{secret} {secret!r}"
