"""Many replicas fail over side by side: as many power-ons as a host takes are under way, and never one more."""

from __future__ import annotations

import copy
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.support.world import World, source
from vrepl.engine.context import FailoverContext
from vrepl.engine.failover.command import POWER_ONS_PER_HOST, Failovers
from vrepl.extents import GRAIN
from vrepl.model import PowerState
from vrepl.model.failover import Start
from vrepl.report.model import Result

HOSTS = 4


def make_replicas(world: World, count: int) -> None:
    """One is replicated; the others are what would be if theirs were other VMs of the same content."""
    vm = world.source.add_vm("web-01", [2 * GRAIN])
    world.source.guest_write(vm, 0, 0, b"\x01" * GRAIN)
    assert world.run_vm().result is Result.SUCCESS
    first = world.replica()
    first.host = "esx-0"
    for number in range(1, count):
        uuids = {vm.instance_uuid: str(uuid.UUID(int=number)), first.instance_uuid: str(uuid.UUID(int=number << 64))}
        other = copy.copy(first)

        def renamed(text: str, uuids: dict[str, str] = uuids, number: int = number) -> str:
            for old, new in uuids.items():
                text = text.replace(old, new)
            return text.replace("web-01", f"vm-{number:03}")

        other.ref, other.name = f"copy-{number}", renamed(first.name)
        other.instance_uuid = uuids[first.instance_uuid]
        other.host = f"esx-{number % HOSTS}"
        other.files = {}
        other.disks = [disk.copy() for disk in first.disks]
        other.extra_config = {key: renamed(value) for key, value in first.extra_config.items()}
        other.snapshots = [
            replace(
                one,
                ref=f"{one.ref}-{number}",
                description=renamed(one.description),
                extra_config=dict(other.extra_config),
            )
            for one in first.snapshots
        ]
        other.current = other.snapshots[-1].ref
        world.target.vms[other.ref] = other


@dataclass
class SlowPowerOns:
    """Each takes its time; how many were under way at one host at most, and when the last one was there."""

    seconds: float
    now: Counter[str] = field(default_factory=Counter)
    peak: Counter[str] = field(default_factory=Counter)
    last: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def watch(self, world: World) -> None:
        real = world.target.power_on

        def power_on(vm_ref: str) -> None:
            host = world.target.vms[vm_ref].host
            with self.lock:
                self.now[host] += 1
                self.peak[host] = max(self.peak[host], self.now[host])
            time.sleep(self.seconds)
            real(vm_ref)
            with self.lock:
                self.now[host] -= 1
                self.last = time.monotonic()

        world.target.power_on = power_on  # type: ignore[method-assign]


def fail_over_all(world: World) -> None:
    engine = world.engine()
    failovers = Failovers(FailoverContext(engine.services, world.target), engine.services.repository)
    report = failovers.run(failovers.find(), lambda _: Start(source_is_down=True))
    assert {vm.result for vm in report.vms} == {Result.SUCCESS}, [vm.error for vm in report.vms if vm.error]


def test_no_host_gets_more_power_ons_at_a_time_than_its_limit_and_each_gets_as_many(tmp_path: Path) -> None:
    world = World(tmp_path / "repository")
    make_replicas(world, 40)
    slow = SlowPowerOns(0.1)
    slow.watch(world)
    fail_over_all(world)
    assert slow.peak == {f"esx-{number}": POWER_ONS_PER_HOST for number in range(HOSTS)}
    replicas = [vm for vm in world.target.vms.values() if vm.name.endswith("-replica")]
    assert len(replicas) == 40
    assert {vm.power for vm in replicas} == {PowerState.ON}
    expected = source(world).disks[0].disk.content()
    assert all(vm.disks[0].disk.content() == expected for vm in replicas)
