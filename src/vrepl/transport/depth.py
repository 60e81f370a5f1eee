"""How much of a copy is in flight. Pure: from the rate so far to how many blocks may be read and be in use at once."""

from __future__ import annotations

from vrepl.transport.buffers import MIB

CACHED_RATE = 1500 * MIB
"""Bytes per second: past this rate the disks' working set is enough, and more would do worse."""
DRAINED_SECONDS = 0.25
"""How many seconds of reading may be in flight: a stop waits for it to end."""
FIRST_READS = 4 * MIB
LEAST_READS = 2 * MIB


class Depth:
    """Reads in flight grow with the rate, so that a slow disk can still be stopped at once."""

    def __init__(self, ring: int, block: int, working_set: int) -> None:
        """`ring` blocks of `block` bytes are there; `working_set` bytes go fastest where calls return at once."""
        self._ring = ring
        self._block = block
        self._working_set = max(working_set // block, 2)
        self.reads = max(min(FIRST_READS, ring * block) // block, 1)
        """Blocks that may be read at once."""
        self.in_use = ring
        """Blocks that may be anywhere between a read and the end of its write."""

    def follow(self, rate: float) -> None:
        """So many bytes per second have arrived."""
        self.reads = max(LEAST_READS // self._block, min(self._ring, int(rate * DRAINED_SECONDS / self._block)))
        self.in_use = min(self._working_set, self._ring) if rate > CACHED_RATE else self._ring
