"""The composition root of `vrepl check`: real sites, ports and VDDK behind the Protocols that the checks ask."""

from __future__ import annotations

import datetime as dt
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from vrepl.app.composition import make_movers, mover_settings
from vrepl.app.machines import launcher_of, machine_of, proxy_machine
from vrepl.app.routes import Route
from vrepl.app.sites import Sites, now, open_repository
from vrepl.app.streams import check_stream
from vrepl.checks.facts import World
from vrepl.config import LoadedConfig
from vrepl.model import DataEngine, Datastore, ReplicaPlacement, TransportMode, VirtualMachine
from vrepl.model.selection import Candidate
from vrepl.movers.pool import VddkMovers
from vrepl.movers.process import MoverProcess, Spawner
from vrepl.planner.modes import ProxyVm
from vrepl.ports import DiskAddress, SiteConnection
from vrepl.proxy.facts import find_proxy_vm, reach
from vrepl.vsphere.facts import EsxiHost
from vrepl.vsphere.privileges import Missing, Role
from vrepl.vsphere.site import VsphereSite


class SiteForChecks:
    """A VsphereSite with the questions about privileges that checks ask."""

    def __init__(self, site: VsphereSite) -> None:
        self._site = site

    @property
    def product(self) -> str:
        return self._site.product

    def connection(self) -> SiteConnection:
        return self._site.connection()

    def login(self) -> None:
        self._site.login()

    def candidates(self, tag_patterns: Sequence[str]) -> list[Candidate]:
        return self._site.candidates(tag_patterns)

    def current_time(self) -> dt.datetime:
        return self._site.current_time()

    def hosts(self) -> Sequence[EsxiHost]:
        return self._site.hosts()

    def lacking_as_source(
        self, vm_refs: Sequence[str], datastore_refs: Sequence[str], engine: DataEngine
    ) -> Sequence[Missing]:
        return self._site.missing_privileges(Role.SOURCE, vm_refs=vm_refs, datastore_refs=datastore_refs, engine=engine)

    def lacking_as_target(self, placement: ReplicaPlacement, engine: DataEngine) -> Sequence[Missing]:
        return self._site.missing_privileges(Role.TARGET, placement=placement, engine=engine)

    def lacking_for_failover(self, vm_refs: Sequence[str]) -> Sequence[Missing]:
        return self._site.missing_privileges(Role.FAILOVER, vm_refs=vm_refs)

    def lacking_as_hotadd_proxy(self, vm_ref: str, engine: DataEngine) -> Sequence[Missing]:
        return self._site.missing_privileges(Role.HOTADD_PROXY, vm_refs=[vm_ref], engine=engine)

    def lacking_for_guest_scripts(self, vm_refs: Sequence[str]) -> Sequence[Missing]:
        return self._site.missing_privileges(Role.GUEST_SCRIPTS, vm_refs=vm_refs)

    def lacking_for_guest_addresses(self, vm_refs: Sequence[str]) -> Sequence[Missing]:
        return self._site.missing_privileges(Role.GUEST_ADDRESSES, vm_refs=vm_refs)

    def list_vms(self) -> list[VirtualMachine]:
        return self._site.list_vms()

    def datastores(self) -> list[Datastore]:
        return self._site.datastores()


class MachineNetwork:
    """Names and ports as this machine sees them."""

    def resolve(self, name: str) -> str:
        return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])

    def reach(self, name: str, port: int) -> None:
        reach(name, port)


class VddkForChecks:
    """VDDK of one proxy, tried in data movers of its own."""

    def __init__(self, loaded: LoadedConfig, sites: Sites, proxy: str | None) -> None:
        machine = proxy_machine(loaded, proxy)
        self._settings = mover_settings(loaded, machine)
        self._launcher = launcher_of(machine)
        self._movers: VddkMovers = make_movers(loaded, Route((), machine), sites)

    def load(self) -> str:
        spawner = Spawner()
        try:
            mover = MoverProcess(self._settings, spawner, launcher=self._launcher)
            try:
                return str(mover.about["library"])
            finally:
                mover.close()
        finally:
            spawner.end()

    def read_sector(self, site: str, vm: VirtualMachine, modes: Sequence[TransportMode]) -> str:
        disk = vm.disks[0]
        address = DiskAddress(
            site=site,
            vm_ref=vm.ref,
            snapshot_ref=None,
            path=disk.path,
            capacity=disk.capacity,
            modes=tuple(modes),
            vm_name=vm.name,
            disk_title=disk.title,
        )
        return str(self._movers.probe(address)["mode"])

    def close(self) -> None:
        self._movers.close()


@contextmanager
def check_world(loaded: LoadedConfig) -> Iterator[World]:
    """Everything that the checks use; what they opened is closed at the end."""
    probes: dict[str | None, VddkForChecks] = {}
    with Sites(loaded) as sites:
        wrapped: dict[str, SiteForChecks] = {}

        def site(name: str) -> SiteForChecks:
            if name not in wrapped:
                wrapped[name] = SiteForChecks(sites(name))
            return wrapped[name]

        def vddk(proxy: str | None) -> VddkForChecks:
            if proxy not in probes:
                probes[proxy] = VddkForChecks(loaded, sites, proxy)
            return probes[proxy]

        def closed_ports(proxy: str, hosts: Sequence[str], port: int) -> dict[str, str]:
            return machine_of(proxy_machine(loaded, proxy)).closed_ports(hosts, port)

        def stream(source: str | None, target: str | None) -> str | None:
            return check_stream(loaded, source, target)

        def luns(proxy: str | None) -> frozenset[str]:
            return machine_of(proxy_machine(loaded, proxy)).visible_luns()

        def vddk_is_missed(proxy: str | None) -> bool:
            return proxy_machine(loaded, proxy).vddk_is_missed

        def engine(proxy: str | None) -> tuple[DataEngine, str]:
            machine = proxy_machine(loaded, proxy)
            return machine.engine, machine.engine_reason

        def proxy_vm(proxy: str | None, vms: Sequence[VirtualMachine]) -> tuple[ProxyVm | None, str]:
            machine = proxy_machine(loaded, proxy)
            return find_proxy_vm(machine.name, machine_of(machine).product_uuid(), vms)

        def devices(proxy: str | None) -> str | None:
            return machine_of(proxy_machine(loaded, proxy)).no_devices()

        try:
            yield World(
                loaded, site, lambda: open_repository(loaded), MachineNetwork(), vddk, now, closed_ports, stream,
                luns, engine, vddk_is_missed, proxy_vm, devices,
            )  # fmt: skip
        finally:
            for probe in probes.values():
                probe.close()
