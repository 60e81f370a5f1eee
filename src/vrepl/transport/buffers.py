"""Page-aligned memory for disk I/O, allocated once and used in a ring.

VDDK wants page-aligned buffers (Virtual Disk Development Kit programming guide, "best practices for NBD
transport"), ctypes wants addresses, BLAKE3 and sockets want memoryviews: a `Buffer` is all of it over one mapping.
"""

from __future__ import annotations

import ctypes
import mmap
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import NamedTuple

MIB = 1024 * 1024
LARGEST = 2 * MIB
"""Bytes of a buffer, and of a huge page."""


class Hashed(NamedTuple):
    """Digests of what lies in a buffer."""

    grains: Sequence[tuple[int, int, int]]
    """As `grains.GrainAt`, ascending in the buffer."""
    digests: Sequence[bytes]
    """Of each of them."""

    def of(self, start: int, length: int) -> Sequence[bytes] | None:
        """Of the grains that make these bytes of the buffer; None where they are not whole grains, all hashed."""
        first = last = bisect_left(self.grains, start, key=lambda grain: grain[1])
        end = start
        while end < start + length and last < len(self.grains) and self.grains[last][1] == end:
            end += self.grains[last][2]
            last += 1
        return self.digests[first:last] if end == start + length else None


class Buffer:
    """`size` bytes of page-aligned memory: `address` for C, `view` for Python, `words` to glance at 8 bytes."""

    __slots__ = ("_mapping", "address", "hashed", "size", "view", "words")

    def __init__(self, size: int, *, huge_page: bool = False) -> None:
        """`huge_page`: one page of it all, where the system has those: fewer pages to look up, copy to and refer to."""
        self._mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if huge_page:
            with suppress(OSError):  # a kernel without them
                self._mapping.madvise(mmap.MADV_HUGEPAGE)
        self.size = size
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))
        self.view = memoryview(self._mapping)
        self.words = self.view.cast("Q")
        self.hashed: Hashed | None = None
        """For a disk that would hash what it is given to write; None: unknown. Whoever fills the buffer sets it."""


class FreeBuffers:
    """Buffers that threads take and give back; the one that came back last goes first, as the cache still has it."""

    def __init__(self, buffers: Iterable[Buffer]) -> None:
        self._free = list(buffers)
        self._permits: SimpleQueue[None] = SimpleQueue()
        for _ in self._free:
            self._permits.put(None)

    def take(self) -> Buffer:
        """Waits for one."""
        self._permits.get()
        return self._free.pop()

    def give(self, buffer: Buffer) -> None:
        self._free.append(buffer)
        self._permits.put(None)


class Pool:
    """Buffers of `LARGEST` bytes that are kept for the next transfer of this process."""

    def __init__(self) -> None:
        self._free: list[Buffer] = []

    def take(self) -> Buffer:
        """A buffer with whatever was in it."""
        try:
            buffer = self._free.pop()
        except IndexError:
            return Buffer(LARGEST, huge_page=True)
        buffer.hashed = None
        return buffer

    def give(self, buffer: Buffer) -> None:
        """Nobody uses it any more."""
        self._free.append(buffer)


POOL = Pool()
ZEROS = Buffer(LARGEST)
"""A buffer that is never written: the kernel backs it with its one zero page, so it costs next to nothing."""
