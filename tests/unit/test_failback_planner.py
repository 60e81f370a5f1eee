"""What must cross on the way home is found, whatever is known of the two disks; and what cannot be is said."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.memory_site import HARDWARE
from vrepl.extents import GRAIN, Extent, from_grains, grains_of
from vrepl.model import PowerState, ReplicaState, Snapshot, TrackingPosition, TransferKind, VirtualMachine
from vrepl.model.failover import (
    FAILOVER_BASE,
    CommitFailback,
    FailbackPhase,
    FailbackRecord,
    FailbackWish,
    FailoverRecord,
    StartFailback,
    UndoFailback,
)
from vrepl.planner.conflicts import ConflictKind, FailoverConflict
from vrepl.planner.disks import UnfinishedDisk
from vrepl.planner.failback import Cross, FailbackReady, PowerOnOriginal, PowerOnReplica, SeenFailback, advance_failback
from vrepl.planner.failover import SeenReplica
from vrepl.planner.homeward import Ask, Homeward, HomewardWay, Read, choose_way, decide_homeward, ran_since, read_whole

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
GRAINS = 6
CAPACITY = GRAINS * GRAIN


def position(change_id: str | None) -> TrackingPosition:
    return TrackingPosition(change_id, "disk", "[ds] vm/vm.vmdk", CAPACITY)


PLANNED = Homeward(
    now=position("r/9"), base=position("r/5"), original_then=position("o/3"), original_now=position("o/4"),
    shut_down_cleanly=True, digests_known=True,
)  # fmt: skip
HALF_DONE = UnfinishedDisk([Extent(0, CAPACITY)], [Extent(0, GRAIN)], 2 * GRAIN, position("r/7"), ())
DONE = replace(HALF_DONE, done=[Extent(0, CAPACITY)], allowed=CAPACITY)


@pytest.mark.parametrize(
    ("facts", "replica", "original", "compares"),
    [
        (PLANNED, Ask("r/5"), Ask("o/3"), False),
        (replace(PLANNED, digests_known=False), Ask("r/5"), Ask("o/3"), False),
        (replace(PLANNED, shut_down_cleanly=False), Read(), Read(), False),
        (replace(PLANNED, shut_down_cleanly=False, digests_known=False), None, None, True),
        (replace(PLANNED, base=None), Read(), Ask("o/3"), False),
        (replace(PLANNED, base=position("q/5")), Read(), Ask("o/3"), False),
        (replace(PLANNED, base=position("q/5"), digests_known=False), None, None, True),
        (replace(PLANNED, original_now=position("p/4")), Ask("r/5"), Read(), False),
        (replace(PLANNED, original_now=position(None)), Ask("r/5"), Read(), False),
        (replace(PLANNED, begun=True), None, None, True),
        (replace(PLANNED, begun=True, unfinished=DONE), Ask("r/7"), None, True),
        (replace(PLANNED, begun=True, unfinished=HALF_DONE, now=position("s/9")), None, None, True),
        (replace(PLANNED, made=True), None, None, False),
    ],
)  # fmt: skip
def test_tracking_is_asked_where_it_counts_and_disks_are_read_where_not(
    facts: Homeward, replica: object, original: object, compares: bool
) -> None:
    way = choose_way(facts)
    assert (way.replica, way.original, way.compare_with_target) == (replica, original, compares)
    assert way.whole_disk is (replica is None)
    assert way.reason


def test_what_an_unfinished_crossing_owes_is_carried_and_what_it_may_have_written_is_written() -> None:
    way = choose_way(replace(PLANNED, begun=True, unfinished=HALF_DONE))
    assert way.carry == (Extent(GRAIN, CAPACITY - GRAIN),)
    assert way.dirty == (Extent(0, 2 * GRAIN),)
    assert choose_way(replace(PLANNED, begun=True, unfinished=DONE)).dirty == ()


def test_a_write_after_the_guest_was_seen_to_shut_down_proves_that_it_ran_since() -> None:
    assert ran_since([Extent(0, 1)], powered_off_then=True)
    assert not ran_since([], powered_off_then=True)
    assert not ran_since([Extent(0, 1)], powered_off_then=False), "an older point: it ran on after that, of course"


disks = st.lists(st.integers(0, 2), min_size=GRAINS, max_size=GRAINS)
some = st.sets(st.integers(0, GRAINS - 1))


def differing(one: list[int], other: list[int], false_positives: set[int]) -> list[Extent]:
    return from_grains({index for index in range(GRAINS) if one[index] != other[index]} | false_positives, CAPACITY)


def crossed(way: HomewardWay, point: list[int], replica: list[int], original: list[int], told: Any) -> list[int]:
    """The original after a crossing, by the rules of `transport.write_rules`."""
    decision, regions = decide_homeward(way, told[0], told[1], CAPACITY)
    result = list(original)
    for index in [grain for region in regions for grain in grains_of(region)]:
        dirty = any(index in grains_of(extent) for extent in decision.dirty)
        known = original[index] if decision.compare_with_target else point[index]
        if dirty or known != replica[index]:
            result[index] = replica[index]
    return result


@given(disks, disks, disks, some, some, st.booleans(), st.booleans())
def test_home_equals_the_replica_however_it_was_found_out(
    point: list[int], replica: list[int], original: list[int], mine: set[int], theirs: set[int], planned: bool,
    digests: bool,
) -> None:  # fmt: skip
    """Values are what grains hold; where tracking names more than what changed, that harms nothing."""
    facts = replace(PLANNED, shut_down_cleanly=planned, digests_known=digests)
    told = (differing(replica, point, mine), differing(original, point, theirs))
    assert crossed(choose_way(facts), point, replica, original, told) == replica
    assert crossed(read_whole(facts, "it is asked for"), point, replica, original, told) == replica


@given(disks, disks, disks, disks, st.integers(0, GRAINS))
def test_home_equals_the_replica_after_a_crossing_that_died_and_a_guest_that_wrote_on(
    point: list[int], then: list[int], now: list[int], original: list[int], done: int
) -> None:
    """The first `done` grains crossed as they were then; the one after them may hold anything."""
    facts = replace(PLANNED, begun=True)
    half = [*then[:done], *original[done:]]
    settled = [Extent(0, done * GRAIN)] if done else []
    everything = [Extent(0, CAPACITY)]
    unfinished = UnfinishedDisk(everything, settled, min((done + 1) * GRAIN, CAPACITY), position("r/7"), ())
    way = choose_way(replace(facts, unfinished=unfinished))
    assert crossed(way, point, now, half, (differing(now, then, set()), [])) == now


# -- the states -------------------------------------------------------------------------------------------------------


def a_vm(name: str, power: PowerState, *snapshots: Snapshot) -> VirtualMachine:
    current = snapshots[-1].ref if snapshots else None
    return VirtualMachine(name, name, name, name, power, "esx", "dc", "group", HARDWARE, (), snapshots, current)


BASE = Snapshot("base", FAILOVER_BASE, "", NOW, "p1")
POINT = Snapshot("p1", "vrepl p1", "", NOW, None)


def seen(
    replica: PowerState = PowerState.ON, original: PowerState | None = PowerState.OFF, **more: Any
) -> SeenFailback:
    vm = a_vm("replica", replica, POINT, BASE)
    return SeenFailback(
        SeenReplica(vm, {"p1": "p1"}, base=BASE), None if original is None else a_vm("web", original), **more
    )


FAILED_OVER = FailoverRecord(
    "repo", "prod", "web", "web", "replica", state=ReplicaState.FAILED_OVER, restore_point="p1"
)


def on_its_way(phase: FailbackPhase, **more: Any) -> FailoverRecord:
    back = FailbackRecord("f1", "prod", "web", phase, **more)
    return replace(FAILED_OVER, state=ReplicaState.FAILING_BACK, failback=back)


START = StartFailback("f1", "prod")
COMMIT = CommitFailback("p2", NOW)


@pytest.mark.parametrize(
    ("record", "what", "wish", "kind"),
    [
        (FAILED_OVER, seen(original=PowerState.ON), START, ConflictKind.ORIGINAL_RUNS),
        (FAILED_OVER, seen(original=PowerState.SUSPENDED), START, ConflictKind.ORIGINAL_RUNS),
        (FAILED_OVER, seen(original=None), START, ConflictKind.ORIGINAL_GONE),
        (FAILED_OVER, seen(differs="it grew"), START, ConflictKind.DISKS_DIFFER),
        (replace(FAILED_OVER, restore_point="p9"), seen(), START, ConflictKind.NO_RESTORE_POINT),
        (replace(FAILED_OVER, state=ReplicaState.READY), seen(), START, ConflictKind.NOT_FAILED_OVER),
        (replace(FAILED_OVER, state=ReplicaState.COMMITTED), seen(), START, ConflictKind.COMMITTED),
        (replace(FAILED_OVER, state=ReplicaState.FAILING_OVER), seen(), START, ConflictKind.OTHER_TRANSITION),
        (replace(FAILED_OVER, state=ReplicaState.UNDONE), seen(), UndoFailback(), ConflictKind.OTHER_TRANSITION),
        (replace(FAILED_OVER, state=ReplicaState.READY), seen(), UndoFailback(), ConflictKind.NOT_HOME),
        (FAILED_OVER, seen(), COMMIT, ConflictKind.NOT_HOME),
        (on_its_way(FailbackPhase.COMPARING), seen(), COMMIT, ConflictKind.NOT_HOME),
        (on_its_way(FailbackPhase.HOME), seen(original=PowerState.ON), COMMIT, ConflictKind.POWERED_ON_BY_HAND),
        (on_its_way(FailbackPhase.COMMITTING), seen(), UndoFailback(), ConflictKind.COMMITTED),
        (on_its_way(FailbackPhase.COMMITTING), seen(), START, ConflictKind.COMMITTED),
        (on_its_way(FailbackPhase.UNDOING), seen(), START, ConflictKind.OTHER_TRANSITION),
        (on_its_way(FailbackPhase.COMPARING), seen(original=PowerState.ON), START, ConflictKind.ORIGINAL_RUNS),
    ],
)
def test_what_cannot_be_is_a_typed_conflict(
    record: FailoverRecord, what: SeenFailback, wish: FailbackWish, kind: ConflictKind
) -> None:
    answer = advance_failback(record, what, wish)
    assert isinstance(answer, FailoverConflict)
    assert answer.kind is kind


def test_the_claim_and_the_first_crossing_are_saved_before_anything_is_done() -> None:
    claim = advance_failback(FAILED_OVER, seen(), START)
    assert isinstance(claim, FailbackReady)
    assert claim.save is not None
    assert (claim.save.state, claim.do) == (ReplicaState.FAILING_BACK, ())
    undo = Snapshot("undo", "before", "", NOW, None)
    first = advance_failback(on_its_way(FailbackPhase.PREPARING), seen(undo=undo), START)
    assert isinstance(first, FailbackReady)
    assert first.do == (Cross(first=True),)
    again = advance_failback(on_its_way(FailbackPhase.COMPARING), seen(undo=undo), START)
    assert again == FailbackReady(None, (Cross(),)), "from then on it may have written"


@pytest.mark.parametrize("phase", list(FailbackPhase))
@pytest.mark.parametrize("wish", [START, UndoFailback(), COMMIT])
@pytest.mark.parametrize("runs", [(True, False), (False, True), (True, True), (False, False)])
def test_nothing_is_powered_on_while_the_other_one_runs(
    phase: FailbackPhase, wish: FailbackWish, runs: tuple[bool, bool]
) -> None:
    replica, original = (PowerState.ON if on else PowerState.OFF for on in runs)
    undo = Snapshot("undo", "before", "", NOW, None)
    for crossing in ("", "f1-1", "f1-2"):
        answer = advance_failback(
            on_its_way(phase, crossing=2), seen(replica, original, undo=undo, crossed=crossing), wish
        )
        acts = answer.do if isinstance(answer, FailbackReady) else ()
        assert PowerOnOriginal() not in acts or not runs[0]
        assert PowerOnReplica() not in acts or not runs[1]


def test_a_replica_that_runs_again_is_shut_down_and_caught_up_with_once_more() -> None:
    for phase in (FailbackPhase.CATCHING_UP, FailbackPhase.STARTING):
        answer = advance_failback(on_its_way(phase, crossing=2), seen(crossed="f1-2"), START)
        assert isinstance(answer, FailbackReady)
        assert answer.save is not None
        assert answer.save.failback is not None
        assert answer.save.failback.phase is FailbackPhase.SHUTTING_DOWN
    off = advance_failback(on_its_way(FailbackPhase.SHUTTING_DOWN, crossing=2), seen(PowerState.OFF), START)
    assert isinstance(off, FailbackReady)
    assert off.save is not None
    assert off.save.failback is not None
    assert off.save.failback.crossing_id == "f1-3", "the crossing that ended before does not count for it"


def test_kinds_tell_what_was_asked() -> None:
    assert choose_way(PLANNED).kind is TransferKind.INCREMENTAL
    assert choose_way(replace(PLANNED, shut_down_cleanly=False)).kind is TransferKind.COMPARE
