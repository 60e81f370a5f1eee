"""From configuration and repository to `report.protection`: reads a few small files a VM, and asks no site."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vrepl.config import LoadedConfig
from vrepl.errors import RepositoryError
from vrepl.model import JobSettings
from vrepl.model.selection import is_pattern
from vrepl.report.model import Result, time_from_json
from vrepl.report.protection import AuditStanding, Protection, ReplicaStanding, VmProtection
from vrepl.repository.audit_book import read_audit_book
from vrepl.repository.replica_folder import ReplicaFolder
from vrepl.repository.store import Repository

logger = logging.getLogger(__name__)

Key = tuple[str, str]
"""Job, and name of the VM."""
LOOK_BACK = (1, 8, 64)
"""How many of the newest runs are read for the last result of each VM: more only while one is still missing."""


def protection_now(loaded: LoadedConfig) -> tuple[Protection, dict[str, str]]:
    """And the jobs that run, with the processes that run them. Loads neither engine nor sites: it is asked often."""
    repository = Repository.open(loaded.config.repository.path, create=True)
    running = {lock.name.removeprefix("job "): lock.owner for lock in repository.job_locks() if lock.held}
    return protection(loaded, repository, dt.datetime.now(dt.UTC)), running


def protection(loaded: LoadedConfig, repository: Repository, now: dt.datetime) -> Protection:
    """Raises RepositoryError where the repository cannot be read."""
    replicas = repository.replicas(_warn)
    folders = {(folder.record.source_site, folder.record.source_name): folder for folder in replicas}
    jobs = loaded.config.jobs
    members = {name: _members(loaded.job(name), replicas) for name in jobs}
    results = last_results(repository, {(name, vm) for name, vms in members.items() for vm in vms})
    vms = [
        _protection_of(name, vm, folders.pop((job.source, vm), None), job.rpo, results.get((name, vm)))
        for name, job in jobs.items()
        for vm in members[name]
    ]
    return Protection.of(now, vms, (folder.record.source_name for folder in folders.values()))


def _members(job: JobSettings, replicas: Sequence[ReplicaFolder]) -> list[str]:
    """Names of a job's VMs, without asking its site: those that it lists, and for patterns what it has replicated."""
    listed = [name for name in job.vms if not is_pattern(name)]
    if job.lists_its_vms:
        return listed
    replicated = [
        folder.record.source_name
        for folder in replicas
        if (folder.record.job, folder.record.source_site) == (job.name, job.source)
        and job.may_mean(folder.record.source_name)
    ]
    return list(dict.fromkeys([*listed, *sorted(replicated)]))


def standing(folder: ReplicaFolder) -> ReplicaStanding:
    """What a replica is used for, and when it was last tested: the one place that knows."""
    use = folder.use()
    return ReplicaStanding(use.state.value, use.last_test.time if use.last_test else None)


def audit_standing(folder: ReplicaFolder) -> AuditStanding | None:
    """None where nothing was audited, or the book of it cannot be believed (it begins anew then)."""
    disks = read_audit_book(folder.path)[0].disks.values()
    if not disks:
        return None
    rounds = min(disk.rounds for disk in disks)
    capacity = sum(disk.capacity for disk in disks)
    read = sum(disk.capacity if disk.rounds > rounds else disk.position for disk in disks)
    return AuditStanding(rounds, 100 * read // capacity, min(disk.paid for disk in disks))


def last_results(repository: Repository, wanted: Iterable[Key]) -> Mapping[Key, Mapping[str, Any]]:
    """The newest VM report of each, as JSON, with the time when its run `finished`."""
    missing = set(wanted)
    found: dict[Key, Mapping[str, Any]] = {}
    read = 0
    for limit in LOOK_BACK:
        runs = repository.runs(limit, _warn)
        for run in runs[read:]:
            for vm in run.get("vms", ()):
                key = (run["run"]["job"], vm["name"])
                if key in missing:
                    missing.discard(key)
                    found[key] = {**vm, "finished": run["run"]["finished"]}
        if not missing or len(runs) < limit:
            break
        read = limit
    return found


def _warn(damaged: RepositoryError) -> None:
    """What is left out because it cannot be believed, and that it is."""
    logger.warning("%s%s", damaged.message, f" ({damaged.hint})" if damaged.hint else "")


def _protection_of(
    job: str, vm: str, folder: ReplicaFolder | None, rpo: float | None, report: Mapping[str, Any] | None
) -> VmProtection:
    told: dict[str, Any] = {}
    if report is not None:
        told = {
            "last_result": Result(report["result"]),
            "last_finished": time_from_json(report["finished"]),
            "last_seconds": report.get("seconds"),
            "last_bytes": sum(disk.get("bytes_moved") or 0 for disk in report.get("disks", ())),
            "error": report.get("error"),
            "hint": report.get("hint"),
        }
    if folder is None or not folder.record.target_name:
        return VmProtection(vm, job, None, rpo=rpo, **told)
    doubtful = good = moment = verified = None
    for point_id in reversed(folder.restore_point_ids()):
        try:
            stored = folder.stored(point_id)
        except RepositoryError as error:
            doubtful = doubtful or point_id
            told |= {"error": error.message, "hint": error.hint}
            continue
        if stored is None:
            continue
        if (stored.verified is not None and not stored.verified.good) or stored.doubt is not None:
            doubtful = doubtful or point_id
            continue
        good, moment = stored.restore_point.id, stored.restore_point.time
        verified = stored.verified.time if stored.verified is not None else None
        break
    return VmProtection(
        vm,
        job,
        standing(folder),
        restore_point=good,
        restore_point_time=moment,
        rpo=rpo,
        doubtful=doubtful,
        verified=verified,
        running=folder.is_locked(),
        audit=audit_standing(folder),
        **told,
    )
