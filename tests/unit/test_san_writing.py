"""Promises of writing over SAN: VDDK's order of steps, and a right replica wherever the run dies or SAN fails."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.support.memory_disk import MemoryHandle
from tests.support.memory_site import MemoryOpener
from tests.support.world import World
from vrepl.engine.run import Engine
from vrepl.errors import TransportModeError
from vrepl.extents import GRAIN
from vrepl.model import Datastore, TransportMode
from vrepl.planner.modes import ProxyFacts
from vrepl.ports import DiskAddress
from vrepl.proxy.chooser import RuleModeChooser
from vrepl.report.model import Result, VmReport

CAPACITY = 12 * GRAIN


class SanWorld(World):
    """Both sites lie on LUNs that the proxy sees; the target's first disk is thick, its second thin."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.choosers: list[RuleModeChooser] = []
        self.san_fails_at_write = 0
        vm = self.source.add_vm("web-01", [CAPACITY, 4 * GRAIN])
        vm.disks[0].thin = False
        for grain in (0, 1, 2, 5, 9):
            self.source.guest_write(vm, 0, grain * GRAIN, bytes([grain + 1]) * GRAIN)
        self.source.guest_write(vm, 1, GRAIN, b"x" * GRAIN)
        self.vm = vm

    def engine(self) -> Engine:
        stores = {
            name: [Datastore("d", f"{name}-ds", "VMFS", 10**15, 10**15, luns=("naa.1",))] for name in ("prod", "dr")
        }
        chooser = RuleModeChooser(
            lambda site: ProxyFacts("p", visible_luns=frozenset({"naa.1"})), lambda site: stores[site]
        )
        self.choosers.append(chooser)
        engine = super().engine()
        engine.services.modes = chooser
        engine.services.movers._opener = SanOpener(self)  # type: ignore[attr-defined]
        return engine

    def assert_right(self, report: VmReport) -> None:
        assert report.result is Result.SUCCESS, report.error
        replica = self.replica()
        for ours, theirs in zip(self.vm.disks, replica.disks, strict=True):
            assert theirs.disk.content() == ours.disk.content()
        assert [snapshot.name for snapshot in replica.snapshots] == [f"vrepl {report.restore_point}"]
        assert replica.cbt_enabled
        assert all(replica.snapshots[0].change_ids.values()), "failback needs the first seal's change IDs"
        assert self.our_source_snapshots() == []


class SanOpener(MemoryOpener):
    """Over SAN only the base of a thick disk of a VM without change tracking can be written, through a snapshot."""

    def __init__(self, world: SanWorld) -> None:
        super().__init__([world.source, world.target])
        self._world = world

    def open_reader(self, address: DiskAddress) -> MemoryHandle:
        handle = super().open_reader(address)
        handle.mode = str(address.modes[0])
        return handle

    def open_writer(self, address: DiskAddress) -> MemoryHandle:
        mode = address.modes[0]
        vm = self._sites[address.site]._vm(address.vm_ref)
        if mode is TransportMode.SAN:
            assert address.snapshot_ref
            assert vm.current == address.snapshot_ref
            assert not vm.cbt_enabled, "changes that pass vSphere by must not be missed by change tracking"
            assert not any(disk.tracking for disk in vm.disks)
            [disk] = [one for one in vm.snapshot(address.snapshot_ref).disks if one.path == address.path]
            assert not disk.thin
            assert disk.path == disk.base_path
            if self._world.san_fails_at_write == 1:
                raise TransportModeError("the LUN is gone", mode="san", side="target")
        else:
            assert address.snapshot_ref is None
            assert not vm.snapshots or vm.snapshots[-1].name.startswith("vrepl 2"), "a leaf that will be reverted"
        handle = super().open_writer(address)
        handle.mode = str(mode)
        return handle


@pytest.fixture
def world(tmp_path: Path) -> SanWorld:
    return SanWorld(tmp_path / "repository")


def target_orders(world: SanWorld) -> list[tuple[str, bool]]:
    return [(str(order.target.modes[0]), order.target.snapshot_ref is not None) for order in world.orders]


