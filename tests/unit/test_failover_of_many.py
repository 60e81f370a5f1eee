"""Many replicas fail over side by side: as many power-ons as a host takes are under way, and never one more."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.many_replicas import HOSTS, make_replicas
from tests.support.world import World, source
from vrepl.engine.context import FailoverContext
from vrepl.engine.failover import head_start
from vrepl.engine.failover.command import Failovers, host_by_host
from vrepl.engine.failover.head_start import HeadStart
from vrepl.engine.vm_work import VmWork
from vrepl.model import PowerState, VirtualMachine
from vrepl.model.failover import Start
from vrepl.model.plans import POWER_ONS_PER_HOST
from vrepl.report.model import Result

PATIENCE = 60.0
"""Seconds until who is awaited is taken not to come."""


@dataclass
class SlowPowerOns:
    """Each takes its time; how many were under way at one host at most, and when the last one was there.

    The first ones at each host wait for each other, so that nothing depends on how fast the machine is.
    """

    seconds: float
    meet: int = 1
    """How many the first ones of a host are."""
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
            deadline = time.monotonic() + PATIENCE
            while self.peak[host] < self.meet and time.monotonic() < deadline:
                time.sleep(0.01)
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
    slow = SlowPowerOns(0.1, meet=POWER_ONS_PER_HOST)
    slow.watch(world)
    fail_over_all(world)
    assert slow.peak == {f"esx-{number}": POWER_ONS_PER_HOST for number in range(HOSTS)}
    replicas = [vm for vm in world.target.vms.values() if vm.name.endswith("-replica")]
    assert len(replicas) == 40
    assert {vm.power for vm in replicas} == {PowerState.ON}
    expected = source(world).disks[0].disk.content()
    assert all(vm.disks[0].disk.content() == expected for vm in replicas)


def test_what_a_failover_asks_of_its_sites_is_little(tmp_path: Path) -> None:
    """Of a hundred, each waits for the calls of all: vCenter takes tens of milliseconds for each."""
    world = World(tmp_path / "repository")
    make_replicas(world, 1)
    calls: Counter[str] = Counter()
    world.target.before_call = lambda method: calls.update([method])
    asked = []
    engine = world.engine()
    failovers = Failovers(FailoverContext(engine.services, world.target), engine.services.repository)
    failovers.source_runs = lambda record: asked.append(record.epoch)
    report = failovers.run(failovers.find(), lambda _: Start())
    assert [vm.result for vm in report.vms] == [Result.SUCCESS]
    assert asked == [0], "whether the source runs matters before anything is done, and never again"
    assert calls["read_vm"] <= 5
    assert calls["read_snapshot"] == 1, "the base's change IDs, once"
    assert calls["read_vm_file"] + calls["write_vm_file"] <= 16
    again: Counter[str] = Counter()
    world.target.before_call = lambda method: again.update([method])
    replica = failovers.find()[0]
    failovers.settings_of(replica, VmWork(engine.services, "vm"))
    assert not again["read_vm_file"], "what lies beside a replica is read once in a command"


def test_replicas_of_one_host_do_not_keep_those_of_others_behind_them(tmp_path: Path) -> None:
    world = World(tmp_path / "repository")
    make_replicas(world, 8)
    found = Failovers(FailoverContext(world.engine().services, world.target), None).find()
    by_host = sorted(found, key=lambda one: one.vm.host)
    assert [one.vm.host for one in host_by_host(by_host)] == [*(f"esx-{number}" for number in range(HOSTS))] * 2
    lopsided = [one for one in by_host if one.vm.host in {"esx-0", "esx-1"}][:3]
    assert [one.vm.host for one in host_by_host(lopsided)] == ["esx-0", "esx-1", "esx-0"]
    assert sorted(one.vm.ref for one in host_by_host(by_host)) == sorted(one.vm.ref for one in found)


def test_the_first_of_each_host_get_ready_before_the_others_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_start, "LONGEST", PATIENCE)
    world = World(tmp_path / "repository")
    make_replicas(world, 40)
    begun: list[str] = []
    saved: set[str] = set()
    saved_before: list[int] = []
    lock = threading.Lock()
    read, write = world.target.read_vm_file, world.target.write_vm_file

    def read_vm_file(vm: VirtualMachine, name: str) -> bytes | None:
        with lock:
            if vm.ref not in begun:
                begun.append(vm.ref)
                saved_before.append(len(saved))
        return read(vm, name)

    def write_vm_file(vm: VirtualMachine, name: str, content: bytes) -> None:
        write(vm, name, content)
        with lock:
            saved.add(vm.ref)

    world.target.read_vm_file = read_vm_file  # type: ignore[method-assign]
    world.target.write_vm_file = write_vm_file  # type: ignore[method-assign]
    fail_over_all(world)
    first = POWER_ONS_PER_HOST * HOSTS
    assert len(begun) == 40
    assert min(saved_before[first:]) >= first
    hosts = [world.target.vms[ref].host for ref in begun[:first]]
    assert Counter(hosts) == {f"esx-{number}": POWER_ONS_PER_HOST for number in range(HOSTS)}


def test_nobody_waits_long_for_those_who_go_first() -> None:
    ahead = HeadStart(["a", "b"])
    ahead.wait("a")  # at once
    ahead.gone("a")
    ahead.gone("a")
    waited = threading.Thread(target=ahead.wait, args=("c",), daemon=True)
    waited.start()
    assert waited.is_alive()
    ahead.gone("b")
    waited.join(PATIENCE)
    assert not waited.is_alive()
    ahead.wait("d")
