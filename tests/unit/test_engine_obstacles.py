"""What stands in a run's way at real sites: quiescing that fails in any way, other products, a place that cannot be."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tests.support.world import World, source
from vrepl.engine.context import Patience
from vrepl.engine.run import Engine
from vrepl.errors import DiskLockedError, TransientDiskError, VsphereError
from vrepl.extents import GRAIN
from vrepl.model import Consistency, Quiesce
from vrepl.model.guests import GuestPolicy
from vrepl.report.model import Result, RunReport


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path / "repository")
    vm = world.source.add_vm("web-01", [16 * GRAIN])
    vm.cbt_enabled, vm.tracked = True, {2000}
    world.source.guest_write(vm, 0, 0, b"\x01" * (4 * GRAIN))
    return world


def want(world: World, quiesce: Quiesce) -> None:
    object.__setattr__(world.job, "quiesce", quiesce)


FAULTS = [
    VsphereError("GenericVmConfigFault; An error occurred", fault="GenericVmConfigFault"),
    VsphereError("ApplicationQuiesceFault", fault="ApplicationQuiesceFault"),
    VsphereError("InvalidVmConfig", fault="InvalidVmConfig"),
    DiskLockedError("a file is locked"),
]


@pytest.mark.parametrize("leaves", [False, True])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__ + (getattr(fault, "fault", "") or ""))
def test_prefer_goes_on_unquiesced_whatever_a_quiesced_try_failed_with(
    world: World, fault: Exception, leaves: bool
) -> None:
    """By the names of quiesce faults alone, a wrapped one failed the VM for ever."""
    world.source.quiesce_fault, world.source.quiesce_leaves = fault, leaves
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert report.consistency == Consistency.CRASH
    assert any("could not be quiesced" in note for note in report.notes)
    assert world.our_source_snapshots() == []


@pytest.mark.parametrize("leaves", [False, True])
def test_require_fails_and_leaves_nothing(world: World, leaves: bool) -> None:
    want(world, Quiesce.REQUIRE)
    world.source.quiesce_fault, world.source.quiesce_leaves = FAULTS[0], leaves
    report = world.run_vm()
    assert report.result is Result.FAILED
    assert world.our_source_snapshots() == []


@pytest.mark.parametrize("wish", [Quiesce.PREFER, Quiesce.REQUIRE])
@pytest.mark.parametrize("leaves", [False, True])
def test_a_guest_that_can_be_quiesced_at_the_second_try_is(world: World, wish: Quiesce, leaves: bool) -> None:
    want(world, wish)
    object.__setattr__(world.job, "guest", GuestPolicy(quiesce_tries=2))
    world.source.quiesce_fault, world.source.quiesce_leaves = FAULTS[0], leaves
    tries = []

    def settle(method: str) -> None:
        if method == "create_snapshot":
            tries.append(len(world.our_source_snapshots()))
            if len(tries) == 2:
                world.source.quiesce_fault = None

    world.source.before_call = settle
    report = world.run_vm()
    assert report.consistency == Consistency.QUIESCED, report.error
    assert tries == [0, 0]
    assert [note for note in report.notes if "trying again" in note]
    assert world.our_source_snapshots() == []


def test_a_wish_that_vsphere_ignored_is_no_quiesced_restore_point(world: World) -> None:
    """Without VMware Tools the flag is ignored, not refused; they may stop between the plan and the snapshot."""

    def stop_tools(method: str) -> None:
        if method == "create_snapshot":
            source(world).tools_running = False

    world.source.before_call = stop_tools
    report = world.run_vm()
    assert report.consistency == Consistency.CRASH
    assert any("without quiescing" in note for note in report.notes)
    source(world).tools_running = True
    want(world, Quiesce.REQUIRE)
    report = world.run_vm()
    assert report.result is Result.FAILED
    assert world.our_source_snapshots() == []


# -- another product has the VM ---------------------------------------------------------------------------------------


class Held:
    """Another product's PrepareForAccess on the source: VDDK says busy, and vCenter shows the disabled method."""

    def __init__(self, world: World, tries: int) -> None:
        self.world, self.tries, self.asked, self.ended = world, tries, 0, 0
        self.ours = ""
        source(world).disabled_methods = ("RelocateVM_Task",)

    def prepare(self, site: str, vm_ref: str, identity: str) -> None:
        if site != "prod":
            return
        self.asked += 1
        if self.asked <= self.tries:
            raise TransientDiskError("RelocateVM_Task is already disabled by Backup", code=5)
        source(self.world).disabled_methods = ()
        self.ours = identity

    def end(self, site: str, vm_ref: str, identity: str) -> None:
        """An identity that holds nothing may be ended by way of trial: nothing comes of it."""
        self.ended += site == "prod" and identity == self.ours


