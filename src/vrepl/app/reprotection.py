"""What `failover commit --reprotect` makes: jobs in the other direction, seeded from the originals."""

from __future__ import annotations

from collections.abc import Sequence

from vrepl.app.sites import Sites
from vrepl.config import LoadedConfig
from vrepl.engine.failover.replicas import FoundReplica
from vrepl.errors import VreplError
from vrepl.model import JobSettings, ReplicaState, VirtualMachine
from vrepl.report.failover import FailoverReport
from vrepl.report.reprotection import ReverseJob


def reprotect(loaded: LoadedConfig, report: FailoverReport, replicas: Sequence[FoundReplica], site: str) -> None:
    """Adds to the report a job for what was committed at `site`, or a note why there is none for a VM."""
    found = {one.source_name: one for one in replicas}
    jobs: dict[tuple[str, str], ReverseJob] = {}
    with Sites(loaded) as sites:
        for row in report.vms:
            if row.state != ReplicaState.COMMITTED or row.name not in found:
                continue
            replica = found[row.name]
            job = _job(loaded, replica)
            try:
                original = _original(sites, replica) if job is not None else None
            except VreplError as error:
                row.notes = [*row.notes, f"no job replicates it back yet: {error.message}; the same command, later"]
                continue
            if job is None or original is None or not original.disks:
                what = "no job of the configuration replicated it" if job is None else "its original is gone"
                row.notes = [*row.notes, f"no job replicates it back: {what}"]
                continue
            key = (job.name, original.disks[0].datastore)
            before = jobs.get(key)
            originals = {**(before.originals if before else {}), replica.vm.name: original.name}
            name = before.name if before else _free_name(loaded, job.name, [one.name for one in jobs.values()])
            networks = {theirs: ours for ours, theirs in job.placement.networks.items() if theirs != ours}
            jobs[key] = ReverseJob(name, site, job.source, originals, key[1], networks)
    report.reverse_jobs = list(jobs.values())


def _job(loaded: LoadedConfig, replica: FoundReplica) -> JobSettings | None:
    """The one that replicated it last; a replica that was committed before names none any more."""
    if replica.job is not None and replica.job in loaded.config.jobs:
        return loaded.job(replica.job)
    source = replica.never_failed_over.source_site
    jobs = [loaded.job(name) for name in loaded.config.jobs]
    return next((job for job in jobs if job.source == source and job.may_mean(replica.source_name)), None)


def _original(sites: Sites, replica: FoundReplica) -> VirtualMachine | None:
    record = replica.never_failed_over
    return sites(record.source_site).find_vm_by_instance_uuid(record.source_instance_uuid)


def _free_name(loaded: LoadedConfig, job: str, taken: Sequence[str]) -> str:
    name, number = f"{job}-back", 2
    while name in loaded.config.jobs or name in taken:
        name, number = f"{job}-back-{number}", number + 1
    return name
