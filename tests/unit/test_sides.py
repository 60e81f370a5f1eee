"""A command has the sides that it needs and no other: reading back and failing over work with the source dead."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.memory_site import MemorySite
from tests.support.world import World, folder_of
from vrepl.engine.context import FailoverContext, VerificationContext
from vrepl.engine.gate import Gate
from vrepl.engine.holding import replica_held
from vrepl.engine.verification import verify_replica
from vrepl.engine.vm_work import VmWork
from vrepl.errors import NotFoundError
from vrepl.extents import GRAIN
from vrepl.model import DEFAULT_MODES, TransferLimits
from vrepl.report.model import Result


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path / "repository")
    vm = world.source.add_vm("web-01", [8 * GRAIN])
    world.source.guest_write(vm, 0, GRAIN, b"v" * GRAIN)
    return world


def lose_the_source(world: World) -> None:
    def dead(method: str) -> None:
        raise AssertionError(f"the source is dead, and {method} was asked of it")

    world.source.before_call = dead


def test_a_verification_has_a_target_and_neither_source_nor_job(world: World) -> None:
    assert world.run_vm().result is Result.SUCCESS
    lose_the_source(world)
    services = world.engine().services
    context = VerificationContext(services, world.target, DEFAULT_MODES, Gate(TransferLimits(), services.check_stop))
    found = verify_replica(context, folder_of(world), None)
    assert found.result is Result.SUCCESS, found.error
    assert [disk.bytes_read for disk in found.disks] == [GRAIN], "what is allocated"


def test_the_engine_verifies_although_source_and_job_are_gone(world: World) -> None:
    assert world.run_vm().result is Result.SUCCESS
    lose_the_source(world)
    engine = world.engine()

    def only_the_target(name: str) -> MemorySite:
        if name != "dr":
            raise NotFoundError(f"site {name} is not configured any more")
        return world.target

    engine.sites = only_the_target
    [found] = engine.verify([folder_of(world)]).vms
    assert found.result is Result.SUCCESS, found.error


def test_a_failover_has_services_and_a_target(world: World) -> None:
    assert world.run_vm().result is Result.SUCCESS
    lose_the_source(world)
    context = FailoverContext(world.engine().services, world.target)
    record = folder_of(world).record
    replica = context.target.read_vm(world.replica().ref)
    assert replica.name == record.target_name
    context.services.check_stop()


def test_a_replica_is_held_and_rolled_forward_without_its_source(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a dead run left at the target is finished; what it left at the source stays in the journal for later."""
    assert world.run_until(lambda where: where == "after dr create_snapshot") is None, "killed right after the seal"
    lose_the_source(world)
    services = world.engine().services
    work = VmWork(services, "web-01")
    folder = folder_of(world)
    with replica_held(services, work, folder, world.target):
        assert len(folder.restore_points()) == 1
        assert folder.is_locked()
    assert any("which a dead run had sealed" in note for note in work.notes)


def test_access_that_a_dead_run_holds_at_a_dead_source_stays_in_the_journal(world: World) -> None:
    assert world.run_until(lambda where: where.startswith("transfer write")) is None
    held = folder_of(world).intent()
    assert held is not None
    assert {access.site for access in held.journal.prepared_for_access} == {"prod", "dr"}
    lose_the_source(world)
    services = world.engine().services
    work = VmWork(services, "web-01")
    with replica_held(services, work, folder_of(world), world.target):
        pass
    left = folder_of(world).intent()
    assert left is not None
    assert [access.site for access in left.journal.prepared_for_access] == ["prod"]
    assert [note for note in work.notes if "access to the replica web-01-replica at dr" in note]
