"""What the checks ask of the world, as small Protocols; `cli.wiring` brings the real ones."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from vrepl.config import LoadedConfig
from vrepl.model import DataEngine, Datastore, ReplicaPlacement, TransportMode, VirtualMachine
from vrepl.model.selection import Candidate
from vrepl.planner.modes import ProxyVm
from vrepl.ports import Clock, SiteConnection
from vrepl.repository.store import Repository


class Host(Protocol):
    """An ESXi host; `name` is what vSphere knows it by, and what VDDK connects to."""

    @property
    def name(self) -> str: ...

    @property
    def connected(self) -> bool: ...


class LackedPrivilege(Protocol):
    """A privilege id that the user does not hold on an entity (kind and name), and what vrepl wants it for."""

    @property
    def privilege(self) -> str: ...

    @property
    def entity(self) -> str: ...

    @property
    def why(self) -> str: ...


class CheckedSite(Protocol):
    """A site, as far as checks want it. Methods raise VreplErrors."""

    @property
    def product(self) -> str: ...

    def connection(self) -> SiteConnection:
        """Verifies the certificate; needs no login."""
        ...

    def login(self) -> None: ...

    def candidates(self, tag_patterns: Sequence[str]) -> list[Candidate]: ...

    def current_time(self) -> dt.datetime: ...

    def hosts(self) -> Sequence[Host]: ...

    def lacking_as_source(
        self, vm_refs: Sequence[str], datastore_refs: Sequence[str], engine: DataEngine
    ) -> Sequence[LackedPrivilege]:
        """What the user lacks to replicate these VMs, whose disks lie on these datastores, with this engine."""
        ...

    def lacking_as_target(self, placement: ReplicaPlacement, engine: DataEngine) -> Sequence[LackedPrivilege]:
        """What the user lacks to make replicas there. Raises NotFoundError where the place is not."""
        ...

    def lacking_as_hotadd_proxy(self, vm_ref: str, engine: DataEngine) -> Sequence[LackedPrivilege]:
        """What the user lacks to attach disks to this proxy VM, and to detach them."""
        ...

    def lacking_for_guest_scripts(self, vm_refs: Sequence[str]) -> Sequence[LackedPrivilege]:
        """What the user lacks to run scripts in the guests of these VMs."""
        ...

    def lacking_for_failover(self, vm_refs: Sequence[str]) -> Sequence[LackedPrivilege]:
        """What the user lacks to fail over to these replicas, and to test it."""
        ...

    def lacking_for_guest_addresses(self, vm_refs: Sequence[str]) -> Sequence[LackedPrivilege]:
        """What the user lacks to set the addresses of these VMs' guests."""
        ...

    def list_vms(self) -> list[VirtualMachine]: ...

    def datastores(self) -> list[Datastore]: ...


class Network(Protocol):
    """Names and ports, as this machine sees them. Both raise OSError."""

    def resolve(self, name: str) -> str:
        """An address of the name."""
        ...

    def reach(self, name: str, port: int) -> None:
        """Connects and closes again."""
        ...


class VddkProbe(Protocol):
    """VDDK, tried in a data mover. Both raise VreplErrors."""

    def load(self) -> str:
        """Loads the library; says which one it is."""
        ...

    def read_sector(self, site: str, vm: VirtualMachine, modes: Sequence[TransportMode]) -> str:
        """Reads the first sector of the VM's first disk; says over which of these transport modes."""
        ...


@dataclass(frozen=True, slots=True)
class World:
    """Everything that a run of the checks uses."""

    loaded: LoadedConfig
    site: Callable[[str], CheckedSite]
    """By name; raises UsageError where the password cannot be had."""
    repository: Callable[[], Repository]
    network: Network
    vddk: Callable[[str | None], VddkProbe]
    """Of a proxy by name; None: this machine."""
    clock: Clock
    closed_ports: Callable[[str, Sequence[str], int], Mapping[str, str]] = lambda _proxy, _hosts, _port: {}
    """Host name -> why its port cannot be reached from a proxy behind ssh; raises VreplErrors."""
    stream: Callable[[str | None, str | None], str | None] = lambda _source, _target: None
    """Tries whether movers of two proxies (None: this machine) can be joined: where one listens, None where no network
    is between the two; raises VreplErrors."""
    visible_luns: Callable[[str | None], frozenset[str]] = lambda _proxy: frozenset()
    """`naa.` names that a proxy (None: this machine) sees."""
    engine: Callable[[str | None], tuple[DataEngine, str]] = lambda _proxy: (DataEngine.VDDK, "")
    """Whose code opens disks on a proxy (None: this machine), and why."""
    vddk_is_missed: Callable[[str | None], bool] = lambda _proxy: False
    """Whether the configuration names a folder of VDDK for it that holds none."""
    proxy_vm: Callable[[str | None, Sequence[VirtualMachine]], tuple[ProxyVm | None, str]] = lambda _proxy, _vms: (
        None,
        "the proxy is no VM of this site",
    )
    """Which of a site's VMs a proxy (None: this machine) is; or None, and why."""
    devices: Callable[[str | None], str | None] = lambda _proxy: None
    """Why a proxy (None: this machine) cannot read and write block devices; None where it can."""
