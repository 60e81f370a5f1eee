"""Where a replica's own change tracking hints that its leaf was written since the last restore point. Pure.

A hint says where to look, and proves nothing: the answer may hold false positives, on some storage it is one extent for
the whole disk, and after a restore tracking "will misreport" (vSphere API reference, QueryChangedDiskAreas; VDDK
Programming Guide). Proof is a digest that differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from zlib import crc32

from vrepl.extents import GRAIN, Extent, align, normalise, subtract, total, union
from vrepl.model import DiskPoint
from vrepl.planner.disks import UnfinishedDisk

BUDGET = 64 * 1024 * 1024
"""Bytes of one disk that are read because of a hint: more than that is no hint any more, and only sampled."""


def is_vague(suspects: Sequence[Extent]) -> bool:
    """Whether a hint speaks of so much that it is only sampled."""
    return total(suspects) > BUDGET


def tells_something(suspects: Sequence[Extent], capacity: int) -> bool:
    """Whether a hint is worth acting on where no digest can prove it: one that names (nearly) the whole disk is not."""
    return not is_vague(suspects) and total(suspects) * 10 < capacity * 9


def worth_reading(suspects: Sequence[Extent], capacity: int, salt: str) -> tuple[Extent, ...]:
    """The grains to look at: all of them, or where the hint is vague a sample of BUDGET bytes, evenly spread.

    `suspects` is a normal list. Another `salt` (the restore point) gives another sample, so that runs take turns.
    """
    grains = align(suspects, GRAIN, capacity)
    if not is_vague(grains):
        return tuple(grains)
    step = -(-total(grains) // BUDGET)
    phase, passed = crc32(salt.encode()) % step, 0
    found = []
    for extent in grains:
        first, count = extent.offset // GRAIN, -(-extent.length // GRAIN)
        for grain in range(first + (phase - passed) % step, first + count, step):
            found.append(Extent(grain * GRAIN, min(GRAIN, capacity - grain * GRAIN)))
        passed += count
    return tuple(normalise(found))


def settled_again(
    ours: UnfinishedDisk | None, point: DiskPoint, suspects: Sequence[Extent], capacity: int
) -> UnfinishedDisk:
    """What is owed where neither digest nor tracking says what the leaf holds: these grains are written again."""
    unsure = align(suspects, GRAIN, capacity)
    if ours is None:
        return UnfinishedDisk(planned=unsure, done=(), allowed=0, position=point.position, dirty=unsure)
    return replace(
        ours,
        planned=union(ours.planned, unsure),
        done=subtract(ours.done, unsure),
        dirty=union(ours.dirty, unsure),
    )
