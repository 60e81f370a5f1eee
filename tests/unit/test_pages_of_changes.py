"""Pages of QueryChangedDiskAreas: any cut into pages gives the same, and what does not join up is an error."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrepl.engine.changes import changed_extents
from vrepl.errors import CbtError
from vrepl.extents import GRAIN, Extent, from_grains, intersect, split
from vrepl.model import ChangedAreas

GRAINS = 24
CAPACITY = GRAINS * GRAIN + 512


def pages_at(cuts: list[int], changed: list[Extent], capacity: int) -> Callable[[int], ChangedAreas]:
    """A source of pages that end at these bytes, and at capacity; it refuses what vSphere refuses."""

    def ask(start: int) -> ChangedAreas:
        if start >= capacity:
            raise AssertionError("asking at the disk's capacity is a fault")
        end = min((cut for cut in cuts if cut > start), default=capacity)
        within = intersect(changed, [Extent(start, end - start)])
        return ChangedAreas(start, end - start, tuple(split(within, 3 * GRAIN)))

    return ask


@given(
    st.sets(st.integers(0, GRAINS)),
    st.lists(st.integers(1, GRAINS).map(lambda grain: grain * GRAIN), max_size=12),
    st.sampled_from([CAPACITY, GRAINS * GRAIN]),
)
def test_any_paging_gives_the_same(grains: set[int], cuts: list[int], capacity: int) -> None:
    """Empty pages in the middle and a boundary exactly at capacity come by themselves."""
    changed = from_grains(grains, capacity)
    assert changed_extents(pages_at(cuts, changed, capacity), capacity) == changed


@pytest.mark.parametrize("unit", [64 * 1024, 256 * 1024, 1024 * 1024])
@pytest.mark.parametrize("capacity", [1024 * 1024 + 512, 8 * 1024 * 1024, 512])
def test_blocks_of_any_size_are_clipped_at_the_end(unit: int, capacity: int) -> None:
    """vSphere may name whole blocks of its own; the last one then reaches past the disk."""
    blocks = -(-capacity // unit)
    areas = tuple(Extent(block * unit, unit) for block in range(0, blocks, 2))
    whole = ChangedAreas(0, blocks * unit, areas)
    found = changed_extents(lambda start: whole, capacity)
    assert found[-1].end == min(areas[-1].end, capacity)
    assert {extent.offset for extent in found} == {area.offset for area in areas}


def test_four_thousand_scattered_areas_in_pages() -> None:
    capacity = 16_000 * GRAIN
    changed = from_grains(range(0, 16_000, 4), capacity)
    cuts = list(range(0, capacity, 777 * GRAIN))
    found = changed_extents(pages_at(cuts, changed, capacity), capacity)
    assert len(found) == 4000
    assert found == changed


@pytest.mark.parametrize(
    ("start", "length", "areas"),
    [
        (GRAIN, CAPACITY - GRAIN, ()),
        (0, 0, ()),
        (0, -512, ()),
        (0, GRAIN, (Extent(2 * GRAIN, GRAIN),)),
        (0, 2 * GRAIN, (Extent(GRAIN, 2 * GRAIN),)),
        (-GRAIN, CAPACITY, ()),
    ],
    ids=["gap", "no progress", "backwards", "area after its page", "area across its page's end", "before the start"],
)
def test_pages_that_do_not_join_up_are_an_error(start: int, length: int, areas: tuple[Extent, ...]) -> None:
    with pytest.raises(CbtError) as raised:
        changed_extents(lambda position: ChangedAreas(start, length, areas), CAPACITY)
    assert raised.value.hint


def test_a_later_page_that_skips_is_an_error() -> None:
    pages = {0: ChangedAreas(0, GRAIN, ()), GRAIN: ChangedAreas(2 * GRAIN, CAPACITY - 2 * GRAIN, ())}
    with pytest.raises(CbtError):
        changed_extents(lambda start: pages[start], CAPACITY)
