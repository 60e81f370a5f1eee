"""What a run will do with one VM. Pure: the engine gathers the facts and carries the plan out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial

from vrepl.extents import total
from vrepl.model import (
    DISCONNECTED,
    Datastore,
    Disk,
    DiskPoint,
    EnableCbt,
    Hardware,
    JobSettings,
    OnNotReplicable,
    OnResize,
    PowerState,
    Quiesce,
    ReplicaState,
    VirtualMachine,
)
from vrepl.planner.disks import DiskDecision, decide_disk
from vrepl.planner.knowledge import NEW_DISK, NameTaken, ReplicaKnowledge, disk_facts, expected_disk, grown_from
from vrepl.planner.preflight import Conflict, ConflictKind, no_snapshot_reason, unreplicable_disk_reason
from vrepl.planner.seeding import seed_conflict

MIB = 1024 * 1024
MINIMUM_HARDWARE_VERSION_FOR_CBT = 7
"""CBT needs virtual hardware 7 or newer (VMware KB 1020128)."""


class ReplicaAction(StrEnum):
    """What the run does about the replica VM before the transfer."""

    CREATE = "create"
    UPDATE = "update"
    RECREATE = "recreate"
    MAP = "map"
    """Take an existing VM of the target as the replica."""


@dataclass(frozen=True, slots=True)
class DiskPlan:
    disk: Disk
    decision: DiskDecision
    upper_bound: int
    """Bytes that the source will be asked for at the most."""
    last_moved: int | None
    """Bytes that the last run moved for this disk."""
    replace_disk: bool = False
    """The replica gets a new disk in this one's place; older restore points keep the old one."""
    grown_from: DiskPoint | None = None
    """The new disk is copied at the target from this one of the last restore point, and made larger; None: empty."""


@dataclass(frozen=True, slots=True)
class VmPlan:
    vm: VirtualMachine
    replica_name: str
    replica: VirtualMachine | None
    action: ReplicaAction
    disks: tuple[DiskPlan, ...]
    left_out: tuple[tuple[Disk, str], ...] = ()
    """Disks that the job lets go unreplicated, each with its reason."""
    conflict: Conflict | None = None
    notes: tuple[str, ...] = ()
    """Drift and other things worth knowing, in words."""
    enable_cbt: bool = False
    """Switch on what change tracking is missing, of the VM or of single disks, before the source snapshot."""
    revert_replica: bool = False
    """The leaf holds writes that are not vrepl's: revert to the last restore point first."""
    quiesce: bool = False
    disk_stores: Mapping[int, str] = field(default_factory=dict)
    """Source key -> the target's datastore, of disks that go elsewhere than the VM's own files."""


def plan_vm(vm: VirtualMachine, job: JobSettings, known: ReplicaKnowledge) -> VmPlan:
    """The plan for one VM of a job."""
    replica_name = known.record.target_name if known.record and known.replica else job.replica_name_of(vm.name)
    carried, left_out, conflict = _choose_disks(vm, job)
    action = ReplicaAction.UPDATE
    notes: list[str] = []
    if known.seed is not None:
        conflict = conflict or seed_conflict(vm, carried, known.seed, known.replica)
        action, replica_name = ReplicaAction.MAP, known.seed.candidate.name
        known = ReplicaKnowledge(record=known.record, replica=known.seed.candidate, seed=known.seed)
        notes.append(f"{replica_name} of the target becomes the replica: only what differs crosses")
    elif known.replica is None:
        action = ReplicaAction.RECREATE if known.record else ReplicaAction.CREATE
        if known.record:
            notes.append(f"the replica {known.record.target_name} is gone from the target: it starts anew")
        known = replace(known, restore_points=(), lost_restore_points=(), unfinished=(), digests_known=frozenset())
    conflict = conflict or _target_conflict(job, known)
    conflict = conflict or _replica_conflict(vm, replica_name, known) or _quiesce_conflict(vm, job)
    if known.lost_restore_points:
        names = ", ".join(point.id for point in known.lost_restore_points)
        notes.append(f"restore points whose snapshots are gone from the replica are forgotten: {names}")
    revert = known.touched is not None and known.last is not None
    if known.leftover:
        notes.append(f"a dead run left the half-made replica {known.leftover.name}: it is removed and made anew")
    if known.touched:
        notes.append(
            f"{known.touched}: the replica is reverted to restore point {known.last.id}"
            if known.last
            else known.touched
        )
    plans, disk_notes, disk_conflict = _plan_disks(carried, job, known, revert=revert, lost_power=vm.lost_power)
    notes.extend(disk_notes)
    notes.extend(_drift_notes(vm, known))
    enable_cbt, cbt_notes = _tracking_wish(vm, job, known)
    notes.extend(cbt_notes)
    if action is not ReplicaAction.UPDATE:
        notes.extend(_fidelity_notes(vm, carried))
    if action is ReplicaAction.UPDATE and known.replica is not None:
        notes.extend(_hardware_notes(vm.hardware, known.replica.hardware, job.placement.networks))
    return VmPlan(
        vm=vm,
        replica_name=replica_name,
        replica=known.replica,
        action=action,
        disks=tuple(plans),
        left_out=tuple(left_out),
        conflict=conflict or disk_conflict,
        notes=tuple(notes),
        enable_cbt=enable_cbt,
        revert_replica=revert,
        quiesce=wants_quiesce(vm, job),
    )


