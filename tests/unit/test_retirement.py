"""Promises of taking a replica out of service: only vrepl's own, never one in use, and cut off it completes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.world import World
from vrepl.engine.retirement import retire
from vrepl.errors import LockedError, NotFoundError, NotReadyError
from vrepl.model import PowerState, ReplicaState
from vrepl.repository.commit_record import read_mark
from vrepl.repository.replica_folder import ReplicaFolder
from vrepl.transport.hooks import SimulatedKill


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path / "repository")
    made.source.add_vm("web-01", [4 << 20])
    for _ in range(2):
        assert made.run_vm().error is None
    return made


def folder_of(world: World) -> ReplicaFolder:
    [folder] = world.repository.replicas()
    return folder


def remove(world: World, *, keep_vm: bool = False, source: bool = True) -> list[str]:
    services = world.engine().services
    return retire(services, folder_of(world), world.target, world.source if source else None, keep_vm=keep_vm)


def test_vm_snapshots_and_record_go(world: World) -> None:
    done = remove(world)
    assert done[0] == "destroyed web-01-replica on dr, with 2 snapshots"
    assert not world.target.vms
    assert world.repository.replicas() == []
    assert world.source.vms, "the source is left alone"
    assert world.run_vm().error is None, "the next run makes a new one"


def test_the_vm_may_be_kept(world: World) -> None:
    remove(world, keep_vm=True)
    kept = world.replica()
    assert len(kept.snapshots) == 2
    assert read_mark(kept.extra_config) is None
    assert world.repository.replicas() == []


def test_a_vm_that_is_gone_already_is_forgotten(world: World) -> None:
    world.target.vms.clear()
    assert "was gone from dr already" in remove(world)[0]
    assert world.repository.replicas() == []


def test_what_is_not_vrepls_is_left_alone(world: World) -> None:
    config = world.replica().extra_config
    for key, value in (("vrepl.repository", "other"), ("vrepl.source.instanceUuid", "other"), ("vrepl.format", "")):
        before = dict(config)
        config[key] = value
        with pytest.raises(NotFoundError, match="left alone"):
            remove(world)
        config.update(before)
    assert world.target.vms
    assert world.repository.replicas()


def test_one_in_use_is_left_alone(world: World) -> None:
    world.replica().power = PowerState.ON
    with pytest.raises(NotReadyError, match="is powered on"):
        remove(world)
    world.replica().power = PowerState.OFF
    folder = folder_of(world)
    with folder.lock():
        with pytest.raises(LockedError):
            remove(world)
        folder.save_record(replace(folder.record, state=ReplicaState.FAILED_OVER))
    with pytest.raises(NotReadyError, match="is failed-over"):
        remove(world)
    assert world.target.vms


@pytest.mark.parametrize("keep_vm", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_in_the_middle_the_same_command_completes(world: World, when: str, keep_vm: bool) -> None:
    method = "set_extra_config" if keep_vm else "destroy_vm"
    world.kill_at = lambda where: where == f"{when} dr {method}"
    with pytest.raises(SimulatedKill):
        remove(world, keep_vm=keep_vm)
    world.kill_at = lambda where: False
    remove(world, keep_vm=keep_vm)
    assert world.repository.replicas() == []
    assert bool(world.target.vms) is keep_vm


def test_what_a_dead_run_left_on_the_source_goes_first(world: World) -> None:
    world.run_until(lambda where: where == "after prod create_snapshot")
    [vm] = world.source.vms.values()
    assert vm.snapshots
    remove(world)
    assert not vm.snapshots
    assert world.repository.replicas() == []
