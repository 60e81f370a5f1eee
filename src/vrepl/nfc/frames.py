"""What an ESXi host's NFC service and a client say to each other, byte by byte. Pure: nothing here reads or writes.

Everything is little-endian. The layouts are not VMware's documentation, of which there is none: they were observed by
others, and each one names the public description that it follows:

    [open]   cloudbase/OpenVixDiskLib docs/nfc_open.md, and what hystax/OpenVixDiskLib's docs/nfc_open.md adds to it
    [read]   cloudbase/OpenVixDiskLib docs/nfc_read.md, and hystax/OpenVixDiskLib docs/nfc_read.md for AIO type 13
    [write]  cloudbase/OpenVixDiskLib docs/nfc_write.md
    [xo]     vatesfr/xen-orchestra @xen-orchestra/vmware-explorer/vectura (ESXi 7.0.3 and 8.0.1)

A length that a host says is checked before anything is made room for: FrameError says what was wrong with it.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from vrepl.extents import Extent


class FrameError(Exception):
    """What came is not what the protocol has in this place."""


# -- the classic messages, before AIO: 264 bytes each [open] -----------------------------------------------------------

CLASSIC_SIZE: Final = 264
HANDSHAKE: Final = 43
"""The text that THUMBPRINT_SHA2 was asked with, at offset 4 [open: `PlainText`; xo: a random tag]."""
SESSION_PARAMS: Final = 33
SESSION_PARAMS_REPLY: Final = 36
VERSION: Final = 51
CONNECTION_DATA: Final = 54
"""Lengths of two texts, which follow as they are: the client's name, and what it is about."""
FEATURES: Final = 55
AIO_OPEN: Final = 52
COMPLETE: Final = 4
"""From the client: the end of the session [open]; from the host, in place of what it would answer: a refusal [xo]."""
PROTOCOL_VERSION: Final = 11
"""What VDDK 8.0.2 says, and ESXi 8 answers [open]."""
PURPOSE: Final = b"nbdmode"
"""Ranges of one disk on demand [open, xo]."""
FEATURE_BITS: Final = 3
CLIENT: Final = b"vrepl"


def classic(kind: int, body: bytes = b"") -> bytes:
    """One classic message: its type, then `body`, then zeros."""
    return struct.pack(f"<I{CLASSIC_SIZE - 4}s", kind, body)


def classic_kind(message: bytes | bytearray | memoryview) -> int:
    """Raises FrameError where it is no classic message."""
    if len(message) != CLASSIC_SIZE:
        raise FrameError(f"a message of {len(message)} bytes instead of {CLASSIC_SIZE}")
    return int(struct.unpack_from("<I", message)[0])


def greeting_messages(tag: bytes) -> list[bytes]:
    """What the client says before it waits for SESSION_PARAMS_REPLY and VERSION [xo]; each goes out by itself."""
    return [classic(HANDSHAKE, tag), classic(SESSION_PARAMS), classic(VERSION, struct.pack("<I", PROTOCOL_VERSION))]


def introduction_messages() -> list[bytes]:
    """What follows, before the client waits for AIO_OPEN [open]."""
    lengths = struct.pack("<II", len(CLIENT), len(PURPOSE))
    return [
        classic(CONNECTION_DATA, lengths) + CLIENT + PURPOSE,
        classic(FEATURES, struct.pack("<I", FEATURE_BITS)),
        classic(AIO_OPEN),
    ]


# -- AIO records [open] ------------------------------------------------------------------------------------------------

MAGIC: Final = 0xA100DA7A
HEADER: Final = struct.Struct("<IIII")
ERROR: Final = 1
OPEN_SESSION: Final = 2
CLOSE_SESSION: Final = 3
OPEN_FILE: Final = 4
CLOSE_FILE: Final = 5
IO: Final = 7
SOCKET_OPTIONS: Final = 9
DDB_GET: Final = 11
ALLOCATED: Final = 13
RESOURCE_POOL: Final = 22
LARGEST_PAYLOAD: Final = 256
"""Bytes. The largest payload known has 60: a header that says more lies, or belongs to another protocol."""
LARGEST_TEXT: Final = 64 * 1024
"""Bytes of an error's text, or of a value of the disk's database."""
LARGEST_PIECE: Final = 2 * 1024 * 1024
"""Bytes of data in one record: the most that OPEN_SESSION may ask for [open]."""