def can_enable_cbt(vm: VirtualMachine) -> bool:
    """CBT may be switched on now: hardware version >= 7 and no snapshot exists (VMware KB 1020128)."""
    return vm.cbt_supported and vm.hardware.version >= MINIMUM_HARDWARE_VERSION_FOR_CBT and not vm.snapshots


def _tracking_wish(vm: VirtualMachine, job: JobSettings, known: ReplicaKnowledge) -> tuple[bool, list[str]]:
    """Whether the run switches change tracking on, and what the operator should know of it.

    Tracking is a property of each disk: one without a change ID in the last source snapshot of a tracked VM lacks it.
    """
    lacking = [point.label for point in known.last.disks if point.change_id is None] if known.last else []
    if (vm.cbt_enabled and not lacking) or not can_enable_cbt(vm):
        return False, []
    what = f"change tracking of {', '.join(lacking)}" if vm.cbt_enabled else "change tracking"
    if job.enable_cbt is EnableCbt.NEVER:
        return False, [f'{what} is off, and the job does not switch it on (enable_cbt = "never")']
    if vm.power is not PowerState.ON:
        return True, []
    if job.enable_cbt is EnableCbt.POWERED_OFF:
        return False, [f'{what} is off, and is switched on while the VM does not run (enable_cbt = "powered-off")']
    # Broadcom KB 320346: the first snapshot after it stuns the guest while the tables are made.
    consequence = (
        "; one snapshot without quiescing comes first" if job.quiesce is Quiesce.REQUIRE else " and is not quiesced"
    )
    return True, [
        f"{what} is switched on while the VM runs: its next snapshot stuns the guest, for long with large disks"
        f"{consequence if wants_quiesce(vm, job) else ''}"
    ]


def wants_quiesce(vm: VirtualMachine, job: JobSettings) -> bool:
    """Whether the source snapshot asks VMware Tools to quiesce the guest: it must run, with Tools in it."""
    return job.quiesce is not Quiesce.NEVER and vm.power is PowerState.ON and vm.tools_running


def _quiesce_conflict(vm: VirtualMachine, job: JobSettings) -> Conflict | None:
    if job.quiesce is Quiesce.REQUIRE and vm.power is PowerState.ON and not vm.tools_running:
        return Conflict(
            ConflictKind.QUIESCE,
            "the job requires a quiesced guest, but VMware Tools does not run in it",
            'start VMware Tools in the guest, or set quiesce = "prefer" in the job',
        )
    return None


def _choose_disks(vm: VirtualMachine, job: JobSettings) -> tuple[list[Disk], list[tuple[Disk, str]], Conflict | None]:
    """The disks to carry, those that the job lets go with their reasons, and what forbids it all."""
    reason = no_snapshot_reason(vm)
    if reason is not None:
        hint = "take the VM out of the job, or change what stands in the way"
        return [], [], Conflict(ConflictKind.NOT_REPLICABLE, f"cannot be replicated: {reason}", hint)
    skipped = [(disk, f"{disk.title}: the job skips it") for disk in vm.disks if job.skips_disk(vm.name, disk.index)]
    judged = [(disk, unreplicable_disk_reason(disk)) for disk in vm.disks if not job.skips_disk(vm.name, disk.index)]
    carried = [disk for disk, obstacle in judged if obstacle is None]
    left_out = [(disk, obstacle) for disk, obstacle in judged if obstacle is not None]
    if skipped and not judged:
        return [], skipped, Conflict(ConflictKind.NOT_REPLICABLE, "the job skips all its disks", "mend skip_disks")
    if not left_out or (carried and job.on_not_replicable is OnNotReplicable.SKIP_DISK):
        return carried, [*skipped, *left_out], None
    hint = 'take the VM out of the job, change the disk, or set on_not_replicable = "skip-disk" to leave the disk out'
    return carried, skipped, Conflict(ConflictKind.NOT_REPLICABLE, f"cannot be replicated: {left_out[0][1]}", hint)


