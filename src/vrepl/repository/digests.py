"""Files of digest sets: what is surely known of the bytes of a restore point's disks. Formats, and reading them.

A set is a *base* (one digest per grain) and *deltas* (what later restore points changed), each naming the restore
point that it describes; a delta also names the one before. Light: data movers read them.

Both kinds of file start with a header of one line of text, `<magic> <crc32> <JSON>`, short enough to lie within one
sector, padded to `HEADER` bytes; then pages of 4096 bytes, the last 16 of which hold a checksum (`TRAILER`).

    base    page n: digests of the 255 grains from 255 n on; a page of zeros (a hole of the file) is one where nothing
            differs from the background: zero grains, or unknown ones
    delta   pages of up to 170 grains (u64 each) and their digests, ascending; then pages of up to 255 ranges of zero
            grains (u64 first, u64 grains), ascending; the two do not overlap

What is damaged is unknown: a page of a base by itself, a delta and all that builds on it as a whole.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from vrepl.errors import RepositoryError
from vrepl.repository.files import naming

DIGEST_SIZE = 16
ZERO = bytes(DIGEST_SIZE)
"""Stands for a grain of zeros."""
UNKNOWN = b"\xff" * DIGEST_SIZE
"""In `digests_of`: nothing is known of this grain."""

DIGESTS_VERSION = 1
HEADER = 4096
"""Bytes before the first page."""
PAGE = 4096
TRAILER = struct.Struct("<IHBBQ")
"""crc32 of the page without this field, entries used, kind, a mark that is never 0, page number."""
PAYLOAD = PAGE - TRAILER.size
TRAILER_MARK = 0xD1
BASE_PAGE, ENTRY_PAGE, ZEROS_PAGE = 1, 2, 3
GRAINS_PER_PAGE = PAYLOAD // DIGEST_SIZE
ENTRIES_PER_PAGE = PAYLOAD // (8 + DIGEST_SIZE)
RANGES_PER_PAGE = PAYLOAD // 16
EMPTY_PAGE = bytes(PAGE)

BASE_MAGIC = b"vrepl-digests"
DELTA_MAGIC = b"vrepl-delta"


@dataclass(frozen=True, slots=True)
class BaseHeader:
    """`folding_into`: a delta is being worked into the pages, which describe neither restore point meanwhile."""

    restore_point_id: str
    capacity: int
    background_known: bool
    """Pages without data: True, they are zero grains; False, they are unknown."""
    folding_into: str | None = None
    log_length: int = 0
    """Bytes of the transfer log that this was made of; tells a finished seal from one of an earlier attempt."""
    version: int = DIGESTS_VERSION


@dataclass(frozen=True, slots=True)
class DeltaHeader:
    restore_point_id: str
    parent_id: str
    capacity: int
    entries: int
    zero_ranges: int
    log_length: int = 0
    version: int = DIGESTS_VERSION

    @property
    def pages(self) -> int:
        return -(-self.entries // ENTRIES_PER_PAGE) + -(-self.zero_ranges // RANGES_PER_PAGE)


def encode_header(header: BaseHeader | DeltaHeader) -> bytes:
    """`HEADER` bytes."""
    body = json.dumps(asdict(header), separators=(",", ":")).encode()
    magic = BASE_MAGIC if isinstance(header, BaseHeader) else DELTA_MAGIC
    line = b"%s %08x %s\n" % (magic, zlib.crc32(body), body)
    if len(line) > 512:
        raise ValueError("a digest header must lie within one sector")
    return line.ljust(HEADER, b"\0")


def _decode_header(data: bytes, magic: bytes) -> dict[str, object] | None:
    """None: damaged. Raises RepositoryError for a newer version."""
    name, _, rest = data.partition(b"\n")[0].partition(b" ")
    checksum, _, body = rest.partition(b" ")
    if name != magic or checksum != b"%08x" % zlib.crc32(body):
        return None
    content = json.loads(body)
    if content["version"] > DIGESTS_VERSION:
        raise RepositoryError(
            f"digests of format {content['version']}; this vrepl knows formats up to {DIGESTS_VERSION}",
            hint="use the newer vrepl that wrote them; nothing was changed",
        )
    return dict(content)


def read_base_header(path: Path) -> BaseHeader | None:
    """None: there is no such file, or it is damaged. Raises RepositoryError: unreadable, or newer."""
    content = _decode_header(_read_start(path), BASE_MAGIC)
    return BaseHeader(**content) if content else None  # type: ignore[arg-type]


def read_delta_header(path: Path) -> DeltaHeader | None:
    """None: there is no such file, or it is damaged. Raises RepositoryError: unreadable, or newer."""
    content = _decode_header(_read_start(path), DELTA_MAGIC)
    return DeltaHeader(**content) if content else None  # type: ignore[arg-type]


def _read_start(path: Path) -> bytes:
    with naming(path, "read"):
        try:
            with path.open("rb") as file:
                return file.read(512)
        except FileNotFoundError:
            return b""


def seal_page(payload: bytes | bytearray, index: int, kind: int, used: int) -> bytes:
    """A page of `PAGE` bytes around at most `PAYLOAD` bytes, `used` entries of which count."""
    body = bytes(payload).ljust(PAYLOAD, b"\0") + TRAILER.pack(0, used, kind, TRAILER_MARK, index)[4:]
    # The checksum stands where the trailer begins, and covers what is before and after it.
    return body[:PAYLOAD] + struct.pack("<I", zlib.crc32(body)) + body[PAYLOAD:]


def open_page(page: bytes, index: int, kind: int) -> int | None:
    """How many entries of a page count; None: it is damaged, or not the page that it should be."""
    if len(page) != PAGE:
        return None
    checksum, used, found_kind, mark, found_index = TRAILER.unpack_from(page, PAYLOAD)
    if (found_kind, mark, found_index) != (kind, TRAILER_MARK, index):
        return None
    return used if checksum == zlib.crc32(page[PAYLOAD + 4 :], zlib.crc32(page[:PAYLOAD])) else None


class BaseReader:
    """An open base. `page` never raises for damage."""

    def __init__(self, path: Path, header: BaseHeader, *, writable: bool = False) -> None:
        self.header = header
        self.path = path
        with naming(path, "open"):
            self.descriptor = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        self.background = ZERO if header.background_known else UNKNOWN
        self._empty = self.background * GRAINS_PER_PAGE
        self._cached = (-1, b"")

    def page(self, index: int) -> bytes:
        """The digests of the page's 255 grains; all UNKNOWN if it is damaged."""
        if self._cached[0] != index:
            self._cached = (index, self.read_page(index) or UNKNOWN * GRAINS_PER_PAGE)
        return self._cached[1]

    def read_page(self, index: int) -> bytes | None:
        """Like `page`, but None if it is damaged, and always from the file."""
        page = os.pread(self.descriptor, PAGE, HEADER + index * PAGE)
        if page == EMPTY_PAGE:
            return self._empty
        return page[:PAYLOAD] if open_page(page, index, BASE_PAGE) is not None else None

    def read(self, start: int, stop: int) -> bytearray:
        result = bytearray()
        while start < stop:
            index, slot = divmod(start, GRAINS_PER_PAGE)
            count = min(GRAINS_PER_PAGE - slot, stop - start)
            result += self.page(index)[slot * DIGEST_SIZE : (slot + count) * DIGEST_SIZE]
            start += count
        return result

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class DeltaReader:
    """An open delta, all of whose pages were found good. In memory: one number per page, and the zero ranges."""

    def __init__(self, path: Path, header: DeltaHeader) -> None:
        """Raises ValueError if it is damaged, RepositoryError if it cannot be read."""
        self.header = header
        self.path = path
        self.zero_starts = array("Q")
        self.zero_stops = array("Q")
        self._first_grains = array("Q")
        self._entry_pages = -(-header.entries // ENTRIES_PER_PAGE)
        self._cached: tuple[int, array[int], bytes] = (-1, array("Q"), b"")
        self._gap = (0, 0)
        with naming(path, "open"):
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with naming(path, "read"):
                self._check()
        except BaseException:
            self.close()
            raise

    def _check(self) -> None:
        if os.fstat(self._descriptor).st_size != HEADER + self.header.pages * PAGE:
            raise ValueError(f"{self.path} has not the length that it should have")
        entries = ranges = 0
        for index in range(self.header.pages):
            if index < self._entry_pages:
                grains, _ = self.entry_page(index)
                self._first_grains.append(grains[0])
                entries += len(grains)
                continue
            page, used = self._page(index, ZEROS_PAGE)
            numbers = array("Q", page[: used * 16])
            self.zero_starts.extend(numbers[0::2])
            self.zero_stops.extend(array("Q", map(sum, zip(numbers[0::2], numbers[1::2], strict=True))))
            ranges += used
        if (entries, ranges) != (self.header.entries, self.header.zero_ranges):
            raise ValueError(f"{self.path} holds {entries} digests and {ranges} ranges of zeros, not what it says")

    def _page(self, index: int, kind: int) -> tuple[bytes, int]:
        page = os.pread(self._descriptor, PAGE, HEADER + index * PAGE)
        used = open_page(page, index, kind)
        if not used:
            raise ValueError(f"page {index} of {self.path} is damaged")
        return page, used

    def entry_page(self, index: int) -> tuple[array[int], bytes]:
        """The grains of a page, ascending, and their digests, one after the other."""
        if self._cached[0] != index:
            page, used = self._page(index, ENTRY_PAGE)
            digests = page[ENTRIES_PER_PAGE * 8 : ENTRIES_PER_PAGE * 8 + used * DIGEST_SIZE]
            self._cached = (index, array("Q", page[: used * 8]), digests)
        return self._cached[1], self._cached[2]

    def entries(self) -> Iterator[tuple[int, bytes]]:
        """(grain, digest), ascending."""
        for index in range(self._entry_pages):
            grains, digests = self.entry_page(index)
            for at, grain in enumerate(grains):
                yield grain, digests[at * DIGEST_SIZE : (at + 1) * DIGEST_SIZE]

    def overlay(self, start: int, stop: int, digests: bytearray) -> None:
        """Put what this delta says of the grains from `start` to before `stop` over their digests so far."""
        if self._gap[0] <= start and stop <= self._gap[1]:
            return
        touched = False
        at = bisect_right(self.zero_stops, start)
        while at < len(self.zero_starts) and self.zero_starts[at] < stop:
            first, last = max(self.zero_starts[at], start), min(self.zero_stops[at], stop)
            digests[(first - start) * DIGEST_SIZE : (last - start) * DIGEST_SIZE] = bytes(DIGEST_SIZE * (last - first))
            touched = True
            at += 1
        next_change = self.zero_starts[at] if at < len(self.zero_starts) else 1 << 63
        index = max(bisect_right(self._first_grains, start) - 1, 0)
        while index < self._entry_pages:
            grains, values = self.entry_page(index)
            first = bisect_left(grains, start)
            last = bisect_left(grains, stop)
            for position in range(first, last):
                to = (grains[position] - start) * DIGEST_SIZE
                digests[to : to + DIGEST_SIZE] = values[position * DIGEST_SIZE : (position + 1) * DIGEST_SIZE]
                touched = True
            if last < len(grains):
                next_change = min(next_change, grains[last])
                break
            index += 1
        if not touched:
            # Nothing up to the next change: look-ups go mostly upwards, and skip this delta until there.
            self._gap = (start, next_change)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
