"""What a plan asks of transport modes for a replica that is still to be made."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.world import NbdOnly, World
from vrepl.extents import GRAIN
from vrepl.model import Disk, Side, TransportPlan, VirtualMachine


class Recorder(NbdOnly):
    def __init__(self) -> None:
        self.target_disks: list[Disk] = []

    def plan(self, side: Side, site: str, vm: VirtualMachine, disk: Disk, **how: Any) -> TransportPlan:
        if side is Side.TARGET:
            self.target_disks.append(disk)
        return super().plan(side, site, vm, disk, **how)


def test_the_sources_datastore_reference_means_nothing_at_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MoRefs repeat from vCenter to vCenter: the plan spoke of a datastore where no disk would go."""
    monkeypatch.setattr("tests.support.memory_site.Disk", partial(Disk, datastore_ref="datastore-12"))
    world = World(tmp_path / "repository")
    world.source.add_vm("web-01", [8 * GRAIN])
    engine, recorder = world.engine(), Recorder()
    engine.services.modes = recorder
    engine.plan(world.job)
    assert recorder.target_disks
    assert all(disk.datastore_ref == "" and disk.datastore for disk in recorder.target_disks)
