"""When the transfer log is written: leave to write ahead of the writes, and checkpoints behind them.

Both wait for the disk, so both are paced by what they cost: at most about 2 % of a transfer's time goes there, and a
killed transfer loses little more than a second of work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from vrepl.extents import GRAIN, Extent, normalise
from vrepl.ports import TransferLog
from vrepl.transport.buffers import MIB
from vrepl.transport.grains import DIGEST_SIZE, Span

SHARE = 50
"""A step of the log is due at the earliest after this many times what the last one took."""
PARTS = 64
SHARE_OF_A_PART = 5
"""Where a disk is slow to sync, a short transfer would come to its end before a checkpoint pays. So one is due sooner
once a 64th of the transfer is settled: this costs 64 checkpoints at the most, and a kill no larger part than that."""
LEAST_SECONDS = 0.1
MOST_SECONDS = 5.0
LEAST_BYTES = 4 * MIB
MOST_BYTES = 1024 * MIB
MOST_PLANNED_AHEAD = 64 * MIB
"""Whatever is allowed but not recorded is written again after a crash: not more of it than pays."""
MOST_ZERO_STRETCHES = 65536
"""Settled stretches of zeros that may wait for a checkpoint: bounds memory on a disk that is all small holes."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long, and how much (bytes), may be settled before a checkpoint is due whatever it costs."""

    seconds: float = MOST_SECONDS
    most: int = MOST_BYTES
    hurried: bool = True
    """Whether a short transfer pays for more checkpoints than a long one: not where a flush costs more than a sync."""


def pace_of(target: object) -> Pace:
    """A disk on which only what was closed is durable has `durable_seconds` and `durable_bytes`: how often it pays."""
    seconds = getattr(target, "durable_seconds", None)
    if seconds is None:
        return Pace()
    return Pace(float(seconds), int(getattr(target, "durable_bytes", MOST_BYTES)), hurried=False)


class Checkpoints:
    """Keeps what was settled since the last checkpoint, and how far writes may go."""

    def __init__(
        self,
        log: TransferLog,
        capacity: int,
        planned: int,
        clock: Callable[[], float] = time.monotonic,
        pace: Pace | None = None,
    ) -> None:
        self._pace = pace or Pace()
        self._log = log
        self._capacity = capacity
        self._planned = planned
        self._clock = clock
        self._allowed = 0
        self._entries: list[tuple[int, bytes]] = []
        self._digest_bytes = 0
        self._zeros: list[Extent] = []
        self._bytes = 0
        self._cost = 0.0 if self._pace.hurried else self._pace.seconds / max(SHARE, 1)
        self._allow_cost = 0.0
        self._last = self._started = clock()
        self._data_bytes = 0

    def before_write(self, end: int) -> None:
        """Make sure, durably, that writes below `end` bytes are allowed."""
        if end <= self._allowed:
            return
        began = self._clock()
        rate = self._data_bytes / max(began - self._started, 0.01)
        ahead = max(min(self._planned // 64, MOST_PLANNED_AHEAD), int(SHARE * self._allow_cost * rate))
        self._allowed = min(end + min(max(ahead, LEAST_BYTES), MOST_BYTES), max(self._capacity, end))
        self._log.allow(self._allowed)
        self._allow_cost = self._clock() - began

    def settle(self, spans: Iterable[Span], digests: Sequence[bytes], length: int) -> None:
        """The grains of these spans (`length` bytes in all) need nothing more once what was submitted is flushed."""
        joined = b"".join(digests)
        position = 0
        for first, count in spans:
            end = position + count * DIGEST_SIZE
            self._entries.append((first, joined[position:end]))
            position = end
        self._digest_bytes += position
        self._bytes += length
        self._data_bytes += length

    def settle_zeros(self, extent: Extent) -> None:
        """Likewise for a stretch of zeros."""
        self._zeros.append(extent)
        self._bytes += extent.length

    @property
    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        if self._bytes == 0:
            return False
        if len(self._zeros) >= MOST_ZERO_STRETCHES or self._digest_bytes >= self._pace.most // GRAIN * DIGEST_SIZE:
            return True
        waited = self._clock() - self._last
        if waited >= self._pace.seconds:
            return True
        part = self._pace.hurried and self._bytes >= self._planned // PARTS
        share = min(SHARE, SHARE_OF_A_PART) if part else SHARE
        enough = min(LEAST_BYTES, self._planned // PARTS)
        return self._bytes >= enough and waited >= max(LEAST_SECONDS, share * self._cost)

    def checkpoint(self, flush: Callable[[], None]) -> None:
        """Flush, then record. Every submitted write has been acknowledged; `flush` may have nothing to do."""
        began = self._clock()
        entries, zeros = self._entries, normalise(self._zeros)
        self._entries, self._zeros = [], []
        self._bytes = self._digest_bytes = 0
        flush()
        if zeros:
            self._log.record_zeros(zeros)
        if entries:
            self._log.record(entries)
        self._last = self._clock()
        self._cost = self._last - began
