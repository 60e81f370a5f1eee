"""A run here and a failover at the other site, call by call in turns that a seed draws: they end in one truth."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from tests.support.memory_site import MemoryVm
from tests.support.world import World, source
from vrepl.engine.context import FailoverContext
from vrepl.engine.failover.command import Failovers
from vrepl.engine.failover.replicas import choose
from vrepl.extents import GRAIN
from vrepl.model import PowerState
from vrepl.model.failover import Start, Undo, Wish
from vrepl.report.failover import FailoverVm
from vrepl.report.model import Result, VmReport

LONGEST_TURN = 8
PATIENCE = 0.05
"""Seconds until who waits for its turn takes it: the other one waits for something that is no call."""


class Turns:
    """Of two sides, one goes on by some calls, then the other one; whoever has ended has no turn any more."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._changed = threading.Condition()
        self._mine = self._random.random() < 0.5
        self._left = self._random.randint(1, LONGEST_TURN)
        self._ended: set[bool] = set()
        self.changes = 0

    def call(self, mine: bool) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._mine == mine or (not mine) in self._ended, PATIENCE)
            self._left -= 1
            if self._left <= 0:
                self._mine = not mine
                self._left = self._random.randint(1, LONGEST_TURN)
                self.changes += not self._ended
                self._changed.notify_all()

    def end(self, mine: bool) -> None:
        with self._changed:
            self._ended.add(mine)
            self._changed.notify_all()


def contents(vm: MemoryVm) -> list[object]:
    return [disk.disk.content() for disk in vm.disks]


def at_the_other_site(world: World, wish: Wish) -> FailoverVm:
    """Another machine: no repository of this one's, no lock."""
    elsewhere = World(world.folder.with_name("elsewhere"))
    services = elsewhere.engine().services
    failovers = Failovers(FailoverContext(services, world.target), None)
    [replica] = choose(failovers.find(), ["web-01"])
    return failovers.run_one(replica, wish)


def side_by_side(world: World, turns: Turns, wish: Wish) -> tuple[VmReport, FailoverVm]:
    theirs: list[FailoverVm] = []

    def other() -> None:
        try:
            theirs.append(at_the_other_site(world, wish))
        finally:
            turns.end(False)

    thread = threading.Thread(target=other)
    sites = (world.source, world.target)
    before = [site.before_call for site in sites]
    for site in sites:
        site.before_call = lambda _method: turns.call(threading.current_thread() is not thread)
    thread.start()
    try:
        report = world.run_vm()
    finally:
        turns.end(True)
        thread.join()
        for site, call in zip(sites, before, strict=True):
            site.before_call = call
    return report, theirs[0]


def they_end_in_one_truth(folder: Path, seed: int) -> int:
    """Returns how often the turn went from one to the other while both were at work."""
    world = World(folder / "repository")
    vm = world.source.add_vm("web-01", [8 * GRAIN, 2 * GRAIN])
    for number in range(3):
        world.source.guest_write(vm, 0, number * GRAIN, bytes([number + 1]) * GRAIN)
        assert world.run_vm().result is Result.SUCCESS
    world.source.guest_write(vm, 0, 6 * GRAIN, b"what the run is about".ljust(GRAIN, b"."))
    points = world.restore_point_contents()
    turns = Turns(seed)
    report, done = side_by_side(world, turns, Start())
    if done.result is not Result.SUCCESS:  # where the leaf was still open for writing, it could not revert
        done = at_the_other_site(world, Start())
    assert (done.result, done.state) == (Result.SUCCESS, "failed-over"), done.error
    kept = world.restore_point_contents()
    assert {point: kept[point] for point in points if point in kept}.items() <= points.items()
    for point in set(kept) - set(points):
        assert kept[point] == contents(source(world)), "what was sealed in time is whole"
    assert report.result in {Result.SUCCESS, Result.SKIPPED, Result.FAILED}
    assert report.restore_point in {None, *kept}
    assert contents(world.replica()) == kept[done.restore_point or ""]
    assert world.replica().power is PowerState.ON
    assert world.our_source_snapshots() == []
    assert world.run_vm().result is Result.SKIPPED, "both know what the replica is"
    assert at_the_other_site(world, Undo()).state == "ready"
    assert world.run_vm().result is Result.SUCCESS
    assert contents(world.replica()) == contents(source(world))
    return turns.changes


SEALED_IN_BETWEEN = 293
"""Of turns in which the run seals after the failover has reverted, and before it has its base."""


@pytest.mark.slow
def test_a_run_and_a_failover_that_take_turns_end_in_one_truth(tmp_path: Path) -> None:
    changes = [they_end_in_one_truth(tmp_path / str(seed), seed) for seed in (*range(5), SEALED_IN_BETWEEN)]
    assert sum(changes) > 2 * len(changes), "they met"


@pytest.mark.long
def test_a_run_and_a_failover_that_take_many_turns_end_in_one_truth(tmp_path: Path) -> None:
    for seed in range(100, 400):
        try:
            they_end_in_one_truth(tmp_path / str(seed), seed)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