def _target_conflict(job: JobSettings, known: ReplicaKnowledge) -> Conflict | None:
    if known.record is None or known.record.target_site == job.target:
        return None
    return Conflict(
        ConflictKind.OTHER_TARGET,
        f"its replica {known.record.target_name} is at site {known.record.target_site}, and job {job.name} replicates "
        f"to {job.target}: its restore points would be forgotten",
        f'set target = "{known.record.target_site}" in the job, or use a repository of its own for {job.target}',
    )


def _replica_conflict(vm: VirtualMachine, replica_name: str, known: ReplicaKnowledge) -> Conflict | None:
    if known.replica is None:
        if known.name_taken_by:
            other_name = "set another replica_name in the job"
            take = f"or take it: --map {vm.name}={replica_name}"
            hints = {
                NameTaken.UNKNOWN_REPLICA: "if the repository was lost, make it anew: vrepl repository rebuild; "
                f"else {other_name}, {take}",
                NameTaken.OTHER_REPLICA: f"was {vm.name} deleted and made anew? Rename the old one's replica to keep "
                f"it, or {other_name}",
            }
            return Conflict(
                ConflictKind.REPLICA_NAME_TAKEN,
                f"the target already has {known.name_taken_by} named {replica_name}",
                hints.get(known.name_taken_by, f"rename it, {other_name}, {take}"),
            )
        return None
    if known.record and known.record.state is not ReplicaState.READY:
        return Conflict(
            ConflictKind.REPLICA_STATE,
            f"the replica {known.replica.name} is {known.record.state}",
            "undo or commit the failover first",
        )
    if known.replica.power is not PowerState.OFF:
        return Conflict(
            ConflictKind.REPLICA_POWERED_ON,
            f"the replica {known.replica.name} is {known.replica.power} on the target",
            "power it off: what it wrote will be reverted",
        )
    return None


def _plan_disks(
    disks: Sequence[Disk], job: JobSettings, known: ReplicaKnowledge, *, revert: bool, lost_power: bool
) -> tuple[list[DiskPlan], list[str], Conflict | None]:
    plans: list[DiskPlan] = []
    notes: list[str] = []
    conflict: Conflict | None = None
    if known.verification_failed:
        notes.append("the last restore point failed its verification: both sides are read")
    for disk in disks:
        facts_of = partial(disk_facts, known, disk.key, reverted=revert, lost_power=lost_power)
        facts = facts_of(expected_disk(known, disk.key, revert=revert))
        point = facts.point
        # A disk of which nothing is sealed may go, for no restore point needs it.
        replaced = point is None and known.seed is None and known.made_for_another_size(disk)
        origin: DiskPoint | None = None
        if replaced:
            notes.append(f"{disk.title} was resized since its copy began: the replica gets a new disk in its place")
            origin = known.last.disk(disk.key) if known.last is not None else None
        if known.last is not None and known.last.disk(disk.key) is None:
            notes.append(f"{disk.title} was added since the last restore point")
        if point is not None and point.capacity != disk.capacity:
            resized = f"{disk.title} was resized from {point.capacity} to {disk.capacity} bytes"
            if job.on_resize is OnResize.RESTART:
                origin, point = point, None
                replaced = True
                grows = origin.capacity < disk.capacity
                how = "made at the target of the last restore point's" if grows else "copied whole"
                notes.append(f"{resized}: the replica gets a new disk in its place, {how}")
            else:
                conflict = conflict or Conflict(
                    ConflictKind.DISK_RESIZED,
                    f"{resized}, and a chain of snapshots cannot grow",
                    'set on_resize = "restart" in the job: the replica then gets a new disk, and what is sealed stays',
                )
        if origin is not None and origin.capacity >= disk.capacity:
            origin = None  # no disk file can be made smaller
        if replaced and origin is not None and known.last is not None:
            facts = facts_of(grown_from(known.last, origin))
        elif replaced:
            facts = facts_of(NEW_DISK)
        decision = decide_disk(disk, facts)
        bound = total(decision.carry) if decision.carry and not decision.whole_disk else disk.capacity
        plans.append(
            DiskPlan(
                disk,
                decision,
                upper_bound=disk.capacity if decision.since_change_id or decision.whole_disk else bound,
                last_moved=point.bytes_moved if point else None,
                replace_disk=replaced,
                grown_from=origin,
            )
        )
    if known.last is not None:
        present = {disk.key for disk in disks}
        notes.extend(
            f"disk {point.index} ({point.label}) was removed from the source since the last restore point"
            for point in known.last.disks
            if point.source_key not in present
        )
    return plans, notes, conflict


