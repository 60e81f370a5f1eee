"""Promises of admission: no limit is ever passed, nothing that could start is left waiting, and all ends."""

from __future__ import annotations

import random
from collections.abc import Hashable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrepl.admission import Admission, Demand, Resource, Room, Scarce, Start, room
from vrepl.errors import UsageError

HOST_A, HOST_B = Resource(Scarce.NFC, "esx-a"), Resource(Scarce.NFC, "esx-b")
VCENTER, STORE = Resource(Scarce.CONNECTIONS, "vc"), Resource(Scarce.SNAPSHOTS, "ds")
LIMITS = {Scarce.NFC: 32.0, Scarce.CONNECTIONS: 5.0, Scarce.SNAPSHOTS: 2.0, Scarce.SLOTS: 2.0, Scarce.DISKS: 4.0}


def limit_of(resource: Resource) -> float:
    return LIMITS[resource.kind]


def keys(admission: Admission) -> list[object]:
    return [start.demand.key for start in admission.admit()]


def test_a_host_takes_as_many_disks_as_its_budget_has_buffers_for() -> None:
    admission = Admission(limit_of)
    for number in range(20):
        admission.offer(Demand(number, {HOST_A: 4.0}))
    assert keys(admission) == list(range(8))
    assert keys(admission) == []
    admission.release(3)
    assert keys(admission) == [8]
    assert admission.used(HOST_A) == 32.0


def test_another_host_is_not_held_up_by_a_full_one() -> None:
    admission = Admission(limit_of)
    for number in range(9):
        admission.offer(Demand(number, {HOST_A: 4.0}))
    admission.offer(Demand("b", {HOST_B: 4.0}))
    assert keys(admission)[-1] == "b"


def test_both_ends_of_a_disk_are_counted() -> None:
    admission = Admission(limit_of)
    for number in range(5):
        admission.offer(Demand(number, {HOST_A: 8.0, HOST_B: 4.0, VCENTER: 2.0}))
    assert keys(admission) == [0, 1], "five connections are two disks with two each"


def test_the_largest_starts_first_and_equals_in_the_order_of_their_arrival() -> None:
    admission = Admission(limit_of)
    for key, size in (("a", 1), ("b", 9), ("c", 9), ("d", 2)):
        admission.offer(Demand(key, {STORE: 1.0}, size=size))
    assert keys(admission) == ["b", "c"]
    admission.release("c")
    assert keys(admission) == ["d"]


def test_the_proxy_with_the_most_free_slots_takes_the_disk() -> None:
    admission = Admission(limit_of)
    for number in range(5):
        admission.offer(Demand(number, {}, proxies=("p", "q")))
    assert [start.proxy for start in admission.admit()] == ["p", "q", "p", "q"]
    admission.release(1)
    assert [(start.demand.key, start.proxy) for start in admission.admit()] == [(4, "q")]


def test_groups_of_proxies_that_overlap_share_their_slots() -> None:
    admission = Admission(limit_of)
    for number in range(3):
        admission.offer(Demand(number, {}, proxies=("p",)))
    admission.offer(Demand("either", {}, proxies=("p", "q")))
    assert keys(admission) == [0, 1, "either"]
    admission.release(0)
    assert keys(admission) == [2]


def test_what_does_not_want_to_start_any_more_holds_up_nobody() -> None:
    admission = Admission(limit_of)
    for key in ("a", "b", "c", "d"):
        admission.offer(Demand(key, {STORE: 1.0}))
    assert keys(admission) == ["a", "b"]
    admission.withdraw("c")
    admission.release("a")
    assert keys(admission) == ["d"]
    assert admission.waiting == 0


def test_a_demand_that_can_never_be_met_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="64 MiB of NFC buffers are needed of esx-a, and the limit is 32"):
        Admission(limit_of).offer(Demand(1, {HOST_A: 64.0}))


@pytest.mark.parametrize(
    ("needed", "free", "promised", "verdict"),
    [
        (10, 10, 0, Room.ENOUGH),
        (10, 30, 20, Room.ENOUGH),
        (10, 29, 20, Room.LATER),
        (10, 9, 1, Room.LATER),
        (10, 9, 0, Room.NEVER),
        (0, 0, 0, Room.ENOUGH),
    ],
)
def test_room_on_the_target(needed: int, free: int, promised: int, verdict: Room) -> None:
    assert room(needed, free, promised) is verdict


RESOURCES = [Resource(kind, name) for kind in (Scarce.NFC, Scarce.CONNECTIONS, Scarce.SNAPSHOTS) for name in "ab"]
NEEDS = st.dictionaries(st.sampled_from(RESOURCES), st.sampled_from([0.5, 1.0, 2.0]), max_size=4)
GROUPS = st.sampled_from([(), ("p",), ("p", "q"), ("q", "r", "s")])
Work = tuple[dict[Resource, float], tuple[str, ...], int]


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(NEEDS, GROUPS, st.integers(0, 3)), max_size=30),
    st.randoms(use_true_random=False),
)
def test_whatever_is_asked_no_limit_is_passed_and_all_gets_its_turn(work: list[Work], order: random.Random) -> None:
    admission = Admission(limit_of)
    demands = {number: Demand(number, needs, proxies, size=size) for number, (needs, proxies, size) in enumerate(work)}
    waiting, running = set[Hashable](demands), dict[Hashable, Start]()
    offered = list(demands.values())
    while waiting or running:
        for demand in offered[:7]:
            admission.offer(demand)
        offered = offered[7:]
        for start in admission.admit():
            waiting.remove(start.demand.key)
            running[start.demand.key] = start
        held: dict[Resource, float] = {}
        for start in running.values():
            assert (start.proxy is None) == (not start.demand.proxies)
            assert start.proxy is None or start.proxy in start.demand.proxies
            slot = {Resource(Scarce.SLOTS, start.proxy): 1.0} if start.proxy else {}
            for resource, amount in {**start.demand.needs, **slot}.items():
                held[resource] = held.get(resource, 0.0) + amount
        assert all(amount <= limit_of(resource) for resource, amount in held.items())
        assert admission.admit() == [], "what can start starts at once"
        assert running or not waiting or offered, "something waits although nothing runs"
        if running:
            ended = order.choice(list(running))
            del running[ended]
            admission.release(ended)
    assert admission.waiting == 0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(RESOURCES), st.sampled_from(RESOURCES)), min_size=1, max_size=40))
@pytest.mark.slow
def test_no_room_is_left_unused_while_equal_demands_wait_for_it(pairs: list[tuple[Resource, Resource]]) -> None:
    admission = Admission(limit_of)
    demands = [Demand(number, dict.fromkeys(pair, 1.0)) for number, pair in enumerate(pairs)]
    for demand in demands:
        admission.offer(demand)
    left: dict[Hashable, Demand] = {demand.key: demand for demand in demands}
    running: list[Hashable] = []
    while left or running:
        for start in admission.admit():
            del left[start.demand.key]
            running.append(start.demand.key)
        for demand in left.values():
            assert any(admission.used(resource) >= limit_of(resource) for resource in demand.needs)
        admission.release(running.pop(0))
