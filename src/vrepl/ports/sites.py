"""What is asked of a vCenter Server or a standalone ESXi host, by role: a function takes the narrowest that it needs.

`vsphere.site.VsphereSite` plays all roles. Methods that start a task return when the task has ended, or raise.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Protocol

from vrepl.model import (
    ChangedAreas,
    Datastore,
    Disk,
    Hardware,
    ListedVm,
    ReplicaPlacement,
    ReplicaSpec,
    Sighting,
    SnapshotState,
    VirtualMachine,
    VmAtRest,
)
from vrepl.model.selection import Candidate
from vrepl.ports.failover import FailoverTarget, VmFiles
from vrepl.ports.guests import GuestPrograms


class Named(Protocol):
    """What a message calls a site."""

    @property
    def name(self) -> str: ...


class KnownVm(Named, Protocol):
    """A VM by what stays as long as it is registered and nobody renames it."""

    @property
    def ref(self) -> str: ...


class Inventory(Named, Protocol):
    """Reads; changes nothing."""

    @property
    def is_vcenter(self) -> bool:
        """False for a standalone ESXi host, which knows no PrepareForAccess."""
        ...

    @property
    def soap_calls(self) -> int:
        """API calls made so far."""
        ...

    def current_time(self) -> dt.datetime:
        """The site's clock, UTC."""
        ...

    def list_vms(self) -> list[VirtualMachine]:
        """Every VM and template of the site; a constant number of calls per 1,000 VMs."""
        ...

    def find_vms(self, names: Sequence[str]) -> list[VirtualMachine]:
        """VMs by exact name, in the order asked for.

        Raises NotFoundError naming all that do not exist (hint: near names), or that are ambiguous.
        """
        ...

    def list_named(self, names: Sequence[str]) -> list[ListedVm]:
        """As `find_vms`, with the little that a run wants to know of all of its VMs before the first one's turn."""
        ...

    def list_those(self, vm_refs: Sequence[str]) -> list[ListedVm]:
        """As `list_named`, by ref: those that still exist, in one call."""
        ...

    def candidates(self, tag_patterns: Sequence[str]) -> list[Candidate]:
        """Every VM and template as far as selecting goes; tags are asked for only where patterns of some are given.

        Raises VsphereError where there are patterns, and the site knows no tags.
        """
        ...

    def read_vms(self, vm_refs: Sequence[str]) -> list[VirtualMachine]:
        """Those that still exist, in one call."""
        ...

    def find_vm_by_instance_uuid(self, instance_uuid: str) -> VirtualMachine | None: ...

    def read_vm(self, vm_ref: str) -> VirtualMachine:
        """Raises NotFoundError if it is gone."""
        ...

    def read_snapshot(self, snapshot_ref: str) -> SnapshotState: ...

    def datastores(self) -> list[Datastore]: ...


class RunningTasks(Protocol):
    """What a site still works at."""

    def wait_for_tasks(self, vm_ref: str) -> None:
        """Until no task runs on the VM any more (a dead run's snapshot may be under way). Gone VM: fine."""
        ...

    def read_vm_at_rest(self, vm_ref: str) -> VirtualMachine:
        """As it is once no task runs on it any more; in one call where none has lately.

        Raises NotFoundError if it is gone.
        """
        ...

    def find_vm_at_rest(self, instance_uuid: str, near: Sighting | None) -> VmAtRest | None:
        """The VM of that instanceUuid, as `read_vm_at_rest`; None if there is none.

        `near`: by which refs it and a snapshot of it were known. Where that still holds, one call reads both.
        """
        ...


class Snapshots(RunningTasks, Protocol):
    """Snapshots of a VM, made and removed."""

    def create_snapshot(
        self, vm_ref: str, name: str, description: str, *, quiesce: bool, within: float | None = None
    ) -> SnapshotState:
        """Without memory. Raises VsphereError with `fault` naming the quiesce fault if quiescing fails.

        `within`: seconds after which it is cancelled, and VsphereError raised with fault Timedout; it may be made all
        the same.
        """
        ...

    def remove_snapshot(self, vm_ref: str, snapshot_ref: str) -> bool:
        """Remove one snapshot (not its children); a snapshot that is already gone is fine.

        Returns the VM's `consolidationNeeded` afterwards.
        """
        ...

    def consolidate(self, vm_ref: str) -> None: ...

    def revert_to_snapshot(self, vm_ref: str, snapshot_ref: str) -> None: ...


