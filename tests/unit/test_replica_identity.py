"""A clone inherits a replica's mark: it is told from the replica by the instanceUuid that the mark names."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.memory_site import MemoryVm
from tests.support.world import World, folder_of, source
from vrepl.extents import GRAIN
from vrepl.report.model import Result
from vrepl.repository.commit_record import KEY_REPLICA_INSTANCE_UUID, read_mark
from vrepl.repository.rebuild import FoundReplica, Rebuilt, rebuild
from vrepl.repository.store import Repository


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path / "repository")
    vm = world.source.add_vm("web-01", [16 * GRAIN])
    world.source.guest_write(vm, 0, 0, b"\x01" * (4 * GRAIN))
    assert world.run_vm().result is Result.SUCCESS
    return world


def rebuilt(world: World, folder: Path) -> dict[str, Rebuilt]:
    """By VM name, from what the target has, in either order."""
    world.folder = folder
    world.repository = Repository.open(folder)
    return {
        one.vm_name: one
        for one in rebuild(world.repository, [FoundReplica("dr", vm) for vm in world.target.list_vms()])
    }


def clone(world: World, name: str = "web-01-copy") -> MemoryVm:
    return world.target.clone_by_hand(world.replica(), name)


def test_a_replica_is_marked_with_its_own_instance_uuid(world: World) -> None:
    replica = world.replica()
    assert replica.extra_config[KEY_REPLICA_INSTANCE_UUID] == replica.instance_uuid
    assert replica.snapshots[0].extra_config[KEY_REPLICA_INSTANCE_UUID] == replica.instance_uuid


def test_rebuild_takes_the_replica_and_passes_over_its_clone(world: World, tmp_path: Path) -> None:
    """Both bear the mark: neither could be told from the other, and both were passed over."""
    clone(world)
    found = rebuilt(world, tmp_path / "another")
    assert (found["web-01-replica"].problem, found["web-01-replica"].restore_points) == ("", 1)
    assert "clone" in found["web-01-copy"].problem
    assert folder_of(world).record.target_instance_uuid == world.replica().instance_uuid
    assert world.run_vm().result is Result.SUCCESS


def test_a_clone_alone_is_no_replica(world: World, tmp_path: Path) -> None:
    clone(world)
    del world.target.vms[world.replica().ref]
    found = rebuilt(world, tmp_path / "another")
    assert "clone" in found["web-01-copy"].problem


def test_a_replica_that_was_given_another_instance_uuid_is_still_found(world: World, tmp_path: Path) -> None:
    """A vCenter does that where the VM is registered anew and its own is taken; it has the restore points."""
    clone(world)
    world.replica().instance_uuid = "50226f00-0000-0000-0000-0000000000ee"
    found = rebuilt(world, tmp_path / "another")
    assert (found["web-01-replica"].problem, found["web-01-replica"].restore_points) == ("", 1)
    assert "clone" in found["web-01-copy"].problem


def test_a_clone_in_the_replica_s_place_is_nobody_s_leftover(world: World) -> None:
    """It bears repository, source and run, is off and has no snapshot: by that alone it would have been destroyed."""
    copy = clone(world)
    del world.target.vms[world.replica().ref]
    copy.name = "web-01-replica"
    report = world.run_vm()
    assert report.result is Result.FAILED
    assert report.error is not None
    assert "already has a VM named web-01-replica" in report.error.message
    assert copy.ref in world.target.vms


def test_a_half_made_replica_of_a_dead_run_is_still_removed(tmp_path: Path) -> None:
    world = World(tmp_path / "repository")
    world.source.add_vm("web-01", [16 * GRAIN])
    assert world.run_until(lambda where: where == "after dr create_replica") is None
    left = world.replica()
    report = world.run_vm()
    assert report.result is Result.SUCCESS
    assert left.ref not in world.target.vms


def test_a_clone_that_is_mapped_bears_a_mark_of_its_own(world: World) -> None:
    copy = clone(world)
    del world.target.vms[world.replica().ref]
    report = world.run_vm(map_to="web-01-copy")
    assert report.result is Result.SUCCESS, report.error
    mark = read_mark(copy.extra_config)
    assert mark is not None
    assert mark.replica_instance_uuid == copy.instance_uuid
    assert mark.source_instance_uuid == source(world).instance_uuid
