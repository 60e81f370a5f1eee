"""`VREPL_TRACE=FILE`: what crosses vrepl's two borders, one JSON object per line: API calls, and movers' messages.

For whoever looks for a mistake, in vrepl or in a vCenter. The file is for its owner alone (0600) and holds no secret:
values under names that speak of secrets are left out, a password that was told to `hide` and a session's key wherever
they stand. It does name VMs, hosts, datastores and users.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import re
import stat
import threading
from collections.abc import Mapping
from functools import cache
from typing import Any

from vrepl.errors import UsageError

VARIABLE = "VREPL_TRACE"
HIDDEN = "********"
SECRET_NAME = re.compile(
    r"pass(word|wd|phrase)|secret|ticket|token|cookie|session_?(id|key)|credential|private_?key|user_?data", re.I
)
OF_A_SESSION = re.compile(r"\bsession\[[^\]\s\"]+\]")
"""What a reference to an object that lives as long as its session begins with: the session's key is in it."""
LONGEST_LIST = 20
"""Items of a list that are written out; an order may have a hundred thousand extents."""
DEEPEST = 12
LEAST_SECRET = 4
"""Characters: a shorter password would take every number out of the file."""

logger = logging.getLogger(__name__)


class Trace:
    """Appends to one file, from any thread."""

    def __init__(self, path: str) -> None:
        """Raises UsageError if the file cannot be opened, or is another user's."""
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            if stat.S_ISREG(os.fstat(self._file).st_mode):
                os.fchmod(self._file, 0o600)
        except OSError as error:
            raise UsageError(
                f"{VARIABLE}={path}: {error.strerror}", hint="name a file of your own, or unset the variable"
            ) from error
        self._secrets: set[str] = set()
        self._lock = threading.Lock()
        self._failed = False

    def hide(self, secret: str) -> None:
        """Leave it out from now on, wherever it stands."""
        if len(secret) >= LEAST_SECRET:
            with self._lock:
                self._secrets = self._secrets | {secret, json.dumps(secret)[1:-1]}

    def event(self, what: str, fields: Mapping[str, Any]) -> None:
        """One line. A file that cannot be written to stops no run: it is said once."""
        thread = threading.current_thread().name
        head = {"at": dt.datetime.now(dt.UTC).isoformat(), "pid": os.getpid(), "thread": thread, "what": what}
        line = json.dumps(head | harmless(fields), default=str, separators=(",", ":"))
        line = OF_A_SESSION.sub(f"session[{HIDDEN}]", line)
        with self._lock:
            for secret in sorted(self._secrets, key=len, reverse=True):
                line = line.replace(secret, HIDDEN)
            try:
                os.write(self._file, line.encode() + b"\n")
            except OSError as error:
                if not self._failed:
                    logger.warning("the trace cannot be written: %s", error)
                self._failed = True


def current() -> Trace | None:
    """The trace that the environment asks for. Raises UsageError, as Trace."""
    path = os.environ.get(VARIABLE)
    return _opened(path) if path else None


@cache
def _opened(path: str) -> Trace:
    return Trace(path)


def harmless(value: Any, depth: int = 0) -> Any:
    """The value without what stands under a secret's name, and with long lists cut short."""
    if depth > DEEPEST:
        return "…"
    if isinstance(value, Mapping):
        return {
            str(key): HIDDEN if SECRET_NAME.search(str(key)) and item else harmless(item, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        shown = [harmless(item, depth + 1) for item in value[:LONGEST_LIST]]
        return shown if len(value) <= LONGEST_LIST else [*shown, f"… {len(value)} in all"]
    return value
