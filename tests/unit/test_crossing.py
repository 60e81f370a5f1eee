"""The crossing has no opinion on which of the two VMs is the replica: home again is the same way, read backwards."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.world import NbdOnly, World, source
from vrepl.engine.access import GuardedVm, access_window
from vrepl.engine.crossing import Crossing
from vrepl.engine.disk_crossing import CrossingEnd, CrossingRoute
from vrepl.engine.disk_move import DiskMove, first_intent, relocated
from vrepl.engine.gate import Gate
from vrepl.engine.intent_keeper import IntentKeeper
from vrepl.engine.marks import SourceMark
from vrepl.engine.source_snapshot import temporary_snapshot
from vrepl.errors import DiskError, MoverError, TransientDiskError
from vrepl.extents import GRAIN, Extent
from vrepl.model import DEFAULT_MODES, PowerState, Quiesce, Side, TransferKind, TransferLimits, TransportPlan
from vrepl.planner.disks import DiskDecision
from vrepl.ports import DigestFiles
from vrepl.repository.intent import Intent
from vrepl.transport.hooks import SimulatedKill

CAPACITY = 8 * GRAIN


@dataclass
class Elsewhere:
    """Intent and logs of a crossing that is no replication lie in a folder of their own."""

    folder: Path
    saved: list[Intent] = field(default_factory=list)

    def save_intent(self, intent: Intent) -> None:
        self.saved.append(intent)

    def transfer_log(self, disk_key: int) -> Path:
        return self.folder / f"{disk_key}.log"


class Home:
    """The replica ran at the target, and what it wrote goes into the original."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder / "repository")
        vm = self.world.source.add_vm("web-01", [CAPACITY])
        self.world.source.guest_write(vm, 0, GRAIN, b"before" * 100)
        self.world.run_vm()
        self.original, self.replica = vm, self.world.replica()
        self.original.power = PowerState.OFF
        self.world.target.guest_write(self.replica, 0, 4 * GRAIN, b"at the target" * 50)
        self.world.source.guest_write(self.original, 0, 6 * GRAIN, b"lost with the site" * 50)
        self.elsewhere = Elsewhere(folder)
        self.notes: list[str] = []

    def cross(self) -> Crossing:
        world, services = self.world, self.world.engine().services
        keeper = IntentKeeper(self.elsewhere, Intent("run-home", "", "demo"))
        replica = world.target.read_vm(self.replica.ref)
        original = world.source.read_vm(self.original.ref)
        guarded = (
            GuardedVm(Side.TARGET, world.target, replica, "vrepl-home-1"),
            GuardedVm(Side.SOURCE, world.source, original, "vrepl-home-2"),
        )
        mark = SourceMark(services.repository.id, "run-home")
        with (
            access_window(services, keeper, "web-01", guarded, self.notes.append),
            temporary_snapshot(
                services, world.target, replica, mark, Quiesce.NEVER, self.notes.append, lambda _: None, quiesce=False
            ) as state,
        ):
            decision = DiskDecision(TransferKind.COMPARE, "home again", whole_disk=True, compare_with_target=True)
            move = DiskMove(
                key=original.disks[0].key,
                read_vm=replica,
                read_snapshot=state,
                read_disk=state.disks[0],
                written_vm=original,
                written_disk=original.disks[0],
                decision=decision,
                regions=[Extent(0, CAPACITY)],
                parent_restore_point_id=None,
                parent_digests=DigestFiles(None),
                first_attempt=1,
            )
            keeper.set_disk(first_intent(move))
            route = CrossingRoute(
                services,
                Gate(TransferLimits(), services.check_stop),
                self.elsewhere,
                keeper,
                read=CrossingEnd(Side.TARGET, world.target, DEFAULT_MODES),
                written=CrossingEnd(Side.SOURCE, world.source, DEFAULT_MODES),
            )
            crossing = Crossing(route, [move], "web-01", self.notes.append)
            crossing.run()
        return crossing


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_a_replica_crosses_into_its_original(home: Home) -> None:
    crossing = home.cross()
    assert home.original.disks[0].disk.content() == home.replica.disks[0].disk.content()
    [order] = [one for one in home.world.orders if one.target.site == "prod"]
    assert (order.source.site, order.source.vm_ref) == ("dr", home.replica.ref)
    assert crossing.bytes_moved(home.original.disks[0].key) == 2 * GRAIN, "only what differs is written"
    [report] = crossing.reports()
    assert (report.bytes_moved, report.attempts) == (2 * GRAIN, 1)
    assert home.elsewhere.saved[-1].journal.prepared_for_access == (), "access was given back at both sites"
    assert not any(one.name.startswith("vrepl-source-") for one in home.replica.snapshots)
    assert home.notes == []


