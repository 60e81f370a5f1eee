"""From plans to the report's plain figures."""

from __future__ import annotations

from dataclasses import replace

from vrepl.engine.context import RunContext
from vrepl.errors import DiskError, NoSpaceError, NotReadyError, NotReplicableError, VreplError
from vrepl.model import Disk, JobSettings, TransportMode, VirtualMachine
from vrepl.planner.preflight import Conflict, ConflictKind
from vrepl.planner.vm import DiskPlan, VmPlan
from vrepl.report.model import DiskReport, ErrorReport, Result, SideTransport, VmReport


def conflict_error(conflict: Conflict) -> VreplError:
    """The error that a conflict of the plan is when it is run."""
    kinds: dict[ConflictKind, type[VreplError]] = {
        ConflictKind.REPLICA_STATE: NotReadyError,
        ConflictKind.REPLICA_POWERED_ON: NotReadyError,
        ConflictKind.NO_SPACE: NoSpaceError,
    }
    return kinds.get(conflict.kind, NotReplicableError)(conflict.message, hint=conflict.hint)


def planned_vm_report(context: RunContext, plan: VmPlan) -> VmReport:
    """What a run would do with one VM, as the report shows it."""
    report = VmReport(
        name=plan.vm.name,
        result=Result.PLANNED,
        instance_uuid=plan.vm.instance_uuid,
        replica=plan.replica_name,
        notes=[*plan.notes, *(f"left out: {reason}" for _, reason in plan.left_out)],
    )
    if plan.conflict:
        report.result = Result.FAILED
        report.error = ErrorReport.of(conflict_error(plan.conflict))
    report.disks = [_planned_disk(context, plan, disk) for disk in plan.disks]
    return report


def _planned_disk(context: RunContext, plan: VmPlan, disk_plan: DiskPlan) -> DiskReport:
    disk = disk_plan.disk
    target_disk = _expected_target_disk(plan, disk, context.job)
    first_run = plan.replica is None or not plan.replica.snapshots
    return DiskReport(
        index=disk.index,
        label=disk.label,
        kind=disk_plan.decision.kind,
        reason=disk_plan.decision.reason,
        capacity=disk.capacity,
        bytes_bound=disk_plan.upper_bound,
        last_bytes_moved=disk_plan.last_moved,
        resumed=bool(disk_plan.decision.carry or disk_plan.decision.dirty),
        source=_side(context, "source", context.source.name, plan, disk, first_run, context.job.source_modes),
        target=_side(context, "target", context.target.name, plan, target_disk, first_run, context.job.target_modes),
    )


def _expected_target_disk(plan: VmPlan, disk: Disk, job: JobSettings) -> Disk:
    if plan.replica is not None:
        same_place = [one for one in plan.replica.disks if one.index == disk.index]
        if same_place:
            return same_place[0]
    thin = disk.thin if job.thin is None else job.thin
    return replace(
        disk, datastore=job.placement.datastore, path="", base_path="", thin=thin, encrypted=False, change_id=None
    )


def _expected_replica(plan: VmPlan, job: JobSettings) -> VirtualMachine:
    """The replica, or what is known of one that is still to be made: its hardware, and a host if the job names one."""
    if plan.replica is not None:
        return plan.replica
    host = job.placement.host or ""
    return replace(plan.vm, ref="", name=plan.replica_name, host=host, datacenter="", disks=(), snapshots=())


def _side(
    context: RunContext,
    side: str,
    site: str,
    plan: VmPlan,
    disk: Disk,
    first_run: bool,
    allowed: tuple[TransportMode, ...],
) -> SideTransport:
    vm = plan.vm if side == "source" else _expected_replica(plan, context.job)
    try:
        transport = context.transports.plan(side, site, vm, disk, first_run=first_run, allowed=allowed)
    except DiskError as error:
        return SideTransport(mode=None, reason=error.message)
    first = transport.usable[0]
    return SideTransport(
        mode=first.mode.value,
        reason=first.reason,
        chosen=first.mode.value,
        ruled_out=[(choice.mode.value, choice.reason) for choice in transport.ruled_out],
    )
