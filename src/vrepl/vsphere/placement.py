"""Where a replica goes: names of a job -> objects of the target site."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vrepl.errors import NotFoundError, VsphereError
from vrepl.model import DISCONNECTED, Hardware, ReplicaPlacement
from vrepl.vsphere import collector
from vrepl.vsphere.api import ref_of, vim
from vrepl.vsphere.hosts import Environments, HostOffer, in_order, too_long, unknown_guest, with_placed
from vrepl.vsphere.inventory import near_names
from vrepl.vsphere.placement_lookup import (
    browser_of,
    compute_of,
    folder_for,
    hosts_for,
    name_of,
    networks_of,
    pick,
    pool_for,
    stores_named,
    those_of,
)
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
        return self._place(found, things, hosts_for(found, things, placement)[0], placement)

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
            hosts = {host.ref: host for host in hosts_for(found, things, placement)}
            hardware = replica.hardware
            networks = wanted_networks(hardware, placement.networks)
            offers = [self._offer(things, host) for host in hosts.values()]
            if len(hosts) == 1:
                # A single host's networks are looked up by name later, where near names are known.
                networks = []
            able = in_order([with_placed(offer, self._placed) for offer in offers], hardware, networks)
            for offer in able:
                host = hosts[offer.ref]
                browser = browser_of(things, host)
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
            name=name_of(host),
            vms=len(host.get("vm", [])),
            versions=self._environments.versions(browser_of(things, host), host.ref),
            networks=frozenset(name_of(one) for one in those_of(things, host.get("network", []))),
        )

    def _place(
        self,
        found: list[collector.Found],
        things: Mapping[str, collector.Found],
        host: collector.Found,
        placement: ReplicaPlacement,
    ) -> Place:
        host_name = name_of(host)
        stores = those_of(things, host.get("datastore", []))
        datastore = stores_named(placement.datastore, things, host)
        if not datastore:
            pick(stores, placement.datastore, f"host {host_name} has no datastore", "it has")
        compute = compute_of(things, host)
        networks, portgroups, opaque = networks_of(self._session, host)
        folder, missing_folders = folder_for(found, things, host, placement.folder)
        return Place(
            host=host.object,
            host_name=host_name,
            datastore=datastore[0].object,
            datastore_name=name_of(datastore[0]),
            folder=folder,
            pool=pool_for(found, things, compute, placement.resource_pool, host_name),
            networks=networks,
            portgroups=portgroups,
            opaque=opaque,
            stores={name_of(one): one.object for one in stores},
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
