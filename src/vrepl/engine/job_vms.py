"""Which VMs a job means today: looked up at every run, so that what is new is replicated and what is gone is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vrepl.errors import NotFoundError, UsageError
from vrepl.model import JobSettings, ListedVm, ReplicaRecord
from vrepl.planner.selection import choose
from vrepl.ports import Inventory
from vrepl.report.model import ErrorReport, Result, VmReport


@dataclass(slots=True)
class JobVms:
    """The VMs of one run of a job, and what its names and criteria did not find."""

    found: list[ListedVm]
    missing: list[VmReport] = field(default_factory=list)
    """A failed report for each name that no VM, or more than one, has."""
    idle: tuple[str, ...] = ()
    """Patterns of the job that match nothing."""


def find_job_vms(source: Inventory, job: JobSettings, vm_names: Sequence[str]) -> JobVms:
    """The job's VMs, or the named ones of them.

    Raises NotFoundError for a named VM that the job does not mean, and where a job means no VM at all unless that is
    allowed; UsageError for a job that could mean none.
    """
    if job.lists_its_vms:
        return _listed(source, job, vm_names)
    chosen = choose(source.candidates(job.selection.tag_patterns), job.vms, job.selection)
    wanted = [one for one in chosen.vms if not vm_names or one.name in vm_names]
    foreign = [name for name in vm_names if name not in {one.name for one in wanted}]
    if foreign:
        raise NotFoundError(
            f"job {job.name} does not select {', '.join(foreign)} today",
            hint=f"`vrepl plan {job.name}` lists what it does; `vrepl vms {job.source}` what there is",
        )
    missing = [] if vm_names else [*chosen.missing, *chosen.ambiguous]
    if not wanted and not missing and not job.allow_empty:
        raise NotFoundError(
            f"job {job.name} selects no VM of site {job.source}",
            hint=f"`vrepl vms {job.source} --select ...` shows what a selection finds; allow_empty = true lets it be",
        )
    reports = [
        VmReport(
            name=name,
            result=Result.FAILED,
            error=ErrorReport.of(_not_one(source.name, name, several=name in chosen.ambiguous)),
        )
        for name in missing
    ]
    by_ref = {vm.ref: vm for vm in source.list_those([one.ref for one in wanted])} if wanted else {}
    return JobVms([by_ref[one.ref] for one in wanted if one.ref in by_ref], reports, chosen.idle)


def new_and_vanished(vms: JobVms, job: JobSettings, records: Sequence[ReplicaRecord]) -> tuple[list[str], list[str]]:
    """Names of VMs that the job replicates for the first time, and of those that it replicated and means no longer."""
    known = {record.source_instance_uuid for record in records if record.source_site == job.source}
    now = {vm.instance_uuid for vm in vms.found}
    named = {report.name for report in vms.missing}
    vanished = [
        record.source_name
        for record in records
        if (record.job, record.source_site) == (job.name, job.source)
        and record.source_instance_uuid not in now
        and record.source_name not in named
    ]
    return [vm.name for vm in vms.found if vm.instance_uuid not in known], sorted(vanished)


def _listed(source: Inventory, job: JobSettings, vm_names: Sequence[str]) -> JobVms:
    """A job that names each of its VMs: nothing else of the site has to be read."""
    foreign = [name for name in vm_names if name not in job.vms]
    if foreign:
        raise NotFoundError(
            f"job {job.name} has no VM named {', '.join(foreign)}",
            hint=f"its VMs are: {', '.join(job.vms)}",
        )
    wanted = [name for name in job.vms if not vm_names or name in vm_names]
    if not wanted:
        raise UsageError(f"job {job.name} names no VM", hint="list them in its `vms`, or `select` them")
    try:
        return JobVms(source.list_named(wanted))
    except NotFoundError:
        if len(wanted) == 1:
            raise
    vms = JobVms([])
    for name in wanted:
        try:
            vms.found.extend(source.list_named([name]))
        except NotFoundError as error:
            vms.missing.append(VmReport(name=name, result=Result.FAILED, error=ErrorReport.of(error)))
    return vms


def _not_one(site: str, name: str, *, several: bool) -> NotFoundError:
    if several:
        return NotFoundError(f"site {site} has several VMs named {name}", hint="select them by path or folder instead")
    return NotFoundError(f"site {site} has no VM named {name}", hint=f"`vrepl vms {site}` lists them")
