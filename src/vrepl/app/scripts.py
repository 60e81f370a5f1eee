"""The machine that vrepl runs on, as scripts around snapshots need it: their files, logins of guests, commands."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from vrepl.config import LoadedConfig
from vrepl.errors import UsageError
from vrepl.model.guests import OUTPUT_KEPT, GuestLogin, ProgramEnd, Script
from vrepl.secrets import Secrets

LARGEST_SCRIPT = 1 << 20
"""Bytes; a script is text that somebody wrote."""


class LocalCommands:
    """Runs commands of this machine."""

    def run_command(self, words: Sequence[str], environment: Mapping[str, str], *, within: float) -> ProgramEnd:
        with tempfile.TemporaryFile() as output:
            try:
                # In a session of its own, so that what it started itself is ended with it.
                process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **environment},
                    start_new_session=True,
                )
            except OSError as error:
                raise UsageError(
                    f"the command {words[0]} cannot be run: {error.strerror}", hint="give its full path"
                ) from error
            status: int | None = None
            try:
                status = process.wait(within)
            except subprocess.TimeoutExpired:
                pass
            finally:
                if process.poll() is None:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            size = output.seek(0, os.SEEK_END)
            output.seek(max(0, size - OUTPUT_KEPT))
            return ProgramEnd(status, output.read(), size > OUTPUT_KEPT)


class JobScripts(LocalCommands):
    """`ports.guests.ScriptHost` by the configuration."""

    def __init__(self, loaded: LoadedConfig, secrets: Secrets) -> None:
        self._loaded = loaded
        self._secrets = secrets

    def read_script(self, path: str) -> Script:
        hint = "pre_freeze and post_thaw of [jobs.NAME.guest] are files of this machine"
        try:
            with open(path, "rb") as file:
                content = file.read(LARGEST_SCRIPT + 1)
        except OSError as error:
            raise UsageError(f"the script {path} cannot be read: {error.strerror}", hint=hint) from error
        if len(content) > LARGEST_SCRIPT:
            raise UsageError(f"the script {path} has more than {LARGEST_SCRIPT} bytes", hint=hint)
        return Script(Path(path).name, content)

    def guest_login(self, job: str, vm: str) -> GuestLogin:
        logins = self._loaded.config.jobs[job].guest.logins
        for pattern, table in logins.items():
            if fnmatchcase(vm, pattern):
                password = self._secrets.resolve(table.password.reference())
                return GuestLogin(table.user, password.get_secret_value())
        raise UsageError(
            f"job {job} has no login for the guest of {vm}",
            hint=f"logins of [jobs.{job}.guest] are for {', '.join(logins) or 'nobody'}",
        )
