"""Makes the replica VM what the plan wants, before a source snapshot exists."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from vrepl.engine.context import ReplicationContext
from vrepl.engine.growing import copy_grown, put_in_place
from vrepl.engine.knowledge import restore_point_snapshots
from vrepl.engine.loose_files import note_loose_files, remove_loose_files
from vrepl.model import Carry, Disk, Hardware, ReplicaRecord, ReplicaSpec, RestorePoint, VirtualMachine
from vrepl.planner.knowledge import ReplicaKnowledge
from vrepl.planner.vm import DiskPlan, ReplicaAction, VmPlan
from vrepl.repository.commit_record import ReplicaMark
from vrepl.repository.replica_folder import ReplicaFolder

ANNOTATION = (
    "Replica of {name}, kept by vrepl. Do not power it on, write to its disks or touch its snapshots by hand: "
    "the next run reverts what was changed."
)


@dataclass(frozen=True, slots=True)
class PreparedReplica:
    record: ReplicaRecord
    vm: VirtualMachine
    newly_made: frozenset[int] = frozenset()
    """Source keys of disks whose replica disk was created empty by this run."""
    newly_grown: frozenset[int] = frozenset()
    """Source keys of disks whose replica disk this run has made of a smaller one."""

    def disk_for(self, source_key: int) -> Disk | None:
        key = self.record.disk_keys.get(source_key)
        return self.vm.disk(key) if key is not None else None


def prepare_replica(
    context: ReplicationContext, folder: ReplicaFolder, plan: VmPlan, known: ReplicaKnowledge
) -> tuple[PreparedReplica, list[str]]:
    """Create the replica, or bring the one that exists up to the source; returns what was done, in words."""
    if plan.action is ReplicaAction.UPDATE and plan.replica is not None:
        return _update(context, folder, plan, known, plan.replica)
    if plan.action in {ReplicaAction.RECREATE, ReplicaAction.MAP}:
        folder.discard_logs()
        folder.clear_intent()
        for point in folder.restore_points():
            folder.remove_restore_point(point.id)
    if plan.action is ReplicaAction.MAP and plan.replica is not None:
        return _map(context, folder, plan, plan.replica)
    if known.leftover is not None:
        context.target.destroy_vm(known.leftover.ref)
    return _create(context, folder, plan), []


def _mark(context: ReplicationContext, plan: VmPlan, run_id: str, instance_uuid: str) -> dict[str, str]:
    """`instance_uuid`: the replica's own. Clones inherit the mark, and this tells them from the replica."""
    return ReplicaMark(
        repository_id=context.services.repository.id,
        source_site=context.source.name,
        source_instance_uuid=plan.vm.instance_uuid,
        run_id=run_id,
        replica_instance_uuid=instance_uuid,
    ).to_extra_config()


def _instance_uuid_for(context: ReplicationContext, plan: VmPlan) -> str:
    """The same whenever this run asks: a creation whose reply got lost is found by it."""
    parts = (context.services.repository.id, context.source.name, plan.vm.instance_uuid, context.run_id)
    return str(uuid.uuid5(uuid.NAMESPACE_OID, "/".join(("vrepl", *parts))))


def _carried(context: ReplicationContext, plan: VmPlan) -> Hardware:
    """The source's hardware, as far as the job wants it followed."""
    followed = Carry.RESERVATIONS in context.job.carry
    return plan.vm.hardware if followed else replace(plan.vm.hardware, resources=None)


def _annotation(vm: VirtualMachine, *, notes: bool) -> str:
    ours = ANNOTATION.format(name=vm.name)
    return f"{ours}\n\n{vm.notes}" if notes and vm.notes else ours


def _reconcile(context: ReplicationContext, plan: VmPlan, replica: VirtualMachine) -> list[str]:
    """What was changed, in words. Notes are written only where the job carries them: somebody may have added some."""
    job = context.job
    return context.target.reconcile_replica(
        replica,
        _carried(context, plan),
        job.placement,
        keep_macs=job.keep_macs,
        annotation=_annotation(plan.vm, notes=True) if Carry.NOTES in job.carry else None,
    )


def _spec(context: ReplicationContext, plan: VmPlan) -> ReplicaSpec:
    instance_uuid = _instance_uuid_for(context, plan)
    return ReplicaSpec(
        name=plan.replica_name,
        placement=replace(context.job.placement, disk_stores=plan.disk_stores),
        hardware=_carried(context, plan),
        bios_uuid=plan.vm.bios_uuid,
        disks=tuple(disk.disk for disk in plan.disks),
        keep_macs=context.job.keep_macs,
        thin=context.job.thin,
        extra_config=_mark(context, plan, context.run_id, instance_uuid),
        annotation=_annotation(plan.vm, notes=Carry.NOTES in context.job.carry),
        instance_uuid=instance_uuid,
    )


