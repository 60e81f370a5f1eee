"""The privileges that vrepl's roles need in vSphere: one table, which `vrepl check` asks about and the manual prints.

Names are vSphere's privilege IDs. Sources: VDDK Programming Guide, "Credentials and Privileges for VMDK Access" (what
counts on the VMs, and what on the proxy VM) and PrepareForAccess; vSphere Security, "Virtual Machine Provisioning
Privileges" (GetVmFiles and PutVmFiles are "Required On: Root host or vCenter Server") and "Cryptographic Operations
Privileges"; vSphere Web Services API reference (the "Required privileges" of each method used here). That VDDK asks for
its licence and its session, and disables methods, are its own affairs; what NfcService asks for is published nowhere,
so the same is taken for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from vrepl.errors import VsphereError
from vrepl.model import DataEngine
from vrepl.vsphere.api import kind_of, ref_of
from vrepl.vsphere.session import Session


class Role(StrEnum):
    """What a site's user is used for."""

    SOURCE = "source"
    TARGET = "target"
    FAILOVER = "failover"
    HOTADD_PROXY = "hotadd-proxy"
    GUEST_SCRIPTS = "guest-scripts"
    GUEST_ADDRESSES = "guest-addresses"


class Scope(StrEnum):
    """On which kind of object a privilege counts."""

    SITE = "site"
    """The root folder, without propagation."""
    VM = "vm"
    ENCRYPTED_VM = "encrypted-vm"
    """A VM of which a disk is encrypted."""
    FOLDER = "folder"
    POOL = "pool"
    DATASTORE = "datastore"
    NETWORK = "network"


@dataclass(frozen=True, slots=True)
class Need:
    """One privilege, where it counts, and what vrepl does with it."""

    privilege: str
    scope: Scope
    why: str
    engine: DataEngine | None = None
    """Which engine alone wants it; None: whichever it is."""


VDDK, OWN = DataEngine.VDDK, DataEngine.OWN

_READ = (
    Need("System.Read", Scope.SITE, "read the inventory"),
    Need("Sessions.ValidateSession", Scope.SITE, "let VDDK check its session", VDDK),
    Need("Global.Licenses", Scope.SITE, "let VDDK check the licence", VDDK),
    Need("Global.DisableMethods", Scope.SITE, "PrepareForAccess: no migration while disks are open", VDDK),
    Need("Global.EnableMethods", Scope.SITE, "EndAccess", VDDK),
)

