"""The algebra of extents against sets of bytes: what is slow and plainly right judges what is fast."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrepl.extents import (
    GRAIN,
    Extent,
    align,
    clip,
    from_grains,
    grain_count,
    grains_of,
    intersect,
    merge_close,
    normalise,
    split,
    subtract,
    total,
    union,
)

SPACE = 60
extents = st.builds(Extent, st.integers(0, SPACE), st.integers(-2, 12))
lists = st.lists(extents, max_size=8)


def points(some: Iterable[Extent]) -> set[int]:
    return {byte for extent in some for byte in range(extent.offset, extent.end)}


def assert_normal(some: Sequence[Extent]) -> None:
    assert all(extent.length > 0 for extent in some)
    assert all(left.end < right.offset for left, right in itertools.pairwise(some))


@given(lists)
def test_normalise(some: list[Extent]) -> None:
    assert_normal(normalise(some))
    assert points(normalise(some)) == points(some)
    assert normalise(normalise(some)) == normalise(some)


@given(lists, lists)
def test_union_intersect_subtract(first: list[Extent], second: list[Extent]) -> None:
    for function, expected in (
        (union, points(first) | points(second)),
        (intersect, points(first) & points(second)),
        (subtract, points(first) - points(second)),
    ):
        result = function(first, second)
        assert_normal(result)
        assert points(result) == expected


@given(lists, st.integers(0, SPACE + 20))
def test_clip(some: list[Extent], capacity: int) -> None:
    assert_normal(clip(some, capacity))
    assert points(clip(some, capacity)) == {byte for byte in points(some) if byte < capacity}


@given(lists, st.integers(1, 9), st.integers(1, SPACE + 20))
def test_align_grows_to_whole_units_and_never_past_the_end(some: list[Extent], unit: int, capacity: int) -> None:
    result = align(some, unit, capacity)
    assert_normal(result)
    units = {byte // unit for byte in points(some)}
    assert points(result) == {byte for byte in range(capacity) if byte // unit in units}


@given(lists, st.integers(0, 10))
def test_merge_close_joins_only_across_small_gaps(some: list[Extent], gap: int) -> None:
    result = merge_close(some, gap)
    assert_normal(result)
    added = normalise([Extent(byte, 1) for byte in points(result) - points(some)])
    assert points(some) <= points(result)
    assert all(one.length <= gap for one in added)
    assert all(right.offset - left.end > gap for left, right in itertools.pairwise(result))


@given(lists, st.integers(1, 9))
def test_split_covers_the_same_and_crosses_no_boundary(some: list[Extent], size: int) -> None:
    pieces = list(split(normalise(some), size))
    assert points(pieces) == points(some)
    assert total(pieces) == len(points(some))
    assert all(piece.offset // size == (piece.end - 1) // size for piece in pieces)


@given(st.sets(st.integers(0, 40)), st.integers(1, 40 * GRAIN))
def test_grains_there_and_back(grains: set[int], capacity: int) -> None:
    result = from_grains(grains, capacity)
    assert_normal(result)
    back = {grain for extent in result for grain in grains_of(extent)}
    assert back == {grain for grain in grains if grain < grain_count(capacity)}
    assert all(extent.end <= capacity for extent in result)


@pytest.mark.parametrize(
    ("capacity", "count"),
    [(0, 0), (1, 1), (512, 1), (GRAIN - 1, 1), (GRAIN, 1), (GRAIN + 1, 2), (1024 * 1024 + 512, 17), (16 * GRAIN, 16)],
)
def test_a_last_short_grain_counts(capacity: int, count: int) -> None:
    assert grain_count(capacity) == count
    assert total(from_grains(range(count + 3), capacity)) == capacity


def test_nothing_comes_of_nothing() -> None:
    assert normalise([]) == union([], []) == intersect([], []) == subtract([], []) == align([], GRAIN, GRAIN) == []
    assert clip([Extent(0, 5)], 0) == []
    assert list(grains_of(Extent(5, 0))) == []
