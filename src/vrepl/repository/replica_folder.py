"""The folder of one replica: its record, restore points, unfinished run and digests."""

from __future__ import annotations

import datetime as dt
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vrepl.errors import NotFoundError, RepositoryError
from vrepl.model import ReplicaRecord, RestorePoint
from vrepl.ports import DigestFiles
from vrepl.repository.digest_folder import DiskFolder
from vrepl.repository.documents import DamagedError, DocumentType
from vrepl.repository.failover import ReplicaUse, replica_use
from vrepl.repository.files import (
    DAMAGED_SUFFIX,
    TEMPORARY_SUFFIX,
    make_directory,
    naming,
    remove_file,
    rename_file,
)
from vrepl.repository.intent import INTENT_DOCUMENT, DiskIntent, Intent, clear_intent, load_intent, save_intent
from vrepl.repository.locks import holding, is_held

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Verification:
    """When a restore point was last read back, and whether every grain agreed with its digest."""

    time: dt.datetime
    good: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why a restore point may not be what the source was, found after it was sealed."""

    time: dt.datetime
    reason: str
    disks: tuple[int, ...] = ()
    """Source device keys; empty: every disk."""
    digests_hold: bool = True
    """The replica holds what the digests say; the source may have held something else. False: that is unsure too."""


@dataclass(frozen=True, slots=True)
class StoredRestorePoint:
    """`restore-points/<id>.json`."""

    restore_point: RestorePoint
    verified: Verification | None = None
    doubt: Doubt | None = None


def _contradiction(record: ReplicaRecord) -> str | None:
    """What a record says that cannot be."""
    expected = f"{record.source_site}-{record.source_instance_uuid}"
    if record.id != expected:
        return f"it calls itself {record.id}, and its source is {expected}"
    if len(set(record.disk_keys.values())) != len(record.disk_keys):
        return "two disks of the source stand for one disk of the replica"
    return None


REPLICA_DOCUMENT = DocumentType(ReplicaRecord, valid=_contradiction)
RESTORE_POINT_DOCUMENT = DocumentType(StoredRestorePoint)


class ReplicaFolder:
    """What the repository holds of one replica. Everything that writes wants `lock` held.

    Raises RepositoryError (naming the path) for what cannot be read or written, is damaged or newer.
    """

    def __init__(self, path: Path, record: ReplicaRecord) -> None:
        self.path = path
        self._record = record

    @classmethod
    def load(cls, path: Path) -> ReplicaFolder | None:
        """None if there is no replica in `path`."""
        record = _read_record(path)
        return cls(path, record) if record is not None else None

    @classmethod
    def create(cls, path: Path, record: ReplicaRecord) -> ReplicaFolder:
        make_directory(path / "restore-points")
        make_directory(path / "disks")
        folder = cls(path, record)
        folder.save_record(record)
        return folder

    @classmethod
    def set_aside_damaged(cls, path: Path) -> list[Path]:
        """Rename the documents in `path` that are damaged to `<name>.damaged`; returns those.

        Without its intent, what an unfinished run did to the leaf is no longer known; the next run acts accordingly.
        """
        with holding(path / "lock", f"the replica in {path.name}"):
            moved = []
            with naming(path, "list"):
                points = sorted((path / "restore-points").glob("*.json"))
            readers: list[tuple[Path, Callable[[Path], object]]] = [
                (path / "replica.json", lambda file: _read_record(file.parent)),
                (path / "intent.json", load_intent),
                *((point, _read_stored) for point in points),
            ]
            for file, read in readers:
                try:
                    read(file)
                except DamagedError:
                    set_aside(file)
                    moved.append(file)
            return moved

    @property
    def record(self) -> ReplicaRecord:
        return self._record

    def use(self) -> ReplicaUse:
        """What the replica is used for, and how its last test went."""
        return replica_use(self)

    def save_record(self, record: ReplicaRecord) -> None:
        REPLICA_DOCUMENT.write(self.path / "replica.json", record)
        self._record = record

    @contextmanager
    def lock(self, wait_seconds: float = 0, *, sleep: Callable[[float], None] = time.sleep) -> Iterator[None]:
        """Raises LockedError naming the owner, NotFoundError if the replica was removed meanwhile.

        `sleep` waits between two looks; what it raises ends the waiting.

        Once it is held, half-done changes of dead owners are completed. The record is read anew, for another process
        may have changed it.
        """
        what = f"the replica of {self._record.source_name} ({self._record.target_name})"
        with holding(self.path / "lock", what, wait_seconds, sleep=sleep):
            record = _read_record(self.path)
            if record is None:
                raise NotFoundError(f"{what} was removed meanwhile", hint="run again: it will be made anew")
            self._record = record
            self.recover()
            yield

    def outdated(self) -> bool:
        """Whether some document has an older format. One that is damaged does not count."""
        return any(True for _ in self._outdated())

    def upgrade(self) -> list[Path]:
        """Write every document of an older format anew; returns those. Wants the lock.

        Only once they have been compared with what the replica says of itself: older formats have no checksum.
        """
        done = []
        for path, document, value in list(self._outdated()):
            document.write(path, value)
            done.append(path)
        return done

    def _outdated(self) -> Iterator[tuple[Path, DocumentType[Any], Any]]:
        with naming(self.path, "list"):
            points = sorted((self.path / "restore-points").glob("*.json"))
        documents: list[tuple[Path, DocumentType[Any]]] = [
            *((point, RESTORE_POINT_DOCUMENT) for point in points),
            (self.path / "intent.json", INTENT_DOCUMENT),
            (self.path / "replica.json", REPLICA_DOCUMENT),
        ]
        for path, document in documents:
            with suppress(DamagedError):
                found = document.read_as_found(path)
                if found is not None and found.format < document.format:
                    yield path, document, found.value

    def is_locked(self) -> bool:
        return is_held(self.path / "lock")

    def recover(self) -> None:
        """Complete or undo changes that a crash cut off. Wants the lock, and `lock` does it."""
        for directory in (self.path, self.path / "restore-points"):
            with naming(directory, "list"):
                unfinished = list(directory.glob(f"*{TEMPORARY_SUFFIX}"))
            for path in unfinished:
                remove_file(path)
        for disk in self._disks():
            disk.recover()
        intent = self.intent()
        if intent is None or intent.restore_point_id not in self._restore_point_ids():
            return
        # A seal that had made its restore point and died before it tidied up. The engine gives back an access,
        # so an intent that holds one stays until that is done.
        if not intent.journal.prepared_for_access and not intent.journal.hotadd_cleanup:
            self._finish_intent()

    def _finish_intent(self) -> None:
        for folder in self._disks():
            remove_file(folder.log)
            folder.remove_if_empty()
        self.clear_intent()

    # Restore points

    def restore_points(self) -> list[RestorePoint]:
        """Oldest first."""
        stored = (self._stored(name) for name in self._restore_point_ids())
        return sorted(
            (one.restore_point for one in stored if one is not None), key=lambda point: (point.time, point.id)
        )

    def restore_point_ids(self) -> list[str]:
        """Oldest first, for an id begins with its time; nothing of them is read."""
        return self._restore_point_ids()

    def stored(self, restore_point_id: str) -> StoredRestorePoint | None:
        """A restore point with what is known of it, in one read."""
        return self._stored(restore_point_id)

    def restore_point(self, restore_point_id: str) -> RestorePoint | None:
        stored = self._stored(restore_point_id)
        return stored.restore_point if stored is not None else None

    def add_restore_point(self, restore_point: RestorePoint) -> None:
        """Without digests (those come by `seal`); one that is there already is replaced, with its verification."""
        self._save_stored(StoredRestorePoint(restore_point))

    def remove_restore_point(self, restore_point_id: str) -> None:
        """With its digests, which the next one's are made independent of; one that is gone already is fine.

        Cut off anywhere, it may be called again and completes.
        """
        path = self._restore_point_path(restore_point_id)
        for disk in self._disks():
            disk.remove(restore_point_id)
        remove_file(path)

    def mark_verified(self, restore_point_id: str, verification: Verification) -> None:
        """Raises RepositoryError if there is no such restore point."""
        stored = self._stored(restore_point_id)
        if stored is None:
            raise RepositoryError(f"{self.path} has no restore point {restore_point_id}")
        # Read back in full, the replica holds what the digests say; whether the source did is another question.
        doubt = stored.doubt
        if doubt is not None and not doubt.digests_hold and verification.good:
            doubt = None
        self._save_stored(StoredRestorePoint(stored.restore_point, verification, doubt))

    def verification(self, restore_point_id: str) -> Verification | None:
        stored = self._stored(restore_point_id)
        return stored.verified if stored is not None else None

    def mark_doubtful(self, restore_point_id: str, doubt: Doubt) -> None:
        """Durable before it returns; one that is gone is fine. A doubt that stands already takes in the new one."""
        stored = self._stored(restore_point_id)
        if stored is None:
            return
        before = stored.doubt
        if before is not None:
            both = () if not before.disks or not doubt.disks else tuple(sorted({*before.disks, *doubt.disks}))
            doubt = replace(doubt, disks=both, digests_hold=doubt.digests_hold and before.digests_hold)
        self._save_stored(replace(stored, doubt=doubt))

    def doubt(self, restore_point_id: str) -> Doubt | None:
        stored = self._stored(restore_point_id)
        return stored.doubt if stored is not None else None

    # The unfinished run

    def intent(self) -> Intent | None:
        return load_intent(self.path / "intent.json")

    def save_intent(self, intent: Intent) -> None:
        """Durable before it returns."""
        save_intent(self.path / "intent.json", intent)

    def clear_intent(self) -> None:
        clear_intent(self.path / "intent.json")

    def transfer_log(self, disk_key: int) -> Path:
        """Where the disk's log is or will be; its folder exists."""
        disk = self._disk(disk_key)
        disk.make()
        return disk.log

    def discard_logs(self) -> None:
        """Giving up: remove all transfer logs, and what an unfinished seal made of them.

        Only once the replica's leaf is back at a sealed state, for what the logs say of it is lost.
        """
        known = self._restore_point_ids()
        for disk in self._disks():
            disk.discard(known)
            disk.remove_if_empty()

    def forget_disk(self, disk_key: int) -> None:
        """The replica's disk is gone: what an unfinished run did to it counts no more. Its digests stay."""
        intent = self.intent()
        if intent is not None and intent.disk(disk_key) is not None:
            self.save_intent(replace(intent, disks=tuple(one for one in intent.disks if one.source_key != disk_key)))
        disk = self._disk(disk_key)
        if disk.path.is_dir():
            remove_file(disk.log)
            disk.remove_if_empty()

    def seal(self, restore_point: RestorePoint) -> None:
        """Turn the transfer logs into digests of `restore_point`, add it, clear the intent.

        To be called once the replica's snapshot exists, and again after a crash at any step: it completes. Without an
        intent for this restore point it only adds it, its digests unknown.
        """
        known = self._restore_point_ids()
        intent = self.intent()
        ours = intent is not None and intent.restore_point_id == restore_point.id
        if restore_point.id not in known:
            if intent is not None and ours:
                for disk in intent.disks:
                    self._disk(disk.source_key).seal(disk, restore_point.id, known)
            self.add_restore_point(restore_point)
        if ours:
            self._finish_intent()

    # Digests

    def seal_crossing(self, disk: DiskIntent, log: Path, restore_point_id: str) -> None:
        """Make the digests of a restore point that is going to be, of what crossed the other way.

        `log`: of crossings that read the replica's disk as the restore point will hold it, from the parent that `disk`
        names on. Two sets cannot build on one parent: where there is another one already, there will be no digests.
        """
        folder = self._disk(disk.source_key)
        parent = disk.parent_restore_point_id
        if parent is None or not folder.is_built_upon(parent):
            folder.seal(disk, self._valid(restore_point_id), self._restore_point_ids(), log)

    def digest_files(self, disk_key: int, restore_point_id: str) -> DigestFiles:
        """The set that describes that restore point; not `known` where none does."""
        return self._disk(disk_key).files_for(self._valid(restore_point_id))

    def write_digests(
        self, disk_key: int, restore_point_id: str, capacity: int, entries: Iterable[tuple[int, bytes]]
    ) -> None:
        """Record digests that were made by reading the restore point's disk; grains not among them are unknown.

        `capacity`: bytes; `entries`: (grain, 16-byte digest), in any order.
        """
        known = self._restore_point_ids()
        self._disk(disk_key).write_set(self._valid(restore_point_id), capacity, entries, known)

    def disk_folders(self) -> list[DiskFolder]:
        """One for each disk of which there are digests or a log."""
        return list(self._disks())

    # Paths

    def _disk(self, disk_key: int) -> DiskFolder:
        return DiskFolder(self.path / "disks" / str(disk_key))

    def _disks(self) -> Iterator[DiskFolder]:
        directory = self.path / "disks"
        with naming(directory, "list"):
            paths = sorted(directory.iterdir()) if directory.is_dir() else []
        return (DiskFolder(path) for path in paths if path.is_dir())

    def _restore_point_ids(self) -> list[str]:
        directory = self.path / "restore-points"
        with naming(directory, "list"):
            try:
                names = os.listdir(directory)
            except FileNotFoundError:
                return []
        return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))

    def _valid(self, restore_point_id: str) -> str:
        if not _NAME.fullmatch(restore_point_id):
            raise RepositoryError(f"{restore_point_id!r} is no id of a restore point")
        return restore_point_id

    def _restore_point_path(self, restore_point_id: str) -> Path:
        return self.path / "restore-points" / f"{self._valid(restore_point_id)}.json"

    def _stored(self, restore_point_id: str) -> StoredRestorePoint | None:
        return _read_stored(self._restore_point_path(restore_point_id))

    def _save_stored(self, stored: StoredRestorePoint) -> None:
        path = self._restore_point_path(stored.restore_point.id)
        make_directory(path.parent)
        RESTORE_POINT_DOCUMENT.write(path, stored)


def _read_record(folder: Path) -> ReplicaRecord | None:
    path = folder / "replica.json"
    record = REPLICA_DOCUMENT.read(path)
    if record is not None and record.id != folder.name:
        raise DamagedError(path, f"it is the record of {record.id}, and lies in the folder of {folder.name}")
    return record


def _read_stored(path: Path) -> StoredRestorePoint | None:
    stored = RESTORE_POINT_DOCUMENT.read(path)
    if stored is not None and stored.restore_point.id != path.stem:
        raise DamagedError(path, f"it is restore point {stored.restore_point.id} under a wrong name")
    return stored


def set_aside(path: Path) -> None:
    """Rename a document that cannot be believed to `<name>.damaged`, for a person to look at."""
    rename_file(path, path.with_name(f"{path.name}{DAMAGED_SUFFIX}"))
