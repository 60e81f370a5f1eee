"""Gathers what the planner decides by: the repository's and the target's view of one VM's replica. Only reads."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from vrepl.engine.changes import changed_extents
from vrepl.errors import CbtError
from vrepl.extents import Extent, intersect, normalise, subtract, union
from vrepl.model import (
    Disk,
    DiskPoint,
    PowerState,
    ReplicaRecord,
    RestorePoint,
    SnapshotState,
    TrackingPosition,
    VirtualMachine,
    VmAtRest,
)
from vrepl.planner.disks import UnfinishedDisk
from vrepl.planner.knowledge import NameTaken, ReplicaKnowledge, grown_disk
from vrepl.planner.seeding import SeedRequest
from vrepl.planner.tracking import tracking_id
from vrepl.ports import Inventory, TrackedInventory
from vrepl.repository.agreement import SettingsOf, require_agreement, require_empty_disks
from vrepl.repository.commit_record import ReplicaMark, named_restore_point, read_mark
from vrepl.repository.documents import DamagedError
from vrepl.repository.intent import Intent
from vrepl.repository.replica_folder import ReplicaFolder
from vrepl.repository.store import Repository
from vrepl.repository.transferlog import read_log


class TransferLogs(Protocol):
    """Where the durable traces of attempts lie."""

    def transfer_log(self, disk_key: int) -> Path:
        """Where the disk's log is or will be; its folder exists."""
        ...


class TargetNames:
    """Finds what stands in the way of a new replica's name: the target is listed once, and only if a run asks."""

    def __init__(self, target: Inventory) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._by_name: Mapping[str, VirtualMachine] | None = None

    def get(self, name: str) -> VirtualMachine | None:
        return self._listed().get(name)

    def marked(self, record: ReplicaRecord, repository_id: str) -> VirtualMachine | None:
        """A VM with restore points of that replica, which this repository made; whatever the record calls it."""
        for vm in self._listed().values():
            mark = read_mark(vm.extra_config)
            if (
                mark is not None
                and (mark.source_site, mark.source_instance_uuid) == (record.source_site, record.source_instance_uuid)
                and mark.repository_id in {repository_id, record.adopted_from}
                and mark.is_of(vm.instance_uuid)
                and any(named_restore_point(snapshot.description) for snapshot in vm.snapshots)
            ):
                return vm
        return None

    def _listed(self) -> Mapping[str, VirtualMachine]:
        with self._lock:
            if self._by_name is None:
                self._by_name = {vm.name: vm for vm in self._target.list_vms()}
            return self._by_name


