"""Virtual disks as files: copied, made larger, deleted, and who refers to them.

vSphere Web Services API reference, VirtualDiskManager. That CopyVirtualDisk_Task makes one whole disk of a chain of
links is what OpenStack goes by (cinder `copy_vmdk_file`, "also coalesce snapshots of src").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vrepl.errors import NotFoundError, VsphereError
from vrepl.model import Disk
from vrepl.vsphere import collector
from vrepl.vsphere.api import kind_of, ref_of, vim
from vrepl.vsphere.session import Session
from vrepl.vsphere.tasks import Tasks
from vrepl.vsphere.translation import links_of

_ADAPTERS = {"ide": "ide", "buslogic": "busLogic"}
"""What a disk's descriptor calls its adapter, by the controller's kind; every other one is an lsiLogic there."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is asked to see who refers to the files of a VM."""

    vm: Any
    datacenter: Any
    datastores: tuple[Any, ...]


class DiskFiles:
    """Files of disks, by datastore path; `vm_ref` names a VM in whose datacenter they lie."""

    def __init__(self, session: Session, running: Tasks) -> None:
        self._session = session
        self._tasks = running

    def copy(self, vm_ref: str, source: str, to: str, disk: Disk, kind: str, *, thin: bool) -> None:
        """Make `to` of the chain that `source` ends, as large as `disk`; `kind`: of the disk's controller."""
        manager, datacenter = self._session.content.virtualDiskManager, self._datacenter(vm_ref)
        spec = vim.VirtualDiskManager.VirtualDiskSpec(
            diskType="thin" if thin else "preallocated", adapterType=_ADAPTERS.get(kind, "lsiLogic")
        )
        self._tasks.run(
            lambda: manager.CopyVirtualDisk_Task(
                sourceName=source,
                sourceDatacenter=datacenter,
                destName=to,
                destDatacenter=datacenter,
                destSpec=spec,
                force=False,
            ),
            what=f"copy disk {source} to {to}",
        )
        self._tasks.run(
            lambda: manager.ExtendVirtualDisk_Task(
                name=to, datacenter=datacenter, newCapacityKb=disk.capacity // 1024, eagerZero=False
            ),
            what=f"make disk {to} larger",
        )

    def around(self, vm_ref: str) -> Surroundings:
        """Where a VM's files lie; stays true when the VM is gone."""
        vm = self._session.object(vim.VirtualMachine, vm_ref)
        return Surroundings(vm, self._datacenter(vm_ref), tuple(vm.datastore))

    def remove_unused(self, around: Surroundings, paths: Sequence[str]) -> list[str]:
        """Those of `paths` that are gone now: deleted, or gone before. What something refers to stays."""
        used = self._in_use(around)
        return [path for path in paths if path not in used and self._delete(around, path)]

    def _delete(self, around: Surroundings, path: str) -> bool:
        """False where somebody has it open: a later run looks again."""
        manager = self._session.content.virtualDiskManager
        try:
            self._tasks.run(
                lambda: manager.DeleteVirtualDisk_Task(name=path, datacenter=around.datacenter),
                what=f"delete disk {path}",
            )
        except VsphereError as error:
            if error.fault not in {"FileNotFound", "FileLocked", "FileFault", "CannotDeleteFile"}:
                raise
            return error.fault == "FileNotFound"
        return True

    def _in_use(self, around: Surroundings) -> set[str]:
        """Every file that the VM, a VM on one of its datastores, or a snapshot of one of them refers to."""
        near = {ref_of(one): one for store in around.datastores for one in store.vm}
        near.setdefault(ref_of(around.vm), around.vm)
        paths = {vim.VirtualMachine: ["config.hardware.device", "layoutEx.file", "snapshot"]}
        used: set[str] = set()
        snapshots: list[Any] = []
        for found in collector.these(self._session, list(near.values()), paths):
            used.update(str(file.name) for file in found.get("layoutEx.file", []))
            used.update(_files(found.get("config.hardware.device", [])))
            tree = found.get("snapshot")
            snapshots += [node.snapshot for node in _nodes(tree.rootSnapshotList)] if tree is not None else []
        wanted = {vim.vm.Snapshot: ["config.hardware.device"]}
        for found in collector.these(self._session, snapshots, wanted):
            used.update(_files(found.get("config.hardware.device", [])))
        return used

    def _datacenter(self, vm_ref: str) -> Any:
        current = self._session.object(vim.VirtualMachine, vm_ref)
        while current is not None and kind_of(current) != "Datacenter":
            above = getattr(current, "parent", None)
            if above is None and kind_of(current) == "VirtualMachine":
                above = current.parentVApp  # what lies in a vApp may have no folder
            current = above
        if current is None:
            raise NotFoundError(f"the datacenter of VM {vm_ref} cannot be seen", hint="see `vrepl check`")
        return current


def files_of(device: Any) -> tuple[str, ...]:
    """From the file that writes go to down to its base."""
    names = (str(getattr(link, "fileName", None) or "") for link in links_of(device.backing))
    return tuple(name for name in names if name)


def _files(devices: Sequence[Any]) -> Iterator[str]:
    for device in devices:
        if isinstance(device, vim.vm.device.VirtualDisk):
            yield from files_of(device)


def _nodes(tree: Sequence[Any]) -> Iterator[Any]:
    for node in tree or ():
        yield node
        yield from _nodes(node.childSnapshotList)