def test_where_no_proxy_can_be_had_that_is_what_is_told(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = NbdOnly.plan

    def gone(self: NbdOnly, side: Side, *where: Any, **how: Any) -> TransportPlan:
        if side is Side.SOURCE:
            raise MoverError("proxy p has not this vrepl", hint="vrepl proxy install p")
        return plan(self, side, *where, **how)

    monkeypatch.setattr(NbdOnly, "plan", gone)
    with pytest.raises(MoverError, match="proxy p has not this vrepl"):
        home.cross()


@pytest.mark.parametrize("error", [DiskError("no such file", code=4), TransientDiskError("lost", code=14011)])
def test_disks_that_are_moved_in_mid_crossing_are_opened_where_they_lie_then(home: Home, error: DiskError) -> None:
    """Storage vMotion at both ends. What the file that is gone is answered with need not look as if it passed."""
    paths: list[str] = []

    def storage_vmotion(where: str) -> bool:
        if not where.startswith("transfer write") or paths:
            return False
        for vm in (home.original, home.replica):
            for disk in [*vm.disks, *(disk for snapshot in vm.snapshots for disk in snapshot.disks)]:
                disk.base_path = disk.base_path.replace("-ds] ", "-other] ")
            paths.append(vm.disks[0].base_path)
        raise error

    home.world.kill_at = storage_vmotion
    [report] = home.cross().reports()
    assert report.attempts == 2
    assert home.original.disks[0].disk.content() == home.replica.disks[0].disk.content()
    last = home.world.orders[-1]
    assert last.target.path == paths[0] != home.world.orders[-2].target.path
    assert last.source.path == home.world.orders[-2].source.path.replace("-ds] ", "-other] ")


def test_an_error_that_does_not_pass_is_told_at_once_where_nothing_was_moved(home: Home) -> None:
    def fail(where: str) -> bool:
        if where.startswith("transfer write"):
            raise DiskError("no such file", code=4)
        return False

    home.world.kill_at = fail
    before = len(home.world.orders)
    with pytest.raises(DiskError, match="no such file"):
        home.cross()
    assert len(home.world.orders) == before + 1


def test_a_disk_that_is_another_or_stands_on_other_snapshots_is_not_followed(tmp_path: Path) -> None:
    """Its path alone may have changed; a leaf that somebody put a snapshot under is not where this crossing writes."""
    world = World(tmp_path)
    vm = world.source.add_vm("web-01", [CAPACITY])
    seen = world.source.read_vm(vm.ref)
    state = world.source.create_snapshot(vm.ref, "s", "", quiesce=False)
    move = DiskMove(
        key=2000,
        read_vm=seen,
        read_snapshot=state,
        read_disk=state.disks[0],
        written_vm=seen,
        written_disk=seen.disks[0],
        decision=DiskDecision(TransferKind.COMPARE, "", whole_disk=True),
        regions=[Extent(0, CAPACITY)],
        parent_restore_point_id=None,
        parent_digests=DigestFiles(None),
        first_attempt=1,
    )
    other = replace(state, disks=(replace(state.disks[0], uuid="another", path="[elsewhere] x.vmdk"),))
    assert relocated(move, seen, other, world.source.read_vm(vm.ref)) == move
    moved = replace(state, disks=(replace(state.disks[0], path="[elsewhere] x.vmdk"),))
    assert relocated(move, seen, moved, seen).read_disk.path == "[elsewhere] x.vmdk"


def test_what_dies_on_the_way_home_leaves_the_restore_points_alone(home: Home) -> None:
    sealed = home.world.restore_point_contents()
    home.world.kill_at = lambda where: where.startswith("transfer write")
    with pytest.raises(SimulatedKill):
        home.cross()
    home.world.kill_at = lambda where: False
    assert home.elsewhere.saved[-1].disks, "the intent was on disk before the first write"
    assert {access.site for access in home.elsewhere.saved[-1].journal.prepared_for_access} == {"prod", "dr"}
    assert home.world.restore_point_contents() == sealed
    home.world.dead = False
    home.cross()
    assert home.original.disks[0].disk.content() == home.replica.disks[0].disk.content()
    assert source(home.world) is home.original
