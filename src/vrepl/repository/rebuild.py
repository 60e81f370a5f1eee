"""`repository rebuild`: folders, records and restore points from what the replicas say of themselves.

Pure of vSphere: the caller reads the VMs. Digests are unknown afterwards; runs by CBT need none, and reading the
disks makes them anew (`ReplicaFolder.write_digests`).
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vrepl.model import ReplicaRecord, ReplicaState, RestorePoint, VirtualMachine
from vrepl.repository.agreement import contradictions
from vrepl.repository.commit_record import (
    COMMIT_RECORD_FORMAT,
    CommitRecord,
    ReplicaMark,
    commit_record_format,
    read_commit_record,
    read_mark,
    read_mark_format,
)
from vrepl.repository.files import DAMAGED_SUFFIX
from vrepl.repository.identity import VmAt, find_clones
from vrepl.repository.replica_folder import Doubt, ReplicaFolder, set_aside
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
    snapshot_settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By snapshot ref, for those whose record stands in their own configuration (`commit_record.is_header`)."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What became of one VM. `restore_points` is how many; `problem` says why it was passed over ("" if not)."""

    vm_name: str
    replica_id: str
    restore_points: int
    problem: str = ""
    mended: tuple[str, ...] = ()
    """Documents that were damaged or wrong, and were made anew."""


def rebuild(
    repository: Repository, found: Iterable[FoundReplica], *, adopt: bool = False, now: dt.datetime | None = None
) -> list[Rebuilt]:
    """Recreate every replica found; what the repository holds already stays, and is completed.

    Documents that are damaged, or that a replica contradicts, are set aside first, and made anew with the rest.

    A replica that another repository made is passed over, unless `adopt`. Where this repository's own id was lost, it
    takes over the one that its replicas name. `now`: the time to put down for what is doubted from here on.
    """
    aside = set(repository.set_aside_damaged())
    for file in sorted(aside):
        logger.warning("%s was damaged, and is kept as %s%s", file, file.name, DAMAGED_SUFFIX)
    candidates = list(found)
    _take_over_id(repository, candidates)
    clones = find_clones((one.site, one.vm) for one in candidates)
    claims: dict[str, int] = {}
    for one in candidates:
        mark = read_mark(one.vm.extra_config)
        if VmAt(one.site, one.vm.ref) in clones:
            continue
        if mark is not None and _accepts(repository, mark, adopt):
            name = replica_id(mark.source_site, mark.source_instance_uuid)
            claims[name] = claims.get(name, 0) + 1
    work = _Rebuild(repository, claims, adopt, aside, now or dt.datetime.now(dt.UTC))
    return [
        _clone(candidate) if VmAt(candidate.site, candidate.vm.ref) in clones else work.one(candidate)
        for candidate in candidates
    ]


def _clone(one: FoundReplica) -> Rebuilt:
    return Rebuilt(one.vm.name, "", 0, "a clone of a replica: it inherited the mark, and is not the VM that it names")


def _take_over_id(repository: Repository, candidates: Sequence[FoundReplica]) -> None:
    """Go on under the id that the replicas name, where this repository's own was lost and only one can be meant."""
    known = {folder.path.name: folder.record for folder in repository.replicas(lambda error: None)}
    names = {path.name for path in (repository.path / "replicas").glob("*") if path.is_dir()}
    marked = {
        one.vm.instance_uuid: (replica_id(mark.source_site, mark.source_instance_uuid), mark.repository_id)
        for one in candidates
        if (mark := read_mark(one.vm.extra_config)) is not None
    }
    everyone = {repository_id for _, repository_id in marked.values()}
    # Another repository may have replicas at the same site: those that there are folders of are this one's.
    ours = {
        repository_id
        for uuid, (name, repository_id) in marked.items()
        if (repository.made_anew and name in names)
        or (name in known and known[name].target_instance_uuid == uuid and known[name].adopted_from != repository_id)
    }
    # Runs that were refused since have left folders, but none of them has a replica.
    is_new = repository.made_anew or not any(record.target_instance_uuid for record in known.values())
    wanted = ours or (everyone if is_new else set())
    if len(wanted) == 1 and repository.id not in everyone:
        repository.take_over(wanted.pop())


def _accepts(repository: Repository, mark: ReplicaMark, adopt: bool) -> bool:
    return adopt or mark.repository_id == repository.id


