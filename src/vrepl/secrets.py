"""Passwords: where they come from, and how they are kept from showing.

The configuration holds a reference, never the password. Resolved secrets are pydantic's SecretStr, whose text and
repr are asterisks; `get_secret_value()` is called where a login or a data mover's pipe needs the characters.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import subprocess
import time
import unicodedata
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from vrepl.errors import UsageError

COMMAND_TIMEOUT = 30.0
"""Seconds that a password command may take."""
LONGEST = 64 * 1024
"""Bytes that are read of any source: no password is longer, and a mistaken source must not fill the memory."""


@dataclass(frozen=True, slots=True)
class SecretReference:
    """`kind` is file, env, command, keyring or credential; `value` is a path, a name, or the command's words."""

    kind: str
    value: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind} {' '.join(self.value)}"


class Secrets:
    """Resolves references, each once per process."""

    def __init__(self, environment: MutableMapping[str, str] | None = None) -> None:
        self._environment = os.environ if environment is None else environment
        self._known: dict[SecretReference, SecretStr] = {}

    def resolve(self, reference: SecretReference) -> SecretStr:
        """The secret that a reference points to.

        Raises UsageError, which never holds a secret, where it cannot be had or is not kept well enough.
        """
        known = self._known.get(reference)
        if known is None:
            known = self._known[reference] = SecretStr(self._read(reference))
        return known

    def _read(self, reference: SecretReference) -> str:
        match reference.kind:
            case "file":
                text = _read_file(Path(reference.value[0]))
            case "env":
                text = self._read_environment(reference.value[0])
            case "command":
                text = _run(reference.value)
            case "keyring":
                text = _read_keyring(reference.value[0])
            case "credential":
                text = self._read_credential(reference.value[0])
            case kind:
                raise UsageError(f"there is no kind of secret called {kind!r}")
        if not text:
            raise UsageError(f"the password from {reference} is empty")
        if any(unicodedata.category(char) == "Cc" for char in text):
            # Refused here, where it can be said why: a vCenter, or XML on the way to it, would only refuse the login.
            raise UsageError(
                f"the password from {reference} has a control character in it",
                hint="is it one line of text? a line end of another system (CR), a tab or a NUL got into it",
            )
        return text

    def _read_environment(self, name: str) -> str:
        # Taken out of the environment, so that no child process (a data mover, a script) inherits it.
        text = self._environment.pop(name, None)
        if text is None:
            raise UsageError(
                f"the environment variable {name}, which should hold a password, is not set",
                hint=f"set {name}, or use {{ file = … }} in the configuration",
            )
        return text

    def _read_credential(self, name: str) -> str:
        folder = self._environment.get("CREDENTIALS_DIRECTORY")
        if folder is None:
            raise UsageError(
                f"the systemd credential {name!r} cannot be read: $CREDENTIALS_DIRECTORY is not set",
                hint=f"run as a systemd unit that has LoadCredential={name}:PATH or LoadCredentialEncrypted=",
            )
        # Who may read it was decided by systemd, which shows an ACL as group bits.
        path = Path(folder) / name
        return _read_whole(path, f"the systemd credential {name!r}", f"give the unit LoadCredential={name}:PATH")


def _read_file(path: Path) -> str:
    def judge(status: os.stat_result) -> None:
        mode = stat.S_IMODE(status.st_mode)
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise UsageError(
                f"the secret file {path} is open to group or others (mode {mode:04o})",
                hint=f"chmod 600 {path}",
            )

    hint = "write the password into it, readable by the user that runs vrepl alone (mode 600)"
    return _read_whole(path, f"the secret file {path}", hint, judge)


def _read_whole(
    path: Path, title: str, hint: str, judge: Callable[[os.stat_result], None] = lambda status: None
) -> str:
    """The text of a regular file, without the line end. The open file is judged: nothing is swapped in between."""
    try:
        # O_NONBLOCK: a FIFO is opened, and then refused, instead of waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(
                    f"{title} is no regular file", hint="what prints a password is named by { command = … } instead"
                )
            judge(status)
            data = file.read(LONGEST + 1)
        if len(data) > LONGEST:
            raise UsageError(f"{title} has more than {LONGEST} bytes: that is no password", hint=hint)
        return data.decode("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{title} cannot be read: {_reason(error)}", hint=hint) from error


def _run(command: tuple[str, ...]) -> str:
    """The first line that the command prints (as `pass` has it)."""
    title = f"the password command {command[0]}"
    try:
        # In a session of its own, so that what it started itself is ended with it. What it complains about is not
        # shown: that may hold what it was to keep.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise UsageError(f"{title} cannot be run: {_reason(error)}", hint="give its full path") from error
    try:
        printed = _read_bounded(process, title)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    if process.returncode != 0:
        raise UsageError(
            f"{title} ended with status {process.returncode}", hint="run it by hand as the user that runs vrepl"
        )
    lines = printed.decode(errors="replace").split("\n")
    return lines[0].rstrip("\r")


def _read_bounded(process: subprocess.Popen[bytes], title: str) -> bytes:
    """All that the process prints until it has ended. Raises UsageError where that is too much, or takes too long."""
    until = time.monotonic() + COMMAND_TIMEOUT
    too_long = UsageError(
        f"{title} did not end within {COMMAND_TIMEOUT:.0f} s", hint="run it by hand; it must not ask for anything"
    )
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    printed = b""
    while True:
        readable, _, _ = select.select([descriptor], [], [], max(0.0, until - time.monotonic()))
        if not readable:
            raise too_long
        piece = os.read(descriptor, 65536)
        if not piece:
            break
        printed += piece
        if len(printed) > LONGEST:
            raise UsageError(
                f"{title} prints more than {LONGEST} bytes: that is no password",
                hint="it must print the password alone",
            )
    try:
        process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise too_long from None
    return printed


def _read_keyring(entry: str) -> str:
    try:
        import keyring
        import keyring.errors
    except ImportError as error:
        raise UsageError(
            "a password from the keyring takes the package keyring, which is not installed",
            hint="pip install 'vrepl[keyring]', or { file = … } or { credential = … } in the configuration",
        ) from error

    service, _, user = entry.rpartition("/")
    try:
        text = keyring.get_password(service, user)
    except keyring.errors.KeyringError as error:
        raise UsageError(
            f"the keyring cannot be read: {error}",
            hint="a service has no desktop keyring; there, use { credential = … } or { file = … }",
        ) from error
    if text is None:
        raise UsageError(
            f"the keyring has no password for service {service!r}, user {user!r}",
            hint=f"keyring set {service} {user}",
        )
    return text


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else "it is not UTF-8 text"