class Header(NamedTuple):
    kind: int
    size: int
    """Bytes of the payload; what trails it (a path, a text, data) is not counted."""
    number: int
    """The client's, repeated in what the host answers."""


def encode_record(kind: int, number: int, payload: bytes) -> bytes:
    return HEADER.pack(MAGIC, kind, len(payload), number) + payload


def decode_header(raw: bytes | bytearray | memoryview) -> Header:
    """Raises FrameError where it is no header, or announces more than any payload has."""
    magic, kind, size, number = HEADER.unpack(raw)
    if magic != MAGIC:
        raise FrameError(f"a record begins with {magic:#010x} instead of {MAGIC:#010x}")
    if size > LARGEST_PAYLOAD:
        raise FrameError(f"a record of type {kind} announces {size} bytes")
    return Header(kind, size, number)


def open_session(buffer_bytes: int, buffers: int) -> bytes:
    """[open]: the size at offset 4, their number at offset 8. The host's answer is 16 bytes without meaning."""
    return struct.pack("<IIII", 0, buffer_bytes, buffers, 0)


SOCKET_OPTIONS_PAYLOAD: Final = bytes(12)
RESOURCE_POOL_PAYLOAD: Final = struct.pack("<I", 1)
CLOSE_SESSION_PAYLOAD: Final = bytes(4)

_OPEN_FILE = struct.Struct("<IIIIII36s")
_OPENED = struct.Struct("<QQIIIQIIII")
DISK: Final = 2
READ_WRITE: Final = 0x1A
READ_ONLY: Final = 0x1E


def open_file(path: bytes, *, writable: bool) -> bytes:
    """[open]: the datastore path follows the payload, without a terminator."""
    return _OPEN_FILE.pack(len(path), 0, 0, 0, DISK, READ_WRITE if writable else READ_ONLY, b"")


class Opened(NamedTuple):
    handle: int
    capacity: int
    """Bytes."""
    sector: int
    """Bytes."""


def decode_opened(payload: bytes | bytearray | memoryview) -> Opened:
    """[xo]: status at offset 0, handle 8, capacity 28, sector size 36. Raises FrameError; Refusal for a status."""
    if len(payload) < _OPENED.size:
        raise FrameError(f"the answer to an open has {len(payload)} bytes")
    status, handle, _, _, _, capacity, sector, *_ = _OPENED.unpack_from(payload)
    if status:
        raise Refusal(status, "")
    return Opened(handle, capacity, sector)


def close_file(handle: int) -> bytes:
    return struct.pack("<Q", handle)


