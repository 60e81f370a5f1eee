"""A repository lost, or brought back from a backup; two repositories for one VM; I/O that fails."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.memory_site import MemoryOpener, MemorySite
from tests.support.world import World, source
from vrepl.errors import DiskError, TransientDiskError
from vrepl.extents import GRAIN
from vrepl.model import TransferKind
from vrepl.report.model import Result
from vrepl.repository.rebuild import FoundReplica, rebuild
from vrepl.repository.store import Repository
from vrepl.transport.decorators import FailingDisk

pytestmark = pytest.mark.slow

CAPACITY = 40 * GRAIN + 512


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path / "repository")
    vm = world.source.add_vm("web-01", [CAPACITY, 4 * GRAIN])
    for grain in range(36):
        world.source.guest_write(vm, 0, grain * GRAIN, bytes([grain + 1]) * GRAIN)
    return world


def write(world: World, seed: int) -> None:
    generator = random.Random(seed)
    for _ in range(3):
        offset = generator.randrange(40) * GRAIN
        world.source.guest_write(source(world), 0, offset, bytes([generator.randrange(3)]) * GRAIN)


def after(steps: int) -> Callable[[str], bool]:
    left = steps

    def kill_at(point: str) -> bool:
        nonlocal left
        left -= bool(point)
        return left <= 0

    return kill_at


def run_and_check(world: World, replica: str = "web-01-replica") -> None:
    """A run succeeds, the replica is the source, nothing of vrepl's is left on the source, sealed points are intact."""
    sealed = world.restore_point_contents()
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert [disk.disk.content() for disk in world.replica(replica).disks] == [
        disk.disk.content() for disk in source(world).disks
    ]
    assert world.our_source_snapshots() == []
    held = world.restore_point_contents()
    assert all(held[point] == contents for point, contents in sealed.items() if point in held)


def verify(world: World) -> None:
    [verified] = world.engine().verify(world.repository.replicas()).vms
    assert verified.result is Result.SUCCESS, verified.error


@pytest.mark.parametrize("steps", [6, 18, 24, 30, 34, 38, 42])
@pytest.mark.parametrize("afterwards", [0, 1, 4])
def test_repository_brought_back_from_a_backup_of_a_run_that_died(
    world: World, tmp_path: Path, steps: int, afterwards: int
) -> None:
    world.run_vm()
    write(world, 1)
    world.run_until(after(steps))
    shutil.copytree(world.folder, tmp_path / "backup")
    for number in range(afterwards):
        write(world, 10 + number)
        run_and_check(world)
    write(world, 20)
    world.run_until(after(20))
    shutil.rmtree(world.folder)
    shutil.move(tmp_path / "backup", world.folder)
    world.repository = Repository.open(world.folder)
    write(world, 30)
    run_and_check(world)


@pytest.mark.parametrize("steps", [12, 20, 26, 32, 40])
@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("snapshots_too", [False, True])
def test_repository_lost_in_mid_run_and_rebuilt(world: World, steps: int, before: int, snapshots_too: bool) -> None:
    for _ in range(before):
        world.run_vm()
    write(world, 1)
    world.run_until(after(steps))
    if snapshots_too:
        for vm in world.target.vms.values():
            for snapshot in list(vm.snapshots):
                world.target.remove_snapshot(vm.ref, snapshot.ref)
    shutil.rmtree(world.folder)
    found = [FoundReplica(world.target.name, vm) for vm in world.target.list_vms()]
    rebuild(Repository.open(world.folder), found)
    world.repository = Repository.open(world.folder)
    write(world, 2)
    world.run_until(after(30))
    write(world, 3)
    run_and_check(world)
    assert len(world.target.vms) == 1


def take_the_sites(world: World) -> None:
    """From now on calls of the shared sites are this world's."""

    def watch(site: MemorySite) -> None:
        site.before_call = lambda method: world._pass(f"before {site.name} {method}")
        site.after_call = lambda method: world._pass(f"after {site.name} {method}")

    watch(world.source)
    watch(world.target)


@pytest.mark.parametrize("steps", range(2, 46, 6))
def test_two_repositories_replicate_one_vm_side_by_side(world: World, tmp_path: Path, steps: int) -> None:
    other = World(tmp_path / "other")
    other.source, other.target = world.source, world.target
    other.job = replace(world.job, replica_name="other-{name}")
    for number in range(3):
        for one in (world, other):
            write(world, number)
            take_the_sites(one)
            one.run_until(after(steps + number))
    for one in (world, other):
        take_the_sites(one)
        one.run_vm()
    for one, replica in ((world, "web-01-replica"), (other, "other-web-01")):
        take_the_sites(one)
        run_and_check(one, replica)
        verify(one)
    assert len(world.target.vms) == 2


@pytest.mark.parametrize("where", ["read", "write", "flush", "close"])
@pytest.mark.parametrize("nth", [1, 3])
@pytest.mark.parametrize("kind", [DiskError, TransientDiskError])
@pytest.mark.parametrize("disk", [0, 1])
def test_io_that_fails_on_one_of_two_disks(
    world: World, monkeypatch: pytest.MonkeyPatch, where: str, nth: int, kind: type[DiskError], disk: int
) -> None:
    world.run_vm()
    for grain in range(40):
        world.source.guest_write(source(world), 0, grain * GRAIN, bytes([grain + 2]) * GRAIN)
    world.source.guest_write(source(world), 1, 0, bytes([7]) * 3 * GRAIN)
    failures = [1]

    def failing(name: str) -> Callable[..., Any]:
        real = getattr(MemoryOpener, name)

        def open_disk(self: MemoryOpener, address: Any) -> Any:
            handle = real(self, address)
            if not failures or f"_{disk}" not in address.path:
                return handle
            failures.pop()
            return FailingDisk(handle, {where: (nth, kind("it fails", code=1))})

        return open_disk

    name = "open_reader" if where == "read" else "open_writer"
    monkeypatch.setattr(MemoryOpener, name, failing(name))
    world.run_vm()
    assert world.our_source_snapshots() == []
    write(world, 1)
    run_and_check(world)
    verify(world)


def test_a_run_after_the_repository_was_lost_says_how_to_get_it_back(world: World) -> None:
    world.run_vm()
    shutil.rmtree(world.folder)
    world.repository = Repository.open(world.folder)
    report = world.run_vm()
    assert report.result is Result.FAILED
    assert report.error is not None
    assert "vrepl repository rebuild" in str(report.error.hint)
    [rebuilt] = rebuild(Repository.open(world.folder), [FoundReplica("dr", vm) for vm in world.target.list_vms()])
    assert (rebuilt.restore_points, rebuilt.problem) == (1, "")
    world.repository = Repository.open(world.folder)
    write(world, 2)
    run_and_check(world)
    assert {disk.kind for disk in world.run_vm().disks} == {TransferKind.INCREMENTAL}
