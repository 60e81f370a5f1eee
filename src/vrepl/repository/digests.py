"""Digest sets: reading."""

from __future__ import annotations

from collections.abc import Iterator

from vrepl.extents import Extent
from vrepl.ports import DigestFiles

DIGEST_SIZE = 16
ZERO = bytes(DIGEST_SIZE)
"""Stands for a grain of zeros."""
UNKNOWN = b"\xff" * DIGEST_SIZE
"""In `digests_of`: nothing is known of this grain."""


class DigestSet:
    """Implements ports.DigestLookup over files. Not thread-safe; positions are kept, so ascending look-ups are quick."""

    capacity: int

    @property
    def known(self) -> bool:
        """False: no grain is known (the files do not exist, disagree or are damaged)."""
        raise NotImplementedError

    def digest_of(self, grain: int) -> bytes | None:
        raise NotImplementedError

    def digests_of(self, start: int, count: int) -> bytes:
        """16 bytes for each of `count` grains from `start` on; ZERO and UNKNOWN as above."""
        raise NotImplementedError

    def not_zero(self, extent: Extent) -> Iterator[Extent]:
        raise NotImplementedError

    def unknown(self) -> Iterator[Extent]:
        """The grains that are unknown, as ascending extents."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


def open_lookup(files: DigestFiles, capacity: int) -> DigestSet:
    """Never raises for what is wrong with the files: what they cannot surely say is unknown."""
    raise NotImplementedError
