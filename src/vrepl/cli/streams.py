"""The ends of stdout, stderr and the log file: what happens there never changes what is replicated, nor the exit code.

A reader that has had enough (`| head -1`), a stream that was closed (`>&-`) and a disk that is full lose words; a run
that died of it would lose a restore point.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from vrepl.printable import printable

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

STANDARD = (0, 1, 2)
LOG_MODE = 0o600


class EnduringFile(io.FileIO):
    """A file that takes everything: once something cannot be written, that and the rest is thrown away.

    `on_loss` is told once, and not of a reader that went away by itself.
    """

    def __init__(self, descriptor: int, mode: str, on_loss: Callable[[OSError], None], *, closefd: bool = True) -> None:
        super().__init__(descriptor, mode, closefd=closefd)
        self._on_loss = on_loss
        self._lost = False

    def write(self, data: Buffer, /) -> int:
        size = memoryview(data).nbytes
        if self._lost:
            return size
        try:
            written: int | None = super().write(data)
            while written is None:  # somebody else made it non-blocking
                select.select([], [self], [])
                written = super().write(data)
        except OSError as error:
            self._lost = True
            if error.errno != errno.EPIPE:
                with suppress(OSError):
                    self._on_loss(error)
            return size
        return written


def say(text: str) -> None:
    """One line on stderr."""
    click.echo(printable(text), err=True)


def hold_standard_streams() -> None:
    """To be called before anything is opened: no file may get the number of a stream that was closed.

    Else words for stderr would be written into a file of the repository that was opened as number 2.
    """
    for number in STANDARD:
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is given: this one, as those below are open.
            os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)


def make_standard_streams_endure() -> None:
    """stdout and stderr of this process; what stands in for them (in tests, in notebooks) is left alone."""
    sys.stderr = _enduring(sys.stderr, sys.__stderr__, 2, lambda error: None) or sys.stderr

    def on_loss(error: OSError) -> None:
        say(f"warning: what was to be written to stdout is lost: {error.strerror}")

    sys.stdout = _enduring(sys.stdout, sys.__stdout__, 1, on_loss) or sys.stdout


def _enduring(
    stream: TextIO | None, original: TextIO | None, number: int, on_loss: Callable[[OSError], None]
) -> TextIO | None:
    if stream is not original:
        return None
    raw = EnduringFile(number, "w", on_loss, closefd=False)
    encoding = (stream.encoding if stream is not None else None) or "utf-8"
    # In a locale without UTF-8 a character that is not in it becomes `?`: better than no result at all.
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors="replace", line_buffering=number == 2 or raw.isatty()
    )


def open_log(path: Path) -> TextIO:
    """For appending, readable by its owner alone if it is made now. Raises OSError.

    A log that cannot be written any longer is said once, on stderr.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, LOG_MODE)

    def on_loss(error: OSError) -> None:
        say(f"warning: the log file {path} cannot be written any longer: {error.strerror}")

    raw = EnduringFile(descriptor, "a", on_loss)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True)
