"""Digests and a transfer log in memory, beside `memory.MemoryDisk`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from vrepl.extents import Extent, grains_of
from vrepl.transport.grains import DIGEST_SIZE, ZERO_DIGEST


class MemoryDigests:
    """`ports.DigestLookup`: what is listed is known; of the rest nothing, or (`fresh`) that it is zero."""

    def __init__(self, known: Mapping[int, bytes], *, fresh: bool = False) -> None:
        self._known = known
        self._default = ZERO_DIGEST if fresh else None

    def digest_of(self, grain: int) -> bytes | None:
        return self._known.get(grain, self._default)

    def not_zero(self, extent: Extent) -> Iterator[Extent]:
        for grain in grains_of(extent):
            if self.digest_of(grain) != ZERO_DIGEST:
                start = max(grain * 65536, extent.offset)
                yield Extent(start, min((grain + 1) * 65536, extent.end) - start)

    def close(self) -> None:
        pass


class MemoryLog:
    """`ports.TransferLog`: keeps what it is told."""

    def __init__(self) -> None:
        self.allowed = 0
        self.done: dict[int, bytes] = {}
        self.closed = False

    def allow(self, end_offset: int) -> None:
        self.allowed = max(self.allowed, end_offset)

    def record(self, entries: Iterable[tuple[int, bytes]]) -> None:
        for first, digests in entries:
            for at in range(0, len(digests), DIGEST_SIZE):
                self.done[first + at // DIGEST_SIZE] = digests[at : at + DIGEST_SIZE]

    def record_zeros(self, extents: Iterable[Extent]) -> None:
        self.record((grain, ZERO_DIGEST) for extent in extents for grain in grains_of(extent))

    def close(self) -> None:
        self.closed = True
