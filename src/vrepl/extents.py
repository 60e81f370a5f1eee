"""Algebra of extents: half-open byte ranges `(offset, length)` of a disk. Pure, and the same in every process.

A *normal* list is sorted by offset, holds no empty extent, and no two of its extents touch or overlap. Every function
that returns a list returns a normal one; `normalise` makes one of any list.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

SECTOR = 512
GRAIN = 64 * 1024
"""Bytes: the unit of change and of digests."""


class Extent(NamedTuple):
    """`length` bytes from `offset` bytes on."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """The first byte after the extent."""
        return self.offset + self.length


def normalise(extents: Iterable[Extent]) -> list[Extent]:
    """Sort, drop the empty, and join what touches or overlaps."""
    result: list[Extent] = []
    for offset, length in sorted(extents):
        if length <= 0:
            continue
        if result and offset <= result[-1].end:
            last = result[-1]
            result[-1] = Extent(last.offset, max(last.end, offset + length) - last.offset)
        else:
            result.append(Extent(offset, length))
    return result


def union(first: Iterable[Extent], second: Iterable[Extent]) -> list[Extent]:
    """What is in either."""
    return normalise([*first, *second])


def intersect(first: Iterable[Extent], second: Iterable[Extent]) -> list[Extent]:
    """What is in both."""
    left, right = normalise(first), normalise(second)
    result: list[Extent] = []
    i = j = 0
    while i < len(left) and j < len(right):
        start = max(left[i].offset, right[j].offset)
        end = min(left[i].end, right[j].end)
        if start < end:
            result.append(Extent(start, end - start))
        if left[i].end <= right[j].end:
            i += 1
        else:
            j += 1
    return result


def subtract(first: Iterable[Extent], second: Iterable[Extent]) -> list[Extent]:
    """What is in the first and not in the second."""
    result: list[Extent] = []
    holes = normalise(second)
    start_at = 0
    for extent in normalise(first):
        position = extent.offset
        while start_at < len(holes) and holes[start_at].end <= position:
            start_at += 1
        index = start_at
        while index < len(holes) and holes[index].offset < extent.end:
            hole = holes[index]
            if hole.offset > position:
                result.append(Extent(position, hole.offset - position))
            position = max(position, hole.end)
            index += 1
        if position < extent.end:
            result.append(Extent(position, extent.end - position))
    return result


def clip(extents: Iterable[Extent], capacity: int) -> list[Extent]:
    """What lies within `[0, capacity)` bytes."""
    return intersect(extents, [Extent(0, capacity)]) if capacity > 0 else []


def align(extents: Iterable[Extent], unit: int, capacity: int) -> list[Extent]:
    """Grow every extent outward to multiples of `unit` bytes, then clip at `capacity` (the last unit may be short)."""
    grown = []
    for offset, length in extents:
        if length <= 0:
            continue
        start = offset // unit * unit
        end = -(-(offset + length) // unit) * unit
        grown.append(Extent(start, end - start))
    return clip(grown, capacity)


def merge_close(extents: Iterable[Extent], gap: int) -> list[Extent]:
    """Join neighbours that are at most `gap` bytes apart: reading the gap is cheaper than another call."""
    result: list[Extent] = []
    for extent in normalise(extents):
        if result and extent.offset - result[-1].end <= gap:
            result[-1] = Extent(result[-1].offset, extent.end - result[-1].offset)
        else:
            result.append(extent)
    return result


def split(extents: Iterable[Extent], size: int) -> Iterator[Extent]:
    """Cut into pieces that never cross a multiple of `size` bytes, in order (lazily: a list need not exist)."""
    for offset, length in extents:
        position, end = offset, offset + length
        while position < end:
            stop = min((position // size + 1) * size, end)
            yield Extent(position, stop - position)
            position = stop


def total(extents: Iterable[Extent]) -> int:
    """Sum of lengths in bytes (of a normal list: the bytes covered)."""
    return sum(extent[1] for extent in extents)


def grain_count(capacity: int) -> int:
    """How many grains a disk of `capacity` bytes has, the last of which may be short."""
    return -(-capacity // GRAIN)


def grains_of(extent: Extent) -> range:
    """Indexes of the grains that an extent touches."""
    return range(extent.offset // GRAIN, -(-extent.end // GRAIN)) if extent.length > 0 else range(0)


def from_grains(grains: Iterable[int], capacity: int) -> list[Extent]:
    """The extents that these grain indexes (in any order) cover on a disk of `capacity` bytes."""
    result: list[Extent] = []
    for index in sorted(set(grains)):
        offset = index * GRAIN
        length = min(GRAIN, capacity - offset)
        if length <= 0:
            continue
        if result and result[-1].end == offset:
            result[-1] = Extent(result[-1].offset, result[-1].length + length)
        else:
            result.append(Extent(offset, length))
    return result