def engine_with(world: World, held: Held, patience: Patience, monkeypatch: pytest.MonkeyPatch) -> Engine:
    engine = world.engine()
    engine.services.patience = patience
    monkeypatch.setattr(engine.services.movers, "prepare_for_access", held.prepare)
    monkeypatch.setattr(engine.services.movers, "end_access", held.end)
    return engine


def test_another_product_s_access_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(world, tries=5)
    engine = engine_with(world, held, Patience((0, 0), access=600, access_pause=0), monkeypatch)
    [report] = engine.replicate(world.job).vms
    assert report.result is Result.SUCCESS, report.error
    assert (held.asked, held.ended) == (6, 1)
    assert any("another product" in note and "waited for" in note for note in world.events.notes)


def test_after_the_wait_the_run_goes_on_and_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(world, tries=10**6)
    engine = engine_with(world, held, Patience((0,), access=0.02, access_pause=0.01), monkeypatch)
    [report] = engine.replicate(world.job).vms
    assert report.result is Result.SUCCESS, report.error
    assert any("without PrepareForAccess" in note for note in report.notes)
    assert held.ended == 0, "what another product holds is never given back"


def test_a_failure_that_is_nobody_s_access_fails_the_vm(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(world, tries=10**6)
    source(world).disabled_methods = ()
    engine = engine_with(world, held, Patience((0,), access=600), monkeypatch)
    [report] = engine.replicate(world.job).vms
    assert report.result is Result.FAILED
    assert held.asked == 2


@pytest.mark.slow
def test_a_stop_ends_the_wait(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(world, tries=10**6)
    engine = engine_with(world, held, Patience((0,), access=600, access_pause=60), monkeypatch)
    threading.Timer(0.3, engine.stop).start()
    [report] = engine.replicate(world.job).vms
    assert report.result is Result.INTERRUPTED
    assert world.our_source_snapshots() == []


# -- before anything is made ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["name", "hardware"])
def test_a_place_that_cannot_be_is_refused_before_anything_is_made(world: World, reason: str) -> None:
    if reason == "name":
        object.__setattr__(world.job, "replica_name", "x" * 81)
    else:
        world.target.newest_hardware = 13
    [planned] = world.engine().plan(world.job).vms
    assert planned.error is not None, "the plan says it too"
    before = list(world.target.calls)
    report = world.run_vm()
    assert report.result is Result.FAILED
    assert "create_replica" not in world.target.calls[len(before) :]
    assert "create_snapshot" not in world.source.calls


@pytest.mark.slow
def test_a_run_waits_for_a_verification_of_the_replica(world: World) -> None:
    """Whoever holds a replica's lock is waited for as long as for another run of the job; a stop ends the waiting."""
    assert world.run_vm().result is Result.SUCCESS
    [folder] = world.repository.replicas()
    with folder.lock():
        assert world.run_vm().result is Result.SKIPPED
        engine = world.engine()
        runs = threading.Thread(target=lambda: reports.append(engine.replicate(world.job, lock_wait=60)))
        reports: list[RunReport] = []
        runs.start()
        until = time.monotonic() + 30
        while not any("waiting up to" in note for note in world.events.notes) and time.monotonic() < until:
            time.sleep(0.01)
        assert not reports
    runs.join(30)
    assert reports[0].vms[0].result is Result.SUCCESS, reports[0].vms[0].error

    with folder.lock():
        engine = world.engine()
        threading.Timer(0.3, engine.stop).start()
        assert engine.replicate(world.job, lock_wait=60).vms[0].result is Result.INTERRUPTED
