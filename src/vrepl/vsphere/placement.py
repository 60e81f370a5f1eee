"""Where a replica goes: names of a job -> objects of the target site."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vrepl.errors import NotFoundError, UsageError, VsphereError
from vrepl.model import DISCONNECTED, Hardware, ReplicaPlacement
from vrepl.vsphere import collector
from vrepl.vsphere.api import kind_of, ref_of, vim
from vrepl.vsphere.hosts import Environments, HostOffer, in_order, too_long, unknown_guest, with_placed
from vrepl.vsphere.inventory import near_names
from vrepl.vsphere.session import Session
from vrepl.vsphere.translation import decode_name, encode_name

_HOST_PATHS = (
    "name",
    "parent",
    "datastore",
    "network",
    "runtime.connectionState",
    "runtime.inMaintenanceMode",
    "vm",
)

LISTING_LAST = 30.0
"""Seconds that the listing of hosts, folders and pools is kept: a plan over many VMs asks for each of them."""


def mapped_network(name: str, networks: Mapping[str, str]) -> str:
    """The target's network for one of the source's; unmapped ones keep their name."""
    return networks.get(name, name)


def wanted_networks(hardware: Hardware, networks: Mapping[str, str]) -> list[str]:
    """The target's networks that a replica of this hardware is connected to."""
    mapped = [mapped_network(one.network, networks) for one in hardware.network_adapters]
    return [network for network in mapped if network != DISCONNECTED]


@dataclass(frozen=True, slots=True)
class NewReplica:
    """What a replica that is still to be made asks of its place."""

    name: str
    hardware: Hardware


@dataclass(frozen=True, slots=True)
class Place:
    """The objects behind a ReplicaPlacement."""

    host: Any
    host_name: str
    datastore: Any
    datastore_name: str
    folder: Any
    pool: Any
    networks: Mapping[str, Any]
    """Networks of the host by name."""
    portgroups: Mapping[str, tuple[str, str]]
    """Distributed port group by name -> (its key, its switch's uuid)."""
    opaque: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Network of NSX's own switch by name -> (its network id, its type)."""
    stores: Mapping[str, Any] = field(default_factory=dict)
    """Datastores of the host by name."""
    missing_folders: tuple[str, ...] = ()
    """What must be made below `folder`, one in the other, for the replica to go to."""

    def store(self, name: str) -> Any:
        """The datastore of that name that the host mounts. Raises NotFoundError with near names."""
        if name not in self.stores:
            raise NotFoundError(
                f"host {self.host_name} has no datastore {name}", hint=near_names(name, self.stores) or "mount it there"
            )
        return self.stores[name]

    def store_of(self, placement: ReplicaPlacement, disk_key: int) -> tuple[Any, str]:
        """The datastore of a disk that is to be made, by the source's device key, and its name."""
        name = placement.disk_stores.get(disk_key)
        return (self.datastore, self.datastore_name) if name is None else (self.store(name), name)

    def network(self, name: str) -> Any:
        """Raises NotFoundError with near names."""
        if name not in self.networks:
            raise NotFoundError(
                f"host {self.host_name} has no network {name}",
                hint=near_names(name, self.networks)
                or f"map it in the job's networks; the host has {', '.join(sorted(self.networks)) or 'none'}",
            )
        return self.networks[name]


