"""A job's names, patterns and criteria mean the VMs that an operator would expect, and say what they do not find."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrepl.model import PowerState
from vrepl.model.selection import Candidate, Criteria, Selection, is_pattern
from vrepl.planner.selection import Chosen, choose

WEB1 = Candidate(
    "vm-1", "web-01", "dc/prod/web/web-01", "dc/prod/web", "cluster-a/gold/web", ("shop",), "cluster-a", "esx-1",
    ("ds-1", "ds-2"), ("Backup/Gold", "Zone/A"), {"owner": "team-web"}, PowerState.ON,
)  # fmt: skip
WEB2 = Candidate("vm-2", "web-02", "dc/prod/web/web-02", "dc/prod/web", "cluster-a/silver", tags=("Backup/Silver",))
TEST = Candidate("vm-3", "web-test", "dc/test/web-test", "dc/test", tags=("Backup/Gold",))
DB = Candidate("vm-4", "db-01", "dc/prod/db-01", "dc/prod", host="esx-2", tags=("Backup/Gold",), power=PowerState.ON)
MOULD = Candidate("vm-5", "web-mould", "dc/prod/web-mould", "dc/prod", template=True)
ODD = Candidate("vm-6", "[x]", "dc/[x]", "dc")
ALL = [WEB1, WEB2, TEST, DB, MOULD, ODD]


def names(chosen: Chosen) -> list[str]:
    return [one.name for one in chosen.vms]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (["web-*"], ["web-01", "web-02", "web-test"]),
        (["web-0?"], ["web-01", "web-02"]),
        (["db-01", "web-*"], ["db-01", "web-01", "web-02", "web-test"]),
        (["web-02", "web-01"], ["web-02", "web-01"]),
        (["[x]"], ["[x]"]),
        (["[dw]*-01"], ["db-01", "web-01"]),
        (["web-mould"], ["web-mould"]),
    ],
)
def test_names_and_patterns(wanted: list[str], found: list[str]) -> None:
    assert names(choose(ALL, wanted, Selection())) == found


@pytest.mark.parametrize(
    ("criteria", "found"),
    [
        (Criteria(tags=("Backup/Gold",)), ["db-01", "web-01", "web-test"]),
        (Criteria(tags=("Backup/*",)), ["db-01", "web-01", "web-02", "web-test"]),
        (Criteria(tags=("Backup/Gold",), folders=("dc/prod",)), ["db-01", "web-01"]),
        (Criteria(folders=("dc/prod",)), ["db-01", "web-01", "web-02"]),
        (Criteria(folders=("dc/*/web",)), ["web-01", "web-02"]),
        (Criteria(paths=("dc/prod/*-01",)), ["db-01", "web-01"]),
        (Criteria(pools=("cluster-a/gold",)), ["web-01"]),
        (Criteria(vapps=("shop",)), ["web-01"]),
        (Criteria(clusters=("cluster-?",)), ["web-01"]),
        (Criteria(hosts=("esx-*",)), ["db-01", "web-01"]),
        (Criteria(datastores=("ds-2",)), ["web-01"]),
        (Criteria(attributes={"owner": "team-*"}), ["web-01"]),
        (Criteria(power=PowerState.ON), ["db-01", "web-01"]),
    ],
)
def test_criteria_are_met_all_at_once(criteria: Criteria, found: list[str]) -> None:
    assert names(choose(ALL, [], Selection(criteria))) == found


def test_exclusion_wins_by_any_of_its_kinds() -> None:
    excluded = Criteria(names=("*-test",), hosts=("esx-2",))
    selection = Selection(Criteria(tags=("Backup/Gold",)), excluded)
    assert names(choose(ALL, ["db-01", "web-02"], selection)) == ["web-02", "web-01"]


def test_what_is_not_found_is_said_apart() -> None:
    twins = [*ALL, Candidate("vm-7", "db-01", "dc2/db-01")]
    chosen = choose(twins, ["web-9", "db-01", "nothing-*", "web-01"], Selection())
    assert (chosen.missing, chosen.ambiguous, chosen.idle) == (("web-9",), ("db-01",), ("nothing-*",))
    assert names(chosen) == ["web-01"]


def test_without_names_and_criteria_nothing_is_meant() -> None:
    assert choose(ALL, [], Selection()) == Chosen(())


@pytest.mark.parametrize(
    ("name", "pattern"), [("web-01", False), ("web-*", True), ("w?b", True), ("[x", False), ("[ab]", True)]
)
def test_what_a_pattern_is(name: str, pattern: bool) -> None:
    assert is_pattern(name) is pattern


@given(st.lists(st.sampled_from(["web-*", "web-01", "*", "db-01", "x"]), max_size=4), st.sampled_from(ALL[:4]))
def test_nobody_is_chosen_twice_and_the_excluded_never(wanted: list[str], out: Candidate) -> None:
    chosen = names(choose(ALL, wanted, Selection(excluded=Criteria(names=(out.name,)))))
    assert len(chosen) == len(set(chosen))
    assert out.name not in chosen