@dataclass(frozen=True, slots=True)
class _Rebuild:
    repository: Repository
    claims: Mapping[str, int]
    """How many of the VMs found bear the mark of a replica, by its id."""
    adopt: bool
    aside: Collection[Path]
    """Documents that were set aside as damaged."""
    now: dt.datetime

    def one(self, one: FoundReplica) -> Rebuilt:
        mark = read_mark(one.vm.extra_config)
        if mark is None:
            version = read_mark_format(one.vm.extra_config)
            if version is not None and version > COMMIT_RECORD_FORMAT:
                return Rebuilt(one.vm.name, "", 0, f"made by a newer vrepl (format {version})")
            return Rebuilt(one.vm.name, "", 0, "no replica of vrepl's")
        name = replica_id(mark.source_site, mark.source_instance_uuid)
        problem = self._problem(one, mark, name)
        if problem:
            return Rebuilt(one.vm.name, name, 0, problem)
        commits = _commit_records(one, mark)
        record = _record(one, mark, commits, self.repository.id)
        folder = self.repository.replica(mark.source_site, mark.source_instance_uuid)
        if folder is None:
            folder = self.repository.create_replica(record)
        with folder.lock():
            mended = self._mend(folder, record, one)
            for restore_point in (commit.restore_point for commit in commits):
                path = folder.path / "restore-points" / f"{restore_point.id}.json"
                if folder.restore_point(restore_point.id) is not None:
                    continue
                folder.add_restore_point(restore_point)
                if path in self.aside or path in mended:
                    # What was noted of it, such as a verification that failed, went with its document.
                    folder.mark_doubtful(
                        restore_point.id, Doubt(self.now, "its document was damaged", digests_hold=False)
                    )
            folder.upgrade()
        mended += [path for path in sorted(self.aside) if path.is_relative_to(folder.path)]
        return Rebuilt(one.vm.name, name, len(commits), mended=tuple(str(path) for path in mended))

    def _problem(self, one: FoundReplica, mark: ReplicaMark, name: str) -> str:
        """Why a replica is passed over; "" if it is not."""
        if not _accepts(self.repository, mark, self.adopt):
            return f"belongs to repository {mark.repository_id}"
        if self.claims.get(name, 0) > 1:
            # A clone of a replica bears its mark; which of them is the replica cannot be told by guessing.
            return f"one of {self.claims[name]} VMs that bear the mark of this replica"
        newer = [
            snapshot.name
            for snapshot in one.vm.snapshots
            if (commit_record_format(snapshot.description) or 0) > COMMIT_RECORD_FORMAT
        ]
        return f"snapshot {newer[0]!r} was made by a newer vrepl" if newer else ""

    def _mend(self, folder: ReplicaFolder, record: ReplicaRecord, one: FoundReplica) -> list[Path]:
        """Set aside what the replica contradicts; returns what that was. The record is made anew at once."""
        mended = []
        known = folder.record

        def settings(snapshot_ref: str) -> Mapping[str, str]:
            return one.snapshot_settings.get(snapshot_ref, {})

        if known.empty_disks or known.grown_disks:
            # Whether they are so still cannot be told from here; the next run compares them.
            known = replace(known, empty_disks=(), grown_disks={})
            folder.save_record(known)
        if (known.target_site, known.target_instance_uuid) != (record.target_site, record.target_instance_uuid):
            if known.target_instance_uuid:
                mended.append(folder.path / "replica.json")
            folder.save_record(record)
        for wrong in list(contradictions(folder, one.vm, self.repository.id, settings)):
            if wrong.path.name == "replica.json":
                folder.save_record(record)
            elif wrong.path.parent.name == "restore-points":
                set_aside(wrong.path)
            else:
                continue
            logger.warning("%s was wrong: %s", wrong.path, wrong.reason)
            mended.append(wrong.path)
        return mended


def _commit_records(one: FoundReplica, mark: ReplicaMark) -> list[CommitRecord]:
    """Those of this replica's own snapshots, oldest first. A clone's or a foreign description does not count."""
    records = (
        read_commit_record(snapshot.description, one.snapshot_settings.get(snapshot.ref, {}))
        for snapshot in one.vm.snapshots
    )
    ours = [
        record
        for record in records
        if record is not None
        and (record.source_site, record.source_instance_uuid) == (mark.source_site, mark.source_instance_uuid)
    ]
    return sorted(ours, key=lambda record: (record.restore_point.time, record.restore_point.id))


def _record(one: FoundReplica, mark: ReplicaMark, commits: list[CommitRecord], repository_id: str) -> ReplicaRecord:
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
        adopted_from=mark.repository_id if mark.repository_id != repository_id else None,
    )