def _drift_notes(vm: VirtualMachine, known: ReplicaKnowledge) -> list[str]:
    notes = []
    if known.record and known.record.source_name != vm.name:
        notes.append(f"the source was renamed from {known.record.source_name} to {vm.name}")
    if not vm.cbt_enabled and vm.snapshots:
        notes.append("CBT is off and cannot be enabled while the source has snapshots: runs compare by digest")
    elif not vm.cbt_supported or vm.hardware.version < MINIMUM_HARDWARE_VERSION_FOR_CBT:
        notes.append("CBT is not available on this VM: runs compare by digest")
    if vm.consolidation_needed:
        notes.append("the source needs disk consolidation")
    return notes


def _fidelity_notes(vm: VirtualMachine, carried: Sequence[Disk]) -> list[str]:
    """What a new replica will lack (docs/fidelity.md)."""
    notes = []
    if vm.devices_left_behind:
        notes.append(
            f"the replica gets none of the source's devices of these kinds: {', '.join(vm.devices_left_behind)}"
        )
    encrypted = [disk.title for disk in carried if disk.encrypted]
    if encrypted:
        notes.append(f"encrypted at the source, and not by vrepl at the target: {', '.join(encrypted)}")
    return notes


def _hardware_notes(wanted: Hardware, have: Hardware, networks: Mapping[str, str]) -> list[str]:
    """What the replica's hardware will be brought to; `networks`: source network -> target network."""
    found = [
        f"{title}: {ours} -> {theirs}"
        for title, ours, theirs in (
            ("CPUs", have.cpus, wanted.cpus),
            ("memory (MiB)", have.memory_mib, wanted.memory_mib),
            ("firmware", have.firmware, wanted.firmware),
            ("network adapters", *_networks(have, wanted, networks)),
        )
        if ours != theirs
    ]
    return [f"the replica's hardware follows the source's: {', '.join(found)}"] if found else []


def _networks(have: Hardware, wanted: Hardware, mapped: Mapping[str, str]) -> tuple[str, str]:
    """The networks of the replica's adapters, and those that they shall have, in words."""
    theirs = [mapped.get(one.network, one.network) for one in wanted.network_adapters]
    loose = {number for number, network in enumerate(theirs) if network == DISCONNECTED}
    ours = [
        DISCONNECTED if number in loose and not one.connected else one.network
        for number, one in enumerate(have.network_adapters)
    ]
    return " + ".join(ours) or "none", " + ".join(theirs) or "none"


def space_needed(plan: VmPlan, job: JobSettings, disks: Collection[int] | None = None) -> int:
    """Bytes that the run may add to the target at the most, as far as this can be known before a snapshot.

    `disks`: for the disks with these source keys only; None: for all.
    """
    counted = [one for one in plan.disks if disks is None or one.disk.key in disks]
    if plan.replica is not None:
        return sum(one.last_moved or 0 for one in counted if not one.replace_disk) + sum(
            one.disk.capacity for one in counted if one.replace_disk
        )
    thick = thin = 0
    for disk_plan in counted:
        if job.thin if job.thin is not None else disk_plan.disk.thin:
            thin += disk_plan.disk.capacity
        else:
            thick += disk_plan.disk.capacity
    return thick + (min(thin, plan.vm.committed) if plan.vm.committed is not None else thin)


def space_conflict(needed: int, datastore: Datastore) -> Conflict | None:
    """The target's datastore has no room for what a run may add."""
    if needed <= datastore.free:
        return None
    return Conflict(
        ConflictKind.NO_SPACE,
        f"datastore {datastore.name} has {datastore.free / MIB:,.0f} MiB free, and up to {needed / MIB:,.0f} MiB are "
        "needed",
        "make room there, or choose another target_datastore",
    )
