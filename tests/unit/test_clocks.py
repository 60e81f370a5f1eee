"""A clock that is wrong removes nothing: it is compared with the vCenters', and never decides alone."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.world import World, source
from vrepl.errors import VreplError
from vrepl.extents import GRAIN
from vrepl.model import RetentionPolicy
from vrepl.report.model import Result
from vrepl.repository.store import Repository

DAY = dt.timedelta(days=1)
YEAR = dt.timedelta(days=365)


class Shifted:
    """The same moment, by a clock that is off."""

    def __init__(self, world: World, by: dt.timedelta) -> None:
        self.world, self.by = world, by

    @property
    def now(self) -> dt.datetime:
        return self.world.clock.now + self.by

    def __call__(self) -> dt.datetime:
        return self.world.clock() + self.by


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Five days of replication, each of which the job keeps."""
    world = World(tmp_path / "repository")
    world.job = replace(world.job, retention=RetentionPolicy(last=1, daily=5))
    world.source.add_vm("web-01", [4 * GRAIN])
    for _ in range(5):
        assert run(world) is Result.SUCCESS
        world.clock.now += DAY
    assert len(points(world)) == 5
    return world


def run(world: World, off: dt.timedelta = dt.timedelta()) -> Result:
    """A run whose control host's clock is off by so much."""
    world.source.guest_write(source(world), 0, GRAIN, world.clock.now.isoformat().encode())
    engine = world.engine()
    engine.services.clock = Shifted(world, off)
    [report] = engine.replicate(world.job).vms
    return report.result


def points(world: World) -> set[str]:
    return set(world.restore_point_contents())


@pytest.mark.parametrize("off", [YEAR, -YEAR, dt.timedelta(minutes=11)])
def test_a_wrong_clock_is_refused_before_anything_is_made(world: World, off: dt.timedelta) -> None:
    before = points(world)
    with pytest.raises(VreplError, match=r"clock of this machine is .* site prod and .* site dr") as caught:
        run(world, off)
    assert "NTP" in (caught.value.hint or "")
    assert points(world) == before
    assert len(Repository.open(world.folder).runs()) == 5


def test_a_clock_that_drifts_a_little_is_no_reason_to_stop(world: World) -> None:
    assert run(world, dt.timedelta(minutes=4)) is Result.SUCCESS


def test_a_single_site_with_another_time_is_told_of(world: World) -> None:
    world.source._clock = Shifted(world, YEAR)
    assert run(world) is Result.SUCCESS
    assert any("behind that of site prod" in note for note in world.events.notes)


def test_a_point_dated_a_year_ahead_removes_no_real_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an earlier version let it happen: all that follows lies, by its date, in one day of next year."""
    with monkeypatch.context() as earlier:
        earlier.setattr("vrepl.engine.run.refuse_wrong_clock", lambda *of: None)
        assert run(world, YEAR) is Result.SUCCESS
    kept = []
    for _ in range(4):
        world.clock.now += DAY
        assert run(world) is Result.SUCCESS
        kept.append(points(world))
    days = {snapshot.created.date() for snapshot in world.replica().snapshots}
    assert len(days) >= 5, "a point of each of the last five days is still there"
    assert len(kept[-1]) <= 28


def test_clocks_right_again_lets_retention_go_on(world: World) -> None:
    for _ in range(3):
        world.clock.now += DAY
        assert run(world) is Result.SUCCESS
    assert len(points(world)) == 5
