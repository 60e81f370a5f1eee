"""zstd when it pays: measured as the stream goes, never assumed.

It pays when compressing a byte and sending what is left takes less time than sending the byte. Both are measured: while
it does not pay, a piece of a block is tried now and then; sending is timed for all.
"""

from __future__ import annotations

import time
from typing import Any

try:
    import zstandard
except ImportError:  # the extra `compression`: then nothing is compressed
    zstandard = None  # type: ignore[assignment]

LEVEL = 1
TRY_EVERY = 32
"""Blocks between trials while it does not pay."""
SAMPLE = 64 * 1024
"""Bytes of a trial: enough to tell, and next to nothing beside the 32 blocks that it is one of."""
WEIGHT = 0.2
"""Of a new measurement in the running average."""


class Compressor:
    """Decides and compresses for one stream; `pack` is for its sending thread alone."""

    def __init__(self) -> None:
        self._zstd: Any = None if zstandard is None else zstandard.ZstdCompressor(level=LEVEL)
        self._seconds_per_byte_sent = 0.0
        self._seconds_per_byte_compressed = 0.0
        self._ratio = 1.0
        self._since_trial = TRY_EVERY

    @property
    def pays(self) -> bool:
        """By what was measured so far."""
        saved = (1.0 - self._ratio) * self._seconds_per_byte_sent
        return saved > self._seconds_per_byte_compressed

    def pack(self, data: memoryview) -> bytes | None:
        """The compressed bytes, if compressing pays and they are fewer; else None."""
        if self._zstd is None:
            return None
        if not self.pays:
            self._since_trial += 1
            if self._since_trial >= TRY_EVERY:
                self._since_trial = 0
                self._compress(data[:SAMPLE])
            if not self.pays:
                return None
        packed = self._compress(data)
        return packed if len(packed) < len(data) else None

    def _compress(self, data: memoryview) -> bytes:
        """Compress, and measure it."""
        began = time.perf_counter()
        packed: bytes = self._zstd.compress(data)
        self._seconds_per_byte_compressed = _average(
            self._seconds_per_byte_compressed, (time.perf_counter() - began) / len(data)
        )
        self._ratio = _average(self._ratio, len(packed) / len(data))
        return packed

    def sent(self, length: int, seconds: float) -> None:
        """`length` bytes as they were sent took the network so long. From any one thread."""
        if length:
            self._seconds_per_byte_sent = _average(self._seconds_per_byte_sent, seconds / length)


def _average(old: float, new: float) -> float:
    return new if old == 0.0 else old + WEIGHT * (new - old)


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
