"""What a run asks of a vCenter Server or a standalone ESXi host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from vrepl.model import (
    ChangedAreas,
    Datastore,
    Hardware,
    ReplicaPlacement,
    ReplicaSpec,
    SnapshotState,
    VirtualMachine,
)
from vrepl.ports.movers import SiteConnection


class Site(Protocol):
    """A vCenter Server or a standalone ESXi host. Task methods return when the task has ended, or raise."""

    @property
    def name(self) -> str: ...

    @property
    def is_vcenter(self) -> bool:
        """False for a standalone ESXi host, which knows no PrepareForAccess."""
        ...

    @property
    def soap_calls(self) -> int:
        """API calls made so far."""
        ...

    def connection(self) -> SiteConnection:
        """How a data mover reaches this site; the certificate has been verified."""
        ...

    def list_vms(self) -> list[VirtualMachine]:
        """Every VM and template of the site; a constant number of calls per 1,000 VMs."""
        ...

    def find_vms(self, names: Sequence[str]) -> list[VirtualMachine]:
        """VMs by exact name, in the order asked for.

        Raises NotFoundError naming all that do not exist (hint: near names), or that are ambiguous.
        """
        ...

    def find_vm_by_instance_uuid(self, instance_uuid: str) -> VirtualMachine | None: ...

    def read_vm(self, vm_ref: str) -> VirtualMachine:
        """Raises NotFoundError if it is gone."""
        ...

    def settle_tasks(self, vm_ref: str) -> None:
        """Wait for the tasks that still run on the VM (a dead run's snapshot may be under way). Gone VM: fine."""
        ...

    def read_snapshot(self, snapshot_ref: str) -> SnapshotState: ...

    def enable_cbt(self, vm_ref: str) -> None:
        """Takes effect with the next snapshot."""
        ...

    def disable_cbt(self, vm_ref: str) -> None:
        """Of a VM that is powered off: at once."""
        ...

    def create_snapshot(self, vm_ref: str, name: str, description: str, *, quiesce: bool) -> SnapshotState:
        """Without memory. Raises VsphereError with `fault` naming the quiesce fault if quiescing fails."""
        ...

    def remove_snapshot(self, vm_ref: str, snapshot_ref: str) -> bool:
        """Remove one snapshot (not its children); a snapshot that is already gone is fine.

        Returns the VM's `consolidationNeeded` afterwards.
        """
        ...

    def consolidate(self, vm_ref: str) -> None: ...

    def revert_to_snapshot(self, vm_ref: str, snapshot_ref: str) -> None: ...

    def changed_areas(
        self, vm_ref: str, snapshot_ref: str | None, disk_key: int, start: int, change_id: str
    ) -> ChangedAreas:
        """One page. Raises CbtError where vSphere answers with FileFault or cannot resolve the change ID."""
        ...

    def datastores(self) -> list[Datastore]: ...

    def create_replica(self, spec: ReplicaSpec) -> VirtualMachine:
        """Create and register, with empty disks, powered off. Nothing is left behind when it raises."""
        ...

    def reconcile_replica(
        self, vm_ref: str, hardware: Hardware, placement: ReplicaPlacement, *, keep_macs: bool
    ) -> list[str]:
        """Bring the replica's hardware (not its disks) to the source's; returns what was changed, in words."""
        ...

    def add_replica_disk(self, vm_ref: str, spec: ReplicaSpec, disk_index: int) -> VirtualMachine: ...

    def remove_replica_disk(self, vm_ref: str, disk_key: int) -> None:
        """Remove the disk from the VM; its files are destroyed only where no snapshot of the VM needs them."""
        ...

    def rename_vm(self, vm_ref: str, name: str) -> None: ...

    def set_extra_config(self, vm_ref: str, values: Mapping[str, str]) -> None: ...

    def destroy_vm(self, vm_ref: str) -> None:
        """Raises VsphereError if it is powered on. A VM that is already gone is fine."""
        ...

    def close(self) -> None: ...
