"""The log: on stderr, in a file, to journald, as text or as JSON. A record is one line, whatever names are in it."""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from vrepl.cli.streams import open_log
from vrepl.errors import UsageError
from vrepl.printable import printable

if TYPE_CHECKING:
    from vrepl.cli.state import State

JOURNAL_PRIORITIES = {logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}
"""syslog(3); systemd reads them from the `<N>` a line begins with (sd-daemon(3), SD_ERR and its like)."""


class LineFormatter(logging.Formatter):
    """Text in which a message is one line; a traceback follows in lines of its own. Times have an offset."""

    def format(self, record: logging.LogRecord) -> str:
        record.message = printable(record.getMessage())
        if self.usesTime():
            record.asctime = self.formatTime(record, self.datefmt)
        text = self.formatMessage(record)
        # Where memory is short, the place where it was noticed says nothing.
        if record.exc_info and not isinstance(record.exc_info[1], MemoryError):
            text += "\n" + "\n".join(printable(one) for one in self.formatException(record.exc_info).split("\n"))
        return text

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        del datefmt
        return dt.datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")


class JournalFormatter(LineFormatter):
    """For a stderr that is journald's: it notes the time itself, and takes the priority from the line."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{JOURNAL_PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(prefix + one for one in super().format(record).split("\n"))


class JsonFormatter(LineFormatter):
    """One JSON object a line: `time`, `level`, `logger`, `message`, and `traceback` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        shape: dict[str, Any] = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            shape["traceback"] = self.formatException(record.exc_info)
        return json.dumps(shape)


class _CurrentStderr(logging.StreamHandler[Any]):
    """Writes to whatever sys.stderr is now: the live progress view stands in for it while it draws."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        del value


def stderr_is_the_journal() -> bool:
    """Whether journald reads this stderr: `$JOURNAL_STREAM` holds its device and inode (systemd.exec(5))."""
    try:
        found = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def log_line(text: str) -> None:
    """A line of progress as a record of its own, at any verbosity: for logs that programs read."""
    record = logging.LogRecord("vrepl.progress", logging.INFO, "", 0, "%s", (text,), None)
    sys.stderr.write(JsonFormatter().format(record) + "\n")


def set_up_logging(state: State) -> None:
    """Only vrepl's own loggers: those of HTTP libraries would write request bodies, passwords included."""
    logger = logging.getLogger("vrepl")
    logger.handlers.clear()
    logger.propagate = False
    console = _CurrentStderr()
    # Where it happened in vrepl says something to those who ask for more words.
    words = "%(levelname)s" + (" %(name)s" if state.verbose else "") + ": %(message)s"
    if state.log_format == "json":
        console.setFormatter(JsonFormatter())
    elif stderr_is_the_journal():
        console.setFormatter(JournalFormatter(words))
    else:
        console.setFormatter(LineFormatter(words))
    level = {0: logging.WARNING, 1: logging.INFO}.get(state.verbose, logging.DEBUG)
    console.setLevel(logging.ERROR if state.quiet else level)
    logger.addHandler(console)
    logger.setLevel(console.level)
    if state.log_file is not None:
        try:
            stream = open_log(state.log_file)
        except OSError as error:
            raise UsageError(f"the log file {state.log_file} cannot be written: {error.strerror}") from error
        file = logging.StreamHandler(stream)
        text = LineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
        file.setFormatter(JsonFormatter() if state.log_format == "json" else text)
        file.setLevel(min(level, logging.INFO))
        logger.addHandler(file)
        logger.setLevel(min(file.level, console.level))
