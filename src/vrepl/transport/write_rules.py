"""What must be done with a grain once it is known: write it, skip it, or call it bad.

The rules of suppression are here and nowhere else. A write is suppressed only when it is sure that the target's grain
holds these bytes already:

    dirty (may have been written since the last seal)   written always, zeros included
    target is read and compared                         written unless the bytes are the same
    digest of the leaf's parent is known                written unless it is the same
    nothing is known                                    written
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import NamedTuple, Protocol, runtime_checkable

from vrepl.extents import GRAIN, Extent
from vrepl.ports import DigestLookup
from vrepl.transport.extent_index import AscendingExtents, ExtentIndex
from vrepl.transport.grains import DIGEST_SIZE, ZERO_DIGEST, GrainAt
from vrepl.transport.work import Block, Packer


class Run(NamedTuple):
    """Contiguous bytes to write: from byte `start` of the buffer (or zeros) to `offset` of the disk."""

    offset: int
    start: int
    length: int
    zeros: bool


class WriteZeros(NamedTuple):
    extent: Extent


class Settled(NamedTuple):
    """All of `extent` is zeros and needs nothing more once what came before it is written."""

    extent: Extent


ZeroWork = WriteZeros | Settled | Block


UNKNOWN = b"\xff"
"""What a digest that is not known is made of."""


@runtime_checkable
class ManyDigests(Protocol):
    """A lookup that can say many digests at once: 16 bytes each, 16 bytes of 0xff where nothing is known."""

    def digests_of(self, start: int, count: int) -> bytes: ...


class WriteRule(Protocol):
    """Decides; called by the pipeline's own thread only."""

    @property
    def compares(self) -> bool:
        """Whether the target's bytes are read too."""
        ...

    def runs(self, block: Block, digests: Sequence[bytes], same: Sequence[bool] | None) -> list[Run]:
        """What to write of a block; `same[i]`: the target holds the bytes of grain i already."""
        ...

    def zeros(self, extent: Extent) -> Iterator[ZeroWork]:
        """What to do about a stretch that is zeros at the source; lazily, ending with what it settles."""
        ...


def coalesce(grains: Iterable[tuple[GrainAt, bool]], split_zeros: bool) -> list[Run]:
    """Join grains that follow one another on the disk and in the buffer; `bool` says that a grain is zeros."""
    runs: list[Run] = []
    for (number, start, length), zero in grains:
        offset = number * GRAIN
        zeros = zero and split_zeros
        if runs:
            last = runs[-1]
            if last.offset + last.length == offset and last.start + last.length == start and last.zeros == zeros:
                runs[-1] = Run(last.offset, last.start, last.length + length, zeros)
                continue
        runs.append(Run(offset, start, length, zeros))
    return runs


class DigestRule:
    """For a leaf whose parent's digests are known, wholly or in part."""

    compares = False

    def __init__(self, lookup: DigestLookup, dirty: Iterable[Extent], *, split_zeros: bool = False) -> None:
        self._digest_of = lookup.digest_of
        self._digests_of = lookup.digests_of if isinstance(lookup, ManyDigests) else None
        self._not_zero = lookup.not_zero
        self._dirty = ExtentIndex(dirty)
        self._split_zeros = split_zeros

    def runs(self, block: Block, digests: Sequence[bytes], same: Sequence[bool] | None) -> list[Run]:
        known = self._known(block.grains, digests)
        in_one = len(block.pieces) == 1 and block.pieces[0].length == block.wanted
        if known is None and in_one and not (self._split_zeros and ZERO_DIGEST in digests):
            return [Run(*block.pieces[0], zeros=False)]  # most blocks of a full copy
        dirty = self._dirty
        anything_dirty = bool(dirty)
        wanted = [
            (grain, value == ZERO_DIGEST)
            for grain, value, old in zip(block.grains, digests, known or repeat(None, len(digests)), strict=True)
            if old != value or (anything_dirty and dirty.holds(grain[0] * GRAIN))
        ]
        return coalesce(wanted, self._split_zeros)

    def _known(self, grains: Sequence[GrainAt], digests: Sequence[bytes]) -> Sequence[bytes | None] | None:
        """What the parent's digests say of these grains; what stands for "unknown" equals no digest.

        None: nothing that `digests` could be equal to.
        """
        first, last = grains[0][0], grains[-1][0]
        if self._digests_of is None or last - first >= 4 * len(grains):
            return [self._digest_of(grain[0]) for grain in grains]
        known = self._digests_of(first, last - first + 1)
        if known.count(UNKNOWN) == len(known) or (known.count(0) == len(known) and ZERO_DIGEST not in digests):
            return None
        return [known[at : at + DIGEST_SIZE] for at in [(grain[0] - first) * DIGEST_SIZE for grain in grains]]

    def zeros(self, extent: Extent) -> Iterator[ZeroWork]:
        for part, dirty in self._dirty.parts(extent):
            if dirty:
                yield WriteZeros(part)
            else:
                for unsure in self._not_zero(part):
                    yield WriteZeros(unsure)
            yield Settled(part)


