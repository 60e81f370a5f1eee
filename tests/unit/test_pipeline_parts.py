"""What the pipeline stands on: who hashes a block that arrives, and how much may be in flight."""

from __future__ import annotations

import threading
from queue import SimpleQueue

import pytest

from vrepl.transport.buffers import MIB
from vrepl.transport.depth import Depth
from vrepl.transport.hashing import Hashing
from vrepl.transport.slots import Slot

PATIENCE = 10.0


def new_slot() -> Slot:
    return Slot(lambda slot: None, lambda slot: None, compares=False)


def test_what_arrives_while_the_owner_hashes_is_hashed_by_a_helper_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = new_slot(), new_slot(), new_slot()
    helped: SimpleQueue[Slot] = SimpleQueue()
    hashing = Hashing(1, helped.put)
    by: dict[Slot, str] = {}
    third_done = threading.Event()

    def hash_slot(slot: Slot) -> None:
        by[slot] = threading.current_thread().name
        if slot is first:
            hashing.arrived(second)
            hashing.arrived(third)
            assert third_done.wait(PATIENCE), "nobody helped"
        elif slot is third:
            third_done.set()

    monkeypatch.setattr(Slot, "hash", hash_slot)
    hashing.start()
    try:
        hashing.arrived(first)
        taken = hashing.take()
        assert taken is first
        hashing.hash(taken)
        assert [helped.get(timeout=PATIENCE), helped.get(timeout=PATIENCE)] == [second, third]
        assert hashing.take() is None, "each is hashed once"
    finally:
        hashing.end()
    assert by == {first: threading.current_thread().name, second: "hasher-0", third: "hasher-0"}


def test_the_one_buffer_that_arrives_meanwhile_is_left_to_the_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = new_slot(), new_slot()
    by: dict[Slot, str] = {}
    helped: SimpleQueue[Slot] = SimpleQueue()
    hashing = Hashing(1, helped.put)

    def hash_slot(slot: Slot) -> None:
        by[slot] = threading.current_thread().name
        if slot is first:
            hashing.arrived(second)

    monkeypatch.setattr(Slot, "hash", hash_slot)
    hashing.start()
    hashing.hash(first)
    hashing.end()  # whatever the helper was woken for is done by then
    assert hashing.take() is second
    assert helped.empty()
    assert by == {first: threading.current_thread().name}


def test_an_owner_that_waits_for_its_disks_is_not_helped() -> None:
    hashing = Hashing(1, lambda slot: None)
    hashing.start()
    try:
        slots = [new_slot(), new_slot()]
        for slot in slots:
            hashing.arrived(slot)
        assert hashing.held == 2
        assert [hashing.take(), hashing.take()] == slots
    finally:
        hashing.end()


def test_a_mistake_in_a_helper_is_told_with_the_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = new_slot(), new_slot(), new_slot()
    helped: SimpleQueue[Slot] = SimpleQueue()
    hashing = Hashing(1, helped.put)
    third_done = threading.Event()

    def hash_slot(slot: Slot) -> None:
        if slot is second:
            raise RuntimeError("out of digests")
        if slot is first:
            hashing.arrived(second)
            hashing.arrived(third)
            assert third_done.wait(PATIENCE), "nobody helped"
        third_done.set()

    monkeypatch.setattr(Slot, "hash", hash_slot)
    hashing.start()
    try:
        hashing.hash(first)
        assert helped.get(timeout=PATIENCE) is second
    finally:
        hashing.end()
    assert second.error is not None
    assert "RuntimeError: out of digests" in second.error.message


@pytest.mark.parametrize(
    ("mib_s", "reads", "in_use"),
    [
        (0, 1, 8),  # one read of 2 MiB, whatever the rate
        (20, 2, 8),
        (100, 8, 8),
        (1400, 8, 8),
        (1600, 8, 6),  # as much as the processor's cache holds of it
    ],
)
def test_as_much_is_in_flight_as_a_stop_can_wait_for(mib_s: int, reads: int, in_use: int) -> None:
    depth = Depth(8, 2 * MIB, 12 * MIB)
    assert (depth.reads, depth.in_use) == (2, 8), "before anything has arrived"
    depth.follow(mib_s * MIB)
    assert (depth.reads, depth.in_use) == (reads, in_use)
