"""Digests and the transfer log for a mover on another machine: each question is asked of the control process.

What a later run needs lies with the control process alone: the log is durable there before `allow` or `record` returns,
so a machine that is lost with all that it held takes nothing along. Digests come in pages, larger ones as long as they
are wanted one after the other. Light: data movers import it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from vrepl.extents import Extent
from vrepl.movers import messages
from vrepl.ports import DigestFiles, TransferOrder
from vrepl.repository.digests import DIGEST_SIZE, UNKNOWN

Ask = Callable[..., Any]
"""`ask(question, **arguments)` of the control process. Raises what it raised there."""

FEW, MANY = 256, 16384
"""Grains of a page: 4 KiB of digests for 16 MiB, and 256 KiB for a GiB."""
STRETCH = 64 << 30
"""Bytes of a disk that one question for what is not zero is about."""


class AskedLookup:
    """`ports.DigestLookup` (and `digests_of`) over questions; one thread."""

    def __init__(self, ask: Ask, files: DigestFiles, capacity: int) -> None:
        self._ask = ask
        self._capacity = capacity
        self._handle: int | None = ask("lookup.open", files=messages.encode(files), capacity=capacity)
        self._first, self._page = 0, b""
        self._size = FEW

    def digest_of(self, grain: int) -> bytes | None:
        digest = self.digests_of(grain, 1)
        return None if digest == UNKNOWN else digest

    def digests_of(self, start: int, count: int) -> bytes:
        """16 bytes for each of `count` grains from `start` on; all ones where nothing is known."""
        at = (start - self._first) * DIGEST_SIZE
        if at < 0 or at + count * DIGEST_SIZE > len(self._page):
            follows = self._page and 0 <= at <= len(self._page)
            self._size = min(self._size * 2, MANY) if follows else FEW
            self._first = start
            wanted = max(self._size, count)
            self._page = base64.b64decode(self._ask("lookup.digests", handle=self._handle, start=start, count=wanted))
            at = 0
        return self._page[at : at + count * DIGEST_SIZE]

    def not_zero(self, extent: Extent) -> Iterator[Extent]:
        position = extent.offset
        pending: Extent | None = None
        while position < extent.end:
            end = min(position + STRETCH, extent.end)
            for offset, length in self._ask("lookup.not_zero", handle=self._handle, offset=position, end=end):
                if pending is not None and pending.end == offset:
                    pending = Extent(pending.offset, pending.length + length)
                    continue
                if pending is not None:
                    yield pending
                pending = Extent(offset, length)
            position = end
        if pending is not None:
            yield pending

    def close(self) -> None:
        if self._handle is not None:
            handle, self._handle = self._handle, None
            self._ask("lookup.close", handle=handle)


class AskedLog:
    """`ports.TransferLog` over questions; one thread."""

    def __init__(self, ask: Ask, order: TransferOrder) -> None:
        self._ask = ask
        self._handle: int | None = ask(
            "log.open", path=str(order.log), capacity=order.target.capacity, attempt=order.attempt
        )

    def allow(self, end_offset: int) -> None:
        self._ask("log.allow", handle=self._handle, end=end_offset)

    def record(self, entries: Iterable[tuple[int, bytes]]) -> None:
        packed = [(grain, base64.b64encode(digests).decode("ascii")) for grain, digests in entries]
        self._ask("log.record", handle=self._handle, entries=packed)

    def record_zeros(self, extents: Iterable[Extent]) -> None:
        self._ask("log.record_zeros", handle=self._handle, extents=[tuple(extent) for extent in extents])

    def close(self) -> None:
        if self._handle is not None:
            handle, self._handle = self._handle, None
            self._ask("log.close", handle=handle)
