"""What a site and the repository hold, as the documented JSON rows: VMs, replicas, restore points, jobs."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vrepl.errors import NotFoundError, RepositoryError
from vrepl.model import RestorePoint, VirtualMachine
from vrepl.planner.preflight import not_replicable_reason, unreplicable_disk_reason
from vrepl.report.model import Json, time_to_json

if TYPE_CHECKING:
    from vrepl.model.failover_tests import FailoverTest
    from vrepl.repository.replica_folder import Doubt, ReplicaFolder, Verification
    from vrepl.repository.store import Repository


def vm_row(vm: VirtualMachine) -> Json:
    """One VM of `vms SITE`."""
    reason = not_replicable_reason(vm)
    return {
        "name": vm.name,
        "instance_uuid": vm.instance_uuid,
        "power": vm.power.value,
        "host": vm.host,
        "template": vm.template,
        "cbt": vm.cbt_enabled,
        "tools_running": vm.tools_running,
        "disks": [
            {
                "index": disk.index,
                "label": disk.label,
                "capacity": disk.capacity,
                "path": disk.path,
                "thin": disk.thin,
                "replicable": unreplicable_disk_reason(disk) is None,
            }
            for disk in vm.disks
        ],
        "snapshots": [snapshot.name for snapshot in vm.snapshots],
        "consolidation_needed": vm.consolidation_needed,
        "replicable": reason is None,
        "reason": reason,
    }


def restore_point_row(point: RestorePoint, verification: Verification | None, doubt: Doubt | None = None) -> Json:
    """One restore point; `verified` is null until it has been read back, `doubt` unless something speaks against it."""
    return {
        "id": point.id,
        "time": time_to_json(point.time),
        "snapshot": point.snapshot_name,
        "consistency": point.consistency.value,
        "run": point.run_id,
        "job": point.job,
        "capacity": sum(disk.capacity for disk in point.disks),
        "bytes_moved": sum(disk.bytes_moved for disk in point.disks),
        "verified": None
        if verification is None
        else {
            "time": time_to_json(verification.time),
            "good": verification.good,
            "detail": verification.detail,
        },
        "doubt": None if doubt is None else {"time": time_to_json(doubt.time), "reason": doubt.reason},
        "disks": [
            {
                "index": disk.index,
                "label": disk.label,
                "capacity": disk.capacity,
                "kind": disk.kind.value,
                "bytes_moved": disk.bytes_moved,
            }
            for disk in point.disks
        ],
    }


def replica_row(folder: ReplicaFolder) -> Json:
    """One replica with its newest restore point."""
    record = folder.record
    points = folder.restore_points()
    newest = points[-1] if points else None
    use = folder.use()
    return {
        "id": record.id,
        "name": record.target_name,
        "state": use.state.value,
        "deadline": None if use.deadline is None else time_to_json(use.deadline),
        "job": record.job,
        "source": {
            "site": record.source_site,
            "name": record.source_name,
            "instance_uuid": record.source_instance_uuid,
        },
        "target": {
            "site": record.target_site,
            "name": record.target_name,
            "instance_uuid": record.target_instance_uuid,
        },
        "running": folder.is_locked(),
        "unfinished": folder.intent() is not None,
        "restore_points": len(points),
        "last_restore_point": None
        if newest is None
        else restore_point_row(newest, folder.verification(newest.id), folder.doubt(newest.id)),
        "last_test": None if use.last_test is None else _test_row(use.last_test),
    }


def _test_row(test: FailoverTest) -> Json:
    return {
        "time": time_to_json(test.time),
        "restore_point": test.restore_point,
        "passed": test.passed,
        "seconds": None if test.seconds is None else round(test.seconds, 3),
        "reason": test.reason or None,
    }


def replica_rows(repository: Repository, damaged: list[RepositoryError]) -> list[Json]:
    """Every replica; to `damaged` goes what keeps one out of the list."""
    rows = []
    for folder in repository.replicas(damaged.append):
        try:
            rows.append(replica_row(folder))
        except RepositoryError as error:
            damaged.append(error)
    return rows


def find_replica(folders: Sequence[ReplicaFolder], name: str) -> ReplicaFolder:
    """By the source's name, the replica's name, the replica's id, or the source's instanceUuid.

    Raises NotFoundError (hint: near names), also where a name means several.
    """
    found = [folder for folder in folders if name in _names_of(folder)]
    if len(found) == 1:
        return found[0]
    if found:
        raise NotFoundError(
            f"{name} names {len(found)} replicas",
            hint="name one by its id: " + ", ".join(folder.record.id for folder in found),
        )
    known = sorted({folder.record.source_name for folder in folders})
    near = difflib.get_close_matches(name, known, n=1)
    raise NotFoundError(
        f"the repository has no replica of {name}" + (f'; did you mean "{near[0]}"?' if near else ""),
        hint="`vrepl replicas` lists them; `vrepl repository rebuild` finds those that a lost repository knew",
    )


def _names_of(folder: ReplicaFolder) -> set[str]:
    record = folder.record
    return {record.source_name, record.target_name, record.id, record.source_instance_uuid}


def run_row(run: Mapping[str, Any]) -> Json:
    """One run of `history`; `vms` counts results where the report has them."""
    head = run["run"]
    row = {
        key: head.get(key)
        for key in ("id", "job", "started", "finished", "seconds", "result", "bytes_read", "bytes_moved")
    }
    if "vms" in run:
        results = [vm["result"] for vm in run["vms"]]
        row["vms"] = {result: results.count(result) for result in sorted(set(results))}
    return row
