"""Making and changing the files of a digest set (formats: `digests`). Everything here runs in the control process.

New files replace old ones atomically. The one change in place is `fold`, which may be cut off anywhere and is then
done again from the start.
"""

from __future__ import annotations

import errno
import heapq
import os
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

from vrepl.extents import grain_count
from vrepl.repository.digest_sets import DigestSet
from vrepl.repository.digests import (
    BASE_PAGE,
    DIGEST_SIZE,
    EMPTY_PAGE,
    ENTRIES_PER_PAGE,
    ENTRY_PAGE,
    GRAINS_PER_PAGE,
    HEADER,
    PAGE,
    RANGES_PER_PAGE,
    UNKNOWN,
    ZERO,
    ZEROS_PAGE,
    BaseHeader,
    BaseReader,
    DeltaHeader,
    DeltaReader,
    encode_header,
    read_base_header,
    read_delta_header,
    seal_page,
)
from vrepl.repository.files import FILE_MODE, TEMPORARY_SUFFIX, naming, remove_file, replacing, write_all
from vrepl.repository.transferlog import DigestRun

# In a scratch file nothing (a hole) is "no change", so zero grains stand there as what means "unknown" elsewhere.
ABSENT = ZERO
ZERO_GRAIN = UNKNOWN
_FILL = 65536
"""Grains of zeros written at once."""


