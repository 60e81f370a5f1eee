"""A replica's own change tracking is a hint where to look: only a digest that differs proves a foreign write."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.world import World, folder_of, source
from vrepl.extents import GRAIN, Extent, intersect, normalise, subtract, total
from vrepl.model import TransferKind
from vrepl.planner import suspects
from vrepl.planner.suspects import worth_reading
from vrepl.report.model import Result, VmReport
from vrepl.repository.rebuild import FoundReplica, rebuild
from vrepl.repository.store import Repository
from vrepl.transport import checkpoints

GRAINS = 48
CAPACITY = GRAINS * GRAIN


@pytest.fixture(autouse=True)
def eager_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "LEAST_BYTES", 1)
    monkeypatch.setattr(checkpoints, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "SHARE", 0)


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path / "repository")
    vm = world.source.add_vm("web-01", [CAPACITY])
    world.source.guest_write(vm, 0, 0, b"\x01" * CAPACITY)
    return world


def succeed(world: World) -> VmReport:
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert report.restore_point is not None
    [held] = world.restore_point_contents()[report.restore_point]
    assert held == source(world).disks[0].disk.content()
    return report


def assert_nobody_is_accused(report: VmReport) -> None:
    words = ("something else", "by hand", "reverted", "reach back")
    assert [note for note in report.notes if any(word in note for word in words)] == []


ANSWERS = pytest.mark.parametrize("answer", ["whole", "false", "fault"])


@ANSWERS
def test_runs_stay_incremental_by_bytes_whatever_the_replica_s_tracking_says(world: World, answer: str) -> None:
    """By tracking alone the leaf was reverted at every run, and what was written to it blamed on somebody."""
    succeed(world)
    world.target.cbt_answer = answer
    for number in range(3):
        world.source.guest_write(source(world), 0, number * GRAIN, bytes([number + 2]) * GRAIN)
        report = succeed(world)
        assert_nobody_is_accused(report)
        assert report.disks[0].kind is TransferKind.INCREMENTAL
        assert report.disks[0].bytes_moved == GRAIN
    assert "revert_to_snapshot" not in world.target.calls


@ANSWERS
def test_an_interrupted_transfer_resumes_whatever_the_replica_s_tracking_says(world: World, answer: str) -> None:
    succeed(world)
    world.target.cbt_answer = answer
    world.source.guest_write(source(world), 0, 0, b"\x02" * (40 * GRAIN))
    assert (
        world.run_until(lambda where: where.startswith("transfer recorded") and int(where.split()[-1]) >= 16 * GRAIN)
        is None
    )
    report = succeed(world)
    assert_nobody_is_accused(report)
    assert report.disks[0].resumed
    assert (report.disks[0].bytes_moved or 0) <= 24 * GRAIN
    assert "revert_to_snapshot" not in world.target.calls


@ANSWERS
def test_a_foreign_write_is_proved_by_its_digest_and_reverted(world: World, answer: str) -> None:
    succeed(world)
    world.target.cbt_answer = answer
    world.target.guest_write(world.replica(), 0, 30 * GRAIN, b"\x09" * 512)
    report = succeed(world)
    assert any("written by something else" in note and "reverted" in note for note in report.notes)


def test_a_foreign_write_of_the_same_bytes_accuses_nobody(world: World) -> None:
    succeed(world)
    world.target.guest_write(world.replica(), 0, 30 * GRAIN, b"\x01" * GRAIN)
    assert_nobody_is_accused(succeed(world))


def test_without_digests_what_is_hinted_at_is_written_again(world: World, tmp_path: Path) -> None:
    """After a rebuild nothing proves anything: the grains come from the source once more, and nobody is accused."""
    succeed(world)
    world.folder = tmp_path / "another"
    world.repository = Repository.open(world.folder)
    rebuild(world.repository, [FoundReplica("dr", vm) for vm in world.target.list_vms()])
    world.target.guest_write(world.replica(), 0, 30 * GRAIN, b"\x09" * 512)
    report = succeed(world)
    assert_nobody_is_accused(report)
    assert report.disks[0].bytes_moved == GRAIN
    assert folder_of(world).record.target_instance_uuid == world.replica().instance_uuid


@pytest.mark.parametrize("answer", ["whole", "fault"])
def test_without_digests_a_hint_that_names_the_whole_disk_is_not_acted_upon(
    world: World, tmp_path: Path, answer: str
) -> None:
    succeed(world)
    world.folder = tmp_path / "another"
    world.repository = Repository.open(world.folder)
    rebuild(world.repository, [FoundReplica("dr", vm) for vm in world.target.list_vms()])
    world.target.cbt_answer = answer
    world.source.guest_write(source(world), 0, 0, b"\x02" * GRAIN)
    report = succeed(world)
    assert_nobody_is_accused(report)
    assert report.disks[0].bytes_moved == GRAIN


def test_a_vague_hint_is_only_sampled(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspects, "BUDGET", 4 * GRAIN)
    succeed(world)
    world.target.cbt_answer = "whole"
    world.source.guest_write(source(world), 0, 0, b"\x02" * GRAIN)
    report = succeed(world)
    assert_nobody_is_accused(report)
    assert report.disks[0].bytes_moved == GRAIN


EXTENTS = st.lists(st.builds(Extent, st.integers(0, 300 * GRAIN), st.integers(1, 90 * GRAIN)), max_size=6)


@given(extents=EXTENTS, tail=st.integers(0, GRAIN - 1), salt=st.text(max_size=4))
def test_a_sample_is_within_the_hint_and_within_the_budget(extents: list[Extent], tail: int, salt: str) -> None:
    capacity = 400 * GRAIN + tail // 512 * 512 + 512
    hinted = normalise(extents)
    chosen = list(worth_reading(hinted, capacity, salt))
    assert chosen == normalise(chosen)
    assert all(extent.offset % GRAIN == 0 for extent in chosen)
    whole = [extent for one in hinted for extent in worth_reading([one], capacity, salt)]
    assert total(subtract(chosen, whole)) == 0
    if total(hinted) <= suspects.BUDGET:
        assert subtract(hinted, chosen) == []


@settings(deadline=None)
@given(count=st.integers(4, 40), budget=st.integers(1, 20))
def test_all_grains_of_a_vague_hint_take_their_turn(count: int, budget: int) -> None:
    capacity = count * GRAIN
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suspects, "BUDGET", budget * GRAIN)
        seen: list[Extent] = []
        sizes = set()
        for number in range(60 * (count // budget + 1)):
            chosen = worth_reading([Extent(0, capacity)], capacity, str(number))
            sizes.add(total(chosen))
            seen = normalise([*seen, *chosen])
            if total(seen) == capacity:
                break
        assert max(sizes) <= (budget + 1) * GRAIN
        assert intersect(seen, [Extent(0, capacity)]) == [Extent(0, capacity)]
