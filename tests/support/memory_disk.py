"""A disk in memory, with holes, snapshots and unflushed writes: for tests and for sites that exist in memory only.

It is as unkind as a real one: what a writer wrote stays with its handle until flush or close, and is lost, wholly or
in part, when the handle is abandoned (the death of a data mover).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from vrepl.errors import DiskError
from vrepl.extents import GRAIN, SECTOR, Extent
from vrepl.model import TransferKind
from vrepl.ports import DigestFiles, DiskAddress, TransferOrder
from vrepl.transport.buffers import MIB, ZEROS, Buffer
from vrepl.transport.disk import Completion

INVALID_ARG = 3
"""VIX_E_INVALID_ARG."""


class MemoryDisk:
    """The bytes of a disk as grains; what was never written, or was unmapped, is a hole and reads as zeros."""

    def __init__(self, capacity: int) -> None:
        if capacity <= 0 or capacity % SECTOR:
            raise ValueError(f"capacity must be a positive multiple of {SECTOR}, not {capacity}")
        self.capacity = capacity
        self._grains: dict[int, bytes] = {}
        self._lock = threading.Lock()

    def clone(self) -> MemoryDisk:
        """Another disk with the same bytes and holes (what a snapshot keeps)."""
        other = MemoryDisk(self.capacity)
        other._grains = dict(self._grains)
        return other

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at `offset`, holes as zeros."""
        self._check(offset, length)
        parts = []
        while length > 0:
            index, within = divmod(offset, GRAIN)
            step = min(GRAIN - within, length)
            grain = self._grains.get(index)
            parts.append(bytes(step) if grain is None else grain[within : within + step])
            offset += step
            length -= step
        return b"".join(parts)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Zeros too are allocated by being written."""
        self._check(offset, len(data))
        position = 0
        with self._lock:
            while position < len(data):
                index, within = divmod(offset + position, GRAIN)
                step = min(GRAIN - within, len(data) - position)
                size = min(GRAIN, self.capacity - index * GRAIN)
                grain = bytearray(self._grains.get(index, bytes(size)))
                grain[within : within + step] = data[position : position + step]
                self._grains[index] = bytes(grain)
                position += step

    def unmap(self, extent: Extent) -> None:
        """Make whole grains holes, as a guest's TRIM does; grains that are only touched stay."""
        for index in range(-(-extent.offset // GRAIN), extent.end // GRAIN):
            self._grains.pop(index, None)
        if extent.end == self.capacity and self.capacity % GRAIN and extent.offset <= extent.end // GRAIN * GRAIN:
            self._grains.pop(self.capacity // GRAIN, None)

    def content(self) -> bytes:
        """All bytes: for small disks."""
        return self.read(0, self.capacity)

    def allocated(self, extent: Extent) -> Iterator[Extent]:
        """What is no hole, in grains clipped to `extent`, ascending."""
        for index in sorted(
            index for index in self._grains if extent.offset < (index + 1) * GRAIN and index * GRAIN < extent.end
        ):
            start = max(index * GRAIN, extent.offset)
            end = min((index + 1) * GRAIN, extent.end, self.capacity)
            yield Extent(start, end - start)

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.capacity:
            raise DiskError(
                f"{length} bytes at {offset} are outside a disk of {self.capacity} bytes",
                code=INVALID_ARG,
                offset=offset,
            )


class MemoryHandle:
    """A MemoryDisk opened for reading, or for reading and writing."""

    working_set = 8 * MIB

    def __init__(
        self,
        disk: MemoryDisk,
        *,
        writable: bool = False,
        knows_allocated: bool = True,
        splits_zeros: bool = False,
        mode: str = "nbdssl",
        block: int = MIB,
    ) -> None:
        self.capacity = disk.capacity
        self.mode = mode
        self.block = block
        self.splits_zeros = splits_zeros
        self.closed = False
        self._disk = disk
        self._writable = writable
        self._knows_allocated = knows_allocated
        self._pending: list[tuple[int, bytes]] = []
        self._view = disk
        """What this handle reads: its own unflushed writes included."""

    def allocated(self, extent: Extent) -> Iterator[Extent]:
        if self._knows_allocated:
            return self._view.allocated(extent)
        return iter((extent,))

    def submit_read(self, offset: int, buffer: Buffer, start: int, length: int, done: Completion) -> None:
        try:
            buffer.view[start : start + length] = self._view.read(offset, length)
        except DiskError as error:
            done(error)
        else:
            done(None)

    def submit_write(self, offset: int, buffer: Buffer, start: int, length: int, done: Completion) -> None:
        if not self._writable:
            done(DiskError("the disk is open for reading only", code=INVALID_ARG, offset=offset))
            return
        if self._view is self._disk:
            self._view = self._disk.clone()
        data = bytes(buffer.view[start : start + length])
        try:
            self._view.write(offset, data)
        except DiskError as error:
            done(error)
        else:
            self._pending.append((offset, data))
            done(None)

    def submit_zeros(self, offset: int, length: int, done: Completion) -> None:
        self.submit_write(offset, ZEROS, 0, length, done)

    def wait(self) -> None:
        """Everything was acknowledged at once."""

    def flush(self) -> None:
        for offset, data in self._pending:
            self._disk.write(offset, data)
        self._pending.clear()
        self._view = self._disk

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.flush()

    def abandon(self, survives: Callable[[int], bool] = lambda number: False) -> None:
        """The data mover died: of the unflushed writes only those survive whose number `survives` picks."""
        self.closed = True
        for number, (offset, data) in enumerate(self._pending):
            if survives(number):
                self._disk.write(offset, data)
        self._pending.clear()


def full_copy_of(capacity: int) -> TransferOrder:
    """A full copy of a disk in memory."""
    address = DiskAddress("prod", "vm-1", None, "[a] b.vmdk", capacity, (), "web-01", "disk 0")
    return TransferOrder(
        TransferKind.FULL, address, address, [Extent(0, capacity)], True, [], DigestFiles(None), False, Path("x")
    )
