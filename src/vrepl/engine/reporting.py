"""From plans to the report's plain figures."""

from __future__ import annotations

from dataclasses import replace

from vrepl.engine.context import ReplicationContext
from vrepl.errors import DiskError, NoSpaceError, NotReadyError, NotReplicableError, VreplError
from vrepl.model import Disk, JobSettings, Side, TransportPlan, VirtualMachine
from vrepl.planner.preflight import Conflict, ConflictKind
from vrepl.planner.vm import DiskPlan, VmPlan
from vrepl.report.disk import DiskReport, SideTransport
from vrepl.report.model import ErrorReport, Result, VmReport


def conflict_error(conflict: Conflict) -> VreplError:
    """The error that a conflict of the plan is when it is run."""
    kinds: dict[ConflictKind, type[VreplError]] = {
        ConflictKind.REPLICA_STATE: NotReadyError,
        ConflictKind.REPLICA_POWERED_ON: NotReadyError,
        ConflictKind.NO_SPACE: NoSpaceError,
    }
    return kinds.get(conflict.kind, NotReplicableError)(conflict.message, hint=conflict.hint)


def planned_vm_report(context: ReplicationContext, plan: VmPlan, obstacle: VreplError | None) -> VmReport:
    """What a run would do with one VM, as the report shows it; `obstacle`: what would stop it before it began."""
    report = VmReport(
        name=plan.vm.name,
        result=Result.PLANNED,
        instance_uuid=plan.vm.instance_uuid,
        replica=plan.replica_name,
        notes=[*plan.notes, *(f"left out: {reason}" for _, reason in plan.left_out)],
    )
    if obstacle is not None:
        report.result = Result.FAILED
        report.error = ErrorReport.of(obstacle)
    report.disks = [_planned_disk(context, plan, disk) for disk in plan.disks]
    return report


def _planned_disk(context: ReplicationContext, plan: VmPlan, disk_plan: DiskPlan) -> DiskReport:
    disk = disk_plan.disk
    return DiskReport(
        index=disk.index,
        label=disk.label,
        kind=disk_plan.decision.kind,
        reason=disk_plan.decision.reason,
        capacity=disk.capacity,
        bytes_bound=disk_plan.upper_bound,
        last_bytes_moved=disk_plan.last_moved,
        resumed=bool(disk_plan.decision.carry or disk_plan.decision.dirty),
        source=_side(context, Side.SOURCE, plan, disk),
        target=_side(context, Side.TARGET, plan, disk),
    )


def _expected_target_disk(plan: VmPlan, disk: Disk, job: JobSettings) -> Disk:
    if plan.replica is not None:
        same_place = [one for one in plan.replica.disks if one.index == disk.index]
        if same_place:
            return same_place[0]
    thin = disk.thin if job.thin is None else job.thin
    return replace(
        disk,
        datastore=plan.disk_stores.get(disk.key, job.placement.datastore),
        datastore_ref="",  # the source's own, which may mean anything at the target
        path="",
        base_path="",
        thin=thin,
        encrypted=False,
        change_id=None,
    )


def _expected_replica(plan: VmPlan, job: JobSettings) -> VirtualMachine:
    """The replica, or what is known of one that is still to be made: its hardware, and a host if the job names one."""
    if plan.replica is not None:
        return plan.replica
    host = job.placement.host or ""
    return replace(plan.vm, ref="", name=plan.replica_name, host=host, datacenter="", disks=(), snapshots=())


def plan_side(context: ReplicationContext, side: Side, plan: VmPlan, disk: Disk) -> TransportPlan:
    """How a run would reach this source disk, or the one that follows it at the target. Raises DiskError."""
    first_run = plan.replica is None or not plan.replica.snapshots
    if side is Side.SOURCE:
        return context.services.modes.plan(
            side, context.source.name, plan.vm, disk, first_run=first_run, allowed=context.job.source_modes
        )
    return context.services.modes.plan(
        side,
        context.target.name,
        _expected_replica(plan, context.job),
        _expected_target_disk(plan, disk, context.job),
        first_run=first_run,
        allowed=context.job.target_modes,
        beside=_proxy_that_reads(context, plan, disk),
    )


def _proxy_that_reads(context: ReplicationContext, plan: VmPlan, disk: Disk) -> str | None:
    try:
        return plan_side(context, Side.SOURCE, plan, disk).proxy
    except DiskError:
        return None


def _side(context: ReplicationContext, side: Side, plan: VmPlan, disk: Disk) -> SideTransport:
    try:
        transport = plan_side(context, side, plan, disk)
    except DiskError as error:
        return SideTransport(mode=None, reason=error.message)
    first = transport.usable[0]
    return SideTransport(
        mode=first.mode.value,
        reason=first.reason,
        chosen=first.mode.value,
        ruled_out=[(choice.mode.value, choice.reason) for choice in transport.ruled_out],
        engine=transport.engine.value,
        proxy=transport.proxy or None,
    )
