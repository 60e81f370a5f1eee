"""What comes next in a failover: every state, every wish, and a death after every saved record and every act."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.memory_site import HARDWARE
from vrepl.model import PowerState, ReplicaState, Snapshot, VirtualMachine
from vrepl.model.failover import FAILOVER_BASE, KEPT_STATE, Commit, FailoverRecord, Start, Undo, Wish
from vrepl.planner.conflicts import ConflictKind, FailoverConflict, is_overdue, refuses_runs
from vrepl.planner.failover import (
    Act,
    Done,
    IntroduceGuest,
    KeepState,
    MergeSnapshots,
    PowerOff,
    PowerOn,
    PrepareGuest,
    Ready,
    RemoveSnapshot,
    RevertTo,
    SeenReplica,
    ShutDownGuest,
    StandOn,
    advance,
    needs_introduction,
    was_introduced,
)

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
POINTS = ("p1", "p2", "p3")


@dataclass
class Target:
    """A replica as small as can be: snapshots by name with their parents, what the leaf stands on, and power."""

    parents: dict[str, str | None] = field(default_factory=lambda: {"p1": None, "p2": "p1", "p3": "p2"})
    current: str | None = "p3"
    power: PowerState = PowerState.OFF
    dirty: bool = True
    """The leaf holds a part of a run that died."""
    guest_wrote: bool = False
    tests: tuple[str, ...] = ()
    tools_known: bool = True
    connected: bool = True
    boots: list[bool] = field(default_factory=list)
    """Each with its network adapters connected, or not."""

    def see(self) -> SeenReplica:
        snapshots = tuple(Snapshot(name, name, "", NOW, parent) for name, parent in self.parents.items())
        vm = VirtualMachine(
            "vm-1", "web-replica", "uuid", "uuid", self.power, "esx", "dc", "group", HARDWARE, (), snapshots,
            self.current,
        )  # fmt: skip
        by_name = {snapshot.name: snapshot for snapshot in snapshots}
        base = by_name.get(FAILOVER_BASE)
        kept = by_name.get(KEPT_STATE)
        return SeenReplica(
            vm=vm,
            restore_points={name: name for name in self.parents if name in POINTS},
            base=base,
            base_change_ids={2000: "52/7"} if base else None,
            kept_state=kept if kept and base and kept.parent_ref == base.ref else None,
            tests=self.tests,
        )

    def do(self, act: Act, record: FailoverRecord) -> FailoverRecord | None:
        """A record: what a driver saves because of what it met."""
        match act:
            case IntroduceGuest():
                if self.power is PowerState.OFF:
                    self.connected, self.power = False, PowerState.ON
                    self.boots.append(self.connected)
                self.tools_known, self.guest_wrote, self.power, self.connected = True, True, PowerState.OFF, True
                return was_introduced(record)
            case PrepareGuest() if not self.tools_known and not record.introduced:
                return needs_introduction(record, (4000,))
            case StandOn():
                assert self.power is PowerState.OFF
                self.parents[FAILOVER_BASE] = act.snapshot_ref
                self.current, self.dirty, self.guest_wrote = FAILOVER_BASE, False, False
            case PowerOn():
                self.power, self.guest_wrote = PowerState.ON, True
                self.boots.append(self.connected)
            case PowerOff() | ShutDownGuest():
                self.power = PowerState.OFF
            case KeepState():
                assert self.power is PowerState.OFF
                self.parents[KEPT_STATE] = self.current
                self.current = KEPT_STATE
            case RevertTo():
                assert self.power is PowerState.OFF
                self.current, self.dirty, self.guest_wrote = act.snapshot_ref, False, False
            case RemoveSnapshot():
                parent = self.parents.pop(act.snapshot_ref)
                self.parents = {n: parent if p == act.snapshot_ref else p for n, p in self.parents.items()}
                self.current = parent if self.current == act.snapshot_ref else self.current
            case MergeSnapshots():
                self.parents, self.current = {}, None
            case PrepareGuest():
                assert self.power is PowerState.OFF
        return None


class Died(Exception):
    pass


@dataclass
class Driver:
    """Saves, does, looks again; dies after so many savings and acts."""

    target: Target
    record: FailoverRecord
    lives: int = 10**6
    saved: list[FailoverRecord] = field(default_factory=list)

    def go(self, wish: Wish) -> Done | FailoverConflict:
        for _ in range(50):
            answer = advance(self.record, self.target.see(), wish)
            if not isinstance(answer, Ready):
                return answer
            assert answer.save is not None or answer.do, "a step that changes nothing would go on for ever"
            if answer.save is not None:
                assert answer.save.epoch > self.record.epoch
                self._step()
                self.record = answer.save
                self.saved.append(answer.save)
            for act in answer.do:
                self._step()
                after = self.target.do(act, self.record)
                if after is not None:
                    self._step()
                    self.record = after
                    self.saved.append(after)
                    break
        raise AssertionError("it does not come to an end")

    def _step(self) -> None:
        if self.lives == 0:
            raise Died
        self.lives -= 1


def a_record(**changes: object) -> FailoverRecord:
    return replace(FailoverRecord("repo", "prod", "src", "web", "uuid"), **changes)  # type: ignore[arg-type]


def failed_over(point: str | None = None, **start: object) -> Driver:
    driver = Driver(Target(), a_record())
    assert isinstance(driver.go(Start(point, **start)), Done)  # type: ignore[arg-type]
    return driver


WISHES: dict[str, list[Wish]] = {
    "start": [Start()],
    "start an older one": [Start("p1")],
    "undo": [Start("p2"), Undo()],
    "undo and keep": [Start("p2"), Undo(keep_state=True)],
    "commit": [Start(), Commit()],
    "undo by hand": [Undo()],
    "adopted": [Start(adopt=True), Undo()],
    "introduced": [Start()],
    "introduced and undone": [Start(), Undo()],
}
INTRODUCED = {"introduced", "introduced and undone"}
BY_HAND = {"undo by hand", "adopted"}


def begin(name: str) -> Target:
    if name in INTRODUCED:
        return Target(tools_known=False)
    return Target(power=PowerState.ON, guest_wrote=True) if name in BY_HAND else Target()


def deaths(name: str) -> Iterator[int]:
    driver = Driver(begin(name), a_record())
    for wish in WISHES[name]:
        driver.go(wish)
    yield from range(10**6 - driver.lives)


@pytest.mark.parametrize("name", WISHES)
def test_a_wish_comes_to_its_end(name: str) -> None:
    driver = Driver(begin(name), a_record())
    for wish in WISHES[name]:
        assert isinstance(driver.go(wish), Done), name
    match WISHES[name][-1]:
        case Start(restore_point=point):
            assert driver.record.state is ReplicaState.FAILED_OVER
            assert driver.target.power is PowerState.ON
            assert driver.target.parents[FAILOVER_BASE] == (point or "p3")
            assert driver.record.base_change_ids == {2000: "52/7"}
        case Undo():
            assert driver.record.state is ReplicaState.READY
            assert (driver.target.current, driver.target.power) == ("p3", PowerState.OFF)
            assert FAILOVER_BASE not in driver.target.parents
        case Commit():
            assert driver.record.state is ReplicaState.COMMITTED
            assert driver.target.parents == {}


@pytest.mark.parametrize(("name", "death"), [(name, death) for name in WISHES for death in deaths(name)])
def test_after_a_death_anywhere_the_same_commands_end_in_the_same_place(name: str, death: int) -> None:
    whole = Driver(begin(name), a_record())
    for wish in WISHES[name]:
        whole.go(wish)
    broken = Driver(begin(name), a_record(), lives=death)
    wishes = iter(WISHES[name])
    for wish in wishes:
        try:
            broken.go(wish)
        except Died:
            broken.lives = 10**6
            assert isinstance(broken.go(wish), Done)
            break
    else:
        raise AssertionError("it did not die")
    for wish in wishes:
        assert isinstance(broken.go(wish), Done)
    assert replace(broken.record, epoch=0) == replace(whole.record, epoch=0)
    broken.target.boots, whole.target.boots = broken.target.boots[-1:], whole.target.boots[-1:]
    assert broken.target == whole.target


@given(st.integers(0, 12), st.sampled_from(["start", "start an older one"]), st.booleans())
def test_a_failover_that_died_anywhere_can_be_undone_and_harms_no_restore_point(
    death: int, name: str, keep: bool
) -> None:
    driver = Driver(Target(), a_record(), lives=death)
    with suppress(Died):
        driver.go(WISHES[name][0])
    driver.lives = 10**6
    assert isinstance(driver.go(Undo(keep_state=keep)), Done)
    assert set(POINTS) <= set(driver.target.parents)
    if driver.saved:
        assert driver.record.state is ReplicaState.READY
        assert (driver.target.current, driver.target.dirty) == ("p3", False), "a dead run's leaf does not outlive it"


def test_an_undone_failover_keeps_what_ran_where_it_is_asked_to() -> None:
    driver = failed_over("p2")
    driver.go(Undo(keep_state=True))
    assert driver.target.parents[KEPT_STATE] == "p2"
    assert driver.target.current == "p3"


def test_failing_over_again_takes_a_new_base_and_the_state_that_was_kept_stays() -> None:
    driver = failed_over("p2", deadline=NOW)
    driver.go(Undo())
    assert KEPT_STATE in driver.target.parents, "a failover with a deadline keeps what ran, whoever undoes it"
    assert isinstance(driver.go(Start()), Done)
    assert driver.target.parents[FAILOVER_BASE] == "p3"
    assert driver.target.parents[KEPT_STATE] == "p2"


@pytest.mark.parametrize(
    ("record", "target", "wish", "kind"),
    [
        (a_record(), Target(parents={}, current=None), Start(), ConflictKind.NO_RESTORE_POINT),
        (a_record(), Target(), Start("p9"), ConflictKind.NO_RESTORE_POINT),
        (a_record(), Target(power=PowerState.ON), Start(), ConflictKind.POWERED_ON_BY_HAND),
        (a_record(), Target(), Commit(), ConflictKind.NOT_FAILED_OVER),
        (a_record(state=ReplicaState.COMMITTED), Target(), Start(), ConflictKind.COMMITTED),
        (a_record(state=ReplicaState.COMMITTED), Target(), Undo(), ConflictKind.COMMITTED),
        (a_record(state=ReplicaState.UNDONE), Target(), Start(), ConflictKind.OTHER_TRANSITION),
        (a_record(state=ReplicaState.FAILING_BACK), Target(), Undo(), ConflictKind.OTHER_TRANSITION),
        (a_record(state=ReplicaState.FAILING_BACK), Target(), Commit(), ConflictKind.OTHER_TRANSITION),
        (
            a_record(state=ReplicaState.FAILING_OVER, restore_point="p1"), Target(), Start("p2"),
            ConflictKind.OTHER_TRANSITION,
        ),
        (a_record(state=ReplicaState.FAILED_OVER), Target(tests=("t",)), Commit(), ConflictKind.TEST_RUNS),
    ],
)  # fmt: skip
def test_what_cannot_be_is_a_typed_conflict(
    record: FailoverRecord, target: Target, wish: Wish, kind: ConflictKind
) -> None:
    answer = advance(record, target.see(), wish)
    assert isinstance(answer, FailoverConflict)
    assert answer.kind is kind


@pytest.mark.parametrize(("down", "planned", "goes"), [(False, False, False), (True, False, True), (False, True, True)])
def test_a_source_that_runs_is_asked_about(down: bool, planned: bool, goes: bool) -> None:
    seen = replace(Target().see(), source_runs=True)
    answer = advance(a_record(), seen, Start(source_is_down=down, planned=planned))
    assert isinstance(answer, Ready) is goes


def test_the_claim_is_saved_before_anything_is_done() -> None:
    answer = advance(a_record(), Target().see(), Start())
    assert isinstance(answer, Ready)
    assert answer.save is not None
    assert answer.save.state is ReplicaState.FAILING_OVER
    assert answer.do == ()


def test_a_failed_over_replica_that_was_powered_off_runs_again() -> None:
    driver = failed_over()
    driver.target.power = PowerState.OFF
    driver.go(Start())
    assert driver.target.power is PowerState.ON


@pytest.mark.parametrize("state", list(ReplicaState))
def test_a_run_touches_a_replica_only_when_it_is_ready(state: ReplicaState) -> None:
    conflict = refuses_runs(a_record(state=state, restore_point="p1"), Target().see().vm)
    assert (conflict is None) is (state is ReplicaState.READY)
    if conflict is not None:
        assert "vrepl fail" in conflict.hint


def test_a_deadline_counts_only_for_what_is_failed_over() -> None:
    late = a_record(state=ReplicaState.FAILED_OVER, deadline=NOW)
    assert is_overdue(late, NOW)
    assert not is_overdue(late, NOW - dt.timedelta(seconds=1))
    assert not is_overdue(replace(late, state=ReplicaState.COMMITTED), NOW)


def test_a_guest_whose_tools_are_not_known_runs_once_without_networks_and_only_once() -> None:
    driver = Driver(Target(tools_known=False), a_record())
    assert isinstance(driver.go(Start()), Done)
    assert driver.target.boots == [False, True]
    assert (driver.record.introducing, driver.record.introduced) == (None, True)
    driver.go(Undo())
    assert not driver.record.introduced, "the next failover may have to do it again"


def test_networks_that_are_said_when_it_goes_on_replace_those_of_the_first_try() -> None:
    driver = Driver(Target(), a_record(), lives=3)
    with suppress(Died):
        driver.go(Start(networks={"lan": "gone"}))
    driver.lives = 10**6
    assert isinstance(driver.go(Start(networks={"lan": "dr-lan"})), Done)
    assert driver.record.networks == {"lan": "dr-lan"}
    driver.go(Start())
    assert driver.record.networks == {"lan": "dr-lan"}
