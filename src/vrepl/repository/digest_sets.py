"""Digest sets as they are asked: a base and the deltas over it as one, in which what is not sure is unknown. Light."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from vrepl.errors import RepositoryError
from vrepl.extents import GRAIN, Extent, grain_count
from vrepl.ports import DigestFiles
from vrepl.repository.digests import (
    DIGEST_SIZE,
    GRAINS_PER_PAGE,
    UNKNOWN,
    ZERO,
    BaseReader,
    DeltaReader,
    read_base_header,
    read_delta_header,
)

_CHUNK = GRAINS_PER_PAGE * 16
"""Grains per step of a walk over a whole set."""


class DigestSet:
    """Implements ports.DigestLookup over files. One thread; ascending look-ups are quickest."""

    def __init__(
        self, capacity: int, base: BaseReader | None, deltas: list[DeltaReader], *, background: bytes = UNKNOWN
    ) -> None:
        self.capacity = capacity
        self._grains = grain_count(capacity)
        self._base = base
        self._deltas = deltas
        self._background = background

    @property
    def known(self) -> bool:
        """False: no grain is known (the files do not exist, disagree or are damaged)."""
        return self._base is not None or self._background != UNKNOWN

    def digest_of(self, grain: int) -> bytes | None:
        digest = self.digests_of(grain, 1)
        return None if digest == UNKNOWN else digest

    def digests_of(self, start: int, count: int) -> bytes:
        """16 bytes for each of `count` grains from `start` on; ZERO and UNKNOWN as above."""
        stop = min(start + count, self._grains)
        if stop <= start:
            return UNKNOWN * count
        try:
            result = self._read(start, stop)
        except (OSError, ValueError, RepositoryError):
            # A medium that fails in mid-transfer: nothing that the set said before was wrong, but it says no more.
            self.close()
            self._base, self._deltas, self._background = None, [], UNKNOWN
            return UNKNOWN * count
        return bytes(result) + UNKNOWN * (start + count - stop)

    def _read(self, start: int, stop: int) -> bytearray:
        if self._base is None:
            return bytearray(self._background * (stop - start))
        result = self._base.read(start, stop)
        for delta in self._deltas:
            delta.overlay(start, stop, result)
        return result

    def not_zero(self, extent: Extent) -> Iterator[Extent]:
        return self._walk(extent, ZERO, matching=False)

    def unknown(self, within: Iterable[Extent] | None = None) -> Iterator[Extent]:
        """The grains that are unknown, as ascending extents in bytes; of all, or of these grain-aligned extents."""
        for extent in (Extent(0, self.capacity),) if within is None else within:
            yield from self._walk(extent, UNKNOWN, matching=True)

    def _walk(self, extent: Extent, digest: bytes, *, matching: bool) -> Iterator[Extent]:
        """The grains whose digest is (or is not) this one, joined to extents, lazily."""
        pending: Extent | None = None
        stop = -(-extent.end // GRAIN)
        for start in range(extent.offset // GRAIN, stop, _CHUNK):
            count = min(_CHUNK, stop - start)
            for first, last in _runs_of(self.digests_of(start, count), digest, matching=matching):
                offset = (start + first) * GRAIN
                end = min((start + last) * GRAIN, self.capacity)
                if pending is not None and pending.end == offset:
                    pending = Extent(pending.offset, end - pending.offset)
                    continue
                if pending is not None:
                    yield pending
                pending = Extent(offset, end - offset)
        if pending is not None:
            yield pending

    def close(self) -> None:
        """May be called twice."""
        for part in (self._base, *self._deltas):
            if part is not None:
                part.close()


def _runs_of(digests: bytes, digest: bytes, *, matching: bool) -> Iterator[tuple[int, int]]:
    """(first, behind the last) of each run of digests that are (or are not) this one."""
    count = len(digests) // DIGEST_SIZE
    if digests == digest * count:
        if matching:
            yield 0, count
        return
    first = -1
    for at in range(count):
        hit = (digests[at * DIGEST_SIZE : (at + 1) * DIGEST_SIZE] == digest) == matching
        if hit and first < 0:
            first = at
        elif not hit and first >= 0:
            yield first, at
            first = -1
    if first >= 0:
        yield first, count


class GrownDigestSet(DigestSet):
    """Of a disk that is a copy of a smaller one, made larger: what is known of that one, and zeros behind it."""

    def __init__(self, capacity: int, smaller: DigestSet) -> None:
        super().__init__(capacity, None, [], background=ZERO if smaller.known else UNKNOWN)
        self._smaller = smaller
        self._whole = smaller.capacity // GRAIN
        """Grains that lie wholly in the smaller disk."""

    def _read(self, start: int, stop: int) -> bytearray:
        border = min(max(self._whole, start), stop)
        result = bytearray(self._smaller.digests_of(start, border - start) if border > start else b"")
        behind = stop - border
        if behind and border == self._whole and self._smaller.capacity % GRAIN:
            result += UNKNOWN  # its last grain was shorter: the digest is one of fewer bytes
            behind -= 1
        return result + ZERO * behind

    def close(self) -> None:
        self._smaller.close()


def open_lookup(files: DigestFiles, capacity: int) -> DigestSet:
    """Never raises for what is wrong with the files: what they cannot surely say is unknown."""
    if files.grown_from is not None and files.grown_from < capacity:
        return GrownDigestSet(capacity, open_lookup(replace(files, grown_from=None), files.grown_from))
    if files.base is None:
        sure = files.fresh and not files.deltas
        return DigestSet(capacity, None, [], background=ZERO if sure else UNKNOWN)
    base: BaseReader | None = None
    deltas: list[DeltaReader] = []
    try:
        base_header = read_base_header(files.base)
        if base_header is None or base_header.folding_into or base_header.capacity != capacity:
            raise ValueError("the base says nothing sure of this disk")
        base = BaseReader(files.base, base_header)
        described = base_header.restore_point_id
        for path in files.deltas:
            header = read_delta_header(path)
            if header is None or header.parent_id != described or header.capacity != capacity:
                raise ValueError("the delta does not follow what it should")
            deltas.append(DeltaReader(path, header))
            described = header.restore_point_id
        if files.restore_point_id is not None and files.restore_point_id != described:
            raise ValueError("the set describes another restore point")
    except (ValueError, KeyError, TypeError, RepositoryError):
        for part in (base, *deltas):
            if part is not None:
                part.close()
        return DigestSet(capacity, None, [])
    return DigestSet(capacity, base, deltas)