def gather(
    folder: ReplicaFolder | None,
    vm: VirtualMachine,
    replica_name: str,
    repository_id: str,
    target: TrackedInventory,
    names: TargetNames,
    seed: SeedRequest | None = None,
    seen: VmAtRest | None = None,
) -> ReplicaKnowledge:
    """What is known of the replica of `vm`, read afresh from the target.

    `seed`: the VM that shall become its replica, if the operator named one. `seen`: the replica as it was read a
    moment ago, with its lock held; None: it is looked up.
    """
    record = folder.record if folder and folder.record.target_instance_uuid else None
    replica: VirtualMachine | None = None
    if record is not None:
        if seen is None or seen.vm.instance_uuid != record.target_instance_uuid:
            seen = None
            replica = target.find_vm_by_instance_uuid(record.target_instance_uuid)
        else:
            replica = seen.vm
    if folder is not None and record is not None:
        _refuse_contradictions(folder, record, replica, repository_id, target, names)
    if seed is not None and (replica is None or replica.ref != seed.candidate.ref):
        return ReplicaKnowledge(record=record, replica=replica, seed=seed)
    if folder is None or replica is None:
        taken_by = names.get(replica_name)
        leftover = taken_by if taken_by and _is_leftover(taken_by, vm, repository_id) else None
        return ReplicaKnowledge(
            record=record,
            name_taken_by=None if leftover or not taken_by else _kind_of(taken_by, vm),
            leftover=leftover,
        )
    snapshots = restore_point_snapshots(replica)
    sealed = folder.restore_points()
    present = tuple(point for point in sealed if point.id in snapshots)
    lost = tuple(point for point in sealed if point.id not in snapshots)
    last = present[-1] if present else None
    read = seen.snapshot if seen is not None else None

    def at_seal(point: RestorePoint) -> SnapshotState:
        ref = snapshots[point.id]
        return read if read is not None and read.ref == ref else target.read_snapshot(ref)

    if folder.record.empty_disks:
        require_empty_disks(folder, replica, last, at_seal(last) if last else None)
    intent = folder.intent()
    touched = _judge_leaf(folder, replica, last, snapshots, intent)
    unfinished: Mapping[int, UnfinishedDisk] = {**_unaccounted_disks(folder), **unfinished_disks(folder, intent)}
    if last is None and intent is not None and intent.sealing:
        # The first seal may have been there, and was removed by hand: the leaf is its base again, whatever was written
        # in between, and no change tracking goes back to it.
        unfinished = {key: _unsure(disk.position.capacity) for key, disk in unfinished.items()}
    suspects: dict[int, tuple[Extent, ...]] = {}
    if last is not None and not touched:
        # What vrepl has put in a disk's place since the seal is another disk, of which the seal says nothing.
        replaced = {*folder.record.empty_disks, *grown_keys(folder.record, replica)}
        points = [point for point in last.disks if point.source_key not in replaced]
        state = at_seal(last) if replica.cbt_enabled and replica.power is PowerState.OFF else None
        suspects = _suspects(target, replica, points, state, unfinished)
    return ReplicaKnowledge(
        record=record,
        replica=replica,
        restore_points=present,
        lost_restore_points=lost,
        # Where the leaf is not the one that the unfinished run wrote to, nothing of that run counts.
        unfinished=() if touched else tuple(unfinished.items()),
        digests_known=frozenset(_known_digests(folder, last)) if last else frozenset(),
        touched=touched,
        suspects=tuple(suspects.items()),
        doubtful_disks=_doubtful_disks(folder, last),
        verification_failed=last is not None and failed_verification(folder, last),
    )


def _refuse_contradictions(
    folder: ReplicaFolder,
    record: ReplicaRecord,
    replica: VirtualMachine | None,
    repository_id: str,
    target: Inventory,
    names: TargetNames,
) -> None:
    """Raises DamagedError where the replica, or the VM that is the replica, says something else than the repository."""
    if replica is not None:
        require_agreement(folder, replica, repository_id, settings_of(target))
        return
    other = names.marked(record, repository_id)
    if other is not None:
        raise DamagedError(
            folder.path / "replica.json",
            f"no VM has the instanceUuid {record.target_instance_uuid} that it gives the replica, and {other.name} "
            f"({other.instance_uuid}) bears the replica's mark and restore points",
        )


def seed_request(
    repository: Repository, vm: VirtualMachine, source: Inventory, target: Inventory, name: str
) -> SeedRequest:
    """The VM named `name` at the target, with what its mark says. Raises NotFoundError (hint: near names)."""
    [candidate] = target.find_vms([name])
    mark = _own_mark(candidate)
    others = repository.replicas(lambda error: None)
    owner = next((one for one in others if one.record.target_instance_uuid == candidate.instance_uuid), None)
    replica_of = None
    if mark is not None and (mark.source_site, mark.source_instance_uuid) != (source.name, vm.instance_uuid):
        replica_of = f"VM {mark.source_instance_uuid} of site {mark.source_site}"
    elif mark is not None and mark.repository_id != repository.id:
        replica_of = f"{vm.name} in repository {mark.repository_id}"
    elif owner is not None and owner.record.source_instance_uuid != vm.instance_uuid:
        replica_of = owner.record.source_name
    return SeedRequest(candidate, same_site=source.name == target.name, replica_of=replica_of)


