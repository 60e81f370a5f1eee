"""The transfer log of one disk: what attempts since the last seal may have issued, and what they have settled.

Append-only. Each record is checksummed and numbered, and synced before the call that wrote it returns; so at most what
the last call wrote can be torn, and a torn tail says nothing; a last record that is whole and wrong is damage. Light:
data movers write it.

A record is a header `RECORD` (magic, type, sequence number, payload length, crc32 of all of it) and its payload:

    FILE      JSON: version, capacity in bytes, grain in bytes; the first record, and only that
    ATTEMPT   u32 number; what follows belongs to it. A number that comes again continues that attempt
    ALLOW     u64 byte offset: writes below it may be issued from now on
    DONE      u32 n; n x (u64 first grain, u32 grains); then 16 bytes for each grain
    ZEROS     n x (u64 first grain, u64 grains)

All numbers are little-endian.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from vrepl.errors import RepositoryError
from vrepl.extents import GRAIN, Extent, grain_count, normalise
from vrepl.repository.files import FILE_MODE, naming, sync_directory, write_all

LOG_VERSION = 1
DIGEST_SIZE = 16

MAGIC = b"vLog"
RECORD = struct.Struct("<4sB3xIII")
CHECKED = struct.Struct("<4sB3xII")
"""The part of the header that its checksum covers, together with the payload."""
FILE, ATTEMPT, ALLOW, DONE, ZEROS = 1, 2, 3, 4, 5
RUN = struct.Struct("<QI")
RANGE = struct.Struct("<QQ")

MAX_PAYLOAD = 4 * 1024 * 1024
"""Bytes. A longer call is split into several records; a header that claims more is damage."""
MAX_RUNS = 65536
MAX_GRAINS = 65536


EVERYTHING = 1 << 62
"""A byte offset beyond every disk."""
_FIXED = {ATTEMPT: 4, ALLOW: 8}
"""Payload lengths that never differ."""


class DigestRun(NamedTuple):
    """Digests of `grains` grains from `start` on; `digests` holds 16 bytes for each, None means all zero."""

    start: int
    grains: int
    digests: bytes | None


@dataclass(frozen=True, slots=True)
class AttemptState:
    """What the log says of one attempt."""

    number: int
    allowed: int
    """Writes were issued only below this byte offset. The capacity, where the log is damaged."""
    done: tuple[Extent, ...]
    """Settled and flushed: a normal list, in bytes."""


@dataclass(frozen=True, slots=True)
class LogState:
    """What a transfer log says, without its digests (`iterate_digests` gives those)."""

    capacity: int
    attempts: tuple[AttemptState, ...]
    """In order. An attempt that was continued under the same number is one entry."""
    damaged: bool = False
    """More than a torn tail is wrong: nothing after the damage counts, and everything may have been issued."""
    length: int = 0
    """Bytes up to the last good record; grows with everything that is recorded."""

    @property
    def last(self) -> AttemptState | None:
        return self.attempts[-1] if self.attempts else None

    def attempt(self, number: int) -> AttemptState:
        """An attempt that never opened its log has issued and settled nothing."""
        found = next((attempt for attempt in reversed(self.attempts) if attempt.number == number), None)
        if found is not None:
            return found
        # Where not even the capacity can be read, everything that was planned counts.
        return AttemptState(number, (self.capacity or EVERYTHING) if self.damaged else 0, ())

    @property
    def done(self) -> list[Extent]:
        """Settled by any attempt: the grains that have a digest here."""
        return normalise(extent for attempt in self.attempts for extent in attempt.done)


class TransferLogWriter:
    """Implements ports.TransferLog. One thread; every method is durable before it returns.

    Raises RepositoryError (disk full, damaged medium); after that the writer is of no more use. An existing log is
    continued: its torn tail is cut off first, for nothing behind it could be read.
    """

    def __init__(self, path: Path, capacity: int, attempt: int) -> None:
        self._path = path
        self._capacity = capacity
        self._grains = grain_count(capacity)
        self._broken = False
        state = read_log(path)
        if state.length and state.capacity != capacity:
            raise RepositoryError(
                f"{path} is the log of a disk of {state.capacity} bytes, not {capacity}",
                hint="the disk was resized in mid-run: the unfinished run has to be given up",
            )
        with naming(path, "write"):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            with naming(path, "write"):
                self._length = state.length
                self._sequence = state_records(self._descriptor, state.length)
                os.ftruncate(self._descriptor, state.length)
            if not state.length:
                header = {"version": LOG_VERSION, "capacity": capacity, "grain": GRAIN}
                self._append([(FILE, json.dumps(header).encode())])
                sync_directory(path.parent)
            records = [(ATTEMPT, struct.pack("<I", attempt))]
            if state.damaged:
                # What the cut-off part allowed is lost, so this attempt owns up to everything.
                records.append((ALLOW, struct.pack("<Q", capacity)))
            self._append(records)
        except BaseException:
            os.close(self._descriptor)
            raise

    def allow(self, end_offset: int) -> None:
        """`end_offset`: bytes. See ports.TransferLog."""
        self._append([(ALLOW, struct.pack("<Q", end_offset))])

    def record(self, entries: Iterable[tuple[int, bytes]]) -> None:
        """`entries`: (grain, digests of it and of those that follow), in any order. See ports.TransferLog."""
        records: list[tuple[int, bytes]] = []
        runs: list[list[int]] = []
        digests: list[bytes] = []
        recorded = 0
        for first, these in entries:
            count, rest = divmod(len(these), DIGEST_SIZE)
            if rest or not 0 < count <= MAX_GRAINS or not 0 <= first <= self._grains - count:
                raise ValueError(f"no grain {first} with digests of {len(these)} bytes on a disk of {self._grains}")
            if recorded + count > MAX_GRAINS:
                records.append((DONE, _done_payload(runs, digests)))
                runs, digests, recorded = [], [], 0
            if runs and runs[-1][0] + runs[-1][1] == first:
                runs[-1][1] += count
            else:
                runs.append([first, count])
            digests.append(these)
            recorded += count
        if digests:
            records.append((DONE, _done_payload(runs, digests)))
        self._append(records)

    def record_zeros(self, extents: Iterable[Extent]) -> None:
        """`extents`: bytes, grain-aligned but for the disk's end. See ports.TransferLog."""
        ranges: list[bytes] = []
        for offset, length in extents:
            end = offset + length
            if offset % GRAIN or (end % GRAIN and end != self._capacity) or not 0 <= offset <= end <= self._capacity:
                raise ValueError(f"the extent ({offset}, {length}) is not made of grains of this disk")
            if length:
                ranges.append(RANGE.pack(offset // GRAIN, -(-end // GRAIN) - offset // GRAIN))
        self._append([(ZEROS, b"".join(ranges[at : at + MAX_RUNS])) for at in range(0, len(ranges), MAX_RUNS)])

    def close(self) -> None:
        """May be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _append(self, records: list[tuple[int, bytes]]) -> None:
        if not records:
            return
        if self._broken or self._descriptor < 0:
            raise RepositoryError(f"cannot write {self._path}: the log is closed, or an earlier write to it failed")
        content = bytearray()
        sequence = self._sequence
        for kind, payload in records:
            content += _header(kind, sequence, payload)
            content += payload
            sequence += 1
        # A failed sync may have dropped pages that the next sync would pass over, so the writer ends with it.
        self._broken = True
        with naming(self._path, "write"):
            try:
                write_all(self._descriptor, content, self._length)
                os.fdatasync(self._descriptor)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._descriptor, self._length)
                raise
        self._broken = False
        self._length += len(content)
        self._sequence = sequence


def read_log(path: Path) -> LogState:
    """What a log says. One that is not there says nothing (capacity 0, no attempts).

    Raises RepositoryError if it cannot be read or is of a newer version.
    """
    attempts: list[tuple[int, list[Extent]]] = []
    allowed: list[int] = []
    try:
        with naming(path, "read"):
            file = path.open("rb")
    except RepositoryError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return LogState(0, ())
        raise
    with file, naming(path, "read"):
        capacity = 0
        length = 0
        for kind, payload, end in _records(file):
            if kind == FILE:
                capacity = _capacity(path, payload)
            elif kind == ATTEMPT:
                (number,) = struct.unpack("<I", payload)
                if not attempts or attempts[-1][0] != number:
                    attempts.append((number, []))
                    allowed.append(0)
            elif attempts and kind == ALLOW:
                allowed[-1] = max(allowed[-1], struct.unpack("<Q", payload)[0])
            elif attempts and kind in {DONE, ZEROS}:
                for run in _runs(kind, payload):
                    _add(attempts[-1][1], run, capacity)
            length = end
        damaged = _good_record_after(file, length) or _damaged_tail(file, length)
    states = [
        AttemptState(number, issued, tuple(normalise(done)))
        for (number, done), issued in zip(attempts, allowed, strict=True)
    ]
    if damaged and states:
        states[-1] = AttemptState(states[-1].number, capacity, states[-1].done)
    return LogState(capacity, tuple(states), damaged, length)


def iterate_digests(path: Path) -> Iterator[DigestRun]:
    """Digests in the order they were recorded: of a grain that comes more than once, the last counts."""
    with naming(path, "read"), path.open("rb") as file:
        for kind, payload, _ in _records(file):
            if kind in {DONE, ZEROS}:
                yield from _runs(kind, payload)


def state_records(descriptor: int, length: int) -> int:
    """How many records the first `length` bytes of an open log hold: the next one's sequence number."""
    with os.fdopen(os.dup(descriptor), "rb") as file:
        return sum(1 for _, _, end in _records(file) if end <= length)


def _header(kind: int, sequence: int, payload: bytes) -> bytes:
    checked = CHECKED.pack(MAGIC, kind, sequence, len(payload))
    return checked + struct.pack("<I", zlib.crc32(payload, zlib.crc32(checked)))


def _done_payload(runs: list[list[int]], digests: list[bytes]) -> bytes:
    return b"".join([struct.pack("<I", len(runs)), *(RUN.pack(*run) for run in runs), *digests])


def _runs(kind: int, payload: bytes) -> Iterator[DigestRun]:
    if kind == ZEROS:
        for start, grains in RANGE.iter_unpack(payload):
            yield DigestRun(start, grains, None)
        return
    (count,) = struct.unpack_from("<I", payload)
    position = 4 + count * RUN.size
    for start, grains in RUN.iter_unpack(payload[4:position]):
        size = grains * DIGEST_SIZE
        yield DigestRun(start, grains, payload[position : position + size])
        position += size


def _add(done: list[Extent], run: DigestRun, capacity: int) -> None:
    offset = run.start * GRAIN
    end = min((run.start + run.grains) * GRAIN, capacity)
    if done and done[-1].end == offset:
        done[-1] = Extent(done[-1].offset, end - done[-1].offset)
    else:
        done.append(Extent(offset, end - offset))


def _records(file: BinaryIO) -> Iterator[tuple[int, bytes, int]]:
    """(type, payload, offset behind it) of each good record, from the start up to the first that is not."""
    file.seek(0)
    sequence = 0
    end = 0
    while True:
        record = _read_record(file, end)
        if record is None:
            return
        kind, number, payload, end = record
        if number != sequence or (kind == FILE) != (sequence == 0):
            return
        yield kind, payload, end
        sequence += 1


def _read_record(file: BinaryIO, offset: int) -> tuple[int, int, bytes, int] | None:
    """(type, sequence number, payload, offset behind it) of the record that starts at the file's position."""
    header = file.read(RECORD.size)
    if len(header) < RECORD.size:
        return None
    magic, kind, number, length, checksum = RECORD.unpack(header)
    if magic != MAGIC or length > MAX_PAYLOAD:
        return None
    payload = file.read(length)
    if len(payload) < length or checksum != zlib.crc32(payload, zlib.crc32(header[: CHECKED.size])):
        return None
    return kind, number, payload, offset + RECORD.size + length


def _capacity(path: Path, payload: bytes) -> int:
    header = json.loads(payload)
    if header["version"] > LOG_VERSION or header["grain"] != GRAIN:
        raise RepositoryError(
            f"{path} has format {header['version']}; this vrepl knows formats up to {LOG_VERSION}",
            hint="use the newer vrepl that wrote it; nothing was changed",
        )
    return int(header["capacity"])


def _damaged_tail(file: BinaryIO, length: int) -> bool:
    """Whether what stands behind the last good record is more than the beginning of one, as a torn write leaves it.

    A record that is there whole and wrong was synced once, and what it allowed may have been written since.
    """
    file.seek(length)
    tail = file.read(RECORD.size)
    if len(tail) < RECORD.size:
        return not MAGIC.startswith(tail[: len(MAGIC)])
    magic, kind, _, claimed, _ = RECORD.unpack(tail)
    if magic != MAGIC or claimed > MAX_PAYLOAD or _FIXED.get(kind, claimed) != claimed:
        return True
    return bool(file.seek(0, os.SEEK_END) >= length + RECORD.size + claimed)


def _good_record_after(file: BinaryIO, length: int) -> bool:
    """Whether a good record stands somewhere behind the first bad one, as it never does behind a torn tail."""
    position = length
    size = file.seek(0, os.SEEK_END)
    while position < size:
        file.seek(position)
        block = file.read(1024 * 1024)
        at = block.find(MAGIC)
        while at >= 0:
            file.seek(position + at)
            if _read_record(file, 0) is not None:
                return True
            at = block.find(MAGIC, at + 1)
        position += max(len(block) - len(MAGIC) + 1, 1)
    return False
