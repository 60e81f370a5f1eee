"""Looks things of a site up by name, in a listing of its hosts, folders, pools, datastores and networks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vrepl.errors import NotFoundError, UsageError
from vrepl.model import ReplicaPlacement
from vrepl.vsphere import collector
from vrepl.vsphere.api import kind_of, ref_of, vim
from vrepl.vsphere.inventory import near_names
from vrepl.vsphere.session import Session
from vrepl.vsphere.translation import decode_name


def compute_of(things: Mapping[str, collector.Found], host: collector.Found) -> collector.Found | None:
    return things.get(ref_of(host.get("parent"))) if host.get("parent") is not None else None


def browser_of(things: Mapping[str, collector.Found], host: collector.Found) -> Any:
    compute = compute_of(things, host)
    return compute.get("environmentBrowser") if compute is not None else None


def stores_named(wanted: str, things: Mapping[str, collector.Found], host: collector.Found) -> list[collector.Found]:
    """Datastores of the host that `name` or `datacenter/name` means."""
    datacenter = datacenter_of(things, host)
    prefix = f"{name_of(datacenter)}/" if datacenter is not None else ""
    return [
        one for one in those_of(things, host.get("datastore", [])) if wanted in {name_of(one), prefix + name_of(one)}
    ]


def name_of(one: collector.Found) -> str:
    return decode_name(str(one.get("name", one.ref)))


def those_of(things: Mapping[str, collector.Found], objects: Iterable[Any]) -> list[collector.Found]:
    return [things[ref_of(one)] for one in objects if ref_of(one) in things]


def pick(candidates: list[collector.Found], name: str, missing: str, others: str) -> collector.Found:
    match = [one for one in candidates if name_of(one) == name]
    if not match:
        known = sorted(name_of(one) for one in candidates)
        raise NotFoundError(
            f"{missing} {name}", hint=near_names(name, known) or f"{others} {', '.join(known[:10]) or 'none'}"
        )
    return match[0]


def hosts_for(
    found: list[collector.Found], things: Mapping[str, collector.Found], placement: ReplicaPlacement
) -> list[collector.Found]:
    """The host that the job names, or all connected ones that mount the datastores, by name; at least one."""
    hosts = sorted((one for one in found if isinstance(one.object, vim.HostSystem)), key=name_of)
    if placement.cluster is not None:
        clusters = [one for one in found if isinstance(one.object, vim.ClusterComputeResource)]
        cluster = pick(clusters, placement.cluster, "the target site has no cluster", "it has")
        hosts = [one for one in hosts if (above := compute_of(things, one)) is not None and above.ref == cluster.ref]
    if placement.host is not None:
        where = f"cluster {placement.cluster} has no host" if placement.cluster else "the target site has no host"
        return [pick(hosts, placement.host, where, "it has")]
    usable = [
        host
        for host in hosts
        if str(host.get("runtime.connectionState", "connected")) == "connected"
        and not host.get("runtime.inMaintenanceMode", False)
        and stores_named(placement.datastore, things, host)
    ]
    if not usable:
        known = {name_of(one) for one in found if isinstance(one.object, vim.Datastore)}
        where = f"cluster {placement.cluster}" if placement.cluster else "the target site"
        raise NotFoundError(
            f"no connected host of {where} has datastore {placement.datastore}",
            hint=near_names(placement.datastore, known) or "set host and datastore of the job's target",
        )
    meant = {store.ref for host in usable for store in stores_named(placement.datastore, things, host)}
    if len(meant) > 1:
        raise UsageError(
            f"the target site has {len(meant)} datastores named {placement.datastore}",
            hint="write the datacenter before the name in target_datastore (datacenter/name), or name a target_host",
        )
    others = sorted(set(placement.disk_stores.values()))
    able = [host for host in usable if all(stores_named(name, things, host) for name in others)]
    if not able:
        raise NotFoundError(
            f"no connected host that has datastore {placement.datastore} has {', '.join(others)} too",
            hint="a VM's disks lie on datastores of one host: change disk_datastores in the job",
        )
    return able


def datacenter_of(things: Mapping[str, collector.Found], start: collector.Found) -> collector.Found | None:
    above: collector.Found | None = start
    while above is not None and not isinstance(above.object, vim.Datacenter):
        parent = above.get("parent")
        above = things.get(ref_of(parent)) if parent is not None else None
    return above


def folder_for(
    found: list[collector.Found], things: Mapping[str, collector.Found], host: collector.Found, path: str | None
) -> tuple[Any, tuple[str, ...]]:
    """The VM folder of the host's datacenter, or as much of `a/b` below it as is there, and the steps that are not."""
    datacenter = datacenter_of(things, host)
    if datacenter is None or datacenter.get("vmFolder") is None:
        raise NotFoundError(f"the datacenter of host {name_of(host)} cannot be seen", hint="see `vrepl check`")
    current = datacenter.get("vmFolder")
    steps = [part for part in (path or "").split("/") if part]
    for number, step in enumerate(steps):
        inside = [
            one
            for one in found
            if isinstance(one.object, vim.Folder)
            and one.get("parent") is not None
            and ref_of(one.get("parent")) == ref_of(current)
            and name_of(one) == step
        ]
        if not inside:
            return current, tuple(steps[number:])
        current = inside[0].object
    return current, ()


def pool_for(
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
            parts.append(name_of(step))
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


def networks_of(
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
        networks[name_of(one)] = one.object
        switch = one.get("config.distributedVirtualSwitch")
        if "Portgroup" in kind_of(one.object) and switch is not None:
            portgroups[name_of(one)] = (str(one.get("key", one.ref)), uuids.get(ref_of(switch), ""))
        summary = one.get("summary")
        if getattr(summary, "opaqueNetworkId", None):
            opaque[name_of(one)] = (str(summary.opaqueNetworkId), str(summary.opaqueNetworkType or ""))
    return networks, portgroups, opaque