def test_thick_disks_of_a_first_run_are_written_over_san_and_thin_ones_are_not(world: SanWorld) -> None:
    report = world.run_vm()
    world.assert_right(report)
    assert target_orders(world) == [("san", True), ("nbdssl", False)]
    assert [disk.target.mode for disk in report.disks] == ["san", "nbdssl"]
    calls = [call for call in world.target.calls if "snapshot" in call or "cbt" in call]
    steps = ["disable_cbt", "create_snapshot", "revert_to_snapshot", "remove_snapshot", "enable_cbt", "create_snapshot"]
    assert calls == steps


def test_the_second_run_never_writes_over_san(world: SanWorld) -> None:
    world.run_vm()
    world.orders.clear()
    world.source.guest_write(world.vm, 0, 3 * GRAIN, b"y" * 10)
    plan = world.engine().plan(world.job).vms[0].disks[0]
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert report.disks[0].bytes_moved == GRAIN
    assert target_orders(world) == [("nbdssl", False)]
    for side in (plan.target, report.disks[0].target):
        assert side.mode == "nbdssl"
        assert any(mode == "san" and "before the first restore point" in why for mode, why in side.ruled_out)


def test_where_san_fails_the_next_mode_writes_after_the_snapshot_is_gone(world: SanWorld) -> None:
    world.san_fails_at_write = 1
    report = world.run_vm()
    world.assert_right(report)
    assert [disk.target.mode for disk in report.disks] == ["nbdssl", "nbdssl"]
    assert report.disks[0].target.chosen == "san"
    assert report.disks[0].target.fallbacks == ["san failed: the LUN is gone"]


def test_without_fallback_the_run_fails_and_leaves_no_snapshot(world: SanWorld) -> None:
    from dataclasses import replace

    world.san_fails_at_write = 1
    world.job = replace(world.job, fallback=False)
    report = world.run_vm()
    assert report.result is Result.FAILED
    assert world.replica().snapshots == []
    world.san_fails_at_write = 0
    world.assert_right(world.run_vm())


def test_a_replica_that_takes_no_temporary_snapshot_is_written_otherwise(world: SanWorld) -> None:
    from vrepl.errors import VsphereError

    def refuse(method: str) -> None:
        if method == "create_snapshot" and not world.orders:
            raise VsphereError("no snapshot now", fault="InsufficientResourcesFault")

    world.target.before_call = refuse
    report = world.run_vm()
    world.assert_right(report)
    assert any("no snapshot now" in note for note in report.notes)
    assert target_orders(world) == [("nbdssl", False), ("nbdssl", False)]


@pytest.mark.slow
def test_wherever_a_run_dies_the_next_one_finishes(tmp_path: Path) -> None:
    """Each call and each point of a transfer of the first run in turn; the guest writes on in between."""
    for death in itertools.count():
        world = SanWorld(tmp_path / str(death))
        seen = itertools.count()
        died = world.run_until(lambda where: next(seen) == death) is None  # noqa: B023
        if not died:
            assert death > 30, "this run has many places to die at"
            return
        world.source.guest_write(world.vm, 0, 2 * GRAIN, bytes([death % 255]) * 100)
        report = world.run_vm()
        assert report.result is Result.SUCCESS, (death, report.error)
        replica = world.replica()
        for ours, theirs in zip(world.vm.disks, replica.disks, strict=True):
            assert theirs.disk.content() == ours.disk.content(), f"death at {death}"
        assert not any(snapshot.name.startswith("vrepl-san") for snapshot in replica.snapshots)
        assert replica.cbt_enabled


def test_a_run_that_died_over_san_goes_on_from_its_log(world: SanWorld) -> None:
    from vrepl.transport.hooks import Point

    place = f"transfer {Point.RECORDED}"
    assert world.run_until(lambda where: where.startswith(place)) is None
    assert [snapshot.name[:10] for snapshot in world.replica().snapshots] == ["vrepl-san-"]
    world.orders.clear()
    report = world.run_vm()
    world.assert_right(report)
    assert any("temporary snapshot" in note for note in report.notes)
    assert report.disks[0].resumed
    assert report.disks[0].bytes_moved == 0, "all of it had been recorded"


def test_another_products_snapshot_of_the_replica_stays(world: SanWorld) -> None:
    from vrepl.transport.hooks import Point

    assert world.run_until(lambda where: where.startswith(f"transfer {Point.RECORDED}")) is None
    replica = world.replica()
    world.target.create_snapshot(replica.ref, "vrepl-san-by-hand", "not ours", quiesce=False)
    world.run_vm()
    assert "vrepl-san-by-hand" in [snapshot.name for snapshot in world.replica().snapshots]