def _create(context: ReplicationContext, folder: ReplicaFolder, plan: VmPlan) -> PreparedReplica:
    spec = _spec(context, plan)
    replica = context.target.create_replica(spec)
    if replica.instance_uuid != spec.instance_uuid:
        # A vCenter gives a VM another one where its own is taken.
        mark = _mark(context, plan, context.run_id, replica.instance_uuid)
        context.target.set_extra_config(replica.ref, mark)
    record = replace(
        folder.record,
        target_site=context.target.name,
        target_instance_uuid=replica.instance_uuid,
        target_name=replica.name,
        source_name=plan.vm.name,
        job=context.job.name,
        disk_keys=_match_disks(plan.vm, [disk.disk for disk in plan.disks], replica),
        empty_disks=tuple(disk.disk.key for disk in plan.disks),
        nvram_read=None,
    )
    folder.save_record(record)
    return PreparedReplica(record, replica, frozenset(record.disk_keys))


def _map(
    context: ReplicationContext, folder: ReplicaFolder, plan: VmPlan, candidate: VirtualMachine
) -> tuple[PreparedReplica, list[str]]:
    """Make a VM that exists the replica. Marked first: cut off after that, the same seeding goes through again."""
    target = context.target
    target.set_extra_config(candidate.ref, _mark(context, plan, "", candidate.instance_uuid))
    if not candidate.cbt_enabled:
        target.enable_cbt(candidate.ref)
    record = replace(
        folder.record,
        target_site=target.name,
        target_instance_uuid=candidate.instance_uuid,
        target_name=candidate.name,
        source_name=plan.vm.name,
        job=context.job.name,
        disk_keys=_match_disks(plan.vm, [disk.disk for disk in plan.disks], candidate),
        empty_disks=(),
    )
    folder.save_record(record)
    done = _reconcile(context, plan, candidate)
    return PreparedReplica(record, target.read_vm(candidate.ref)), done


def _match_disks(vm: VirtualMachine, sources: list[Disk], replica: VirtualMachine) -> dict[int, int]:
    """Source key -> replica key, by place, or by order where a mapped replica has its disks in other places."""
    if len(sources) != len(replica.disks):
        raise AssertionError(f"replica {replica.name} has {len(replica.disks)} of {len(sources)} disks")
    by_place = {_place(replica, disk): disk.key for disk in replica.disks}
    places = {disk.key: _place(vm, disk) for disk in sources}
    if len(by_place) == len(sources) and set(by_place) == set(places.values()):
        return {key: by_place[place] for key, place in places.items()}
    return {source.key: made.key for source, made in zip(sources, replica.disks, strict=True)}


def _update(
    context: ReplicationContext, folder: ReplicaFolder, plan: VmPlan, known: ReplicaKnowledge, replica: VirtualMachine
) -> tuple[PreparedReplica, list[str]]:
    done: list[str] = []
    target = context.target
    if plan.revert_replica and known.last is not None:
        replica = _revert(context, folder, known.last, replica)
    done.extend(_reconcile(context, plan, replica))
    if any(disk.replace_disk for disk in plan.disks):
        remove_loose_files(folder, target, replica.ref, done.append)  # what a dead run copied makes room
    disks = _reconcile_disks(context, folder, plan, known, replica, done)
    fresh = target.read_vm(replica.ref) if done else replica
    record = replace(
        folder.record,
        source_name=plan.vm.name,
        target_name=fresh.name,
        job=context.job.name,
        disk_keys=disks.keys,
        empty_disks=tuple(key for key in folder.record.empty_disks if key in disks.keys),
        grown_disks={key: grown for key, grown in folder.record.grown_disks.items() if key in disks.keys},
    )
    if record != folder.record:
        folder.save_record(record)
    return PreparedReplica(record, fresh, frozenset(disks.newly_made), frozenset(disks.newly_grown)), done


def _revert(
    context: ReplicationContext, folder: ReplicaFolder, point: RestorePoint, replica: VirtualMachine
) -> VirtualMachine:
    """Back to a restore point, its disks included. Those that were added since go first: else their files stay."""
    target = context.target
    snapshot_ref = restore_point_snapshots(replica)[point.id]
    sealed = {disk.base_path for disk in target.read_snapshot(snapshot_ref).disks}
    for key in folder.record.disk_keys.values():
        disk = replica.disk(key)
        if disk is not None and disk.base_path not in sealed:
            note_loose_files(folder, target.disk_files(replica.ref, key))
            target.remove_replica_disk(replica.ref, key)
    target.revert_to_snapshot(replica.ref, snapshot_ref)
    keys = {disk.source_key: disk.target_key for disk in point.disks}
    folder.save_record(replace(folder.record, disk_keys=keys, empty_disks=(), grown_disks={}))
    folder.discard_logs()
    folder.clear_intent()
    return target.read_vm(replica.ref)


def _disk_in_its_place(
    vm: VirtualMachine, disk: Disk, replica: VirtualMachine, *, taken: Collection[int]
) -> Disk | None:
    """The replica's disk of the same bus, unit and capacity as the source's `disk`; not one of `taken`."""
    for one in replica.disks:
        if one.key not in taken and one.capacity == disk.capacity and _place(replica, one) == _place(vm, disk):
            return one
    return None


