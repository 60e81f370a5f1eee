"""Changed block tracking: switched on, and asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vrepl.errors import CbtError, PermissionDeniedError, VreplError, VsphereError
from vrepl.extents import Extent
from vrepl.model import ChangedAreas
from vrepl.vsphere import collector
from vrepl.vsphere.api import vim
from vrepl.vsphere.session import Session
from vrepl.vsphere.tasks import Tasks
from vrepl.vsphere.translation import controllers_of, disks_of, settings_of

_DISTRUST = {
    "FileFault": "vSphere cannot read the change tracking file of the disk (often after a crash or a storage fault)",
    "InvalidArgument": "vSphere does not know this change ID any more (tracking was reset)",
    "NotFound": "the disk or its change tracking is gone",
    "NotSupported": "this vSphere has no change tracking for the disk",
    "MethodNotFound": "this vSphere has no change tracking",
    "SystemError": "change tracking fails within vSphere",
}
"""Faults of QueryChangedDiskAreas (and their base types) that mean: compare instead."""


_SLOT_KINDS = {
    "pvscsi": "scsi", "lsilogic": "scsi", "lsilogic-sas": "scsi", "buslogic": "scsi",
    "sata": "sata", "nvme": "nvme", "ide": "ide",
}  # fmt: skip
"""What a configuration file calls the slots of a controller."""


def untracked(devices: Sequence[Any], settings: Mapping[str, str]) -> list[str]:
    """Configuration keys (`scsi0:1.ctkEnabled`) of the disks that are not tracked, whatever the VM's own switch says.

    Change tracking is a property of each disk, which the VM's switch sets for those that are there at that moment
    (VMware KB 1031873 names both kinds of key).
    """
    controllers = {one.key: one for one in controllers_of(devices)}
    on = {key.lower() for key, value in settings.items() if value.lower() == "true"}
    keys = []
    for disk in disks_of(devices):
        controller = controllers.get(disk.controller_key)
        if controller is not None and not disk.mode.startswith("independent"):
            slot = f"{_SLOT_KINDS[controller.kind]}{controller.bus_number}:{disk.unit_number}"
            keys.append(f"{slot}.ctkEnabled")
    return [key for key in keys if key.lower() not in on]


def enable(session: Session, running: Tasks, vm_ref: str) -> bool:
    """Switch change tracking on, of the VM and of each of its disks; it takes effect with the next snapshot.

    Returns whether anything had to be switched on.
    Raises CbtError where vSphere does not support it for this VM, or does not let the user repair a disk's.
    """
    vm = session.object(vim.VirtualMachine, vm_ref)
    what = f"enable change tracking of {vm_ref}"
    paths = ["config.hardware.device", "config.extraConfig", "config.changeTrackingEnabled"]
    [found] = collector.these(session, [vm], {vim.VirtualMachine: paths}) or [collector.Found(vm, {})]
    spec = vim.vm.ConfigSpec(changeTrackingEnabled=True)
    repairs = bool(found.get("config.changeTrackingEnabled", False))
    if repairs:
        settings = settings_of(found.get("config.extraConfig", []))
        missing = untracked(found.get("config.hardware.device", []), settings)
        if not missing:
            return False
        # The switch is on already, so that setting it once more may change nothing: the disks are named.
        spec.extraConfig = [vim.option.OptionValue(key=key, value="TRUE") for key in missing]
    try:
        running.run(lambda: vm.ReconfigVM_Task(spec=spec), what=what)
    except PermissionDeniedError as error:
        if not repairs:
            raise
        raise CbtError(
            f"{what}: tracking of some disks is off, and cannot be switched on: {error.message}",
            hint=error.hint or "the site's user needs VirtualMachine.Config.AdvancedConfig on the VM for it",
        ) from error
    except VsphereError as error:
        if error.fault in {"NotSupported", "InvalidArgument", "DeviceNotSupported"}:
            raise CbtError(
                f"{what}: {error.message}", hint="it takes hardware version 7 or newer, and no raw or shared disks"
            ) from error
        raise
    return True


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
