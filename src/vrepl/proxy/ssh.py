"""Reaching another machine over OpenSSH, so that ssh_config, jump hosts, keys and agents work as they do by hand.

Nothing secret is on a command line: what a mover is told goes over standard input, which ssh encrypts. Nothing listens
there between runs.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vrepl.errors import ConnectionFailedError, MoverError, VreplError
from vrepl.movers.build_id import build_id
from vrepl.movers.launching import Launched, start_host
from vrepl.stream.end import StreamEnd

ALIVE_INTERVAL, ALIVE_COUNT = 15, 12
"""A connection that answers nothing for 180 s is given up: a minute's loss of the link is a pause, and a mover that
hears nothing has ended before (`movers.worker.LEASE_SECONDS`)."""
CONNECT_SECONDS = 15
OPTIONS = (
    "-T",
    "-oBatchMode=yes",
    f"-oConnectTimeout={CONNECT_SECONDS}",
    f"-oServerAliveInterval={ALIVE_INTERVAL}",
    f"-oServerAliveCountMax={ALIVE_COUNT}",
    "-oClearAllForwardings=yes",
    "-oForwardAgent=no",
    "-oForwardX11=no",
)
INSTALLED = ".local/share/vrepl"
"""Below the home of the user whom ssh logs in; in it a folder for each vrepl."""
NOT_INSTALLED = 97
"""Exit status of the remote command where this vrepl is not there."""
INHERITED = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "SSH_AUTH_SOCK", "TMPDIR", "XDG_RUNTIME_DIR")


@dataclass(frozen=True, slots=True)
class SshMachine:
    """A proxy by name, and how ssh gets there."""

    name: str
    destination: str
    """As ssh takes it: `host`, `user@host` or `ssh://user@host:port`."""
    config: Path | None = None
    """An ssh_config of its own; None: the user's."""
    python: str | None = None
    """The Python to take there; None: the newest of those that suit (`proxy.install`)."""

    def command(self, remote: str) -> list[str]:
        """The whole command line for a remote shell command."""
        config = [] if self.config is None else ["-F", str(self.config)]
        return ["ssh", *config, *OPTIONS, self.destination, f"exec sh -c {shlex.quote(remote)}"]

    def run(self, remote: str, given: bytes = b"", *, seconds: float = 60.0) -> bytes:
        """What a shell command there prints. Raises ConnectionFailedError, or MoverError where it fails."""
        try:
            done = subprocess.run(
                self.command(remote),
                input=given,
                capture_output=True,
                timeout=seconds,
                env=ssh_environment(os.environ),
                check=False,
            )
        except FileNotFoundError:
            raise _no_ssh() from None
        except subprocess.TimeoutExpired:
            raise ConnectionFailedError(
                f"proxy {self.name} ({self.destination}) did not answer in {seconds:g} s"
            ) from None
        if done.returncode:
            raise self.failure(done.returncode, done.stderr.decode("utf-8", "replace"))
        return done.stdout

    def program(self, module: str) -> str:
        """The remote command that runs a module of this vrepl as it is installed there."""
        folder = f"{INSTALLED}/{build_id()}"
        return f'cd {folder} 2>/dev/null || exit {NOT_INSTALLED}; PYTHONPATH="$PWD/site" exec ./python -m {module}'

    def failure(self, status: int, said: str) -> VreplError:
        """What a command's end means."""
        words = " ".join(line.strip() for line in said.splitlines() if line.strip()) or f"exit status {status}"
        if status == NOT_INSTALLED:
            return MoverError(
                f"proxy {self.name} ({self.destination}) has not this vrepl",
                hint=f"vrepl proxy install {self.name}",
            )
        if status == 255:
            return ConnectionFailedError(
                f"proxy {self.name} cannot be reached: {words}",
                hint=f"does `ssh {self.destination} true` work without asking anything, as this user?",
            )
        return MoverError(f"on proxy {self.name} a command failed: {words}")


@dataclass(frozen=True, slots=True)
class SshLauncher:
    """`movers.launching.Launcher` for a proxy behind ssh."""

    ssh: SshMachine
    address: str
    listens: bool = True
    ports: tuple[int, int] = (0, 0)
    bind: str = ""

    @property
    def machine(self) -> str:
        return self.ssh.name

    def start(self, libdir: Path | None, *, pass_fds: Sequence[int] = (), stream: StreamEnd | None = None) -> Launched:
        del pass_fds  # descriptors do not cross machines
        try:
            return start_host(
                self.ssh.command(self.ssh.program("vrepl.proxy.host")),
                libdir,
                stream,
                who=f"proxy {self.ssh.name}",
                environment=ssh_environment(os.environ),
                explain=self._explain,
            )
        except FileNotFoundError:
            raise _no_ssh() from None

    def _explain(self, status: int, said: str) -> tuple[str, str | None]:
        failure = self.ssh.failure(status, said)
        return failure.message, failure.hint


def ssh_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What ssh gets of ours: its agent, and nothing that may hold a secret."""
    return {name: environment[name] for name in INHERITED if name in environment}


def host_of(destination: str) -> str:
    """The host's name in what ssh takes as a destination."""
    rest = destination.removeprefix("ssh://").rpartition("@")[2]
    if rest.startswith("["):
        return rest[1:].partition("]")[0]
    return rest.partition(":")[0] if destination.startswith("ssh://") else rest


def _no_ssh() -> VreplError:
    return MoverError("there is no ssh on this machine", hint="install OpenSSH's client (openssh-client)")