def _place(vm: VirtualMachine, disk: Disk) -> tuple[str, int, int]:
    controller = next((one for one in vm.hardware.controllers if one.key == disk.controller_key), None)
    return (controller.kind, controller.bus_number, disk.unit_number) if controller else ("", -1, disk.unit_number)


@dataclass(slots=True)
class _Disks:
    """The replica's disks on their way to what the source has."""

    keys: dict[int, int]
    """Source key -> replica key."""
    newly_made: list[int] = field(default_factory=list)
    newly_grown: list[int] = field(default_factory=list)


def _reconcile_disks(
    context: ReplicationContext,
    folder: ReplicaFolder,
    plan: VmPlan,
    known: ReplicaKnowledge,
    replica: VirtualMachine,
    done: list[str],
) -> _Disks:
    """Add what the source has and the replica lacks, and take away what the source no longer has."""
    disks = _Disks(dict(folder.record.disk_keys))
    spec = _spec(context, plan)
    for disk_plan in plan.disks:
        if disk_plan.grown_from is not None and known.last is not None:
            _grow(context, folder, known.last, replica, spec, disk_plan, disks, done)
    _take_off(context, folder, plan, replica, disks, done)
    for disk_plan in plan.disks:
        if disk_plan.disk.key not in disks.keys:
            _add(context, folder, plan, replica, spec, disk_plan.disk, disks, done)
    return disks


def _grow(
    context: ReplicationContext,
    folder: ReplicaFolder,
    point: RestorePoint,
    replica: VirtualMachine,
    spec: ReplicaSpec,
    disk_plan: DiskPlan,
    disks: _Disks,
    done: list[str],
) -> None:
    disk, origin = disk_plan.disk, disk_plan.grown_from
    grown = copy_grown(context, folder, replica, point, origin, disk) if origin is not None else None
    if grown is None:
        done.append(f"{disk.title}: the target does not copy disks, so that the new one is copied whole")
        return
    before = {one.key: one.base_path for one in replica.disks}
    after = put_in_place(context, folder, replica, spec, disk, grown)
    made = [one.key for one in after.disks if one.base_path == grown.path]
    if len(made) != 1:
        raise AssertionError(f"attaching one disk to {replica.name} made {len(made)}, beside {before}")
    disks.keys[disk.key] = made[0]
    disks.newly_grown.append(disk.key)
    done.append(f"{disk.title}: the replica's new disk is made of restore point {point.id}; older ones keep the old")


def _take_off(
    context: ReplicationContext,
    folder: ReplicaFolder,
    plan: VmPlan,
    replica: VirtualMachine,
    disks: _Disks,
    done: list[str],
) -> None:
    wanted = {disk.disk.key for disk in plan.disks}
    replaced = {disk.disk.key for disk in plan.disks if disk.replace_disk} - set(disks.newly_grown)
    for source_key, target_key in list(disks.keys.items()):
        if source_key in disks.newly_grown:
            continue
        there = replica.disk(target_key) is not None
        if source_key not in wanted or source_key in replaced:
            if there:
                note_loose_files(folder, context.target.disk_files(replica.ref, target_key))
                context.target.remove_replica_disk(replica.ref, target_key)
                done.append("took a disk off the replica; older restore points keep it")
            del disks.keys[source_key]
        elif not there:
            del disks.keys[source_key]


def _add(
    context: ReplicationContext,
    folder: ReplicaFolder,
    plan: VmPlan,
    replica: VirtualMachine,
    spec: ReplicaSpec,
    disk: Disk,
    disks: _Disks,
    done: list[str],
) -> None:
    now = context.target.read_vm(replica.ref)
    left = _disk_in_its_place(plan.vm, disk, now, taken=disks.keys.values())
    if left is not None:
        # What a run added that died before it could record it, or a rebuilt repository does not know.
        disks.keys[disk.key] = left.key
        _note_empty(folder, disk.key, empty=False)
        done.append(f"{left.title} of the replica stands where {disk.title} belongs: it is compared")
        return
    before = {one.key for one in now.disks}
    # Before it is there: vSphere may give it the key of the disk that it replaces.
    folder.forget_disk(disk.key)
    _note_empty(folder, disk.key, empty=True)
    after = context.target.add_replica_disk(replica.ref, spec, disk.index)
    made = [one.key for one in after.disks if one.key not in before]
    if len(made) != 1:
        raise AssertionError(f"adding one disk to {replica.name} made {len(made)}")
    disks.keys[disk.key] = made[0]
    disks.newly_made.append(disk.key)
    done.append(f"added {disk.title} to the replica")


def _note_empty(folder: ReplicaFolder, source_key: int, *, empty: bool) -> None:
    """Put on record whether the replica's disk is one that vrepl makes empty."""
    others = tuple(key for key in folder.record.empty_disks if key != source_key)
    known = (*others, source_key) if empty else others
    if known != folder.record.empty_disks:
        folder.save_record(replace(folder.record, empty_disks=known))
