"""Where a replica goes: names of a job -> objects of the target site."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vrepl.errors import NotFoundError
from vrepl.model import ReplicaPlacement
from vrepl.vsphere import collector
from vrepl.vsphere.api import kind_of, ref_of, vim
from vrepl.vsphere.inventory import near_names
from vrepl.vsphere.mapping import decode_name
from vrepl.vsphere.session import Session

_HOST_PATHS = (
    "name",
    "parent",
    "datastore",
    "network",
    "runtime.connectionState",
    "runtime.inMaintenanceMode",
)


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

    def network(self, name: str) -> Any:
        """Raises NotFoundError with near names."""
        if name not in self.networks:
            raise NotFoundError(
                f"host {self.host_name} has no network {name}",
                hint=near_names(name, self.networks)
                or f"map it in the job's networks; the host has {', '.join(sorted(self.networks)) or 'none'}",
            )
        return self.networks[name]


def find_place(session: Session, placement: ReplicaPlacement) -> Place:
    """Look everything up by name. Raises NotFoundError with near names."""
    found = collector.below(
        session,
        {
            vim.HostSystem: _HOST_PATHS,
            vim.Datastore: ["name"],
            vim.Datacenter: ["name", "vmFolder", "parent"],
            vim.Folder: ["name", "parent"],
            vim.ComputeResource: ["name", "resourcePool", "parent"],
            vim.ResourcePool: ["name", "parent", "owner"],
        },
    )
    things = {one.ref: one for one in found}
    host = _host(found, things, placement)
    host_name = _name(host)
    datastores = _of(things, host.get("datastore", []))
    datastore = _pick(datastores, placement.datastore, f"host {host_name} has no datastore", "it has")
    compute = things.get(ref_of(host.get("parent"))) if host.get("parent") is not None else None
    networks, portgroups = _networks(session, host)
    return Place(
        host=host.object,
        host_name=host_name,
        datastore=datastore.object,
        datastore_name=_name(datastore),
        folder=_folder(found, things, host, placement.folder),
        pool=_pool(found, things, compute, placement.resource_pool, host_name),
        networks=networks,
        portgroups=portgroups,
    )


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


def _host(
    found: list[collector.Found], things: Mapping[str, collector.Found], placement: ReplicaPlacement
) -> collector.Found:
    hosts = sorted((one for one in found if isinstance(one.object, vim.HostSystem)), key=_name)
    if placement.host is not None:
        return _pick(hosts, placement.host, "the target site has no host", "it has")
    usable = [
        host
        for host in hosts
        if str(host.get("runtime.connectionState", "connected")) == "connected"
        and not host.get("runtime.inMaintenanceMode", False)
        and placement.datastore in {_name(one) for one in _of(things, host.get("datastore", []))}
    ]
    if not usable:
        known = {_name(one) for one in found if isinstance(one.object, vim.Datastore)}
        raise NotFoundError(
            f"no connected host of the target site has datastore {placement.datastore}",
            hint=near_names(placement.datastore, known) or "set host and datastore of the job's target",
        )
    return usable[0]


def _datacenter(things: Mapping[str, collector.Found], start: collector.Found) -> collector.Found | None:
    above: collector.Found | None = start
    while above is not None and not isinstance(above.object, vim.Datacenter):
        parent = above.get("parent")
        above = things.get(ref_of(parent)) if parent is not None else None
    return above


def _folder(
    found: list[collector.Found], things: Mapping[str, collector.Found], host: collector.Found, path: str | None
) -> Any:
    """The VM folder of the host's datacenter, or the one at `a/b` below it."""
    datacenter = _datacenter(things, host)
    if datacenter is None or datacenter.get("vmFolder") is None:
        raise NotFoundError(f"the datacenter of host {_name(host)} cannot be seen", hint="see `vrepl check`")
    current = datacenter.get("vmFolder")
    for step in [part for part in (path or "").split("/") if part]:
        inside = [
            one
            for one in found
            if isinstance(one.object, vim.Folder)
            and one.get("parent") is not None
            and ref_of(one.get("parent")) == ref_of(current)
        ]
        missing = f"datacenter {_name(datacenter)} has no VM folder {path}: there is no"
        current = _pick(inside, step, missing, "there are").object
    return current


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


def _networks(session: Session, host: collector.Found) -> tuple[dict[str, Any], dict[str, tuple[str, str]]]:
    """The host's networks by name, and what a distributed port group needs besides (2 calls at most)."""
    found = collector.these(
        session,
        host.get("network", []),
        {
            vim.dvs.DistributedVirtualPortgroup: ["name", "key", "config.distributedVirtualSwitch"],
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
    for one in found:
        networks[_name(one)] = one.object
        switch = one.get("config.distributedVirtualSwitch")
        if "Portgroup" in kind_of(one.object) and switch is not None:
            portgroups[_name(one)] = (str(one.get("key", one.ref)), uuids.get(ref_of(switch), ""))
    return networks, portgroups
