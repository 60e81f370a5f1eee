"""What one disk's crossing is about: which disk of which VM is read, which is written, and what of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vrepl.extents import Extent
from vrepl.model import Disk, SnapshotState, TransferKind, VirtualMachine
from vrepl.planner.disks import DiskDecision
from vrepl.ports import DigestFiles
from vrepl.repository.intent import DiskIntent


@dataclass(frozen=True, slots=True)
class DiskMove:
    """One disk that must be brought to the state that a snapshot of the VM which is read shows."""

    key: int
    """By which logs and intent know the disk: the original's device key, whichever way bytes go."""
    read_vm: VirtualMachine
    read_snapshot: SnapshotState
    read_disk: Disk
    written_vm: VirtualMachine
    written_disk: Disk
    decision: DiskDecision
    regions: Sequence[Extent]
    parent_restore_point_id: str | None
    parent_digests: DigestFiles
    first_attempt: int


def first_intent(move: DiskMove) -> DiskIntent:
    """What is recorded of a disk before its first attempt of this run."""
    return DiskIntent(
        source_key=move.key,
        kind=move.decision.kind,
        capacity=move.read_disk.capacity,
        attempt=move.first_attempt,
        planned=tuple(move.regions),
        change_id=move.read_disk.change_id,
        parent_restore_point_id=move.parent_restore_point_id,
        fresh=move.decision.fresh,
        dirty=move.decision.dirty,
        allocated_only=move.decision.kind is not TransferKind.INCREMENTAL,
        source_disk_uuid=move.read_disk.uuid,
        source_base_path=move.read_disk.base_path,
        compare_with_target=move.decision.compare_with_target,
    )


def relocated(
    move: DiskMove, read_vm: VirtualMachine, read_snapshot: SnapshotState, written_vm: VirtualMachine
) -> DiskMove:
    """The same move between VMs and disks as they were seen later; what is not plainly the same stays as it was."""
    read_disk = read_snapshot.disk(move.read_disk.key)
    if read_disk is not None and read_disk.uuid == move.read_disk.uuid:
        move = replace(move, read_vm=read_vm, read_snapshot=read_snapshot, read_disk=_at(move.read_disk, read_disk))
    written_disk = next((disk for disk in written_vm.disks if disk.key == move.written_disk.key), None)
    snapshots = [{snapshot.ref for snapshot in vm.snapshots} for vm in (move.written_vm, written_vm)]
    if written_disk is not None and written_disk.uuid == move.written_disk.uuid and snapshots[0] == snapshots[1]:
        move = replace(move, written_vm=written_vm, written_disk=_at(move.written_disk, written_disk))
    return move


def _at(disk: Disk, seen: Disk) -> Disk:
    """The same disk where it was seen later."""
    return replace(
        disk, path=seen.path, base_path=seen.base_path, datastore=seen.datastore, datastore_ref=seen.datastore_ref
    )
