"""VMs of a site, and the names of what they stand on; the number of calls follows pages, never VMs."""

from __future__ import annotations

import difflib
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from vrepl.errors import NotFoundError, VreplError
from vrepl.model import ListedVm, PowerState, Sighting, Snapshot, SnapshotState, VirtualMachine
from vrepl.vsphere import collector
from vrepl.vsphere.api import ref_of, vim
from vrepl.vsphere.guest_network import GUEST_PATHS, guest_network
from vrepl.vsphere.session import Session
from vrepl.vsphere.translation import (
    VM_PATHS,
    Names,
    decode_name,
    disks_of,
    own_settings,
    settings_of,
    snapshots_of,
    virtual_machine,
)

NAMES_LAST = 300.0
"""Seconds that names of hosts, networks and folders are kept for reads of single VMs; listings gather them anew."""

NAMES_NEW = 10.0
"""Seconds that they are not gathered again whatever a VM refers to."""

LISTED_PATHS = ("name", "config.instanceUuid", "runtime.powerState", "datastore")
"""What one ListedVm is made of."""

SNAPSHOT_PATHS = ("config.hardware.device", "config.extraConfig")

ALWAYS_NEW = -1.0
"""Names that were read before the call are too old."""

T = TypeVar("T")


def near_names(name: str, known: Iterable[str]) -> str | None:
    """A hint for a name that nothing answers to."""
    near = difflib.get_close_matches(name, sorted(set(known)), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else None


class Inventory:
    """Reads; keeps nothing but the names of things, for a while."""

    def __init__(self, session: Session, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._session = session
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._names: Names | None = None
        self._names_read = 0.0

    def names(self, *, at_most: float = NAMES_LAST) -> Names:
        """Names of hosts, networks, datastores, folders and datacenters (3 calls and one per 1,000 objects).

        `at_most`: seconds since they were read; of several threads that want newer ones, one reads.
        """
        with self._lock:
            if self._names is None or self._monotonic() - self._names_read > at_most:
                self._names = read_names(self._session)
                self._names_read = self._monotonic()
            return self._names

    def list_vms(self) -> list[VirtualMachine]:
        """Every VM and template, by name."""
        names = self.names(at_most=ALWAYS_NEW)
        found = collector.below(self._session, {vim.VirtualMachine: VM_PATHS})
        vms = [virtual_machine(one.ref, one.values, names) for one in found]
        return sorted(vms, key=lambda vm: (vm.name, vm.ref))

    def find_vms(self, wanted: Sequence[str]) -> list[VirtualMachine]:
        """VMs by exact name, in the order asked for. Raises NotFoundError for all that are missing or ambiguous."""
        objects = self._named(wanted)
        return self._all_of(wanted, objects, {vm.ref: vm for vm in self._read(list(objects.values()))})

    def list_named(self, wanted: Sequence[str]) -> list[ListedVm]:
        """As `find_vms`, with LISTED_PATHS alone."""
        objects = self._named(wanted)
        return self._all_of(wanted, objects, {vm.ref: vm for vm in self._list(list(objects.values()))})

    def list_those(self, vm_refs: Sequence[str]) -> list[ListedVm]:
        """Those that still exist, in one call per 1,000."""
        return self._list([self._session.object(vim.VirtualMachine, ref) for ref in vm_refs])

    def _list(self, objects: Sequence[Any]) -> list[ListedVm]:
        return [_listed(one) for one in collector.these(self._session, objects, {vim.VirtualMachine: LISTED_PATHS})]

    def _named(self, wanted: Sequence[str]) -> dict[str, Any]:
        """The VMs of these names, each once."""
        by_name: dict[str, list[Any]] = {}
        for one in collector.below(self._session, {vim.VirtualMachine: ["name"]}):
            by_name.setdefault(decode_name(str(one.get("name", ""))), []).append(one.object)
        missing = [name for name in wanted if name not in by_name]
        ambiguous = [name for name in wanted if len(by_name.get(name, ())) > 1]
        if missing or ambiguous:
            raise _not_found(self._session.settings.name, missing, ambiguous, by_name)
        return {name: by_name[name][0] for name in wanted}

    def _all_of(self, wanted: Sequence[str], objects: Mapping[str, Any], read: Mapping[str, T]) -> list[T]:
        """What was `read` (by ref) of the VMs of these names, in their order."""
        gone = [name for name in wanted if ref_of(objects[name]) not in read]
        if gone:
            raise _not_found(self._session.settings.name, gone, [], objects)
        return [read[ref_of(objects[name])] for name in wanted]

    def by_instance_uuid(self, instance_uuid: str) -> VirtualMachine | None:
        found = self._session.content.searchIndex.FindAllByUuid(uuid=instance_uuid, vmSearch=True, instanceUuid=True)
        vms = self._read(list(found or []))
        return vms[0] if vms else None

    def by_bios_uuid(self, bios_uuid: str) -> list[VirtualMachine]:
        """Every VM with this BIOS uuid: clones repeat it."""
        found = self._session.content.searchIndex.FindAllByUuid(uuid=bios_uuid, vmSearch=True, instanceUuid=False)
        return self._read(list(found or []))

    def read_vm(self, vm_ref: str) -> VirtualMachine:
        """Raises NotFoundError if it is gone."""
        vms = self._read([self._session.object(vim.VirtualMachine, vm_ref)])
        if not vms:
            raise NotFoundError(
                f"VM {vm_ref} is gone from site {self._session.settings.name}", hint="was it deleted or unregistered?"
            )
        return vms[0]

    def read_vm_and_tasks(self, vm_ref: str) -> tuple[VirtualMachine | None, list[collector.Found]]:
        """The VM with what its guest reports (None: gone), and its recent tasks with their states, in one call."""
        vm, _, tasks = self._read_resting(vm_ref)
        return vm, tasks

    def read_sighted(self, near: Sighting) -> tuple[VirtualMachine | None, SnapshotState | None, list[collector.Found]]:
        """As `read_vm_and_tasks`, with the snapshot of that ref, if the VM has it, in the same call."""
        return self._read_resting(near.vm_ref, near.snapshot_ref)

    def _read_resting(
        self, vm_ref: str, snapshot_ref: str | None = None
    ) -> tuple[VirtualMachine | None, SnapshotState | None, list[collector.Found]]:
        vm = self._session.object(vim.VirtualMachine, vm_ref)
        wanted: dict[Any, Sequence[str]] = {
            vim.VirtualMachine: [*VM_PATHS, *GUEST_PATHS],
            vim.Task: ["info.state"],
        }
        beside = []
        if snapshot_ref is not None:
            wanted[vim.vm.Snapshot] = SNAPSHOT_PATHS
            beside = [self._session.object(vim.vm.Snapshot, snapshot_ref)]
        found = collector.along(self._session, vm, "recentTask", wanted, beside=beside)
        own = [one for one in found if one.ref == vm_ref]
        tasks = [one for one in found if isinstance(one.object, vim.Task)]
        if not own:
            return None, None, tasks
        names = self.names_for(own)
        read = _with_guest(virtual_machine(vm_ref, own[0].values, names), own[0].values)
        snapshot = next((one for one in found if one.ref == snapshot_ref), None)
        node = next((one for one in read.snapshots if one.ref == snapshot_ref), None)
        return read, (_state(snapshot, node) if snapshot is not None and node is not None else None), tasks

    def read_vms(self, vm_refs: Sequence[str]) -> list[VirtualMachine]:
        """Those that still exist, in one call."""
        return self._read([self._session.object(vim.VirtualMachine, ref) for ref in vm_refs])

    def read_snapshot(self, snapshot_ref: str) -> SnapshotState:
        """A snapshot with the disks of its own configuration, in one call. Raises NotFoundError if it is gone."""
        return self.read_snapshot_among(snapshot_ref)[0]

    def read_snapshot_among(self, snapshot_ref: str) -> tuple[SnapshotState, tuple[Snapshot, ...]]:
        """As `read_snapshot`, with all the snapshots of its VM, in the same call."""
        start = self._session.object(vim.vm.Snapshot, snapshot_ref)
        wanted = {vim.vm.Snapshot: SNAPSHOT_PATHS, vim.VirtualMachine: ["snapshot"]}
        found = collector.along(self._session, start, "vm", wanted)
        own = next((one for one in found if one.ref == snapshot_ref), None)
        tree = next((one.get("snapshot") for one in found if one.ref != snapshot_ref), None)
        nodes = snapshots_of(tree)
        node = next((node for node in nodes if node.ref == snapshot_ref), None)
        if own is None or node is None:
            raise NotFoundError(f"snapshot {snapshot_ref} is gone", hint="was it removed in vSphere?")
        return _state(own, node), nodes

    def _read(self, objects: Sequence[Any]) -> list[VirtualMachine]:
        found = collector.these(self._session, objects, {vim.VirtualMachine: VM_PATHS})
        names = self.names_for(found)
        return [virtual_machine(one.ref, one.values, names) for one in found]

    def names_for(self, found: Sequence[collector.Found]) -> Names:
        """The kept names, or new ones if a VM stands on something that they do not hold."""
        names = self.names() if found else Names()
        # What the user may not see stays unknown, and must not cost a listing at each read.
        return self.names(at_most=NAMES_NEW) if any(_unknown(one, names) for one in found) else names


def _listed(found: collector.Found) -> ListedVm:
    return ListedVm(
        ref=found.ref,
        name=decode_name(str(found.get("name", found.ref))),
        instance_uuid=str(found.get("config.instanceUuid", "")).lower(),
        power=PowerState(str(found.get("runtime.powerState", PowerState.OFF))),
        datastores=tuple(ref_of(store) for store in found.get("datastore", ())),
    )


def _state(found: collector.Found, node: Snapshot) -> SnapshotState:
    """`found`: its SNAPSHOT_PATHS; `node`: what its VM says of it."""
    return SnapshotState(
        ref=found.ref,
        name=node.name,
        description=node.description,
        quiesced=node.quiesced,
        disks=disks_of(found.get("config.hardware.device", [])),
        extra_config=own_settings(settings_of(found.get("config.extraConfig", []))),
    )


def _with_guest(vm: VirtualMachine, values: Mapping[str, Any]) -> VirtualMachine:
    return replace(vm, guest=guest_network(values, vm.hardware.network_adapters))


def _unknown(found: collector.Found, names: Names) -> bool:
    """Does the VM stand on something newer than the names that are known?"""
    seen = [found.get("runtime.host"), found.get("parent"), found.get("parentVApp")]
    if any(one is not None and ref_of(one) not in names.names for one in seen):
        return True
    backings = [getattr(device, "backing", None) for device in found.get("config.hardware.device", [])]
    ports = [port for backing in backings if (port := getattr(backing, "port", None)) is not None]
    return any(str(port.portgroupKey or "") not in names.portgroups for port in ports)


def _not_found(site: str, missing: Sequence[str], ambiguous: Sequence[str], by_name: Iterable[str]) -> VreplError:
    said, hints = [], []
    if missing:
        said.append(f"site {site} has no VM named {', '.join(missing)}")
        hints += [hint for name in missing if (hint := near_names(name, by_name))]
    if ambiguous:
        said.append(f"site {site} has several VMs named {', '.join(ambiguous)}")
        hints.append("give each its own name")
    return NotFoundError("; ".join(said), hint="; ".join(dict.fromkeys(hints)) or f"`vrepl vms {site}` lists them")


def read_names(session: Session) -> Names:
    """Names of everything that VMs stand on."""
    found = collector.below(
        session,
        {
            vim.HostSystem: ["name", "parent"],
            vim.dvs.DistributedVirtualPortgroup: ["name", "key"],
            vim.OpaqueNetwork: ["name", "summary"],
            vim.Network: ["name"],
            vim.Datastore: ["name", "parent"],
            vim.Datacenter: ["name", "parent"],
            vim.Folder: ["name", "parent"],
            vim.VirtualApp: ["name", "parent", "parentFolder"],
        },
    )
    names: dict[str, str] = {}
    parents: dict[str, str] = {}
    datacenters: set[str] = set()
    portgroups: dict[str, str] = {}
    opaque: dict[str, str] = {}
    for one in found:
        name = decode_name(str(one.get("name", one.ref)))
        names[one.ref] = name
        above = one.get("parentFolder") or one.get("parent")
        if above is not None:
            parents[one.ref] = ref_of(above)
        if isinstance(one.object, vim.Datacenter):
            datacenters.add(one.ref)
        if one.get("key"):
            portgroups[str(one.get("key"))] = name
        network_id = getattr(one.get("summary"), "opaqueNetworkId", None)
        if network_id:
            opaque[str(network_id)] = name
    root = session.content.rootFolder
    names.setdefault(ref_of(root), "")
    return Names(names, parents, frozenset(datacenters), portgroups, opaque)
