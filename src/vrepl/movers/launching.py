"""Starting a mover: as a child of this process, or on another machine; who asks it need not know where."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from vrepl.errors import MoverError
from vrepl.movers import encoding
from vrepl.movers.build_id import build_id
from vrepl.movers.environment import mover_environment
from vrepl.movers.host_spec import HostSpec
from vrepl.stream.end import StreamEnd

FIRST_LINE_SECONDS = 60.0
LONGEST_LINE = 64 * 1024


@dataclass(frozen=True, slots=True)
class Launched:
    process: subprocess.Popen[bytes]
    """With the mover's pipes."""
    port: int = 0
    """That its end of the byte stream listens on; 0: none."""


class Launcher(Protocol):
    """Starts movers on one machine."""

    @property
    def machine(self) -> str | None:
        """The proxy's name; None: this machine."""
        ...

    @property
    def address(self) -> str:
        """Where the movers of other machines connect to."""
        ...

    @property
    def listens(self) -> bool:
        """Whether others may connect to it."""
        ...

    @property
    def bind(self) -> str:
        """The address that movers there listen on; "": all of the machine's."""
        ...

    @property
    def ports(self) -> tuple[int, int]:
        """First and last that may be listened on; (0, 0): any."""
        ...

    def start(self, libdir: Path | None, *, pass_fds: Sequence[int] = (), stream: StreamEnd | None = None) -> Launched:
        """Raises OSError, or MoverError where the machine cannot be had."""
        ...


class LocalLauncher:
    """Children of this process. Called from the spawner's thread, with which they end."""

    machine = None
    address = ""
    listens = False
    bind = ""
    ports = (0, 0)

    def start(self, libdir: Path | None, *, pass_fds: Sequence[int] = (), stream: StreamEnd | None = None) -> Launched:
        if stream is not None:
            return start_host([sys.executable, "-m", "vrepl.proxy.host"], libdir, stream, who="this machine")
        process = subprocess.Popen(
            [sys.executable, "-m", "vrepl.movers.worker", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=mover_environment(libdir, os.environ),
            start_new_session=True,  # Ctrl-C at the terminal is for the control process alone
            pass_fds=pass_fds,
        )
        return Launched(process)


def start_host(
    command: Sequence[str],
    libdir: Path | None,
    stream: StreamEnd | None,
    *,
    who: str,
    environment: Mapping[str, str] | None = None,
    explain: Callable[[int, str], tuple[str, str | None]] = lambda _status, said: (said, None),
) -> Launched:
    """Run `vrepl.proxy.host` by this command, tell it what it is, and hear that it started.

    `explain` makes message and hint of the status and words of a command that failed. Raises MoverError.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=mover_environment(None, os.environ) if environment is None else environment,
        start_new_session=True,
    )
    spec = HostSpec(build_id(), libdir, stream)
    try:
        return Launched(process, _first_answer(process, spec, who, explain))
    except BaseException:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            with suppress(OSError):  # what was not written when it ended cannot be
                _pipe(pipe).close()
        raise


def _first_answer(
    process: subprocess.Popen[bytes], spec: HostSpec, who: str, explain: Callable[[int, str], tuple[str, str | None]]
) -> int:
    stdin, stdout = _pipe(process.stdin), _pipe(process.stdout)
    silent = threading.Event()

    def give_up() -> None:
        silent.set()
        process.kill()

    patience = threading.Timer(FIRST_LINE_SECONDS, give_up)
    patience.start()
    try:
        stdin.write(json.dumps(encoding.encode(spec)).encode() + b"\n")
        stdin.flush()
        line = stdout.readline(LONGEST_LINE)
    except OSError:
        line = b""
    finally:
        patience.cancel()
    try:
        answer = json.loads(line)
        event = answer["event"]
    except (ValueError, KeyError, TypeError):
        if silent.is_set():
            raise MoverError(
                f"no data mover starts on {who}: it did not answer in {FIRST_LINE_SECONDS:g} s",
                hint="is the line there, and is the machine alive?",
            ) from None
        if line:
            process.kill()
        said = _pipe(process.stderr).read().decode("utf-8", "replace").strip() or line.decode("utf-8", "replace")
        message, hint = explain(process.wait(), said)
        raise MoverError(f"no data mover starts on {who}: {message}", hint=hint) from None
    if event != "started":
        raise MoverError(f"no data mover starts on {who}: {answer.get('why')}")
    return int(answer["port"])


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise AssertionError("started with pipes")
    return stream
