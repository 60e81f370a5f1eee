"""What people were told already (`told.json`), so that each thing is told once. Lost, everything is told again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from vrepl.errors import RepositoryError
from vrepl.repository.documents import DocumentType
from vrepl.repository.locks import holding

WAIT = 60.0
"""Seconds: another run that ends now tells its things first."""


@dataclass(frozen=True, slots=True)
class Told:
    """`troubles`: job, VM, kind."""

    troubles: tuple[tuple[str, str, str], ...] = field(default_factory=tuple)


TOLD_DOCUMENT = DocumentType(Told)


class ToldBook:
    """Wants `lock` held."""

    def __init__(self, repository: Path) -> None:
        self._path = repository / "told.json"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Raises LockedError naming the owner."""
        with holding(self._path.with_suffix(".lock"), "the telling of notices", WAIT):
            yield

    def read(self) -> frozenset[tuple[str, str, str]]:
        try:
            told = TOLD_DOCUMENT.read(self._path)
        except RepositoryError:
            told = None  # better told twice than never
        return frozenset(told.troubles) if told is not None else frozenset()

    def write(self, troubles: frozenset[tuple[str, str, str]]) -> None:
        TOLD_DOCUMENT.write(self._path, Told(tuple(sorted(troubles))))
