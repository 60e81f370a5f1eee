"""From regions of a disk to pieces of work: blocks to read, and stretches that are zeros without being read.

Pure but for asking the source what is allocated, which happens little by little as the work is consumed, so that
memory does not grow with the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from vrepl.extents import GRAIN, Extent, merge_close
from vrepl.transport.buffers import MIB
from vrepl.transport.grains import GrainAt, Span

BLOCK = MIB
"""Bytes of a block, unless both disks want larger ones: aligned I/O of 1 MiB is what VMware recommends over NBD."""
GAP = 2 * GRAIN
"""Bytes: reading a gap up to this size is cheaper than another call (1 ms at 1 Gbit/s)."""
QUERY_GAP = 256 * MIB
"""Bytes: regions closer than this share one query of allocated blocks."""


class Stretch(NamedTuple):
    """A grain-aligned part of a region, and whether its bytes must be read or are surely zeros."""

    extent: Extent
    data: bool


class Piece(NamedTuple):
    """One read: `length` bytes at `offset` of the disk go to byte `start` of the buffer."""

    offset: int
    start: int
    length: int


@dataclass(slots=True)
class Block:
    """What one buffer holds: one piece of up to a block's size, or several small ones packed together.

    A piece may span gaps between wanted grains; `grains` lists only what is wanted.
    """

    pieces: list[Piece] = field(default_factory=list)
    grains: list[GrainAt] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    """The same grains, in their order."""
    used: int = 0
    """Bytes of the buffer that are filled."""
    wanted: int = 0
    """Bytes of `grains`."""
    from_target: bool = False
    """The source is known to hold zeros here; the *target* is read, to see where zeros must be written."""


def survey(
    regions: Sequence[Extent], allocated: Callable[[Extent], Iterator[Extent]] | None, capacity: int
) -> Iterator[Stretch]:
    """Cut `regions` into data and zeros by what is `allocated` (None: all is data); ascending, lazily."""
    if allocated is None:
        for region in regions:
            yield Stretch(region, True)
        return
    spans = merge_close(regions, QUERY_GAP)
    found = _grain_aligned((extent for span in spans for extent in allocated(span)), capacity)
    current = next(found, None)
    for region in regions:
        position = region.offset
        while position < region.end:
            while current is not None and current.end <= position:
                current = next(found, None)
            if current is None or current.offset >= region.end:
                yield Stretch(Extent(position, region.end - position), False)
                break
            if current.offset > position:
                yield Stretch(Extent(position, current.offset - position), False)
                position = current.offset
            stop = min(current.end, region.end)
            yield Stretch(Extent(position, stop - position), True)
            position = stop


def _grain_aligned(extents: Iterable[Extent], capacity: int) -> Iterator[Extent]:
    """Grow to grains and join what then touches, one extent of lookahead."""
    held: Extent | None = None
    for offset, length in extents:
        start = offset // GRAIN * GRAIN
        end = min(-(-(offset + length) // GRAIN) * GRAIN, capacity)
        if held is not None and start <= held.end:
            held = Extent(held.offset, max(held.end, end) - held.offset)
            continue
        if held is not None:
            yield held
        held = Extent(start, end - start)
    if held is not None:
        yield held


class Packer:
    """Packs wanted extents, offered in ascending order, into blocks of at most `size` bytes."""

    def __init__(self, *, from_target: bool = False, gap: int = GAP, size: int = BLOCK) -> None:
        self._size = size
        self._from_target = from_target
        self._gap = gap
        self._block = Block(from_target=from_target)

    def add(self, extent: Extent) -> Iterator[Block]:
        """Take one grain-aligned extent; yields each block that is full."""
        position, end = extent
        end += position
        while position < end:
            stop = min((position // self._size + 1) * self._size, end)
            yield from self._place(position, stop - position)
            position = stop

    def finish(self) -> Iterator[Block]:
        """Yield what is left."""
        if self._block.grains:
            yield self._block
            self._block = Block(from_target=self._from_target)

    def _place(self, offset: int, length: int) -> Iterator[Block]:
        """Place wanted bytes that cross no block boundary."""
        block = self._block
        if block.pieces:
            last = block.pieces[-1]
            gap = offset - (last.offset + last.length)
            near = gap <= self._gap and offset // self._size == last.offset // self._size
            if near and block.used + gap + length <= self._size:
                block.pieces[-1] = Piece(last.offset, last.start, last.length + gap + length)
                self._take(block, offset, block.used + gap, length)
                return
            if block.used + length > self._size:
                yield from self.finish()
                block = self._block
        block.pieces.append(Piece(offset, block.used, length))
        self._take(block, offset, block.used, length)
        if block.used == self._size:
            yield from self.finish()

    @staticmethod
    def _take(block: Block, offset: int, start: int, length: int) -> None:
        first = offset // GRAIN
        whole, rest = divmod(length, GRAIN)
        block.grains += [(first + step, start + step * GRAIN, GRAIN) for step in range(whole)]
        if rest:
            block.grains.append((first + whole, start + whole * GRAIN, rest))
        block.spans.append((first, whole + bool(rest)))
        block.wanted += length
        block.used = start + length