class Scratch:
    """Changes in the order they come, given back in the order of grains: a nameless sparse file, 16 bytes per grain."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with naming(directory, "write a temporary file in"):
            self._descriptor = _open_nameless(directory)

    def put(self, runs: Iterable[DigestRun]) -> None:
        """A later run goes over an earlier one."""
        with naming(self._directory, "write a temporary file in"):
            for start, grains, digests in runs:
                if digests is None:
                    for at in range(0, grains, _FILL):
                        filling = ZERO_GRAIN * min(_FILL, grains - at)
                        write_all(self._descriptor, filling, (start + at) * DIGEST_SIZE)
                else:
                    write_all(self._descriptor, _swap(digests, ZERO, ZERO_GRAIN), start * DIGEST_SIZE)

    def pages(self) -> Iterator[tuple[int, bytes]]:
        """(index, contents) of each page of 255 grains that holds a change, ascending."""
        size = os.fstat(self._descriptor).st_size
        page_bytes = GRAINS_PER_PAGE * DIGEST_SIZE
        index = 0
        while index * page_bytes < size:
            try:
                data = os.lseek(self._descriptor, index * page_bytes, os.SEEK_DATA)
            except OSError:
                return
            index = max(index, data // page_bytes)
            content = os.pread(self._descriptor, page_bytes, index * page_bytes).ljust(page_bytes, b"\0")
            if content != ABSENT * GRAINS_PER_PAGE:
                yield index, content
            index += 1

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open_nameless(directory: Path) -> int:
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, FILE_MODE)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}:
            raise
    # A file system without O_TMPFILE (NFS).
    path = directory / f"scratch{TEMPORARY_SUFFIX}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
    os.unlink(path)
    return descriptor


def _swap(digests: bytes, old: bytes, new: bytes) -> bytes:
    """Every digest that equals `old` becomes `new`."""
    if old not in digests:
        return digests
    if digests == old * (len(digests) // DIGEST_SIZE):
        return new * (len(digests) // DIGEST_SIZE)
    parts = (digests[at : at + DIGEST_SIZE] for at in range(0, len(digests), DIGEST_SIZE))
    return b"".join(new if part == old else part for part in parts)


def runs_of_entries(entries: Iterable[tuple[int, bytes]]) -> Iterator[DigestRun]:
    """Join (grain, digest) pairs to runs where they follow each other."""
    start, digests = 0, bytearray()
    for grain, digest in entries:
        if digests and (grain != start + len(digests) // DIGEST_SIZE or len(digests) >= _FILL * DIGEST_SIZE):
            yield DigestRun(start, len(digests) // DIGEST_SIZE, bytes(digests))
            digests.clear()
        if not digests:
            start = grain
        digests += digest
    if digests:
        yield DigestRun(start, len(digests) // DIGEST_SIZE, bytes(digests))


def runs_of_delta(delta: DeltaReader) -> Iterator[DigestRun]:
    yield from runs_of_entries(delta.entries())
    for start, stop in zip(delta.zero_starts, delta.zero_stops, strict=True):
        yield DigestRun(start, stop - start, None)


def write_base(
    path: Path,
    restore_point_id: str,
    capacity: int,
    runs: Iterable[DigestRun],
    *,
    background_known: bool,
    log_length: int = 0,
) -> None:
    """A base from digests in any order (the last of a grain counts).

    Grains without one are zeros where `background_known`, else unknown.
    """
    header = BaseHeader(restore_point_id, capacity, background_known, log_length=log_length)
    background = ZERO if background_known else UNKNOWN
    with Scratch(path.parent) as scratch:
        scratch.put(runs)
        with replacing(path) as descriptor:
            os.ftruncate(descriptor, HEADER + -(-grain_count(capacity) // GRAINS_PER_PAGE) * PAGE)
            for index, content in scratch.pages():
                page = _base_payload(content, background)
                if page != background * GRAINS_PER_PAGE:
                    sealed = seal_page(page, index, BASE_PAGE, GRAINS_PER_PAGE)
                    write_all(descriptor, sealed, HEADER + index * PAGE)
            write_all(descriptor, encode_header(header), 0)


def _base_payload(content: bytes, background: bytes) -> bytes:
    if content == ZERO_GRAIN * GRAINS_PER_PAGE:
        return ZERO * GRAINS_PER_PAGE
    if ABSENT not in content and ZERO_GRAIN not in content:
        return content
    result = bytearray()
    for at in range(0, len(content), DIGEST_SIZE):
        digest = content[at : at + DIGEST_SIZE]
        result += background if digest == ABSENT else ZERO if digest == ZERO_GRAIN else digest
    return bytes(result)


def write_delta(
    path: Path,
    restore_point_id: str,
    parent_id: str,
    capacity: int,
    runs: Iterable[DigestRun],
    parent: DigestSet | None,
    *,
    log_length: int = 0,
) -> None:
    """A delta from digests in any order (the last of a grain counts), less what `parent` says already."""
    with Scratch(path.parent) as scratch:
        scratch.put(runs)
        with replacing(path) as descriptor:
            writer = _DeltaWriter(descriptor)
            for index, content in scratch.pages():
                first = index * GRAINS_PER_PAGE
                before = parent.digests_of(first, GRAINS_PER_PAGE) if parent is not None else b""
                _add_changes(writer, first, content, before)
            entries, zero_ranges = writer.finish()
            header = DeltaHeader(restore_point_id, parent_id, capacity, entries, zero_ranges, log_length)
            write_all(descriptor, encode_header(header), 0)


def _add_changes(writer: _DeltaWriter, first: int, content: bytes, before: bytes) -> None:
    if content == ZERO_GRAIN * GRAINS_PER_PAGE:
        if before == ZERO * GRAINS_PER_PAGE:
            return
        if not before:
            writer.add_zeros(first, GRAINS_PER_PAGE)
            return
    if content == before and ZERO_GRAIN not in content and ABSENT not in content:
        return
    for slot in range(GRAINS_PER_PAGE):
        at = slot * DIGEST_SIZE
        digest = content[at : at + DIGEST_SIZE]
        if digest == ABSENT:
            continue
        known = before[at : at + DIGEST_SIZE]
        if digest == ZERO_GRAIN:
            if known != ZERO:
                writer.add_zeros(first + slot, 1)
        elif known != digest:
            writer.add(first + slot, digest)


class _DeltaWriter:
    """Pages of a delta, written as they fill; takes ascending grains."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._page = 0
        self._entries = 0
        self._grains = array("Q")
        self._digests = bytearray()
        self._starts = array("Q")
        self._counts = array("Q")

    def add(self, grain: int, digest: bytes) -> None:
        self._grains.append(grain)
        self._digests += digest
        if len(self._grains) == ENTRIES_PER_PAGE:
            self._flush()

    def add_zeros(self, start: int, grains: int) -> None:
        if self._starts and self._starts[-1] + self._counts[-1] == start:
            self._counts[-1] += grains
        else:
            self._starts.append(start)
            self._counts.append(grains)

    def finish(self) -> tuple[int, int]:
        """(entries, ranges of zeros) written."""
        if self._grains:
            self._flush()
        for at in range(0, len(self._starts), RANGES_PER_PAGE):
            numbers = array("Q")
            for index in range(at, min(at + RANGES_PER_PAGE, len(self._starts))):
                numbers.extend((self._starts[index], self._counts[index]))
            self._write(numbers.tobytes(), ZEROS_PAGE, len(numbers) // 2)
        if not self._page:
            os.ftruncate(self._descriptor, HEADER)
        return self._entries, len(self._starts)

    def _flush(self) -> None:
        self._entries += len(self._grains)
        grains = self._grains.tobytes().ljust(ENTRIES_PER_PAGE * 8, b"\0")
        self._write(grains + self._digests, ENTRY_PAGE, len(self._grains))
        self._grains = array("Q")
        self._digests = bytearray()

    def _write(self, payload: bytes, kind: int, used: int) -> None:
        write_all(self._descriptor, seal_page(payload, self._page, kind, used), HEADER + self._page * PAGE)
        self._page += 1


def merge_deltas(older: Path, newer: Path) -> None:
    """Make the newer delta follow the older one's parent, atomically; the older one is then of no use to it.

    Raises ValueError if one is damaged or they do not follow each other, RepositoryError if writing fails.
    """
    first_header, second_header = read_delta_header(older), read_delta_header(newer)
    if (
        first_header is None
        or second_header is None
        or second_header.parent_id != first_header.restore_point_id
        or second_header.capacity != first_header.capacity
    ):
        raise ValueError(f"{newer} does not follow {older}")
    first = DeltaReader(older, first_header)
    try:
        second = DeltaReader(newer, second_header)
        try:
            write_delta(
                newer,
                second_header.restore_point_id,
                first_header.parent_id,
                first_header.capacity,
                (run for delta in (first, second) for run in runs_of_delta(delta)),
                None,
                log_length=second_header.log_length,
            )
        finally:
            second.close()
    finally:
        first.close()


def fold(base_path: Path, delta_path: Path) -> None:
    """Make the base describe the delta's restore point, in place, then remove the delta.

    Cut off anywhere, it may be called again and completes. Raises ValueError if one is damaged or the delta does not
    follow the base (which is then unchanged, or of no use), RepositoryError if writing fails.
    """
    base_header, delta_header = read_base_header(base_path), read_delta_header(delta_path)
    if base_header is None or delta_header is None or base_header.capacity != delta_header.capacity:
        raise ValueError(f"{delta_path} does not fit {base_path}")
    target = delta_header.restore_point_id
    if base_header.restore_point_id != target:
        if base_header.folding_into not in {None, target} or delta_header.parent_id != base_header.restore_point_id:
            raise ValueError(f"{delta_path} does not follow {base_path}")
        delta = DeltaReader(delta_path, delta_header)
        base: BaseReader | None = None
        try:
            base = BaseReader(base_path, base_header, writable=True)
            with naming(base_path, "write"):
                _fold_pages(base, delta)
        finally:
            delta.close()
            if base is not None:
                base.close()
    remove_file(delta_path)


def _fold_pages(base: BaseReader, delta: DeltaReader) -> None:
    header = base.header
    target = delta.header.restore_point_id
    folding = BaseHeader(header.restore_point_id, header.capacity, header.background_known, folding_into=target)
    write_all(base.descriptor, encode_header(folding), 0)
    os.fsync(base.descriptor)
    nothing = base.background * GRAINS_PER_PAGE
    for index in _touched_pages(delta):
        # A page that a crash tore says nothing of the grains that the delta does not name.
        content = bytearray(base.read_page(index) or UNKNOWN * GRAINS_PER_PAGE)
        start = index * GRAINS_PER_PAGE
        delta.overlay(start, start + GRAINS_PER_PAGE, content)
        # Written even if it looks the same: what a failed sync left in memory need not be what is on the medium.
        page = EMPTY_PAGE if content == nothing else seal_page(content, index, BASE_PAGE, GRAINS_PER_PAGE)
        write_all(base.descriptor, page, HEADER + index * PAGE)
    os.fsync(base.descriptor)
    settled = BaseHeader(target, header.capacity, header.background_known, log_length=delta.header.log_length)
    write_all(base.descriptor, encode_header(settled), 0)
    os.fsync(base.descriptor)


def _touched_pages(delta: DeltaReader) -> Iterator[int]:
    """Indexes of the base's pages that a delta changes, ascending, each once."""
    of_entries = (grain // GRAINS_PER_PAGE for grain, _ in delta.entries())
    of_zeros = (
        index
        for start, stop in zip(delta.zero_starts, delta.zero_stops, strict=True)
        for index in range(start // GRAINS_PER_PAGE, (stop - 1) // GRAINS_PER_PAGE + 1)
    )
    last = -1
    for index in heapq.merge(of_entries, of_zeros):
        if index != last:
            yield index
        last = index
