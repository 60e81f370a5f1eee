"""`repository rebuild`: folders, records and restore points from what the replicas say of themselves.

Pure of vSphere: the caller reads the VMs. Digests are unknown afterwards; runs by CBT need none, and reading the
disks makes them anew (`ReplicaFolder.write_digests`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from vrepl.model import ReplicaRecord, ReplicaState, RestorePoint, VirtualMachine
from vrepl.repository.commit_record import (
    COMMIT_RECORD_FORMAT,
    CommitRecord,
    ReplicaMark,
    commit_record_format,
    parse_commit_record,
    read_mark,
    read_mark_format,
)
from vrepl.repository.files import DAMAGED_SUFFIX
from vrepl.repository.store import Repository, replica_id

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FoundReplica:
    """A VM of a target site that bears a replica's mark (`commit_record.read_mark`).

    `state`: what can be told of it from outside; a replica that is powered on was failed over.
    """

    site: str
    vm: VirtualMachine
    state: ReplicaState = ReplicaState.READY


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What became of one VM. `restore_points` is how many; `problem` says why it was passed over ("" if not)."""

    vm_name: str
    replica_id: str
    restore_points: int
    problem: str = ""


def rebuild(repository: Repository, found: Iterable[FoundReplica], *, adopt: bool = False) -> list[Rebuilt]:
    """Recreate every replica found; what the repository holds already stays, and is completed.

    Documents that are damaged are set aside first, and made anew with the rest.

    A replica that another repository made is passed over, unless `adopt`. Where this repository is new (its folder
    was lost) and all replicas name one other repository, it takes that one's id over.
    """
    for file in repository.set_aside_damaged():
        logger.warning("%s was damaged, and is kept as %s%s", file, file.name, DAMAGED_SUFFIX)
    candidates = list(found)
    marks = {mark.repository_id for one in candidates if (mark := read_mark(one.vm.extra_config)) is not None}
    # Runs that were refused since have left folders, but none of them has a replica.
    is_new = not any(folder.record.target_instance_uuid for folder in repository.replicas())
    if len(marks) == 1 and is_new and repository.id not in marks:
        repository.take_over(marks.pop())
    claims: dict[str, int] = {}
    for one in candidates:
        mark = read_mark(one.vm.extra_config)
        if mark is not None and _accepts(repository, mark, adopt):
            name = replica_id(mark.source_site, mark.source_instance_uuid)
            claims[name] = claims.get(name, 0) + 1
    return [_rebuild_one(repository, one, claims, adopt) for one in candidates]


def _accepts(repository: Repository, mark: ReplicaMark, adopt: bool) -> bool:
    return adopt or mark.repository_id == repository.id


def _rebuild_one(repository: Repository, one: FoundReplica, claims: dict[str, int], adopt: bool) -> Rebuilt:
    mark = read_mark(one.vm.extra_config)
    if mark is None:
        version = read_mark_format(one.vm.extra_config)
        if version is not None and version > COMMIT_RECORD_FORMAT:
            return Rebuilt(one.vm.name, "", 0, f"made by a newer vrepl (format {version})")
        return Rebuilt(one.vm.name, "", 0, "no replica of vrepl's")
    name = replica_id(mark.source_site, mark.source_instance_uuid)
    if not _accepts(repository, mark, adopt):
        return Rebuilt(one.vm.name, name, 0, f"belongs to repository {mark.repository_id}")
    if claims.get(name, 0) > 1:
        # A clone of a replica bears its mark; which of them is the replica cannot be told by guessing.
        return Rebuilt(one.vm.name, name, 0, f"one of {claims[name]} VMs that bear the mark of this replica")
    newer = [
        snapshot.name
        for snapshot in one.vm.snapshots
        if (commit_record_format(snapshot.description) or 0) > COMMIT_RECORD_FORMAT
    ]
    if newer:
        return Rebuilt(one.vm.name, name, 0, f"snapshot {newer[0]!r} was made by a newer vrepl")
    commits = _commit_records(one.vm, mark)
    folder = repository.replica(mark.source_site, mark.source_instance_uuid)
    if folder is None:
        folder = repository.create_replica(_record(one, mark, commits))
    with folder.lock():
        if not folder.record.target_instance_uuid:
            folder.save_record(_record(one, mark, commits))
        for restore_point in (commit.restore_point for commit in commits):
            if folder.restore_point(restore_point.id) is None:
                folder.add_restore_point(restore_point)
    return Rebuilt(one.vm.name, name, len(commits))


def _commit_records(vm: VirtualMachine, mark: ReplicaMark) -> list[CommitRecord]:
    """Those of this replica's own snapshots, oldest first. A clone's or a foreign description does not count."""
    records = (parse_commit_record(snapshot.description) for snapshot in vm.snapshots)
    ours = [
        record
        for record in records
        if record is not None
        and (record.source_site, record.source_instance_uuid) == (mark.source_site, mark.source_instance_uuid)
    ]
    return sorted(ours, key=lambda record: (record.restore_point.time, record.restore_point.id))


def _record(one: FoundReplica, mark: ReplicaMark, commits: list[CommitRecord]) -> ReplicaRecord:
    newest: RestorePoint | None = commits[-1].restore_point if commits else None
    return ReplicaRecord(
        id=replica_id(mark.source_site, mark.source_instance_uuid),
        source_site=mark.source_site,
        source_instance_uuid=mark.source_instance_uuid,
        source_name=commits[-1].source_name if commits else one.vm.name,
        target_site=one.site,
        target_instance_uuid=one.vm.instance_uuid,
        target_name=one.vm.name,
        job=newest.job if newest else "",
        state=one.state,
        disk_keys={disk.source_key: disk.target_key for disk in newest.disks} if newest else {},
    )
