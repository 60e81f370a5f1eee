"""Answers a mover on another machine: digests and transfer logs lie with the control process, in the repository."""

from __future__ import annotations

import base64
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from vrepl.errors import MoverError
from vrepl.extents import Extent
from vrepl.movers import messages
from vrepl.movers.messages import Json
from vrepl.ports import DigestFiles
from vrepl.repository.digest_sets import DigestSet, open_lookup
from vrepl.repository.transferlog import TransferLogWriter


class RecordKeeper:
    """What one mover has open. Used by one thread at a time: a mover asks one question after the other."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._lookups: dict[int, DigestSet] = {}
        self._logs: dict[int, TransferLogWriter] = {}
        self._answers: dict[str, Callable[[Json], Any]] = {
            "lookup.open": self._open_lookup,
            "lookup.digests": self._digests,
            "lookup.not_zero": self._not_zero,
            "lookup.close": lambda asked: self._lookups.pop(asked["handle"]).close(),
            "log.open": self._open_log,
            "log.allow": lambda asked: self._logs[asked["handle"]].allow(asked["end"]),
            "log.record": self._record,
            "log.record_zeros": self._record_zeros,
            "log.close": lambda asked: self._logs.pop(asked["handle"]).close(),
        }

    def answer(self, question: str, asked: Json) -> Any:
        """Raises RepositoryError, and MoverError for what is no question."""
        try:
            reply = self._answers[question]
        except KeyError:
            raise MoverError(f"a data mover asked {question!r}, which nobody knows") from None
        return reply(asked)

    def close(self) -> None:
        """The mover has gone: its files are let go of. Idempotent."""
        for lookup in self._lookups.values():
            lookup.close()
        for log in self._logs.values():
            log.close()
        self._lookups.clear()
        self._logs.clear()

    def _open_lookup(self, asked: Json) -> int:
        number = next(self._numbers)
        self._lookups[number] = open_lookup(messages.decode(DigestFiles, asked["files"]), asked["capacity"])
        return number

    def _digests(self, asked: Json) -> str:
        digests = self._lookups[asked["handle"]].digests_of(asked["start"], asked["count"])
        return base64.b64encode(digests).decode("ascii")

    def _not_zero(self, asked: Json) -> list[Extent]:
        extent = Extent(asked["offset"], asked["end"] - asked["offset"])
        return list(self._lookups[asked["handle"]].not_zero(extent))

    def _open_log(self, asked: Json) -> int:
        number = next(self._numbers)
        self._logs[number] = TransferLogWriter(Path(asked["path"]), asked["capacity"], asked["attempt"])
        return number

    def _record(self, asked: Json) -> None:
        entries = [(grain, base64.b64decode(digests)) for grain, digests in asked["entries"]]
        self._logs[asked["handle"]].record(entries)

    def _record_zeros(self, asked: Json) -> None:
        self._logs[asked["handle"]].record_zeros(Extent(*extent) for extent in asked["extents"])
