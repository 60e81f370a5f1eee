"""Facts of datastores: room, kind, LUNs, and the hosts that mount them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vrepl.model import Datastore
from vrepl.vsphere import collector
from vrepl.vsphere.api import ref_of, vim
from vrepl.vsphere.session import Session
from vrepl.vsphere.translation import Names, decode_name

_PATHS = ("name", "summary.type", "summary.capacity", "summary.freeSpace", "info", "host", "summary.multipleHostAccess")

_KINDS = {"VMFS": "VMFS", "NFS": "NFS", "NFS41": "NFS41", "VSAN": "vsan", "VSAND": "vsan", "VVOL": "VVOL"}


def read_all(session: Session, names: Names) -> list[Datastore]:
    """Every datastore, by name."""
    found = collector.below(session, {vim.Datastore: _PATHS})
    stores = sorted((datastore(one, names) for one in found), key=lambda one: (one.name, one.ref))
    if not any(store.kind == "vsan" for store in stores):
        return stores
    express = _hosts_with_express_storage(session, names)
    return [replace(store, vsan_esa=store.kind == "vsan" and bool(express & set(store.hosts))) for store in stores]


def _hosts_with_express_storage(session: Session, names: Names) -> set[str]:
    """Names of the hosts in clusters whose vSAN is of the Express Storage Architecture (vSphere 8 and newer)."""
    express: set[str] = set()
    for cluster in collector.below(session, {vim.ClusterComputeResource: ["host", "configurationEx"]}):
        config = getattr(cluster.get("configurationEx"), "vsanConfigInfo", None)
        if getattr(config, "vsanEsaEnabled", None):
            express.update(names.name(ref_of(host)) for host in cluster.get("host", []))
    return express


def datastore(found: collector.Found, names: Names) -> Datastore:
    """`hosts` are names of those that have it mounted and accessible; sizes in bytes."""
    info = found.get("info")
    vmfs = getattr(info, "vmfs", None)
    mounts = [mount for mount in found.get("host", []) if _usable(mount.mountInfo)]
    return Datastore(
        ref=found.ref,
        name=decode_name(str(found.get("name", found.ref))),
        kind=_KINDS.get(str(found.get("summary.type", "")).upper(), "OTHER"),
        capacity=int(found.get("summary.capacity", 0)),
        free=int(found.get("summary.freeSpace", 0)),
        luns=tuple(str(extent.diskName) for extent in getattr(vmfs, "extent", None) or ()),
        local=bool(getattr(vmfs, "local", False)),
        hosts=tuple(sorted(names.name(ref_of(mount.key)) for mount in mounts)),
        datacenter=names.datacenter_of(found.ref),
    )


def _usable(mount: Any) -> bool:
    """`mounted` and `accessible` are unset on old versions, which means yes."""
    return getattr(mount, "mounted", None) is not False and getattr(mount, "accessible", None) is not False
