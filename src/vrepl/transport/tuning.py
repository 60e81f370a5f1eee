"""What an operator, or a test, may set of a pipeline."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tuning:
    """`buffers` MiB make the ring, in blocks of the size that the disks want.

    `hashers` threads help the pipeline's own to hash while that is busy with it.
    """

    buffers: int = 16
    hashers: int = 1


DEFAULT_TUNING = Tuning()
SINGLE_THREADED = Tuning(buffers=4, hashers=0)
"""Deterministic where the disks complete at once."""
