"""Page-aligned memory for disk I/O, allocated once and used in a ring.

VDDK wants page-aligned buffers (Virtual Disk Development Kit programming guide, "best practices for NBD
transport"), ctypes wants addresses, BLAKE3 and sockets want memoryviews: a `Buffer` is all of it over one mapping.
"""

from __future__ import annotations

import ctypes
import mmap

MIB = 1024 * 1024
LARGEST = 2 * MIB
"""Bytes of a buffer. One that is used in part costs only that part: memory that is never touched is none."""


class Buffer:
    """`size` bytes of page-aligned memory: `address` for C, `view` for Python, `words` to glance at 8 bytes."""

    __slots__ = ("_mapping", "address", "size", "view", "words")

    def __init__(self, size: int) -> None:
        self._mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.size = size
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))
        self.view = memoryview(self._mapping)
        self.words = self.view.cast("Q")


class Pool:
    """Buffers of `LARGEST` bytes that are kept for the next transfer of this process."""

    def __init__(self) -> None:
        self._free: list[Buffer] = []

    def take(self) -> Buffer:
        """A buffer with whatever was in it."""
        try:
            return self._free.pop()
        except IndexError:
            return Buffer(LARGEST)

    def give(self, buffer: Buffer) -> None:
        """Nobody uses it any more."""
        self._free.append(buffer)


POOL = Pool()
ZEROS = Buffer(LARGEST)
"""A buffer that is never written: the kernel backs it with its one zero page, so it costs next to nothing."""