class Refusal(Exception):
    """The host's error: its code and its words, which may be empty."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"error {code}" + (f": {text}" if text else ""))
        self.code = code
        self.text = text


_REFUSAL = struct.Struct("<QII")


def decode_refusal(payload: bytes | bytearray | memoryview) -> tuple[int, int]:
    """[xo]: the code, and how many bytes of text follow. Raises FrameError."""
    if len(payload) < _REFUSAL.size:
        raise FrameError(f"an error record has {len(payload)} bytes")
    code, _, length = _REFUSAL.unpack_from(payload)
    if length > LARGEST_TEXT:
        raise FrameError(f"an error's text of {length} bytes is announced")
    return code, length


# -- reading and writing [read, write] ---------------------------------------------------------------------------------

WRITE_BIT: Final = 0
READ_BIT: Final = 1
STORED: Final = 0
ZLIB: Final = 1
SKIPZ: Final = 3
"""Compression codes [xo]; 2 is FastLZ [read], which is not asked for."""
_IO = struct.Struct("<QIIQIIIII")
IO_SIZE: Final = _IO.size


def read_request(handle: int, offset: int, length: int, compression: int = STORED) -> bytes:
    """[read]: the length as 64 bits at 24, and as 32 bits at 32 and at 36."""
    return _IO.pack(handle, READ_BIT, compression, offset, length, 0, length, length, 0)


def write_fragment(handle: int, offset: int, total: int, start: int, length: int) -> bytes:
    """[write]: one of the fragments, all with one number, that make a write of `total` bytes at `offset`."""
    return _IO.pack(handle, WRITE_BIT, STORED, offset, total, start, length, length, 0)


class Fragment(NamedTuple):
    """What the host says of a part of a read; for a write, of the whole of it."""

    status: int
    compression: int
    offset: int
    """Of the request, on the disk."""
    total: int
    """Of the request."""
    start: int
    """Of this part within the request."""
    length: int
    """Of this part on the disk."""
    wire: int
    """Bytes that follow."""


def decode_fragment(payload: bytes | bytearray | memoryview) -> Fragment:
    """[read]. Raises FrameError for what is too short."""
    if len(payload) < IO_SIZE:
        raise FrameError(f"an answer to I/O has {len(payload)} bytes")
    status, _, compression, offset, total, start, length, wire, _ = _IO.unpack_from(payload)
    return Fragment(status, compression, offset, total, start, length, wire)


def check_fragment(fragment: Fragment, offset: int, length: int) -> None:
    """Whether it can be a part of the read of `length` bytes at `offset`. Raises FrameError."""
    if fragment.offset != offset or fragment.total != length:
        raise FrameError(
            f"a read of {length} bytes at {offset} is answered with {fragment.total} bytes at {fragment.offset}"
        )
    if fragment.length == 0 or fragment.start + fragment.length > length:
        raise FrameError(f"{fragment.length} bytes at {fragment.start} of a read of {length} bytes")
    if fragment.compression == STORED:
        if fragment.wire != fragment.length:
            raise FrameError(f"{fragment.wire} bytes follow where {fragment.length} are stored")
    elif fragment.compression not in (ZLIB, SKIPZ):
        raise FrameError(f"compression {fragment.compression} was not asked for")
    elif fragment.wire == 0 or fragment.wire > LARGEST_PIECE:
        raise FrameError(f"{fragment.wire} compressed bytes are announced")


# -- what a disk is made of --------------------------------------------------------------------------------------------

_ALLOCATED = struct.Struct("<QQQQQQ")
CHUNK: Final = 64 * 1024
"""Bytes: the finest answer that is asked for, and vrepl's grain."""


def allocated_request(handle: int, offset: int, chunks: int) -> bytes:
    """[read, type 13]: chunk size at 16, offset at 24, number of chunks at 32. Both must be multiples of a chunk."""
    return _ALLOCATED.pack(handle, 0, CHUNK, offset, chunks, 0)


def allocated_bitmap_size(payload: bytes | bytearray | memoryview, chunks: int) -> int:
    """Bytes that follow: a bit per chunk, in whole words of 32 bits. Raises FrameError."""
    if len(payload) < _ALLOCATED.size:
        raise FrameError(f"an allocation map's answer has {len(payload)} bytes")
    told = struct.unpack_from("<Q", payload, 32)[0]
    if told != chunks:
        raise FrameError(f"the allocation of {told} chunks is told where {chunks} were asked about")
    return -(-chunks // 32) * 4


def decode_bitmap(bitmap: bytes | bytearray | memoryview, offset: int, chunks: int) -> list[Extent]:
    """Runs of set bits, the lowest bit of a byte first, as extents from `offset` on."""
    bits = int.from_bytes(bitmap, "little") & ((1 << chunks) - 1)
    text = bin(bits)[:1:-1]
    found = []
    at = text.find("1")
    while at >= 0:
        end = text.find("0", at)
        if end < 0:
            end = len(text)
        found.append(Extent(offset + at * CHUNK, (end - at) * CHUNK))
        at = text.find("1", end)
    return found


_DDB = struct.Struct("<QII")


def ddb_request(handle: int, key: bytes) -> bytes:
    """[open]: the key follows, as in the descriptor's `ddb.` lines but without that prefix."""
    return _DDB.pack(handle, len(key), 0)


def ddb_value_size(payload: bytes | bytearray | memoryview) -> int:
    """Bytes of the value that follows, as text; 0 where there is none. Raises FrameError."""
    if len(payload) < _DDB.size:
        raise FrameError(f"an answer from the disk's database has {len(payload)} bytes")
    length = int(_DDB.unpack_from(payload)[2])
    if length > LARGEST_TEXT:
        raise FrameError(f"a value of {length} bytes is announced")
    return length
