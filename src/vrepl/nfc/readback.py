"""What was written since a disk was opened, and which of it is read back once the disk was closed. Pure.

What a host does with written bytes before the disk is closed is documented nowhere, so nothing counts before; and what
an unknown protocol carried is looked at again: always what went last, and of the rest a part, or all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from blake3 import blake3

from vrepl.extents import GRAIN
from vrepl.transport.buffers import MIB

LATEST = 64 * MIB
"""Bytes written last before a close that are always read back."""
ONE_IN = 32
"""Of the rest, one write in so many is."""


class Readback(StrEnum):
    SAMPLE = "sample"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Written:
    """One write, and what it wrote."""

    offset: int
    length: int
    digest: bytes


def digest_of(view: memoryview) -> bytes:
    return blake3(view).digest(length=16)


class WrittenSince:
    """The writes since the disk was opened, in the order in which they were submitted."""

    def __init__(self, how: Readback, chance: Callable[[int], int]) -> None:
        """`chance(n)`: a number below n, another one each time."""
        self._how = how
        self._chance = chance
        self._writes: list[Written] = []
        self.bytes = 0

    def add(self, offset: int, view: memoryview) -> None:
        """In pieces of a MiB at most, so that each can be read back at once."""
        for start in range(0, len(view), MIB):
            piece = view[start : start + MIB]
            self._writes.append(Written(offset + start, len(piece), digest_of(piece)))
        self.bytes += len(view)

    def clear(self) -> None:
        self._writes = []
        self.bytes = 0

    def to_read_back(self) -> list[Written]:
        """Newest first, without what a later write changed."""
        covered: set[int] = set()
        latest = LATEST
        chosen = []
        for write in reversed(self._writes):
            grains = range(write.offset // GRAIN, -(-(write.offset + write.length) // GRAIN))
            hidden = not covered.isdisjoint(grains)
            covered.update(grains)
            if latest > 0 or self._how is Readback.ALL or self._chance(ONE_IN) == 0:
                latest -= write.length
                if not hidden:
                    chosen.append(write)
        return chosen
