"""What was written since a disk was opened, and which of it is read back once the disk was closed. Pure.

What a host does with written bytes before the disk is closed is documented nowhere, so nothing counts before; and what
an unknown protocol carried is looked at again: always what went last, and of the rest a part, or all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from vrepl.extents import GRAIN
from vrepl.transport.buffers import MIB
from vrepl.transport.grains import digest

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
    digests: Sequence[bytes]
    """Of its grains, counted from its beginning."""


def digests_of(view: memoryview) -> list[bytes]:
    """Of each grain of it."""
    return [digest(view[start : start + GRAIN]) for start in range(0, len(view), GRAIN)]


class WrittenSince:
    """The writes since the disk was opened, in the order in which they were submitted."""

    def __init__(self, how: Readback, chance: Callable[[int], int]) -> None:
        """`chance(n)`: a number below n, another one each time."""
        self._how = how
        self._chance = chance
        self._writes: list[Written] = []
        self.bytes = 0

    def add(self, offset: int, length: int, digests: Sequence[bytes]) -> None:
        """A write, and the digests of its grains. Kept in pieces of a MiB at most: each can be read back at once."""
        for start in range(0, length, MIB):
            first = start // GRAIN
            self._writes.append(
                Written(offset + start, min(MIB, length - start), digests[first : first + MIB // GRAIN])
            )
        self.bytes += length

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