def settings_of(site: Inventory) -> SettingsOf:
    """Reads the extraConfig that a snapshot kept."""
    return lambda snapshot_ref: site.read_snapshot(snapshot_ref).extra_config


def restore_point_snapshots(replica: VirtualMachine) -> dict[str, str]:
    """Restore point ID -> snapshot ref, for the snapshots of a replica that carry a commit record."""
    named = ((named_restore_point(snapshot.description), snapshot.ref) for snapshot in replica.snapshots)
    return {point_id: ref for point_id, ref in named if point_id is not None}


def unfinished_disks(folder: TransferLogs, intent: Intent | None) -> dict[int, UnfinishedDisk]:
    """What the unsealed attempts left, by source disk key."""
    found = {}
    for disk in intent.disks if intent else ():
        log = read_log(folder.transfer_log(disk.source_key))
        state, settled = log.attempt(disk.attempt), log.done
        found[disk.source_key] = UnfinishedDisk(
            planned=normalise(disk.planned),
            done=intersect(disk.planned, state.done),
            # What earlier attempts wrote stands in `dirty`; the log knows it too, and does not depend on the intent.
            allowed=max([state.allowed, *(attempt.allowed for attempt in log.attempts)]),
            position=disk.position,
            dirty=union(disk.dirty, settled),
            compare_with_target=disk.compare_with_target,
            settled=settled,
        )
    return found


def _unaccounted_disks(folder: ReplicaFolder) -> dict[int, UnfinishedDisk]:
    """Disks that have a transfer log of which no intent speaks: the intent was lost, so nothing of the leaf is sure."""
    found = {}
    for disk in folder.disk_folders():
        if not disk.path.name.isdecimal() or int(disk.path.name) not in folder.record.disk_keys:
            continue
        state = read_log(disk.log)
        if state.attempts:
            found[int(disk.path.name)] = _unsure(state.capacity)
    return found


def _unsure(capacity: int) -> UnfinishedDisk:
    """Nothing that any attempt settled counts: what the leaf holds must be read."""
    position = TrackingPosition(None, "", "", capacity)
    return UnfinishedDisk(planned=(), done=(), allowed=0, position=position, dirty=(), compare_with_target=True)


def grown_keys(record: ReplicaRecord, replica: VirtualMachine) -> list[int]:
    """Source keys of the disks for which the replica has a larger copy now, of which nothing is sealed."""
    return [key for key in record.grown_disks if grown_disk(record, replica, key) is not None]


def leaf_identity(disk: Disk) -> str:
    """Tells one leaf of a replica's disk from another: its file, and its change tracking (a revert changes that)."""
    return f"{disk.path} {tracking_id(disk.change_id) if disk.change_id else ''}".strip()


def _own_mark(vm: VirtualMachine) -> ReplicaMark | None:
    """A replica's mark; None too for a clone of a replica, which somebody else made: it is a VM like any other."""
    mark = read_mark(vm.extra_config)
    return mark if mark is not None and mark.is_of(vm.instance_uuid) else None


def _kind_of(taken_by: VirtualMachine, source: VirtualMachine) -> NameTaken:
    mark = _own_mark(taken_by)
    if mark is not None:
        same = mark.source_instance_uuid == source.instance_uuid
        return NameTaken.UNKNOWN_REPLICA if same else NameTaken.OTHER_REPLICA
    return NameTaken.TEMPLATE if taken_by.template else NameTaken.VM


def _is_leftover(vm: VirtualMachine, source: VirtualMachine, repository_id: str) -> bool:
    """A replica of `source` that this repository's dead run registered, and on which nothing was ever sealed."""
    mark = _own_mark(vm)
    return (
        mark is not None
        and mark.run_id != ""  # a VM that was mapped bears no run: vrepl did not make it, and never removes it
        and mark.repository_id == repository_id
        and mark.source_instance_uuid == source.instance_uuid
        and vm.power is PowerState.OFF
        and not vm.snapshots
    )