NEEDS: Mapping[Role, tuple[Need, ...]] = {
    Role.SOURCE: (
        *_READ,
        Need("VirtualMachine.Provisioning.DiskRandomRead", Scope.VM, "read disks through VDDK"),
        Need("VirtualMachine.Provisioning.GetVmFiles", Scope.SITE, "read disks through VDDK"),
        Need("Cryptographer.Access", Scope.ENCRYPTED_VM, "read encrypted disks"),
        Need("VirtualMachine.Config.DiskLease", Scope.VM, "open disks through VDDK", VDDK),
        Need("VirtualMachine.Config.ChangeTracking", Scope.VM, "enable change tracking"),
        Need("VirtualMachine.Config.Settings", Scope.VM, "enable change tracking"),
        Need("VirtualMachine.State.CreateSnapshot", Scope.VM, "snapshot the VM for a run"),
        Need("VirtualMachine.State.RemoveSnapshot", Scope.VM, "remove that snapshot"),
        Need("Datastore.Browse", Scope.DATASTORE, "find the disks' files"),
        Need("Datastore.FileManagement", Scope.DATASTORE, "open the disks' files"),
    ),
    Role.TARGET: (
        *_READ,
        Need("Folder.Create", Scope.FOLDER, "make the folders of target_folder"),
        Need("VirtualMachine.Inventory.Create", Scope.FOLDER, "register replicas"),
        Need("VirtualMachine.Inventory.Delete", Scope.VM, "remove what a failed creation left"),
        Need("VirtualMachine.Config.AddNewDisk", Scope.VM, "give replicas their disks"),
        Need("VirtualMachine.Config.AddExistingDisk", Scope.VM, "follow source disks that have grown"),
        Need("VirtualMachine.Config.RemoveDisk", Scope.VM, "follow the source's disks"),
        Need("VirtualMachine.Config.AddRemoveDevice", Scope.VM, "follow the source's devices"),
        Need("VirtualMachine.Config.EditDevice", Scope.VM, "follow the source's network adapters"),
        Need("VirtualMachine.Config.CPUCount", Scope.VM, "follow the source's CPUs"),
        Need("VirtualMachine.Config.Memory", Scope.VM, "follow the source's memory"),
        Need("VirtualMachine.Config.Resource", Scope.VM, "follow the source's resources"),
        Need("VirtualMachine.Config.Settings", Scope.VM, "follow the source's settings"),
        Need("VirtualMachine.Config.AdvancedConfig", Scope.VM, "mark replicas as vrepl's (extraConfig)"),
        Need("VirtualMachine.Config.Annotation", Scope.VM, "note on the replica what it is"),
        Need("VirtualMachine.Config.UpgradeVirtualHardware", Scope.VM, "follow the source's hardware version"),
        Need("VirtualMachine.Config.ChangeTracking", Scope.VM, "track changes of replicas, for failback"),
        Need("VirtualMachine.Config.DiskLease", Scope.VM, "open disks through VDDK", VDDK),
        Need("VirtualMachine.Provisioning.DiskRandomAccess", Scope.VM, "write disks through VDDK"),
        Need("VirtualMachine.Provisioning.DiskRandomRead", Scope.VM, "verify restore points"),
        Need("VirtualMachine.Provisioning.GetVmFiles", Scope.SITE, "verify restore points"),
        Need("VirtualMachine.Provisioning.PutVmFiles", Scope.SITE, "write disks through VDDK"),
        Need("VirtualMachine.State.CreateSnapshot", Scope.VM, "seal restore points"),
        Need("VirtualMachine.State.RemoveSnapshot", Scope.VM, "retention"),
        Need("VirtualMachine.State.RevertToSnapshot", Scope.VM, "give up a half-written leaf"),
        Need("Resource.AssignVMToPool", Scope.POOL, "place replicas"),
        Need("Datastore.AllocateSpace", Scope.DATASTORE, "make the replicas' disks"),
        Need("Datastore.Browse", Scope.DATASTORE, "find the disks' files"),
        Need("Datastore.FileManagement", Scope.DATASTORE, "open, copy and remove the disks' files"),
        Need("Network.Assign", Scope.NETWORK, "connect the replicas' network adapters"),
    ),
    Role.FAILOVER: (
        Need("VirtualMachine.Interact.PowerOn", Scope.VM, "start replicas"),
        Need("VirtualMachine.Interact.PowerOff", Scope.VM, "stop replicas and, for a planned failover, sources"),
        Need("VirtualMachine.Interact.DeviceConnection", Scope.VM, "connect the network of a test"),
        Need("VirtualMachine.State.RevertToSnapshot", Scope.VM, "go to a restore point"),
        Need("VirtualMachine.Provisioning.Clone", Scope.VM, "linked clones for test failover"),
        Need("Global.ManageCustomFields", Scope.SITE, "make the attribute that shows a replica's state"),
        Need("Global.SetCustomField", Scope.VM, "show a replica's state in vSphere's client"),
    ),
    Role.HOTADD_PROXY: (
        Need("Datastore.AllocateSpace", Scope.DATASTORE, "attach disks to the proxy"),
        Need("VirtualMachine.Config.AddExistingDisk", Scope.VM, "attach disks to the proxy"),
        Need("VirtualMachine.Config.AddNewDisk", Scope.VM, "attach disks to the proxy", VDDK),
        Need("VirtualMachine.Config.AddRemoveDevice", Scope.VM, "attach disks to the proxy"),
        Need("VirtualMachine.Config.RemoveDisk", Scope.VM, "detach disks from the proxy"),
        Need("VirtualMachine.Config.Settings", Scope.VM, "attach disks to the proxy", VDDK),
        Need("VirtualMachine.Config.Resource", Scope.VM, "attach disks to the proxy", VDDK),
        Need("VirtualMachine.Config.AdvancedConfig", Scope.VM, "mark on the proxy what vrepl attached", OWN),
    ),
    Role.GUEST_ADDRESSES: (
        Need("VirtualMachine.Provisioning.Customize", Scope.VM, "set guests' addresses at a failover"),
    ),
    Role.GUEST_SCRIPTS: (
        Need("VirtualMachine.GuestOperations.Query", Scope.VM, "wait for scripts in guests, fetch their output"),
        Need("VirtualMachine.GuestOperations.Modify", Scope.VM, "upload scripts to guests"),
        Need("VirtualMachine.GuestOperations.Execute", Scope.VM, "run scripts in guests"),
    ),
}


@dataclass(frozen=True, slots=True)
class Missing:
    """A privilege that the user does not hold on an object."""

    privilege: str
    entity: str
    """Kind and name, such as `VirtualMachine web-01`."""
    why: str


def missing(
    session: Session,
    role: Role,
    entities: Mapping[Scope, Sequence[Any]],
    engine: DataEngine = DataEngine.VDDK,
) -> list[Missing]:
    """What the logged-in user lacks for a role on these objects, with this engine; one call per scope.

    A scope without objects is not asked about, except the site itself.
    """
    asked = dict(entities)
    asked.setdefault(Scope.SITE, [session.content.rootFolder])
    found: list[Missing] = []
    for scope in Scope:
        needs = {need.privilege: need for need in NEEDS[role] if need.scope is scope and need.engine in {None, engine}}
        objects = list(asked.get(scope, ()))
        if not needs or not objects:
            continue
        for entity, privilege in _denied(session, objects, list(needs)):
            found.append(Missing(privilege, _words(entity), needs[privilege].why))
    return found


def _words(entity: Any) -> str:
    try:
        name = str(entity.name)
    except VsphereError:  # gone meanwhile
        name = ref_of(entity)
    return f"{kind_of(entity)} {name}"


def _denied(session: Session, objects: Sequence[Any], privileges: Sequence[str]) -> list[tuple[Any, str]]:
    manager = session.content.authorizationManager
    try:
        answer = manager.HasPrivilegeOnEntities(entity=objects, sessionId=session.key, privId=privileges)
    except VsphereError as error:
        if error.fault not in {"NotSupported", "MethodNotFound", "InvalidRequest"}:
            raise
        answer = manager.HasUserPrivilegeOnEntities(entities=objects, userName=session.user_name, privId=privileges)
    return [
        (item.entity, str(one.privId))
        for item in answer or ()
        for one in item.privAvailability or ()
        if not one.isGranted
    ]
