"""What forbids replicating a VM, as typed refusals. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from vrepl.model import ATTACHED_MARK, Disk, VirtualMachine


class ConflictKind(StrEnum):
    """Why a VM cannot be replicated as it stands."""

    NOT_REPLICABLE = "not-replicable"
    REPLICA_NAME_TAKEN = "replica-name-taken"
    REPLICA_POWERED_ON = "replica-powered-on"
    REPLICA_STATE = "replica-state"
    OTHER_TARGET = "other-target"
    DISK_RESIZED = "disk-resized"
    QUIESCE = "quiesce"
    NO_SPACE = "no-space"
    SAME_VM = "same-vm"
    SEED = "seed"


@dataclass(frozen=True, slots=True)
class Conflict:
    """A typed refusal: what stands on the source, what on the target, and what the operator can do."""

    kind: ConflictKind
    message: str
    hint: str


def unreplicable_disk_reason(disk: Disk) -> str | None:
    """Why a snapshot cannot carry this disk; None if it can.

    Sources: VDDK Programming Guide, "Virtual Disk Types" (independent disks and physical-mode RDMs take no part in
    snapshots); KB 1034165 (multi-writer disks allow no snapshots).
    """
    if disk.rdm == "physicalMode":
        return f"{disk.title} is a physical-mode raw device mapping, which snapshots leave out"
    if disk.mode.startswith("independent"):
        return f"{disk.title} is independent ({disk.mode}), which snapshots leave out"
    if disk.sharing == "sharingMultiWriter":
        return f"{disk.title} is a multi-writer disk, of which no snapshot can be taken"
    if disk.capacity <= 0:
        return f"{disk.title} has no capacity"
    return None


def no_snapshot_reason(vm: VirtualMachine) -> str | None:
    """Why nothing of the VM can be replicated, whichever disks are left out; None if something can.

    Sources: vSphere's "Limitations of Virtual Machine Snapshots" (bus sharing); KB 1034165 (multi-writer disks). A
    virtual TPM's state lies in the VM's NVRAM file, encrypted with the VM's home (vSphere Security, "Virtual TPM").
    """
    if vm.template:
        return "it is a template"
    if not vm.disks:
        return "it has no disk"
    if any(key.startswith(ATTACHED_MARK) for key in vm.extra_config):
        return "it is a proxy on which disks of other VMs hang by HotAdd: a snapshot of it would take them along"
    if vm.virtual_tpm:
        return (
            "it has a virtual TPM, whose keys a replica would not have: a guest that seals to it would not start there"
        )
    shared_buses = {controller.key for controller in vm.hardware.controllers if controller.sharing != "noSharing"}
    for disk in vm.disks:
        if disk.controller_key in shared_buses:
            return f"{disk.title} is on a controller with bus sharing, whose VM takes no snapshot"
        if disk.sharing == "sharingMultiWriter" and not disk.mode.startswith("independent"):
            return f"{disk.title} is a multi-writer disk, of which no snapshot can be taken"
    return None


def not_replicable_reason(vm: VirtualMachine) -> str | None:
    """Why the VM cannot be replicated with all of its disks; None if it can."""
    return no_snapshot_reason(vm) or next(filter(None, map(unreplicable_disk_reason, vm.disks)), None)
