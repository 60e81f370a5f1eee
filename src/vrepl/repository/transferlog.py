"""The transfer log of one disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vrepl.extents import Extent


class DigestRun(NamedTuple):
    """Digests of `count` grains from `start` on; `digests` holds 16 bytes for each, None means all zero."""

    start: int
    count: int
    digests: bytes | None


@dataclass(frozen=True, slots=True)
class AttemptState:
    """What the log says of one attempt."""

    number: int
    allowed: int
    """Writes were issued only below this byte offset. The capacity, where the log is damaged."""
    done: tuple[Extent, ...]
    """Settled and flushed: a normal list, in bytes."""


@dataclass(frozen=True, slots=True)
class LogState:
    """What a transfer log says, without its digests (`iterate_digests` gives those)."""

    capacity: int
    attempts: tuple[AttemptState, ...]
    """In order. An attempt that was continued under the same number is one entry."""
    damaged: bool = False
    """More than a torn tail is wrong: nothing after the damage counts, and everything may have been issued."""

    @property
    def last(self) -> AttemptState | None:
        return self.attempts[-1] if self.attempts else None

    def attempt(self, number: int) -> AttemptState:
        """An attempt that never opened its log has issued and settled nothing."""
        raise NotImplementedError

    @property
    def done(self) -> list[Extent]:
        """Settled by any attempt: the grains that have a digest here."""
        raise NotImplementedError


class TransferLogWriter:
    """Implements ports.TransferLog; every method is durable before it returns, and raises RepositoryError."""

    def __init__(self, path: Path, capacity: int, attempt: int) -> None:
        raise NotImplementedError

    def allow(self, end_offset: int) -> None:
        raise NotImplementedError

    def record(self, entries: Iterable[tuple[int, bytes]]) -> None:
        raise NotImplementedError

    def record_zeros(self, extents: Iterable[Extent]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


def read_log(path: Path) -> LogState:
    """A log that is not there says nothing (capacity 0, no attempts)."""
    raise NotImplementedError


def iterate_digests(path: Path) -> Iterator[DigestRun]:
    """Digests in the order they were recorded: of a grain that comes more than once, the last counts."""
    raise NotImplementedError
