"""Repositories as they look after runs, without any: for what only reads them."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable
from pathlib import Path

from vrepl.config import LoadedConfig, load
from vrepl.model import Consistency, DiskPoint, ReplicaRecord, RestorePoint, TransferKind
from vrepl.report.disk import DiskReport
from vrepl.report.model import ErrorReport, Result, RunReport, VmReport
from vrepl.repository.store import Repository, replica_id

NOW = dt.datetime(2025, 3, 1, 22, 0, tzinfo=dt.UTC)
GIB = 1 << 30

SITES = """
[sites.prod]
server = "vcenter.prod.invalid"
user = "u"
password = { file = "password" }
[sites.dr]
server = "vcenter.dr.invalid"
user = "u"
password = { file = "password" }
[repository]
path = "repository"
"""


def estate(folder: Path, jobs: str) -> tuple[LoadedConfig, Repository]:
    """A configuration of two sites that do not exist, these jobs, and an empty repository."""
    (folder / "vrepl.toml").write_text(SITES + jobs)
    loaded = load(folder / "vrepl.toml")
    return loaded, Repository.open(loaded.config.repository.path)


def job_table(name: str, vms: Iterable[str], *lines: str) -> str:
    listed = ", ".join(json.dumps(vm) for vm in vms)
    more = "\n".join(lines)
    return f"""
[jobs.{name}]
source = "prod"
target = "dr"
vms = [{listed}]
target_datastore = "dr-01"
{more}
"""


def moment_id(moment: dt.datetime, tail: str = "aaaaaa") -> str:
    return f"{moment:%Y%m%dT%H%M%SZ}-{tail}"


def restore_point(moment: dt.datetime, job: str, moved: int = GIB) -> RestorePoint:
    disk = DiskPoint(
        2000, 0, "Hard disk 1", 40 * GIB, "u", "[a] b/b.vmdk", "52/1", 2000, TransferKind.INCREMENTAL, moved
    )
    run_id = moment_id(moment)
    return RestorePoint(run_id, moment, run_id, job, Consistency.QUIESCED, f"vrepl {run_id}", None, (disk,))


def add_replica(repository: Repository, vm: str, job: str, *points: dt.datetime) -> None:
    """A replica of `vm`, with restore points whose sources were snapshotted at these times."""
    uuid = f"uuid-{vm}"
    folder = repository.create_replica(
        ReplicaRecord(replica_id("prod", uuid), "prod", uuid, vm, "dr", f"target-{vm}", f"{vm}-replica", job)
    )
    for point in points:
        folder.add_restore_point(restore_point(point, job))


def vm_report(name: str, result: Result = Result.SUCCESS, error: str | None = None, moved: int = GIB) -> VmReport:
    report = VmReport(name, result, instance_uuid=f"uuid-{name}", replica=f"{name}-replica", seconds=60.0)
    if error is not None:
        report.error = ErrorReport(error, hint="look at it", step="transfer")
    report.disks = [
        DiskReport(
            0, "Hard disk 1", TransferKind.INCREMENTAL, "changed blocks since the last restore point", 40 * GIB,
            bytes_read=moved, bytes_moved=moved, bytes_skipped=0, attempts=1, seconds=20.0,
            waits={"source": 5.0, "target": 15.0},
        )
    ]  # fmt: skip
    return report


def run_report(job: str, started: dt.datetime, vms: list[VmReport]) -> RunReport:
    report = RunReport(job, moment_id(started), started, started + dt.timedelta(minutes=2), vms)
    report.soap_calls = {"prod": 40, "dr": 30}
    return report


def add_run(repository: Repository, report: RunReport) -> None:
    assert report.id is not None
    repository.save_run(report.id, report.to_json())
