"""All pages of QueryChangedDiskAreas, joined and checked."""

from __future__ import annotations

from collections.abc import Callable

from vrepl.errors import CbtError
from vrepl.extents import Extent, clip, normalise
from vrepl.model import ChangedAreas


def changed_extents(ask: Callable[[int], ChangedAreas], capacity: int) -> list[Extent]:
    """Every changed extent of a disk of `capacity` bytes; `ask(start)` gives the page that begins at byte `start`.

    A page says which stretch it speaks of; an empty one is not the end, only reaching `capacity` is, and asking *at*
    capacity is a fault (vSphere API reference, QueryChangedDiskAreas and DiskChangeInfo). Raises CbtError where pages
    do not join up, for then something changed would be missed in silence.
    """
    changed: list[Extent] = []
    position = 0
    while position < capacity:
        page = ask(position)
        if page.start != position or page.length <= 0:
            raise CbtError(
                f"CBT answered for bytes {page.start} to {page.start + page.length} when asked from {position} on",
                hint="the run compares by digest instead",
            )
        end = page.start + page.length
        for area in page.areas:
            if area.offset < page.start or area.end > end:
                raise CbtError(
                    f"CBT named an area at {area.offset} (+{area.length}) outside of its page {page.start} to {end}",
                    hint="the run compares by digest instead",
                )
            changed.append(area)
        position = end
    return clip(normalise(changed), capacity)
