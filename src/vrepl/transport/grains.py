"""Zero detection and digests of grains, without copying and without holding the interpreter.

memcmp through ctypes and BLAKE3 on memoryviews both release the GIL, so several threads do this at once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from blake3 import blake3

from vrepl.transport.buffers import ZEROS, Buffer

DIGEST_SIZE = 16
ZERO_DIGEST = bytes(DIGEST_SIZE)
"""Stands for a grain of zeros, which is never hashed."""

_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_memcmp.restype = ctypes.c_int


GrainAt = tuple[int, int, int]
"""`(number, start, length)`: this grain of the disk lies at byte `start` of a buffer; `length` is short for the last.

A plain tuple: sixteen are made for every MiB.
"""

Span = tuple[int, int]
"""`(first, count)`: grains of the disk that follow one another."""


def is_zero(buffer: Buffer, start: int, length: int) -> bool:
    """Whether these bytes are all zero; `start` and `length` are multiples of 8, `length` at most a buffer."""
    if buffer.words[start >> 3]:
        return False
    return bool(_memcmp(buffer.address + start, ZEROS.address, length) == 0)


def is_equal(first: Buffer, second: Buffer, start: int, length: int) -> bool:
    """Whether two buffers hold the same bytes in the same place."""
    return bool(_memcmp(first.address + start, second.address + start, length) == 0)


def digest(data: bytes | memoryview) -> bytes:
    """The 16-byte digest of one grain's bytes (any length): 16 zero bytes if all are zero, else BLAKE3."""
    if not any(data[:16]) and bytes(data).count(0) == len(data):
        return ZERO_DIGEST
    return blake3(data).digest(length=DIGEST_SIZE)


def digest_grains(buffer: Buffer, grains: Sequence[GrainAt], used: int) -> list[bytes]:
    """Digests of the grains that lie in the first `used` bytes of `buffer`, in order."""
    if is_zero(buffer, 0, used):
        return [ZERO_DIGEST] * len(grains)
    view, words, address, zeros = buffer.view, buffer.words, buffer.address, ZEROS.address
    hasher = blake3()  # made once: that costs as much as hashing a kilobyte
    reset, update, digest_of = hasher.reset, hasher.update, hasher.digest
    digests = []
    for _, start, length in grains:
        if not words[start >> 3] and _memcmp(address + start, zeros, length) == 0:
            digests.append(ZERO_DIGEST)
            continue
        reset()
        update(view[start : start + length])
        digests.append(digest_of(DIGEST_SIZE))
    return digests
