"""What the pipeline needs of a disk, whatever carries its bytes: memory, VDDK, or another data mover.

A submission returns at once (or as soon as the disk's own queue has room) and later calls `done(None)` or
`done(error)` exactly once, from any thread, perhaps before `submit_…` has returned. It never raises for what happened
to the I/O. Offsets and lengths are bytes, multiples of 512. Except for `done`, everything of one disk is called by
the one thread that opened it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from vrepl.errors import VreplError
from vrepl.extents import Extent
from vrepl.transport.buffers import Buffer

Completion = Callable[[VreplError | None], None]


class DiskReader(Protocol):
    """A disk that is open for reading."""

    @property
    def capacity(self) -> int:
        """Bytes."""
        ...

    @property
    def mode(self) -> str:
        """The transport mode that is really used."""
        ...

    @property
    def working_set(self) -> int:
        """Bytes in flight that go fastest where calls return at once: more would fall out of the processor's cache."""
        ...

    @property
    def block(self) -> int:
        """Bytes of the largest call that pays: 1 MiB or 2 MiB."""
        ...

    def allocated(self, extent: Extent) -> Iterator[Extent]:
        """What may hold data within `extent`, ascending, fetched little by little; all else reads as zeros.

        A disk that cannot tell yields `extent` itself.
        """
        ...

    def submit_read(self, offset: int, buffer: Buffer, start: int, length: int, done: Completion) -> None:
        """Read `length` bytes at `offset` into `buffer` from its byte `start` on."""
        ...

    def close(self) -> None:
        """Idempotent. Nothing may be in flight. Raises DiskError when what was written could not be kept."""
        ...


class DiskWriter(DiskReader, Protocol):
    """A disk that is open for reading and writing."""

    @property
    def splits_zeros(self) -> bool:
        """True where zeros cost less than data, so that runs are worth cutting into zeros and data."""
        ...

    def submit_write(self, offset: int, buffer: Buffer, start: int, length: int, done: Completion) -> None:
        """Write `length` bytes of `buffer` from its byte `start` on at `offset`; the buffer stays as is till done."""
        ...

    def submit_zeros(self, offset: int, length: int, done: Completion) -> None:
        """Write zeros; at most `buffers.LARGEST` bytes at a time."""
        ...

    def wait(self) -> None:
        """Return when every submitted write has been acknowledged."""
        ...

    def flush(self) -> None:
        """What was acknowledged survives the death of this process once this returns. Raises DiskError."""
        ...
