"""Two memory sites, a repository on disk and an engine over them: the smallest world in which a whole run happens."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.local_movers import LocalMovers
from tests.support.memory_disk import MemoryDisk
from tests.support.memory_site import MemoryOpener, MemorySite, MemoryVm
from vrepl.engine.context import Patience, Services
from vrepl.engine.events import SilentEvents
from vrepl.engine.marks import source_mark_of
from vrepl.engine.run import Engine
from vrepl.errors import NotFoundError, TransientDiskError, UsageError
from vrepl.model import (
    Disk,
    JobSettings,
    ModeChoice,
    ReplicaPlacement,
    RetentionPolicy,
    Side,
    Snapshot,
    TransferLimits,
    TransportMode,
    TransportPlan,
    VirtualMachine,
)
from vrepl.model.guests import GuestLogin, ProgramEnd, Script
from vrepl.ports import TransferOrder, VerifyOrder
from vrepl.report.model import RunReport, VmReport
from vrepl.repository.commit_record import read_commit_record
from vrepl.repository.digest_sets import open_lookup
from vrepl.repository.replica_folder import ReplicaFolder
from vrepl.repository.store import Repository
from vrepl.repository.transferlog import TransferLogWriter
from vrepl.transport.hooks import Point, SimulatedKill


class TickingClock:
    """Each look at it is a second later."""

    def __init__(self) -> None:
        self.now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)

    def __call__(self) -> dt.datetime:
        self.now += dt.timedelta(seconds=1)
        return self.now


class ScriptDesk:
    """ports.ScriptHost: scripts are their names, and commands do what a test says."""

    def __init__(self, live: Callable[[str], None], calls: list[str]) -> None:
        self._live = live
        self._calls = calls
        self.command: Callable[[Sequence[str]], ProgramEnd] = lambda words: ProgramEnd(0)
        self.missing_login = False

    def read_script(self, path: str) -> Script:
        return Script(Path(path).name, b"#!/bin/sh\n")

    def guest_login(self, job: str, vm: str) -> GuestLogin:
        if self.missing_login:
            raise UsageError(f"job {job} has no login for the guest of {vm}")
        return GuestLogin("root", "guest-secret")

    def run_command(self, words: Sequence[str], environment: Mapping[str, str], *, within: float) -> ProgramEnd:
        assert environment["VREPL_VM"]
        assert within > 0
        self._live(f"before command {words[0]}")
        self._calls.append(f"command {words[0]}")
        end = self.command(words)
        self._live(f"after command {words[0]}")
        return end


class NbdOnly:
    """ports.ModeChooser for sites that have one way in."""

    def plan(
        self,
        side: Side,
        site: str,
        vm: VirtualMachine,
        disk: Disk,
        *,
        first_run: bool,
        allowed: object,
        beside: str | None = None,
    ) -> TransportPlan:
        del side, site, vm, disk, first_run, allowed, beside
        return TransportPlan((ModeChoice(TransportMode.NBDSSL, "the only one"),))

    def proxy_failed(self, site: str, vm: VirtualMachine, proxy: str) -> None:
        raise AssertionError(f"there is no proxy {proxy} for {vm.name} at {site}")

    def left_on_proxy(self, site: str, vm: VirtualMachine) -> bool:
        del site, vm
        return False

    def detached(self, site: str, vm: VirtualMachine, count: int) -> None:
        raise AssertionError("nothing is attached here")

    def failed(self, site: str, datastore: str, mode: TransportMode, reason: str) -> None:
        raise AssertionError(f"{mode} failed at {site} {datastore}: {reason}")


@dataclass
class RecordedEvents(SilentEvents):
    notes: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)

    def note(self, vm: str, message: str) -> None:
        self.notes.append(f"{vm}: {message}")

    def vm_step(self, vm: str, step: str) -> None:
        self.steps.append(step)


class MortalMovers(LocalMovers):
    """Data movers of a process that may be killed whenever it asks something of them."""

    def __init__(
        self, live: Callable[[str], None], vm_of: Callable[[str, str], MemoryVm], *arguments: Any, **options: Any
    ) -> None:
        """`live` raises SimulatedKill once the process is dead."""
        super().__init__(*arguments, **options)
        self._live = live
        self._vm_of = vm_of

    def prepare_for_access(self, site: str, vm_ref: str, identity: str) -> None:
        self._live(f"before {site} prepare_for_access")
        vm = self._vm_of(site, vm_ref)
        if vm.access is not None:
            raise TransientDiskError(f"RelocateVM_Task is already disabled by {vm.access}", code=5)
        vm.access = identity
        self._live(f"after {site} prepare_for_access")

    def end_access(self, site: str, vm_ref: str, identity: str) -> None:
        self._live(f"before {site} end_access")
        vm = self._vm_of(site, vm_ref)
        if vm.access == identity:
            vm.access = None
        self._live(f"after {site} end_access")

    def cleanup(self, site: str, vm_ref: str, proxy: str | None = None) -> int:
        self._live(f"before {site} cleanup")
        return super().cleanup(site, vm_ref, proxy)


class World:
    """`kill_at`, once set, is asked at every site call and every point of a transfer; True means SIGKILL there."""

    def __init__(self, folder: Path, *, cbt_unit: int = 65536, retention: int = 3) -> None:
        self.clock = TickingClock()
        self.source = MemorySite("prod", self.clock, cbt_unit=cbt_unit)
        self.target = MemorySite("dr", self.clock, cbt_unit=cbt_unit)
        self.folder = folder
        self.repository = Repository.open(folder)
        self.job = JobSettings(
            name="demo",
            source="prod",
            target="dr",
            vms=("web-01",),
            placement=ReplicaPlacement(host=None, datastore="dr-ds"),
            retention=RetentionPolicy(last=retention),
            parallel_vms=1,
            limits=TransferLimits(parallel_disks=1),
        )
        self.events = RecordedEvents()
        self.orders: list[TransferOrder] = []
        self.kill_at: Callable[[str], bool] = lambda where: False
        self.dead = False
        self.scripts = ScriptDesk(self._pass, self.source.calls)
        self._ids = itertools.count(1)
        for site in (self.source, self.target):
            site.before_call = self._passing(f"before {site.name}")
            site.after_call = self._passing(f"after {site.name}")

    def _passing(self, where: str) -> Callable[[str], None]:
        return lambda method: self._pass(f"{where} {method}")

    def _pass(self, where: str) -> None:
        if self.dead or self.kill_at(where):
            self.dead = True
            raise SimulatedKill

    def _transfer_point(self, order: TransferOrder | VerifyOrder, point: Point, settled: int) -> None:
        if point is Point.OPENED and isinstance(order, TransferOrder):
            self.orders.append(order)
        self._pass(f"transfer {point} {settled}")

    def _site(self, name: str) -> MemorySite:
        found = {"prod": self.source, "dr": self.target}.get(name)
        if found is None:
            raise NotFoundError(f"no site {name} is configured")
        return found

    def engine(self) -> Engine:
        """A new process: nothing of an earlier one is left in it."""
        self.dead = False
        for site in (self.source, self.target):
            for vm in site.vms.values():
                vm.writers = vm.readers = 0
        movers = MortalMovers(
            self._pass,
            lambda site, vm_ref: self._site(site)._vm(vm_ref),
            MemoryOpener([self.source, self.target]),
            open_lookup,
            lambda order: TransferLogWriter(order.log, order.target.capacity, order.attempt),
            hook=self._transfer_point,
        )
        return Engine(
            Services(
                repository=Repository.open(self.folder),
                movers=movers,
                modes=NbdOnly(),
                scripts=self.scripts,
                clock=self.clock,
                new_id=lambda: f"{next(self._ids):06x}",
                events=self.events,
                patience=Patience((0, 0), access=0),
            ),
            self._site,
        )

    def run(self, map_to: str | None = None) -> RunReport:
        return self.engine().replicate(self.job, replica_map={"web-01": map_to} if map_to else {})

    def run_vm(self, map_to: str | None = None) -> VmReport:
        [vm] = self.run(map_to).vms
        return vm

    def run_until(self, kill_at: Callable[[str], bool], map_to: str | None = None) -> VmReport | None:
        """A run that may be killed; None if it was."""
        self.kill_at = kill_at
        try:
            return self.run_vm(map_to)
        except SimulatedKill:
            return None
        finally:
            self.kill_at = lambda where: False
            self.dead = False

    def replica(self, name: str = "web-01-replica") -> MemoryVm:
        return next(vm for vm in self.target.vms.values() if vm.name == name)

    def restore_point_contents(self, read: Callable[[MemoryDisk], Any] = MemoryDisk.content) -> dict[str, list[Any]]:
        """What every sealed restore point on the target really holds, by ID; each disk as `read` gives it."""
        found = {}
        for vm in self.target.vms.values():
            for snapshot in vm.snapshots:
                record = read_commit_record(snapshot.description, snapshot.extra_config)
                if record:
                    found[record.restore_point.id] = [read(disk.disk) for disk in snapshot.disks]
        return found

    def our_source_snapshots(self) -> list[str]:
        found = []
        for vm in self.source.vms.values():
            for one in vm.snapshots:
                node = Snapshot(one.ref, one.name, one.description, one.created, one.parent_ref)
                if source_mark_of(node):
                    found.append(one.name)
        return found


def source(world: World) -> MemoryVm:
    """The VM that most worlds replicate."""
    return next(vm for vm in world.source.vms.values() if vm.name == "web-01")


def folder_of(world: World) -> ReplicaFolder:
    """What the repository knows of its replica."""
    found = world.repository.replica("prod", source(world).instance_uuid)
    assert found is not None
    return found
