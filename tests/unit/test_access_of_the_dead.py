"""What a run leaves outside is found from the outside alone: no journal, no repository of its own."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.world import World, source
from vrepl.engine.access_identity import access_identity, held_by_vrepl
from vrepl.extents import GRAIN
from vrepl.report.model import Result
from vrepl.repository.commit_record import read_mark
from vrepl.repository.rebuild import FoundReplica, rebuild
from vrepl.repository.store import Repository


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path / "repository", retention=9)
    vm = world.source.add_vm("web-01", [6 * GRAIN])
    world.source.guest_write(vm, 0, GRAIN, b"a" * GRAIN)
    assert world.run_vm().result is Result.SUCCESS
    world.source.guest_write(vm, 0, 2 * GRAIN, b"b" * GRAIN)
    return world


def holders(world: World) -> list[str]:
    vms = [*world.source.vms.values(), *world.target.vms.values()]
    return [vm.access for vm in vms if vm.access is not None]


def moments(world: World) -> int:
    """How many there are at which a run can die."""
    passed: list[str] = []

    def live_on(where: str) -> bool:
        passed.append(where)
        return False

    assert world.run_until(live_on) is not None
    return len(passed)


@pytest.mark.slow
def test_a_run_that_died_anywhere_and_lost_its_repository_blocks_nothing(tmp_path: Path) -> None:
    count = 1
    number = 0
    held = 0
    while number < count:
        world = World(tmp_path / f"repository-{number}", retention=9)
        vm = world.source.add_vm("web-01", [4 * GRAIN])
        world.source.guest_write(vm, 0, GRAIN, b"a" * GRAIN)
        assert world.run_vm().result is Result.SUCCESS
        world.source.guest_write(vm, 0, 2 * GRAIN, b"b" * GRAIN)
        if number == 0:
            count = moments(world)
            world.source.guest_write(vm, 0, 2 * GRAIN, b"c" * GRAIN)
        passed = iter(range(count + 1))
        world.run_until(lambda where, at=number, passed=passed: next(passed) == at)  # type: ignore[misc]
        held += bool(holders(world))
        shutil.rmtree(world.folder)
        found = [FoundReplica("dr", one) for one in world.target.list_vms() if read_mark(one.extra_config)]
        rebuild(Repository.open(world.folder, mend=True), found)
        report = world.run_vm()
        assert report.result is Result.SUCCESS, (number, report.error)
        assert holders(world) == []
        assert world.our_source_snapshots() == []
        assert world.replica().disks[0].disk.content() == source(world).disks[0].disk.content()
        number += 1
    assert held > 5, "some of these deaths left a VM disabled"


def test_a_damaged_intent_leaves_no_vm_disabled_for_good(world: World) -> None:
    assert world.run_until(lambda where: where == "before prod create_snapshot" or "transfer" in where) is None
    assert len(holders(world)) == 2
    [intent] = world.folder.glob("replicas/*/intent.json")
    intent.write_text("{")
    report = world.run_vm()
    assert report.result is Result.FAILED
    assert report.error is not None
    assert f"{intent} is damaged" in report.error.message
    found = [FoundReplica("dr", one) for one in world.target.list_vms() if read_mark(one.extra_config)]
    rebuild(Repository.open(world.folder, mend=True), found)
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert sum("gave back the access" in note for note in report.notes) == 2
    assert holders(world) == []


def test_an_access_of_before_identities_followed_from_the_repository_is_ended_by_the_runs_mark(world: World) -> None:
    assert world.run_until(lambda where: "transfer" in where) is None
    vm = source(world)
    [name] = world.our_source_snapshots()
    vm.access = f"vrepl-{name.removeprefix('vrepl-source-')}"
    [intent] = world.folder.glob("replicas/*/intent.json")
    intent.unlink()
    assert world.run_vm().result is Result.SUCCESS
    assert holders(world) == []


@pytest.mark.parametrize("snapshot", [True, False])
def test_two_repositories_on_one_vm_say_so_at_once(world: World, tmp_path: Path, snapshot: bool) -> None:
    """The other one's run goes on, or died: with a snapshot there, or only the disabled methods."""
    assert world.run_until(lambda where: "transfer" in where) is None
    mine = Repository.open(world.folder).id
    other = World(tmp_path / "other")
    other.source, other.clock = world.source, world.clock
    other.job = replace(world.job, replica_name="{name}-second")
    if not snapshot:
        source(world).snapshots.clear()
        source(world).current = None
    report = other.run_vm()
    assert report.result is Result.SKIPPED
    assert report.error is not None
    assert "of another repository" in report.error.message
    assert mine in report.error.message
    assert "takes over its ID" in (report.error.hint or "")
    assert not any("trying again" in note for note in other.events.notes)
    assert len(holders(world)) == 2, "what is another's is left alone"
    assert world.run_vm().result is Result.SUCCESS
    assert other.run_vm().result is Result.SUCCESS


def test_what_another_product_holds_is_not_ended(world: World) -> None:
    source(world).access = "backup-product"
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert holders(world) == ["backup-product"]


def test_an_identity_names_repository_and_vm_within_vddks_limit(world: World) -> None:
    vm = world.source.list_vms()[0]
    mine = access_identity("0123456789ab", "prod-1", vm)
    assert len(mine) <= 50
    assert mine.startswith("vrepl-0123456789ab-")
    assert access_identity("0123456789ab", "prod-1", vm) == mine
    assert access_identity("0123456789ab", "prod-2", vm) != mine
    assert held_by_vrepl(f"RelocateVM_Task is already disabled by {mine}") == mine
    assert held_by_vrepl("RelocateVM_Task is already disabled by another") is None
