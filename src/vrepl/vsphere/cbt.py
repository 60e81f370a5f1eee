"""Changed block tracking: switched on, and asked."""

from __future__ import annotations

from vrepl.errors import CbtError, PermissionDeniedError, VreplError, VsphereError
from vrepl.extents import Extent
from vrepl.model import ChangedAreas
from vrepl.vsphere.api import vim
from vrepl.vsphere.session import Session
from vrepl.vsphere.tasks import Tasks

_DISTRUST = {
    "FileFault": "vSphere cannot read the change tracking file of the disk (often after a crash or a storage fault)",
    "InvalidArgument": "vSphere does not know this change ID any more (tracking was reset)",
    "NotFound": "the disk or its change tracking is gone",
    "NotSupported": "this vSphere has no change tracking for the disk",
    "MethodNotFound": "this vSphere has no change tracking",
    "SystemError": "change tracking fails within vSphere",
}
"""Faults of QueryChangedDiskAreas (and their base types) that mean: compare instead."""


def enable(session: Session, running: Tasks, vm_ref: str) -> None:
    """Switch change tracking on; it takes effect with the next snapshot.

    Raises CbtError where vSphere does not support it for this VM.
    """
    vm = session.object(vim.VirtualMachine, vm_ref)
    what = f"enable change tracking of {vm_ref}"
    try:
        running.run(lambda: vm.ReconfigVM_Task(spec=vim.vm.ConfigSpec(changeTrackingEnabled=True)), what=what)
    except VsphereError as error:
        if error.fault in {"NotSupported", "InvalidArgument", "DeviceNotSupported"}:
            raise CbtError(
                f"{what}: {error.message}", hint="it takes hardware version 7 or newer, and no raw or shared disks"
            ) from error
        raise


def disable(session: Session, running: Tasks, vm_ref: str) -> None:
    """Switch change tracking off, at once where the VM is powered off; every change ID it gave is void."""
    vm = session.object(vim.VirtualMachine, vm_ref)
    running.run(
        lambda: vm.ReconfigVM_Task(spec=vim.vm.ConfigSpec(changeTrackingEnabled=False)),
        what=f"disable change tracking of {vm_ref}",
    )


def changed_areas(
    session: Session, vm_ref: str, snapshot_ref: str | None, disk_key: int, start: int, change_id: str
) -> ChangedAreas:
    """One page: it speaks of `[start, start + length)` bytes of the reply. `start` must be below the disk's capacity.

    Raises CbtError where vSphere cannot answer, so that the disk has to be compared.
    """
    vm = session.object(vim.VirtualMachine, vm_ref)
    snapshot = session.object(vim.vm.Snapshot, snapshot_ref) if snapshot_ref else None
    try:
        page = vm.QueryChangedDiskAreas(snapshot=snapshot, deviceKey=disk_key, startOffset=start, changeId=change_id)
    except PermissionDeniedError:
        raise
    except VreplError as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise CbtError(
            f"changes of disk {disk_key} of {vm_ref} since {change_id} are unknown: {reason} ({error.message})",
            hint="vrepl compares the disk by digests instead; a reset of change tracking helps if it comes back",
        ) from error
    areas = tuple(Extent(int(area.start), int(area.length)) for area in page.changedArea or ())
    return ChangedAreas(start=int(page.startOffset), length=int(page.length), areas=areas)


def _reason(error: VreplError) -> str | None:
    """Why the answer cannot be had; None: the failure says nothing about change tracking."""
    fault = error.__cause__
    if getattr(fault, "invalidProperty", None) not in {None, "", "changeId", "deviceKey"}:
        return None
    for base in type(fault).__mro__ if fault is not None else ():
        name = base.__name__.rpartition(".")[2]
        if name in _DISTRUST:
            return _DISTRUST[name]
    return None
