"""What of a disk holds data, asked of change tracking where the disk itself does not tell."""

from __future__ import annotations

from collections.abc import Callable

from vrepl.errors import InterruptedRunError, VreplError
from vrepl.extents import GRAIN, Extent, normalise
from vrepl.movers.engine import Log
from vrepl.ports import ControlDesk, DiskRequest

Allocation = Callable[[], tuple[Extent, ...] | None]
"""Ascending, in whole grains (but for the disk's end); None where nobody can tell. Asked by the disk's own thread."""


def tracked_allocation(desk: ControlDesk, request: DiskRequest, capacity: int, log: Log) -> Allocation:
    """Asked at the first call, and remembered. A disk that is no snapshot's is not asked about."""
    answers: list[tuple[Extent, ...] | None] = []

    def remembered() -> tuple[Extent, ...] | None:
        if not answers:
            answers.append(_ask(desk, request, capacity, log) if request.snapshot_ref else None)
        return answers[0]

    return remembered


def _ask(desk: ControlDesk, request: DiskRequest, capacity: int, log: Log) -> tuple[Extent, ...] | None:
    try:
        found = desk.allocated(request).extents
    except InterruptedRunError:
        raise
    except VreplError as error:
        log("warn", f"what is allocated on {request.path} is not known, so all of it is read: {error.message}")
        return None
    grains = []
    for extent in found:
        first = extent.offset // GRAIN * GRAIN
        grains.append(Extent(first, min(-(-extent.end // GRAIN) * GRAIN, capacity) - first))
    return tuple(normalise(grains))
