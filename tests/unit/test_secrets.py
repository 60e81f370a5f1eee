"""Promises of the secrets: every source works, careless keeping is refused, and no message holds a password."""

from __future__ import annotations

import sys
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


def test_a_failing_command_shows_its_complaint_and_not_its_output() -> None:
    code = "import sys; print('s3cret'); print('store is locked', file=sys.stderr); sys.exit(3)"
    with pytest.raises(UsageError, match="status 3: store is locked") as caught:
        resolve("command", sys.executable, "-c", code)
    assert "s3cret" not in str(caught.value)


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