class Places:
    """Looks places up by name. Thread-safe; keeps the listing for a moment, and counts what it has placed."""

    def __init__(self, session: Session, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._session = session
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._listing: list[collector.Found] = []
        self._listed_at: float | None = None
        self._environments = Environments()
        self._placed: Counter[str] = Counter()

    def forget(self) -> None:
        """Something was made that the listing does not know."""
        with self._lock:
            self._listed_at = None

    def find(self, placement: ReplicaPlacement) -> Place:
        """Where things of a replica go that exists, or that goes to a host by name. Raises NotFoundError."""
        with self._lock:
            found = self._list()
        things = {one.ref: one for one in found}
        return self._place(found, things, _hosts(found, things, placement)[0], placement)

    def find_for(self, replica: NewReplica, placement: ReplicaPlacement) -> Place:
        """The place of a replica that is still to be made: without a host by name, replicas spread over those that can.

        Raises NotFoundError with near names, UsageError where a datastore's name is ambiguous, and NotReplicableError
        for a name, hardware version, guest OS or network that the target does not take.
        """
        error = too_long(replica.name)
        if error is not None:
            raise error
        with self._lock:
            found = self._list()
            things = {one.ref: one for one in found}
            hosts = {host.ref: host for host in _hosts(found, things, placement)}
            hardware = replica.hardware
            networks = wanted_networks(hardware, placement.networks)
            offers = [self._offer(things, host) for host in hosts.values()]
            if len(hosts) == 1:
                # A single host's networks are looked up by name later, where near names are known.
                networks = []
            able = in_order([with_placed(offer, self._placed) for offer in offers], hardware, networks)
            for offer in able:
                host = hosts[offer.ref]
                browser = _browser(things, host)
                if self._environments.knows_guest(browser, host.object, hardware.version, hardware.guest_id):
                    place = self._place(found, things, host, placement)
                    if place.missing_folders and not self._session.is_vcenter:
                        raise NotFoundError(
                            "a standalone ESXi host has no VM folders", hint="take target_folder out of the job"
                        )
                    for network in networks or wanted_networks(hardware, placement.networks):
                        place.network(network)
                    return place
            raise unknown_guest(able[0], hardware.guest_id)

    def count(self, place: Place) -> None:
        """A replica was made there."""
        with self._lock:
            self._placed[ref_of(place.host)] += 1

    def _list(self) -> list[collector.Found]:
        """The caller holds the lock."""
        now = self._monotonic()
        if self._listed_at is None or now - self._listed_at > LISTING_LAST:
            self._listing = collector.below(
                self._session,
                {
                    vim.HostSystem: _HOST_PATHS,
                    vim.Datastore: ["name"],
                    vim.Datacenter: ["name", "vmFolder", "parent"],
                    vim.Folder: ["name", "parent"],
                    vim.ComputeResource: ["name", "resourcePool", "parent", "environmentBrowser"],
                    vim.ResourcePool: ["name", "parent", "owner"],
                    vim.Network: ["name"],
                },
            )
            self._listed_at = now
            self._placed.clear()  # the hosts' VMs are counted anew
        return self._listing

    def _offer(self, things: Mapping[str, collector.Found], host: collector.Found) -> HostOffer:
        return HostOffer(
            ref=host.ref,
            name=_name(host),
            vms=len(host.get("vm", [])),
            versions=self._environments.versions(_browser(things, host), host.ref),
            networks=frozenset(_name(one) for one in _of(things, host.get("network", []))),
        )

    def _place(
        self,
        found: list[collector.Found],
        things: Mapping[str, collector.Found],
        host: collector.Found,
        placement: ReplicaPlacement,
    ) -> Place:
        host_name = _name(host)
        stores = _of(things, host.get("datastore", []))
        datastore = _stores_named(placement.datastore, things, host)
        if not datastore:
            _pick(stores, placement.datastore, f"host {host_name} has no datastore", "it has")
        compute = _compute(things, host)
        networks, portgroups, opaque = _networks(self._session, host)
        folder, missing_folders = _folder(found, things, host, placement.folder)
        return Place(
            host=host.object,
            host_name=host_name,
            datastore=datastore[0].object,
            datastore_name=_name(datastore[0]),
            folder=folder,
            pool=_pool(found, things, compute, placement.resource_pool, host_name),
            networks=networks,
            portgroups=portgroups,
            opaque=opaque,
            stores={_name(one): one.object for one in stores},
            missing_folders=missing_folders,
        )

    def make_folders(self, place: Place) -> Any:
        """The folder that the replica goes to, made where it is missing: such a folder stays, whatever comes of it."""
        folder = place.folder
        for name in place.missing_folders:
            try:
                folder = folder.CreateFolder(name=encode_name(name))
            except VsphereError as error:
                if error.fault != "DuplicateName":
                    raise
                # Another replica's run was quicker.
                folder = next(one for one in folder.childEntity if decode_name(str(one.name)) == name)
        if place.missing_folders:
            self.forget()
        return folder


def _compute(things: Mapping[str, collector.Found], host: collector.Found) -> collector.Found | None:
    return things.get(ref_of(host.get("parent"))) if host.get("parent") is not None else None


def _browser(things: Mapping[str, collector.Found], host: collector.Found) -> Any:
    compute = _compute(things, host)
    return compute.get("environmentBrowser") if compute is not None else None


def _stores_named(wanted: str, things: Mapping[str, collector.Found], host: collector.Found) -> list[collector.Found]:
    """Datastores of the host that `name` or `datacenter/name` means."""
    datacenter = _datacenter(things, host)
    prefix = f"{_name(datacenter)}/" if datacenter is not None else ""
    return [one for one in _of(things, host.get("datastore", [])) if wanted in {_name(one), prefix + _name(one)}]


def _name(one: collector.Found) -> str:
    return decode_name(str(one.get("name", one.ref)))


def _of(things: Mapping[str, collector.Found], objects: Iterable[Any]) -> list[collector.Found]:
    return [things[ref_of(one)] for one in objects if ref_of(one) in things]


def _pick(candidates: list[collector.Found], name: str, missing: str, others: str) -> collector.Found:
    match = [one for one in candidates if _name(one) == name]
    if not match:
        known = sorted(_name(one) for one in candidates)
        raise NotFoundError(
            f"{missing} {name}", hint=near_names(name, known) or f"{others} {', '.join(known[:10]) or 'none'}"
        )
    return match[0]


def _hosts(
    found: list[collector.Found], things: Mapping[str, collector.Found], placement: ReplicaPlacement
) -> list[collector.Found]:
    """The host that the job names, or all connected ones that mount the datastores, by name; at least one."""
    hosts = sorted((one for one in found if isinstance(one.object, vim.HostSystem)), key=_name)
    if placement.cluster is not None:
        clusters = [one for one in found if isinstance(one.object, vim.ClusterComputeResource)]
        cluster = _pick(clusters, placement.cluster, "the target site has no cluster", "it has")
        hosts = [one for one in hosts if (above := _compute(things, one)) is not None and above.ref == cluster.ref]
    if placement.host is not None:
        where = f"cluster {placement.cluster} has no host" if placement.cluster else "the target site has no host"
        return [_pick(hosts, placement.host, where, "it has")]
    usable = [
        host
        for host in hosts
        if str(host.get("runtime.connectionState", "connected")) == "connected"
        and not host.get("runtime.inMaintenanceMode", False)
        and _stores_named(placement.datastore, things, host)
    ]
    if not usable:
        known = {_name(one) for one in found if isinstance(one.object, vim.Datastore)}
        where = f"cluster {placement.cluster}" if placement.cluster else "the target site"
        raise NotFoundError(
            f"no connected host of {where} has datastore {placement.datastore}",
            hint=near_names(placement.datastore, known) or "set host and datastore of the job's target",
        )
    meant = {store.ref for host in usable for store in _stores_named(placement.datastore, things, host)}
    if len(meant) > 1:
        raise UsageError(
            f"the target site has {len(meant)} datastores named {placement.datastore}",
            hint="write the datacenter before the name in target_datastore (datacenter/name), or name a target_host",
        )
    others = sorted(set(placement.disk_stores.values()))
    able = [host for host in usable if all(_stores_named(name, things, host) for name in others)]
    if not able:
        raise NotFoundError(
            f"no connected host that has datastore {placement.datastore} has {', '.join(others)} too",
            hint="a VM's disks lie on datastores of one host: change disk_datastores in the job",
        )
    return able


def _datacenter(things: Mapping[str, collector.Found], start: collector.Found) -> collector.Found | None:
    above: collector.Found | None = start
    while above is not None and not isinstance(above.object, vim.Datacenter):
        parent = above.get("parent")
        above = things.get(ref_of(parent)) if parent is not None else None
    return above


def _folder(
    found: list[collector.Found], things: Mapping[str, collector.Found], host: collector.Found, path: str | None
) -> tuple[Any, tuple[str, ...]]:
    """The VM folder of the host's datacenter, or as much of `a/b` below it as is there, and the steps that are not."""
    datacenter = _datacenter(things, host)
    if datacenter is None or datacenter.get("vmFolder") is None:
        raise NotFoundError(f"the datacenter of host {_name(host)} cannot be seen", hint="see `vrepl check`")
    current = datacenter.get("vmFolder")
    steps = [part for part in (path or "").split("/") if part]
    for number, step in enumerate(steps):
        inside = [
            one
            for one in found
            if isinstance(one.object, vim.Folder)
            and one.get("parent") is not None
            and ref_of(one.get("parent")) == ref_of(current)
            and _name(one) == step
        ]
        if not inside:
            return current, tuple(steps[number:])
        current = inside[0].object
    return current, ()


def _pool(
    found: list[collector.Found],
    things: Mapping[str, collector.Found],
    compute: collector.Found | None,
    path: str | None,
    host_name: str,
) -> Any:
    """The root pool of the host or its cluster, or the one at `a/b` (or named `b`) below it."""
    if compute is None or compute.get("resourcePool") is None:
        raise NotFoundError(f"the resource pool of host {host_name} cannot be seen", hint="see `vrepl check`")
    root = compute.get("resourcePool")
    if not path:
        return root

    def path_of(one: collector.Found) -> str:
        parts: list[str] = []
        step: collector.Found | None = one
        while step is not None and step.ref != ref_of(root):
            parts.append(_name(step))
            parent = step.get("parent")
            step = things.get(ref_of(parent)) if parent is not None else None
        return "/".join(reversed(parts))

    pools = [
        one
        for one in found
        if isinstance(one.object, vim.ResourcePool)
        and one.get("owner") is not None
        and ref_of(one.get("owner")) == compute.ref
        and one.ref != ref_of(root)
    ]
    paths = {path_of(one): one.object for one in pools}
    match = [pool for known, pool in paths.items() if known == path or known.rpartition("/")[2] == path]
    if len(match) != 1:
        trouble = "has no resource pool" if not match else "has several resource pools named"
        raise NotFoundError(
            f"host {host_name} {trouble} {path}",
            hint=near_names(path, paths) or f"it has {', '.join(sorted(paths)) or 'only its root pool'}",
        )
    return match[0]


def _networks(
    session: Session, host: collector.Found
) -> tuple[dict[str, Any], dict[str, tuple[str, str]], dict[str, tuple[str, str]]]:
    """The host's networks by name, and what distributed port groups and NSX's need besides (2 calls at most)."""
    found = collector.these(
        session,
        host.get("network", []),
        {
            vim.dvs.DistributedVirtualPortgroup: ["name", "key", "config.distributedVirtualSwitch"],
            vim.OpaqueNetwork: ["name", "summary"],
            vim.Network: ["name"],
        },
    )
    switches = {
        ref_of(one.get("config.distributedVirtualSwitch")): one.get("config.distributedVirtualSwitch")
        for one in found
        if one.get("config.distributedVirtualSwitch") is not None
    }
    uuids = {
        one.ref: str(one.get("uuid", ""))
        for one in collector.these(session, list(switches.values()), {vim.DistributedVirtualSwitch: ["uuid"]})
    }
    networks: dict[str, Any] = {}
    portgroups: dict[str, tuple[str, str]] = {}
    opaque: dict[str, tuple[str, str]] = {}
    for one in found:
        networks[_name(one)] = one.object
        switch = one.get("config.distributedVirtualSwitch")
        if "Portgroup" in kind_of(one.object) and switch is not None:
            portgroups[_name(one)] = (str(one.get("key", one.ref)), uuids.get(ref_of(switch), ""))
        summary = one.get("summary")
        if getattr(summary, "opaqueNetworkId", None):
            opaque[_name(one)] = (str(summary.opaqueNetworkId), str(summary.opaqueNetworkType or ""))
    return networks, portgroups, opaque
