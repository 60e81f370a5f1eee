"""Passwords: where they come from, and how they are kept from showing.

The configuration holds a reference, never the password. Resolved secrets are pydantic's SecretStr, whose text and
repr are asterisks; `get_secret_value()` is called where a login or a data mover's pipe needs the characters.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from vrepl.errors import UsageError

COMMAND_TIMEOUT = 30.0
"""Seconds that a password command may take."""


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
        try:
            return (Path(folder) / name).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"the systemd credential {name!r} cannot be read: {_reason(error)}",
                hint=f"give the unit LoadCredential={name}:PATH",
            ) from error


def _read_file(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            # The open file is judged, so that nothing can be swapped in between.
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise UsageError(
                    f"the secret file {path} is open to group or others (mode {mode:04o})",
                    hint=f"chmod 600 {path}",
                )
            return file.read().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the secret file {path} cannot be read: {_reason(error)}",
            hint="write the password into it, readable by the user that runs vrepl alone (mode 600)",
        ) from error


def _run(command: tuple[str, ...]) -> str:
    """The first line that the command prints (as `pass` has it)."""
    title = f"the password command {command[0]}"
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        # `from None`: the exception holds what the command printed, which may be the password.
        raise UsageError(
            f"{title} did not end within {COMMAND_TIMEOUT:.0f} s",
            hint="run it by hand; it must not ask for anything",
        ) from None
    except OSError as error:
        raise UsageError(f"{title} cannot be run: {_reason(error)}", hint="give its full path") from error
    if done.returncode != 0:
        complaint = done.stderr.decode(errors="replace").strip().splitlines()
        raise UsageError(
            f"{title} ended with status {done.returncode}" + (f": {complaint[-1]}" if complaint else ""),
            hint="run it by hand as the user that runs vrepl",
        )
    lines = done.stdout.decode(errors="replace").splitlines()
    return lines[0] if lines else ""


def _read_keyring(entry: str) -> str:
    import keyring
    import keyring.errors

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