def _known_digests(folder: ReplicaFolder, last: RestorePoint) -> list[int]:
    known = []
    for disk in last.disks:
        files = folder.digest_files(disk.source_key, last.id)
        if files.base is not None:
            known.append(disk.source_key)
    return known


def _doubtful_disks(folder: ReplicaFolder, last: RestorePoint | None) -> frozenset[int]:
    doubt = folder.doubt(last.id) if last else None
    if last is None or doubt is None:
        return frozenset()
    return frozenset(doubt.disks or (disk.source_key for disk in last.disks))


def failed_verification(folder: ReplicaFolder, point: RestorePoint) -> bool:
    """Whether the digests of a restore point cannot be taken for what the replica holds."""
    verification, doubt = folder.verification(point.id), folder.doubt(point.id)
    failed = verification is not None and not verification.good
    return failed or (doubt is not None and not doubt.digests_hold)


def _judge_leaf(
    folder: ReplicaFolder,
    replica: VirtualMachine,
    last: RestorePoint | None,
    snapshots: Mapping[str, str],
    intent: Intent | None,
) -> str | None:
    """How the leaf was changed by anyone but vrepl since the last seal, in words; None if nothing proves that."""
    if last is None:
        return _leaf_replaced(replica, intent) if intent and intent.disks else None
    if replica.current_snapshot_ref != snapshots[last.id]:
        return "the replica's current snapshot is not its last restore point"
    if intent and intent.disks:
        if any(disk.parent_restore_point_id != last.id for disk in intent.disks):
            return "an unfinished run does not belong to the last restore point"
        replaced = _leaf_replaced(replica, intent)
        if replaced:
            return replaced
    for point in last.disks:
        if point.source_key in folder.record.empty_disks:
            continue
        if folder.record.disk_keys.get(point.source_key) == point.target_key and not replica.disk(point.target_key):
            return f"disk {point.index} ({point.label}) is gone from the replica"
    return None


def _leaf_replaced(replica: VirtualMachine, intent: Intent | None) -> str | None:
    leaves = {disk.key: leaf_identity(disk) for disk in replica.disks}
    for name, identity in (intent.journal.notes if intent else {}).items():
        kind, _, key = name.partition(":")
        if kind != "leaf":
            continue
        now = leaves.get(int(key), identity)
        if " " not in identity.rpartition(".vmdk")[2]:
            # Noted without change tracking, which may have been switched on since: the file alone tells.
            now = f"{now.rpartition('.vmdk')[0]}.vmdk"
        if now != identity:
            return "the replica was reverted or changed by hand since the unfinished run"
    return None


def _suspects(
    target: TrackedInventory,
    replica: VirtualMachine,
    points: Sequence[DiskPoint],
    sealed: SnapshotState | None,
    unfinished: Mapping[int, UnfinishedDisk],
) -> dict[int, tuple[Extent, ...]]:
    """Where the replica's own CBT hints at writes to its leaf since the seal, beside vrepl's own; by source disk key.

    `sealed`: the last restore point's snapshot; None: change tracking is off.
    Where it has no answer the whole disk is suspect: that is no reason to think that it was written.
    """
    if replica.power is not PowerState.OFF:
        return {}  # it is refused anyway
    suspects: dict[int, tuple[Extent, ...]] = {}
    for point in points:
        disk = replica.disk(point.target_key)
        if disk is None:
            continue
        at_seal = sealed.disk(point.target_key) if sealed is not None else None
        changed = [Extent(0, disk.capacity)]
        if at_seal is not None and at_seal.change_id is not None:
            change_id = at_seal.change_id
            with suppress(CbtError):  # such as after a revert, which begins a new tracking
                changed = changed_extents(
                    lambda start, key=disk.key, since=change_id: target.changed_areas(  # type: ignore[misc]
                        replica.ref, None, key, start, since
                    ),
                    disk.capacity,
                )
        ours = unfinished.get(point.source_key)
        beside = subtract(changed, ours.maybe_written if ours else [])
        if beside:
            suspects[point.source_key] = tuple(beside)
    return suspects
