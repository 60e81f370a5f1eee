"""What is known of the grains of a disk, and the trace of what is done to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from vrepl.extents import Extent


class DigestLookup(Protocol):
    """What is surely known of the grains of a leaf's parent. Digests are 16 bytes; all zeros stand for a zero grain."""

    def digest_of(self, grain: int) -> bytes | None:
        """None: unknown."""
        ...

    def not_zero(self, extent: Extent) -> Iterator[Extent]:
        """Within a grain-aligned extent: the grains that are unknown, or known and not zero; in order, lazily."""
        ...

    def close(self) -> None:
        """Let go of its files; may be called twice."""
        ...


class TransferLog(Protocol):
    """The durable trace of one attempt; written by the data mover, read by the next run."""

    def allow(self, end_offset: int) -> None:
        """Durable before it returns: writes to grains below this byte offset may be issued from now on.

        A transfer goes through its regions in ascending order, so grains at or above the highest allowed offset
        have never been issued by it.
        """
        ...

    def record(self, entries: Iterable[tuple[int, bytes]]) -> None:
        """Durable before it returns: these grains are settled with these digests. Only after Wait and Flush.

        An entry is a grain and the digests of it and of those that follow it, 16 bytes each.
        """
        ...

    def record_zeros(self, extents: Iterable[Extent]) -> None:
        """Durable before it returns: these grain-aligned extents (the disk's end excepted) are settled and are zeros.

        What `record` says with zero digests, for stretches of any length. Only after Wait and Flush, too, unless
        nothing was written there since the disk was created empty.
        """
        ...

    def close(self) -> None: ...