class ChangedBlocks(Protocol):
    """What changed block tracking tells."""

    def changed_areas(
        self, vm_ref: str, snapshot_ref: str | None, disk_key: int, start: int, change_id: str
    ) -> ChangedAreas:
        """One page. Raises CbtError where vSphere answers with FileFault or cannot resolve the change ID."""
        ...


class TrackedInventory(Inventory, ChangedBlocks, Protocol):
    """Reads VMs, and what changed on their disks; changes nothing."""


class ChangeTracking(ChangedBlocks, Protocol):
    """Changed block tracking, asked and switched."""

    def enable_cbt(self, vm_ref: str) -> bool:
        """Of the VM and of each of its disks; takes effect with the next snapshot. False: it was on for all already."""
        ...

    def disable_cbt(self, vm_ref: str) -> None:
        """Of a VM that is powered off: at once."""
        ...


class ReplicaMaking(Protocol):
    """Replica VMs, made and brought up to their sources."""

    def check_place(self, name: str, hardware: Hardware, placement: ReplicaPlacement) -> list[str]:
        """Raises what would keep a replica of this name and hardware from being made there; makes nothing.

        Returns what would be made beside it, in words, such as a folder.

        NotFoundError, UsageError, or NotReplicableError: the name's length, hardware version, guest OS, networks.
        """
        ...

    def create_replica(self, spec: ReplicaSpec) -> VirtualMachine:
        """Create and register, with empty disks, powered off. Nothing is left behind when it raises."""
        ...

    def reconcile_replica(
        self,
        replica: VirtualMachine,
        hardware: Hardware,
        placement: ReplicaPlacement,
        *,
        keep_macs: bool,
        annotation: str | None = None,
    ) -> list[str]:
        """Bring the replica's hardware (not its disks) to the source's; returns what was changed, in words.

        `replica`: as it was read last; where that follows its source already, nothing is asked. `annotation`: its
        notes; None leaves them alone.
        """
        ...

    def add_replica_disk(self, vm_ref: str, spec: ReplicaSpec, disk_index: int) -> VirtualMachine: ...

    def remove_replica_disk(self, vm_ref: str, disk_key: int) -> None:
        """Remove the disk from the VM; its files are destroyed only where no snapshot of the VM needs them."""
        ...

    def disk_files(self, vm_ref: str, disk_key: int) -> tuple[str, ...]:
        """The files that a VM's disk consists of, from the one that writes go to down to its base; () without it."""
        ...

    def copy_disk(self, vm_ref: str, source: str, to: str, disk: Disk, *, thin: bool) -> None:
        """Make the file `to` of what `source` shows of its chain, as large as `disk`, on the VM's datastores.

        Takes as long as the storage needs. Raises VsphereError where the site cannot; a part may be left at `to`.
        """
        ...

    def attach_replica_disk(self, vm_ref: str, spec: ReplicaSpec, disk_index: int, path: str) -> VirtualMachine:
        """Like `add_replica_disk`, with a file that is there."""
        ...

    def remove_unused_disks(self, vm_ref: str, paths: Sequence[str]) -> list[str]:
        """Delete those of these disk files that no VM and no snapshot refers to; returns which are gone now.

        `vm_ref`: a VM of their datacenter.
        """
        ...

    def set_extra_config(self, vm_ref: str, values: Mapping[str, str]) -> None: ...

    def destroy_vm(self, vm_ref: str, *, with_files: Sequence[str] = ()) -> None:
        """Raises VsphereError if it is powered on. A VM that is already gone is fine.

        `with_files`: files of disks beside its own that go too, unless something else refers to them.
        """
        ...


class SnapshottedSite(Inventory, Snapshots, Protocol):
    """A site whose VMs are looked at and snapshotted."""


class SourceSite(SnapshottedSite, ChangeTracking, GuestPrograms, VmFiles, Protocol):
    """Where the VMs are that a job replicates."""


class TargetSite(SourceSite, ReplicaMaking, FailoverTarget, Protocol):
    """Where replicas live: all that a source is asked, replicas made, and failovers."""


class Site(TargetSite, Protocol):
    """All roles at once: what a configured site is, before a command takes of it what it needs."""
