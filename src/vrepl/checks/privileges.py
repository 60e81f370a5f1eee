"""The vSphere privileges that vrepl uses, by id, for each role that a site plays.

Sources: VDDK Programming Guide, "Privileges required for backup" (virtual disk access, snapshots, change tracking,
PrepareForAccess); vSphere Web Services API reference, the "Required Privileges" of each method that vrepl calls.
README.md shows the same as a table.
"""

from __future__ import annotations

SOURCE = {
    "VirtualMachine.State.CreateSnapshot": "take the snapshot that is read from",
    "VirtualMachine.State.RemoveSnapshot": "remove it again",
    "VirtualMachine.Config.ChangeTracking": "enable changed block tracking",
    "VirtualMachine.Provisioning.DiskRandomRead": "read disks over NBD",
    "VirtualMachine.Provisioning.GetVmFiles": "read disks through VDDK",
    "VirtualMachine.Config.DiskLease": "open disks through VDDK",
    "Global.DisableMethods": "keep a VM from moving while it is read (PrepareForAccess)",
    "Global.EnableMethods": "let it move again (EndAccess)",
    "Global.Licenses": "VDDK asks for the licence",
}

TARGET = {
    "VirtualMachine.Inventory.Create": "register replicas",
    "VirtualMachine.Inventory.Delete": "undo a half-made replica",
    "VirtualMachine.Config.AddNewDisk": "give replicas their disks",
    "VirtualMachine.Config.RemoveDisk": "replace a resized disk",
    "VirtualMachine.Config.AddRemoveDevice": "follow the source's hardware",
    "VirtualMachine.Config.EditDevice": "follow the source's hardware",
    "VirtualMachine.Config.CPUCount": "follow the source's hardware",
    "VirtualMachine.Config.Memory": "follow the source's hardware",
    "VirtualMachine.Config.Settings": "follow the source's hardware",
    "VirtualMachine.Config.AdvancedConfig": "mark the replica as vrepl's",
    "VirtualMachine.Config.Annotation": "describe the replica",
    "VirtualMachine.Config.Rename": "rename the replica with its source",
    "VirtualMachine.Config.ChangeTracking": "enable changed block tracking, for failback",
    "VirtualMachine.Config.DiskLease": "open disks through VDDK",
    "VirtualMachine.State.CreateSnapshot": "seal restore points",
    "VirtualMachine.State.RemoveSnapshot": "remove restore points by retention",
    "VirtualMachine.State.RevertToSnapshot": "give up a half-written leaf",
    "VirtualMachine.Provisioning.DiskRandomAccess": "write disks",
    "VirtualMachine.Provisioning.DiskRandomRead": "verify restore points",
    "VirtualMachine.Provisioning.GetVmFiles": "read disks through VDDK",
    "VirtualMachine.Provisioning.PutVmFiles": "write disks through VDDK",
    "Datastore.AllocateSpace": "make the replicas' disks",
    "Network.Assign": "connect replicas to networks",
    "Resource.AssignVMToPool": "register replicas in a resource pool",
    "Global.DisableMethods": "keep a replica from moving while it is written",
    "Global.EnableMethods": "let it move again",
    "Global.Licenses": "VDDK asks for the licence",
}
