"""Which parts of an extent are covered by a (possibly long) normal list of extents, by binary search."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

from vrepl.extents import Extent, normalise


class ExtentIndex:
    """A set of bytes that can be asked about one extent at a time."""

    def __init__(self, extents: Iterable[Extent]) -> None:
        self._extents: Sequence[Extent] = normalise(extents)
        self._starts = [extent.offset for extent in self._extents]

    def __bool__(self) -> bool:
        return bool(self._extents)

    def holds(self, offset: int) -> bool:
        """Whether the byte at `offset` is covered."""
        index = bisect_right(self._starts, offset) - 1
        return index >= 0 and offset < self._extents[index].end

    def parts(self, extent: Extent) -> Iterator[tuple[Extent, bool]]:
        """Cut `extent` where its extents begin and end: `(part, covered?)`, ascending, lazily."""
        position, end = extent.offset, extent.end
        index = max(bisect_right(self._starts, position) - 1, 0)
        while position < end:
            while index < len(self._extents) and self._extents[index].end <= position:
                index += 1
            if index == len(self._extents) or self._extents[index].offset >= end:
                yield Extent(position, end - position), False
                return
            covered = self._extents[index]
            if covered.offset > position:
                yield Extent(position, covered.offset - position), False
                position = covered.offset
            stop = min(covered.end, end)
            yield Extent(position, stop - position), True
            position = stop


class AscendingExtents:
    """Like ExtentIndex, over extents that are fetched as needed: it must be asked in ascending order."""

    def __init__(self, extents: Iterable[Extent]) -> None:
        """`extents` are ascending."""
        self._rest = iter(extents)
        self._current = next(self._rest, None)

    def parts(self, extent: Extent) -> Iterator[tuple[Extent, bool]]:
        """Cut `extent` where its extents begin and end: `(part, covered?)`, ascending, lazily."""
        position, end = extent.offset, extent.end
        while position < end:
            while self._current is not None and self._current.end <= position:
                self._current = next(self._rest, None)
            if self._current is None or self._current.offset >= end:
                yield Extent(position, end - position), False
                return
            if self._current.offset > position:
                yield Extent(position, self._current.offset - position), False
                position = self._current.offset
            stop = min(self._current.end, end)
            yield Extent(position, stop - position), True
            position = stop
