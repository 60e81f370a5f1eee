"""zstd when it pays: measured as the stream goes, never assumed.

It pays when compressing a byte and sending what is left takes less time than sending the byte. Both are measured: while
it does not pay, a piece of a block is tried now and then; sending is timed for all, and taken to be slow until then.
"""

from __future__ import annotations

import time
from typing import Any

try:
    import zstandard
except ImportError:  # the extra `compression`: then nothing is compressed
    zstandard = None  # type: ignore[assignment]

LEVEL = 1
SAMPLE = 64 * 1024
"""Bytes of a trial: enough to tell."""
SHARE = 50
"""While it does not pay, the next trial comes at the earliest after this many times what the last one took."""
UNMEASURED = 1 / 12.5e6
"""Seconds per byte of a line that has not answered yet: that of 100 Mbit/s. Whatever a stream has sent before it knows
better lies before all else on a slow line, and on a fast one has cost some milliseconds."""
WEIGHT = 0.2
"""Of a new measurement in the running average."""


class Compressor:
    """Decides and compresses for one stream; `pack` is for its sending thread alone."""

    def __init__(self) -> None:
        self._zstd: Any = None if zstandard is None else zstandard.ZstdCompressor(level=LEVEL)
        self._sent: float | None = None
        """Seconds per byte."""
        self._compressed: float | None = None
        """Processor seconds per byte: what the thread waits for besides, to run again, is no cost of compressing."""
        self._ratio = 1.0
        self._next_trial = 0.0

    @property
    def pays(self) -> bool:
        """By what was measured so far."""
        if self._compressed is None:
            return False
        saved = (1.0 - self._ratio) * (UNMEASURED if self._sent is None else self._sent)
        return saved > self._compressed

    def pack(self, data: memoryview) -> bytes | None:
        """The compressed bytes, if compressing pays and they are fewer; else None."""
        if self._zstd is None:
            return None
        if not self.pays:
            began = time.monotonic()
            if began < self._next_trial:
                return None
            if self._compressed is None:
                self._zstd.compress(data[:SAMPLE])  # the first time takes several times as long
            self._compress(data[:SAMPLE])
            ended = time.monotonic()
            self._next_trial = ended + SHARE * (ended - began)
            if not self.pays:
                return None
        packed = self._compress(data)
        return packed if len(packed) < len(data) else None

    def _compress(self, data: memoryview) -> bytes:
        """Compress, and measure it."""
        began = time.thread_time()
        packed: bytes = self._zstd.compress(data)
        seconds, ratio = (time.thread_time() - began) / len(data), len(packed) / len(data)
        self._ratio = ratio if self._compressed is None else _average(self._ratio, ratio)
        self._compressed = _average(self._compressed, seconds)
        return packed

    def sent(self, length: int, seconds: float) -> None:
        """`length` bytes as they were sent took the network so long. From any one thread."""
        if length:
            self._sent = _average(self._sent, seconds / length)


def _average(old: float | None, new: float) -> float:
    return new if old is None else old + WEIGHT * (new - old)


class Decompressor:
    """Unpacks what `Compressor` packed."""

    def __init__(self) -> None:
        self._zstd: Any = None if zstandard is None else zstandard.ZstdDecompressor()

    def unpack(self, packed: memoryview, view: memoryview) -> None:
        """Fill `view` exactly. Raises ValueError if that is not what was packed."""
        if self._zstd is None:
            raise ValueError(
                "a block came compressed, and zstandard is not installed here (vrepl's extra `compression`)"
            )
        try:
            data = self._zstd.decompress(packed, max_output_size=len(view))
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error
        if len(data) != len(view):
            raise ValueError(f"{len(data)} bytes instead of {len(view)}")
        view[:] = data
