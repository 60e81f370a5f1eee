"""While a test clone stands on a restore point, nothing that it reads through goes; and a chain has an end."""

from __future__ import annotations

import datetime as dt

import pytest

from vrepl.model import Snapshot
from vrepl.planner.snapshots import has_room_for_a_run, held_by_clones, longest_chain


def tree(**parents: str | None) -> list[Snapshot]:
    return [Snapshot(ref, ref, "", dt.datetime(2026, 1, 1, tzinfo=dt.UTC), parent) for ref, parent in parents.items()]


CHAIN = tree(a=None, b="a", c="b", d="c")
BRANCHES = tree(a=None, b="a", c="b", base="a", kept="base")


@pytest.mark.parametrize(
    ("snapshots", "stood_on", "held"),
    [
        (CHAIN, [], set()),
        (CHAIN, ["b"], {"a", "b"}),
        (CHAIN, ["d", "a"], {"a", "b", "c", "d"}),
        (BRANCHES, ["c"], {"a", "b", "c"}),
        (BRANCHES, ["kept"], {"a", "base", "kept"}),
        (CHAIN, ["gone"], set()),
    ],
)
def test_a_clone_holds_its_point_and_every_ancestor_and_nothing_newer(
    snapshots: list[Snapshot], stood_on: list[str], held: set[str]
) -> None:
    assert held_by_clones(snapshots, stood_on) == held


def test_the_longest_branch_counts() -> None:
    assert longest_chain([]) == 0
    assert longest_chain(CHAIN) == 4
    assert longest_chain(BRANCHES) == 3


@pytest.mark.parametrize(("length", "room"), [(0, True), (30, True), (31, False), (32, False)])
def test_a_run_needs_room_for_its_restore_point(length: int, room: bool) -> None:
    chain = tree(**{f"s{n}": f"s{n - 1}" if n else None for n in range(length)})
    assert has_room_for_a_run(chain) is room
