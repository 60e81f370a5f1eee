"""Fragments that a host left zeros out of, or deflated. Pure.

skipz is: the length of the whole as 32 bits, 32 zero bits, then for each stretch its start, its length and its bytes
(vatesfr/xen-orchestra @xen-orchestra/vmware-explorer/vectura, whose tests make such fragments as ESXi 7 and 8 do).
"""

from __future__ import annotations

import struct
import zlib

from vrepl.nfc.frames import SKIPZ, FrameError

_WORDS = struct.Struct("<II")


def unpack(compression: int, packed: memoryview, into: memoryview) -> None:
    """Fill `into` with what was packed. Raises FrameError where that is not exactly its length."""
    if compression == SKIPZ:
        _unpack_skipz(packed, into)
        return
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(packed, len(into) + 1)
    except zlib.error as error:
        raise FrameError(f"a deflated fragment cannot be read: {error}") from error
    if len(plain) != len(into) or not inflater.eof:
        raise FrameError(f"a deflated fragment does not hold the {len(into)} bytes that it should")
    into[:] = plain


def _unpack_skipz(packed: memoryview, into: memoryview) -> None:
    if len(packed) < _WORDS.size:
        raise FrameError(f"a fragment without zeros has {len(packed)} bytes")
    whole, _ = _WORDS.unpack_from(packed)
    if whole != len(into):
        raise FrameError(f"a fragment of {whole} bytes came where {len(into)} were announced")
    into[:] = bytes(len(into))
    at = _WORDS.size
    while at < len(packed):
        if at + _WORDS.size > len(packed):
            raise FrameError("a fragment without zeros ends in the middle of a stretch")
        start, length = _WORDS.unpack_from(packed, at)
        at += _WORDS.size
        if start + length > len(into) or at + length > len(packed):
            raise FrameError(f"a stretch of {length} bytes at {start} lies outside of its fragment")
        into[start : start + length] = packed[at : at + length]
        at += length
