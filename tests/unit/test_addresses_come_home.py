"""What ran at the target comes home with the target's addresses on its disks: its guest gets back those that it had."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.addressed_world import GUEST, RULES, SET, fail_over, make_world, texts
from tests.support.coming_home import start, undo
from tests.support.world import World, source
from vrepl.engine.failover import introduction, readdressing
from vrepl.model import PowerState
from vrepl.model.addresses import AddressPolicy
from vrepl.model.failover import Start
from vrepl.report.addresses import AddressResult
from vrepl.report.failover import FailoverVm
from vrepl.report.model import Result
from vrepl.transport.hooks import SimulatedKill

HOME = texts(GUEST)
AROUND = [
    f"{moment} prod {call}"
    for call, moments in (
        ("give_addresses", ("before", "after")),
        ("power_on", ("before", "after")),
        ("reported_addresses", ("before",)),
    )
    for moment in moments
]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readdressing, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(introduction, "LOOK_EVERY", 0.01)


def away(folder: Path, policy: AddressPolicy = RULES) -> World:
    world = make_world(folder, policy)
    source(world).power = PowerState.OFF
    assert fail_over(world, Start()).state == "failed-over"
    source(world).guest = world.replica().guest or GUEST  # what comes home on the disks
    return world


def test_the_guest_has_its_own_addresses_again_and_undo_takes_that_back(tmp_path: Path) -> None:
    world = away(tmp_path / "repository")
    assert texts(world.replica().guest) == SET
    done = start(world)
    assert (done.result, done.state) == (Result.SUCCESS, "failing-back"), done.error
    assert texts(source(world).guest) == HOME
    assert done.addresses is not None
    assert done.addresses.result is AddressResult.SET
    assert done.addresses.lines == ["Network adapter 1: 10.2.7.5/24 -> 10.1.7.5/24 (reported after 0 s)"]
    assert undo(world).state == "failed-over"
    assert source(world).given is None
    assert texts(world.replica().guest) == SET


def test_without_rules_nothing_is_set_at_home(tmp_path: Path) -> None:
    world = away(tmp_path / "repository", AddressPolicy())
    done = start(world)
    assert (done.result, done.addresses) == (Result.SUCCESS, None), done.error


def test_a_home_that_refuses_keeps_nobody_from_coming_home(tmp_path: Path) -> None:
    world = away(tmp_path / "repository")
    source(world).tools_known = False
    done = start(world)
    assert done.result is Result.SUCCESS, done.error
    assert done.addresses is not None
    assert done.addresses.result is AddressResult.KEPT
    assert any("it keeps its addresses" in note for note in done.notes)


@pytest.mark.parametrize("where", AROUND)
def test_killed_around_the_power_on_at_home_the_guest_has_its_addresses(tmp_path: Path, where: str) -> None:
    world = away(tmp_path / "repository")
    killed: list[str] = []

    def kill_at(at: str) -> bool:
        if at == where and not killed:
            killed.append(at)
            return True
        return False

    world.kill_at = kill_at
    with pytest.raises(SimulatedKill):
        start(world)
    done: FailoverVm = start(world)
    assert (done.result, done.state) == (Result.SUCCESS, "failing-back"), done.error
    assert texts(source(world).guest) == HOME
    assert source(world).power is PowerState.ON