class ComparisonRule:
    """For a target of which nothing is known: its own bytes decide, except where they may change under us (dirty)."""

    compares = True

    def __init__(
        self, allocated: Iterable[Extent] | None, dirty: Iterable[Extent], *, split_zeros: bool = False
    ) -> None:
        """`allocated`: what of the target may hold data, ascending, consumed as needed (None: all of it)."""
        self._allocated = None if allocated is None else AscendingExtents(allocated)
        self._dirty = ExtentIndex(dirty)
        self._split_zeros = split_zeros

    def runs(self, block: Block, digests: Sequence[bytes], same: Sequence[bool] | None) -> list[Run]:
        if same is None:
            raise AssertionError("a comparison needs the target's bytes")
        dirty = self._dirty
        wanted = [
            (grain, value == ZERO_DIGEST)
            for grain, value, equal in zip(block.grains, digests, same, strict=True)
            if not equal or dirty.holds(grain[0] * GRAIN)
        ]
        # A block that was read from the target holds what must be overwritten, not what must be written.
        return coalesce(wanted, self._split_zeros or block.from_target) if wanted else []

    def zeros(self, extent: Extent) -> Iterator[ZeroWork]:
        packer = Packer(from_target=True)
        for part, dirty in self._dirty.parts(extent):
            if dirty:
                yield WriteZeros(part)
                yield Settled(part)
                continue
            for piece, allocated in [(part, True)] if self._allocated is None else self._allocated.parts(part):
                if allocated:
                    yield from packer.add(piece)
                else:
                    yield Settled(piece)
        yield from packer.finish()


class VerificationRule:
    """Writes nothing: collects the grains that differ from their digests, and counts those that have none."""

    compares = False

    def __init__(self, lookup: DigestLookup) -> None:
        self._lookup = lookup
        self._digests_of = lookup.digests_of if isinstance(lookup, ManyDigests) else None
        self.bad_grains: list[int] = []
        self.zeroed_grains: list[int] = []
        """Those of the bad ones that are zeros now."""
        self.unknown_grains = 0

    def runs(self, block: Block, digests: Sequence[bytes], same: Sequence[bool] | None) -> list[Run]:
        many = self._digests_of
        if many is not None and len(block.spans) == 1 and many(*block.spans[0]) == b"".join(digests):
            return []  # as it should be: what stands for "unknown" equals no digest
        for grain, value in zip(block.grains, digests, strict=True):
            self._check(grain[0], value)
        return []

    def zeros(self, extent: Extent) -> Iterator[ZeroWork]:
        for suspect in self._lookup.not_zero(extent):
            for index in range(suspect.offset // GRAIN, -(-suspect.end // GRAIN)):
                self._check(index, ZERO_DIGEST)
        yield Settled(extent)

    def _check(self, index: int, value: bytes) -> None:
        known = self._lookup.digest_of(index)
        if known is None:
            self.unknown_grains += 1
        elif known != value:
            self.bad_grains.append(index)
            if value == ZERO_DIGEST:
                self.zeroed_grains.append(index)
