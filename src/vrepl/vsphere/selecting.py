"""All VMs of a site as far as selecting goes: a constant number of calls per 1,000 objects, and some more for tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vrepl.model import PowerState
from vrepl.model.selection import Candidate
from vrepl.vsphere import collector
from vrepl.vsphere.api import ref_of, vim
from vrepl.vsphere.session import Session
from vrepl.vsphere.tags import Tags
from vrepl.vsphere.translation import decode_name

_VM_PATHS = (
    "name",
    "parent",
    "parentVApp",
    "resourcePool",
    "runtime.host",
    "runtime.powerState",
    "datastore",
    "customValue",
    "config.template",
)
_UNSHOWN = frozenset({"vm", "host", "Resources"})
"""Folders and pools that vSphere makes by itself, and that no client shows in a path."""


def candidates(session: Session, tag_patterns: Sequence[str]) -> list[Candidate]:
    """Every VM and template. `tag_patterns`: which tags are worth asking for; without any, tags are not asked."""
    found = collector.below(
        session,
        {
            vim.VirtualMachine: _VM_PATHS,
            vim.Folder: ["name", "parent"],
            vim.Datacenter: ["name", "parent"],
            vim.VirtualApp: ["name", "parent", "parentFolder"],
            vim.ResourcePool: ["name", "parent"],
            vim.ComputeResource: ["name", "parent"],
            vim.HostSystem: ["name", "parent"],
            vim.Datastore: ["name"],
        },
    )
    tree = _Tree(found)
    attributes = _attribute_names(session)
    tags = Tags(session).attached(tag_patterns) if tag_patterns else {}
    return [
        _candidate(one, tree, attributes, tuple(sorted(tags.get(one.ref, ()))))
        for one in found
        if isinstance(one.object, vim.VirtualMachine)
    ]


class _Tree:
    """Names of things and what is above them."""

    def __init__(self, found: Sequence[collector.Found]) -> None:
        self._things = {one.ref: one for one in found}

    def name(self, ref: str | None) -> str:
        one = self._things.get(ref or "")
        return "" if one is None else decode_name(str(one.get("name", "")))

    def above(self, ref: str | None, *kinds: Any) -> list[str]:
        """Names from the top down to this thing, of those kinds only; without what vSphere makes by itself."""
        names: list[str] = []
        for _ in range(100):
            one = self._things.get(ref or "")
            if one is None:
                break
            name = self.name(ref)
            if isinstance(one.object, kinds) and name not in _UNSHOWN:
                names.append(name)
            parent = one.get("parent")
            ref = None if parent is None else ref_of(parent)
        return names[::-1]


def _candidate(one: collector.Found, tree: _Tree, attributes: Mapping[int, str], tags: tuple[str, ...]) -> Candidate:
    name = decode_name(str(one.get("name", "")))
    vapp = _ref(one.get("parentVApp"))
    # A VM in a vApp has no folder of its own: it is where its vApp is.
    folder = tree.above(_ref(one.get("parent")) or vapp, vim.Folder, vim.Datacenter, vim.VirtualApp)
    pool = tree.above(_ref(one.get("resourcePool")) or vapp, vim.ComputeResource, vim.ResourcePool)
    host = _ref(one.get("runtime.host"))
    cluster = tree.above(host, vim.ClusterComputeResource)
    return Candidate(
        ref=one.ref,
        name=name,
        path="/".join([*folder, name]),
        folder="/".join(folder),
        pool="/".join(pool),
        vapps=tuple(tree.above(vapp, vim.VirtualApp)),
        cluster=cluster[-1] if cluster else "",
        host=tree.name(host),
        datastores=tuple(tree.name(ref_of(store)) for store in one.get("datastore", ())),
        tags=tags,
        attributes={
            attributes[int(value.key)]: str(value.value)
            for value in one.get("customValue", ())
            if int(value.key) in attributes
        },
        power=PowerState(str(one.get("runtime.powerState", PowerState.OFF))),
        template=bool(one.get("config.template", False)),
    )


def _attribute_names(session: Session) -> dict[int, str]:
    """Custom attributes by key; a standalone ESXi host has none."""
    manager = session.content.customFieldsManager
    if manager is None:
        return {}
    return {int(one.key): str(one.name) for one in manager.field or ()}


def _ref(thing: Any) -> str | None:
    return None if thing is None else ref_of(thing)
