"""Whether what the repository holds of a replica is what the replica says of itself. Pure of vSphere.

A checksum tells damage from what vrepl wrote; it does not tell what vrepl should have written. So what is also known
elsewhere is compared before it is used: restore points with the commit records on the replica's snapshots, identities
with the replica's mark. What only the repository knows cannot be compared (docs/repository.md lists it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vrepl.model import ReplicaRecord, RestorePoint, Snapshot, SnapshotState, VirtualMachine
from vrepl.repository.commit_record import (
    CommitRecord,
    is_header,
    lay_out,
    named_restore_point,
    read_commit_record,
    read_mark,
)
from vrepl.repository.documents import DamagedError
from vrepl.repository.replica_folder import ReplicaFolder


@dataclass(frozen=True, slots=True)
class Contradiction:
    """One document that says something else than the replica does."""

    path: Path
    reason: str


SettingsOf = Callable[[str], Mapping[str, str]]
"""The extraConfig of one of the replica's snapshots: a long commit record stands there. Asked only if need be."""


def require_agreement(
    folder: ReplicaFolder, replica: VirtualMachine, repository_id: str, settings_of: SettingsOf
) -> None:
    """Raises DamagedError, naming the document, unless the replica's own word is that of the repository."""
    for found in contradictions(folder, replica, repository_id, settings_of):
        raise DamagedError(found.path, found.reason)


def contradictions(
    folder: ReplicaFolder, replica: VirtualMachine, repository_id: str, settings_of: SettingsOf
) -> Iterator[Contradiction]:
    """Every document of this replica that `replica`, the VM that its record names, contradicts."""
    record, path = folder.record, folder.path / "replica.json"
    reason = _wrong_mark(record, replica)
    if reason is not None:
        yield Contradiction(path, reason)
        return
    mark = read_mark(replica.extra_config)
    if mark is not None and mark.repository_id not in {repository_id, record.adopted_from}:
        yield Contradiction(
            folder.path.parent.parent / "repository.json",
            f"{replica.name} bears the mark of repository {mark.repository_id}, and this one calls itself "
            f"{repository_id}",
        )
    points = folder.restore_points()
    snapshots = {named: one for one in replica.snapshots if (named := named_restore_point(one.description))}
    for point in points:
        reason = _wrong_time(point)
        snapshot = snapshots.get(point.id)
        if reason is None and snapshot is not None:
            reason = _wrong_point(point, record, repository_id, snapshot, settings_of)
        if reason is not None:
            yield Contradiction(folder.path / "restore-points" / f"{point.id}.json", reason)
    present = [point for point in points if point.id in snapshots]
    if present and (reason := _crossed_disks(record, present)):
        yield Contradiction(path, reason)


def require_empty_disks(
    folder: ReplicaFolder, replica: VirtualMachine, last: RestorePoint | None, sealed: SnapshotState | None
) -> None:
    """Raises DamagedError where a disk that the record calls empty and never sealed is not one.

    `sealed`: the snapshot of `last`, the leaf's parent. A disk that was put in another's place has a base of its own.
    """
    record = folder.record
    mark = read_mark(replica.extra_config)
    if last is None and record.empty_disks and mark is not None and not mark.run_id:
        reason = f"{replica.name} was there before vrepl took it as the replica, and it calls its disks empty"
        raise DamagedError(folder.path / "replica.json", reason)
    for source_key in record.empty_disks if last and sealed else ():
        point = last.disk(source_key) if last else None
        then = sealed.disk(point.target_key) if point and sealed else None
        now = replica.disk(record.disk_keys.get(source_key, -1))
        if then is not None and now is not None and then.base_path == now.base_path:
            reason = f"it calls {now.title} of the replica empty, which is part of restore point {last and last.id}"
            raise DamagedError(folder.path / "replica.json", reason)


def _wrong_mark(record: ReplicaRecord, replica: VirtualMachine) -> str | None:
    mark = read_mark(replica.extra_config)
    if mark is None:
        return f"it names {replica.name} as the replica, which bears no mark of vrepl's"
    if (mark.source_site, mark.source_instance_uuid) != (record.source_site, record.source_instance_uuid):
        return (
            f"it names {replica.name} as the replica, which bears the mark of the replica of VM "
            f"{mark.source_instance_uuid} of site {mark.source_site}"
        )
    return None


def _wrong_time(point: RestorePoint) -> str | None:
    if point.id.startswith(f"{point.time:%Y%m%dT%H%M%SZ}"):
        return None
    return f"its time, {point.time:%Y-%m-%d %H:%M:%S} UTC, is not the one in its name"


def _wrong_point(
    point: RestorePoint, record: ReplicaRecord, repository_id: str, snapshot: Snapshot, settings_of: SettingsOf
) -> str | None:
    ours = CommitRecord(
        repository_id, record.source_site, record.source_instance_uuid, record.source_name, restore_point=point
    )
    if lay_out(ours, inline=False).description == snapshot.description:
        return None  # its digest is that of the long record: nothing needs to be read
    settings = settings_of(snapshot.ref) if is_header(snapshot.description) else {}
    commit = read_commit_record(snapshot.description, settings)
    if commit is None or commit.restore_point == point:
        return None
    theirs = commit.restore_point
    fields = [name for name in RestorePoint.__slots__ if getattr(point, name) != getattr(theirs, name)]
    return f"the commit record on the replica's snapshot {theirs.snapshot_name} differs in {', '.join(fields)}"


def _crossed_disks(record: ReplicaRecord, points: Sequence[RestorePoint]) -> str | None:
    """A disk of the replica that the last restore point knows as that of another disk, which the record still has.

    A disk that vrepl made since may have the device key of an older one: keys follow the place.
    """
    owners = {disk.target_key: disk.source_key for disk in points[-1].disks}
    for source_key, target_key in record.disk_keys.items():
        owner = owners.get(target_key, source_key)
        newer = source_key in record.empty_disks or source_key in record.grown_disks
        if owner != source_key and owner in record.disk_keys and not newer:
            return f"it gives disk {target_key} of the replica to disk {source_key} of the source, not to {owner}"
    return None
