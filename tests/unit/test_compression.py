"""Compression between two movers is an extra: without it blocks cross as they are."""

from __future__ import annotations

import random
import time

import pytest

from vrepl.stream import compression
from vrepl.stream.compression import Compressor, Decompressor

ZEROS = memoryview(bytes(1 << 20))


def slow_link() -> Compressor:
    made = Compressor()
    made.sent(1 << 20, 10.0)
    return made


def test_what_was_packed_is_unpacked() -> None:
    pytest.importorskip("zstandard")
    packed = slow_link().pack(ZEROS)
    assert packed is not None
    assert len(packed) < 1000
    view = bytearray(b"x" * (1 << 20))
    Decompressor().unpack(memoryview(packed), memoryview(view))
    assert view == bytes(1 << 20)


def test_what_did_not_pay_is_tried_again_soon() -> None:
    pytest.importorskip("zstandard")
    link = slow_link()
    noise = memoryview(random.Random(1).randbytes(1 << 20))
    assert link.pack(noise) is None
    ends = time.monotonic() + 10
    while link.pack(ZEROS) is None:
        assert time.monotonic() < ends


def test_without_the_library_nothing_is_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "zstandard", None)
    assert slow_link().pack(ZEROS) is None
    with pytest.raises(ValueError, match="zstandard is not installed here"):
        Decompressor().unpack(memoryview(b"x"), memoryview(bytearray(1)))
