"""Gathers what the planner decides by: the repository's and the target's view of one VM's replica. Only reads."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace

from vrepl.engine.changes import changed_extents
from vrepl.errors import CbtError
from vrepl.extents import GRAIN, Extent, align, intersect, subtract, union
from vrepl.model import Disk, DiskPoint, PowerState, ReplicaRecord, RestorePoint, TrackingPosition, VirtualMachine
from vrepl.planner.disks import UnfinishedDisk
from vrepl.planner.knowledge import NameTaken, ReplicaKnowledge
from vrepl.planner.seeding import SeedRequest
from vrepl.planner.tracking import tracking_id
from vrepl.ports import Inventory, TrackedInventory
from vrepl.repository.agreement import commit_records, require_agreement, require_empty_disks
from vrepl.repository.commit_record import ReplicaMark, named_restore_point, read_mark
from vrepl.repository.documents import DamagedError
from vrepl.repository.intent import Intent
from vrepl.repository.replica_folder import ReplicaFolder
from vrepl.repository.store import Repository
from vrepl.repository.transferlog import read_log


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
                and commit_records(vm, record)
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
) -> ReplicaKnowledge:
    """What is known of the replica of `vm`, read afresh from the target.

    `seed`: the VM that shall become its replica, if the operator named one.
    """
    record = folder.record if folder and folder.record.target_instance_uuid else None
    replica = target.find_vm_by_instance_uuid(record.target_instance_uuid) if record else None
    if folder is not None and record is not None:
        _refuse_contradictions(folder, record, replica, repository_id, names)
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
    if folder.record.empty_disks:
        require_empty_disks(folder, replica, last, target.read_snapshot(snapshots[last.id]) if last else None)
    intent = folder.intent()
    touched, unfinished = _judge_leaf(target, folder, replica, last, snapshots, intent)
    if last is None:
        unfinished = {**_unaccounted_disks(folder), **unfinished}
        if intent is not None and intent.sealing:
            # The first seal may have been there, and was removed by hand: the leaf is its base again, whatever was
            # written in between, and no change tracking goes back to it.
            unfinished = {key: _unsure(disk.position.capacity) for key, disk in unfinished.items()}
    return ReplicaKnowledge(
        record=record,
        replica=replica,
        restore_points=present,
        lost_restore_points=lost,
        # Where the leaf is not the one that the unfinished run wrote to, nothing of that run counts.
        unfinished=() if touched else tuple(unfinished.items()),
        digests_known=frozenset(_known_digests(folder, last)) if last else frozenset(),
        touched=touched,
        verification_failed=last is not None and _failed_verification(folder, last),
    )


def _refuse_contradictions(
    folder: ReplicaFolder,
    record: ReplicaRecord,
    replica: VirtualMachine | None,
    repository_id: str,
    names: TargetNames,
) -> None:
    """Raises DamagedError where the replica, or the VM that is the replica, says something else than the repository."""
    if replica is not None:
        require_agreement(folder, replica, repository_id)
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


def restore_point_snapshots(replica: VirtualMachine) -> dict[str, str]:
    """Restore point ID -> snapshot ref, for the snapshots of a replica that carry a commit record."""
    named = ((named_restore_point(snapshot.description), snapshot.ref) for snapshot in replica.snapshots)
    return {point_id: ref for point_id, ref in named if point_id is not None}


def unfinished_disks(folder: ReplicaFolder, intent: Intent | None) -> dict[int, UnfinishedDisk]:
    """What the unsealed attempts left, by source disk key."""
    found = {}
    for disk in intent.disks if intent else ():
        state = read_log(folder.transfer_log(disk.source_key)).attempt(disk.attempt)
        found[disk.source_key] = UnfinishedDisk(
            planned=disk.planned,
            done=intersect(disk.planned, state.done),
            allowed=state.allowed,
            position=disk.position,
            dirty=disk.dirty,
            compare_with_target=disk.compare_with_target,
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


def _failed_verification(folder: ReplicaFolder, point: RestorePoint) -> bool:
    """Whether the digests of a restore point cannot be taken for what the replica holds."""
    verification, doubt = folder.verification(point.id), folder.doubt(point.id)
    failed = verification is not None and not verification.good
    return failed or (doubt is not None and not doubt.digests_hold)


def _judge_leaf(
    target: TrackedInventory,
    folder: ReplicaFolder,
    replica: VirtualMachine,
    last: RestorePoint | None,
    snapshots: Mapping[str, str],
    intent: Intent | None,
) -> tuple[str | None, Mapping[int, UnfinishedDisk]]:
    """How the leaf was changed by anyone but vrepl since the last seal, in words; None if it was not.

    With it the unfinished disks, to which what the replica's CBT cannot tell from vrepl's own writes is added.
    """
    unfinished = unfinished_disks(folder, intent)
    if last is None:
        return (_leaf_replaced(replica, intent) if intent and intent.disks else None), unfinished
    if replica.current_snapshot_ref != snapshots[last.id]:
        return "the replica's current snapshot is not its last restore point", unfinished
    if intent and intent.disks:
        if any(disk.parent_restore_point_id != last.id for disk in intent.disks):
            return "an unfinished run does not belong to the last restore point", unfinished
        replaced = _leaf_replaced(replica, intent)
        if replaced:
            return replaced, unfinished
    # What vrepl has put in a disk's place since the seal is another disk, of which the seal says nothing.
    points = [point for point in last.disks if point.source_key not in folder.record.empty_disks]
    for point in points:
        if folder.record.disk_keys.get(point.source_key) == point.target_key and not replica.disk(point.target_key):
            return f"disk {point.index} ({point.label}) is gone from the replica", unfinished
    return _written_by_others(target, replica, points, snapshots[last.id], unfinished)


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


def _written_by_others(
    target: TrackedInventory,
    replica: VirtualMachine,
    points: Sequence[DiskPoint],
    snapshot_ref: str,
    unfinished: Mapping[int, UnfinishedDisk],
) -> tuple[str | None, Mapping[int, UnfinishedDisk]]:
    """Ask the replica's own CBT what was written to its leaf since the seal, beside what vrepl itself may have written.

    What lies apart from vrepl's own writes is somebody else's. What adjoins them may be that, or only the size of CBT's
    blocks: an unfinished run is given it to settle again.
    """
    if replica.power is not PowerState.OFF:
        return None, unfinished  # it is refused anyway
    if not replica.cbt_enabled:
        return "change tracking of the replica is off, so nothing tells whether its disks were written", unfinished
    sealed = target.read_snapshot(snapshot_ref)
    judged = dict(unfinished)
    for point in points:
        disk = replica.disk(point.target_key)
        at_seal = sealed.disk(point.target_key)
        if disk is None or at_seal is None:
            continue
        ours = judged.get(point.source_key)
        own = ours.maybe_written if ours else []
        if at_seal.change_id is None:
            if own:
                continue
            return f"no change tracking of {disk.title} of the replica goes back to the last restore point", unfinished
        change_id = at_seal.change_id
        try:
            changed = changed_extents(
                lambda start, key=disk.key, since=change_id: target.changed_areas(  # type: ignore[misc]
                    replica.ref, None, key, start, since
                ),
                disk.capacity,
            )
        except CbtError:
            # A revert by hand begins a new tracking: what was written after it can no longer be told.
            return (
                f"the change tracking of {disk.title} of the replica does not reach back to the last restore point",
                unfinished,
            )
        beside = subtract(changed, own)
        if not beside:
            continue
        if ours is None or _any_apart(changed, own):
            return f"{disk.title} of the replica was written by something else since the last restore point", unfinished
        unsure = align(beside, GRAIN, disk.capacity)
        judged[point.source_key] = replace(
            ours,
            planned=union(ours.planned, unsure),
            done=subtract(ours.done, unsure),
            dirty=union(ours.dirty, unsure),
        )
    return None, judged


def _any_apart(areas: Sequence[Extent], own: Sequence[Extent]) -> bool:
    """Whether one of `areas` has nothing in common with `own`; both are normal lists."""
    common = [extent.offset for extent in intersect(areas, own)]
    return any(bisect_left(common, area.offset) == bisect_left(common, area.end) for area in areas)
