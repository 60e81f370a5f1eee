"""How a pipeline uses memory and threads."""

from __future__ import annotations

from dataclasses import dataclass

FEW_PROCESSORS = 2


@dataclass(frozen=True, slots=True)
class Tuning:
    """`buffers` of 1 MiB make the ring; `hashers` threads hash.

    Without them, `hash_on_arrival` has the disk's thread that completes a read hash it, while the bytes are in that
    processor's cache; otherwise the pipeline's own thread does it, and no disk's thread is ever held up. On one or two
    processors the former is faster: handing buffers and the interpreter over costs more than a free processor brings.
    """

    buffers: int = 16
    hashers: int = 0
    hash_on_arrival: bool = False

    @classmethod
    def for_machine(cls, buffers: int, hashers: int, processors: int) -> Tuning:
        """What suits a machine with so many processors."""
        return cls(buffers, hashers, hash_on_arrival=hashers == 0 and processors <= FEW_PROCESSORS)


DEFAULT_TUNING = Tuning()
SINGLE_THREADED = Tuning(buffers=4, hashers=0)
"""Deterministic where the disks complete at once."""
