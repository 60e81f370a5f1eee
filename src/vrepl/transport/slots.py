"""What is on its way through the pipeline: a buffer with a block in it, or a write of zeros that holds no buffer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count

from vrepl.errors import VreplError
from vrepl.transport.buffers import POOL, Hashed
from vrepl.transport.grains import digest_grains, is_equal
from vrepl.transport.work import Block


class ZeroWrite:
    """A write of zeros in flight."""

    __slots__ = ("_was_written", "error")

    def __init__(self, was_written: Callable[[ZeroWrite], None]) -> None:
        self._was_written = was_written
        self.error: VreplError | None = None

    def write_done(self, error: VreplError | None) -> None:
        """The disk's completion."""
        self.error = error
        self._was_written(self)


class Slot:
    """One buffer of the ring on its way through the stages; several pieces of its block may be in flight at once."""

    __slots__ = (
        "_arrived", "_expected", "_was_read", "_was_written", "block", "buffer", "digests", "error", "other", "same"
    )  # fmt: skip

    def __init__(
        self, was_read: Callable[[Slot], None], was_written: Callable[[Slot], None], *, compares: bool
    ) -> None:
        """Both are called by a disk's thread when the last piece is done; `error` is set if one failed."""
        self._was_read = was_read
        self._was_written = was_written
        self.buffer = POOL.take()
        self.other = POOL.take() if compares else None
        self.block = Block()
        self.digests: Sequence[bytes] = ()
        self.same: Sequence[bool] | None = None
        self.error: VreplError | None = None
        self._expected = 0
        self._arrived = count(1)

    def give_back(self) -> None:
        """The pipeline is done with its buffers."""
        POOL.give(self.buffer)
        if self.other is not None:
            POOL.give(self.other)

    def drop(self) -> None:
        """Nobody gets its buffers: their memory goes with the last that refers to it, which is not this slot."""
        del self.buffer
        self.other = None

    def expect(self, completions: int) -> None:
        """So many calls are about to be submitted."""
        self._expected = completions
        self._arrived = count(1)  # next() is atomic, and completions come from several threads
        self.error = None

    def read_done(self, error: VreplError | None) -> None:
        """A disk's completion."""
        if error is not None:
            self.error = error
        if next(self._arrived) == self._expected:
            self._was_read(self)

    def write_done(self, error: VreplError | None) -> None:
        """A disk's completion."""
        if error is not None:
            self.error = error
        if next(self._arrived) == self._expected:
            self._was_written(self)

    def hash(self) -> None:
        """Find digests, and what the target has already."""
        block, other = self.block, self.other
        self.digests = digest_grains(self.buffer, block.grains, block.used)
        self.buffer.hashed = Hashed(block.grains, self.digests)
        if other is not None and not block.from_target:
            self.same = [is_equal(self.buffer, other, start, length) for _, start, length in block.grains]
