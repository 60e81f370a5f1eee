"""The crossing has no opinion on which of the two VMs is the replica: home again is the same way, read backwards."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.world import NbdOnly, World, source
from vrepl.engine.access import GuardedVm, access_window
from vrepl.engine.crossing import Crossing
from vrepl.engine.disk_crossing import CrossingEnd, CrossingRoute, DiskMove, first_intent
from vrepl.engine.gate import Gate
from vrepl.engine.intent_keeper import IntentKeeper
from vrepl.engine.marks import SourceMark
from vrepl.engine.source_snapshot import temporary_snapshot
from vrepl.errors import MoverError
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
