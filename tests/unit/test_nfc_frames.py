"""What NFC by vrepl itself says and takes, byte by byte: layouts, limits, packed fragments, a host's errors."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrepl.errors import DiskError, DiskLockedError, NfcMemoryError, TransientDiskError
from vrepl.extents import GRAIN
from vrepl.nfc import frames, packing
from vrepl.nfc.authd import capabilities
from vrepl.nfc.codes import refused
from vrepl.nfc.frames import Fragment, FrameError, Refusal
from vrepl.transport.buffers import MIB


def test_the_bytes_are_those_of_the_descriptions() -> None:
    assert frames.encode_record(7, 18, b"") == bytes.fromhex("7ada00a1 07000000 00000000 12000000")
    assert frames.classic(43, b"PlainText")[:14] == b"\x2b\0\0\0PlainText\0"
    assert len(frames.classic(33)) == 264
    assert frames.open_file(b"[ds] a.vmdk", writable=False)[:24] == struct.pack("<IIIIII", 11, 0, 0, 0, 2, 0x1E)
    assert frames.open_file(b"[ds] a.vmdk", writable=True)[20:24] == struct.pack("<I", 0x1A)
    # The 129-sector read and the 1-sector write of nfc_read.md and nfc_write.md.
    assert frames.read_request(5, 512, 66048) == struct.pack("<QQQQIII", 5, 1, 512, 66048, 66048, 66048, 0)
    assert frames.write_fragment(5, 0, 66048, 65536, 512) == struct.pack(
        "<QQQIIIII", 5, 0, 0, 66048, 65536, 512, 512, 0
    )
    assert frames.open_session(65536, 4) == struct.pack("<IIII", 0, 65536, 4, 0)
    assert frames.allocated_request(5, 65536, 16) == struct.pack("<QQQQQQ", 5, 0, 65536, 65536, 16, 0)


def test_what_a_banner_offers() -> None:
    banner = "220 VMware Authentication Daemon Version 1.10: SSL Required, MKSDisplayProtocol:VNC , NFCSSL supported/t"
    assert capabilities(banner) == {"SSL Required", "MKSDisplayProtocol:VNC", "NFCSSL supported"}


@given(st.binary(max_size=64))
def test_no_bytes_break_what_decodes_them(raw: bytes) -> None:
    """A clear error or a value, never another exception."""
    for decode in (
        frames.classic_kind,
        frames.decode_opened,
        frames.decode_refusal,
        frames.decode_fragment,
        frames.ddb_value_size,
        lambda data: frames.allocated_bitmap_size(data, 16),
        lambda data: frames.decode_header(data.ljust(16, b"\0")[:16]),
    ):
        try:
            decode(raw)
        except (FrameError, Refusal):
            continue


@given(st.integers(0, 2**32 - 1), st.integers(0, frames.LARGEST_PAYLOAD), st.integers(0, 2**32 - 1))
def test_a_header_comes_back_as_it_was(kind: int, size: int, number: int) -> None:
    raw = frames.encode_record(kind, number, bytes(size))[: frames.HEADER.size]
    assert frames.decode_header(raw) == frames.Header(kind, size, number)


@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_a_bitmap_is_its_runs(bits: list[bool]) -> None:
    bitmap = sum(1 << at for at, bit in enumerate(bits) if bit).to_bytes(-(-len(bits) // 32) * 4, "little")
    found = frames.decode_bitmap(bitmap, 5 * GRAIN, len(bits))
    chunks = {at for extent in found for at in range(extent.offset // GRAIN - 5, extent.end // GRAIN - 5)}
    assert chunks == {at for at, bit in enumerate(bits) if bit}


fields = st.integers(0, 2**32 - 1)


@given(st.tuples(fields, st.integers(0, 4), fields, fields, fields, fields, fields), st.integers(512, MIB))
def test_a_fragment_that_passes_fits_the_read(values: tuple[int, ...], length: int) -> None:
    fragment = Fragment(*values)
    try:
        frames.check_fragment(fragment, 4096, length)
    except FrameError:
        return
    assert 0 < fragment.length <= length
    assert fragment.start + fragment.length <= length
    assert 0 < fragment.wire <= frames.LARGEST_PIECE


def skipz(data: bytes, cuts: list[tuple[int, int]]) -> bytes:
    packed = struct.pack("<II", len(data), 0)
    for at, size in cuts:
        packed += struct.pack("<II", at, size) + data[at : at + size]
    return packed


def test_packed_fragments_are_unpacked() -> None:
    plain = bytes(100) + b"x" * 28
    into = bytearray(b"\xff" * 128)
    packing.unpack(frames.SKIPZ, memoryview(skipz(plain, [(100, 28)])), memoryview(into))
    assert into == plain
    packing.unpack(frames.ZLIB, memoryview(zlib.compress(plain[::-1])), memoryview(into))
    assert into == plain[::-1]


@given(st.binary(max_size=200), st.sampled_from([frames.ZLIB, frames.SKIPZ]), st.integers(1, 64))
def test_no_packed_bytes_break_out_of_their_fragment(packed: bytes, how: int, size: int) -> None:
    for candidate in (packed, struct.pack("<II", size, 0) + packed, zlib.compress(packed)):
        around = bytearray(b"\xaa" * (size + 32))
        place = memoryview(around)[16 : 16 + size]
        with suppress(FrameError):
            packing.unpack(how, memoryview(candidate), place)
        assert around[:16] == around[16 + size :] == b"\xaa" * 16


@pytest.mark.parametrize(
    ("code", "words", "kind"),
    [
        (11, "NfcAioProcessOpenFileMsg: permission check failed", DiskError),
        (1, "Thin/TBZ/Sparse disks cannot be opened in multiwriter mode", DiskError),
        (1, "DiskLib error 16392: Failed to lock the file", DiskLockedError),
        (15, "", DiskLockedError),
        (5, "Failed to allocate the requested 1048576 bytes", NfcMemoryError),
        (14011, "", TransientDiskError),
        (0x100000000 | 14009, "", TransientDiskError),
        (4711, "something new", DiskError),
    ],
)
def test_what_a_host_refuses_becomes_the_exception_that_fits(code: int, words: str, kind: type[DiskError]) -> None:
    error = refused("opening [ds] a.vmdk", Refusal(code, words), offset=512)
    assert type(error) is kind
    assert error.code == code & 0xFFFF
    assert words in str(error)
    assert error.hint or code == 4711
