"""The repository as a whole: opening it, its replicas, job locks and run reports. Its layout: `vrepl.repository`."""

from __future__ import annotations

import datetime as dt
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from vrepl.errors import RepositoryError
from vrepl.model import ReplicaRecord
from vrepl.repository.budgets import Budgets
from vrepl.repository.documents import FORMAT, DamagedError, DocumentType
from vrepl.repository.files import (
    DAMAGED_SUFFIX,
    TEMPORARY_SUFFIX,
    make_directory,
    naming,
    remove_file,
    replace_bytes,
    sync_directory,
)
from vrepl.repository.locks import clear_dead, holding, is_held, read_owner
from vrepl.repository.replica_folder import ReplicaFolder, set_aside

KEEP_RUNS = 1000
"""Run reports beyond these, the oldest, are removed when one is saved."""
_PARTS = frozenset({"replicas", "runs", "jobs", "budgets", "told.json", "told.lock"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_WITHOUT_RECORD = "`vrepl repository rebuild` makes it anew from the replicas"


@dataclass(frozen=True, slots=True)
class RepositoryRecord:
    """`repository.json`."""

    id: str
    created: dt.datetime


@dataclass(frozen=True, slots=True)
class StoredRun:
    """`runs/<run id>.json`: what `replicate --json` printed; but for what every report has, opaque here."""

    report: dict[str, Any]


def _no_report(run: StoredRun) -> str | None:
    """What keeps a stored run from being listed."""
    head = run.report.get("run", {})
    if not isinstance(head, dict) or not all(isinstance(head.get(key, ""), str | None) for key in ("id", "job")):
        return "it is no run's report"
    return None


REPOSITORY_DOCUMENT = DocumentType(RepositoryRecord)
RUN_DOCUMENT = DocumentType(StoredRun, valid=_no_report)


@dataclass(frozen=True, slots=True)
class LockHolder:
    """One lock file with a name in it. `held` False: its owner is dead, and the lock is free."""

    name: str
    path: Path
    held: bool
    owner: str


Damaged = Callable[[RepositoryError], None]
"""Told what cannot be believed, or read, where a command goes on without it."""


def _utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _new_id() -> str:
    return os.urandom(6).hex()


class Repository:
    """An open repository. Methods raise RepositoryError naming the path."""

    def __init__(self, path: Path, record: RepositoryRecord, *, made_anew: bool = False) -> None:
        self.path = path
        self.made_anew = made_anew
        """Its `repository.json` was made just now: nothing outside bears its id yet."""
        self._record = record

    @classmethod
    def open(
        cls,
        path: Path,
        create: bool = True,
        *,
        mend: bool = False,
        clock: Callable[[], dt.datetime] = _utc_now,
        new_id: Callable[[], str] = _new_id,
    ) -> Repository:
        """Raises RepositoryError naming the path: newer format, damaged, not a repository, read-only, no space.

        `create`: make it if there is nothing (or an empty directory) yet. `mend`, for a rebuild: also make
        `repository.json` anew where it is damaged, or missing among what else a repository has.
        """
        file = path / "repository.json"
        if path.exists() and not path.is_dir():
            raise RepositoryError(f"{path} is not a directory")
        try:
            record = REPOSITORY_DOCUMENT.read(file)
        except DamagedError:
            if not mend:
                raise
            set_aside(file)
            record = None
        made = record is None
        if record is None:
            cls._refuse_foreign(path, create, mend)
            make_directory(path)
            # Two first runs at once: the one that comes second takes what the other made.
            made = REPOSITORY_DOCUMENT.create(file, RepositoryRecord(new_id(), clock()))
            record = REPOSITORY_DOCUMENT.read(file)
            if record is None:
                raise RepositoryError(f"{file} went away while it was opened")
        return cls(path, record, made_anew=made)

    @staticmethod
    def _refuse_foreign(path: Path, create: bool, mend: bool) -> None:
        with naming(path, "open"):
            entries = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
            if "repository.json" in entries:
                return  # another process has made it since we looked
            foreign = {name for name in entries - _PARTS if not name.endswith((TEMPORARY_SUFFIX, DAMAGED_SUFFIX))}
            if foreign:
                raise RepositoryError(
                    f"{path} holds other things and is no repository",
                    hint="name a directory of its own in [repository] of the configuration",
                )
            if mend:
                return
            if entries & _PARTS:
                raise RepositoryError(
                    f"{path} has {' and '.join(sorted(entries & _PARTS))} but no repository.json",
                    hint=_WITHOUT_RECORD,
                )
            if not create:
                raise RepositoryError(
                    f"there is no repository in {path}",
                    hint="the first `vrepl replicate` makes it; if it was lost: `vrepl repository rebuild`",
                )

    @property
    def id(self) -> str:
        """Short hex; snapshots and replicas bear it."""
        return self._record.id

    @property
    def created(self) -> dt.datetime:
        return self._record.created

    def take_over(self, repository_id: str) -> None:
        """Go on under the id of a repository that was lost, so that what bears it is one's own again."""
        record = RepositoryRecord(repository_id, self._record.created)
        REPOSITORY_DOCUMENT.write(self.path / "repository.json", record)
        self._record = record

    def upgrade(self) -> bool:
        """Give `repository.json` today's format, before any other document gets it: older vrepls then stay out.

        True if it was older. What lies in the folders of replicas is upgraded once it has been compared with them.
        """
        found = REPOSITORY_DOCUMENT.read_as_found(self.path / "repository.json")
        if found is None or found.format == FORMAT:
            return False
        REPOSITORY_DOCUMENT.write(self.path / "repository.json", found.value)
        return True

    def check_writable(self) -> None:
        """Raises RepositoryError (with a hint) unless a small file can be written now; for before anything is begun."""
        path = self.path / f"writable.{os.getpid()}"
        try:
            replace_bytes(path, bytes(4096))
            remove_file(path)
        except RepositoryError as error:
            reason = error.message.rpartition(": ")[2]
            raise RepositoryError(f"the repository {self.path} cannot be written: {reason}", hint=error.hint) from error

    # Replicas

    def replica(self, source_site: str, source_instance_uuid: str) -> ReplicaFolder | None:
        return ReplicaFolder.load(self._replica_path(replica_id(source_site, source_instance_uuid)))

    def create_replica(self, record: ReplicaRecord) -> ReplicaFolder:
        """Its `id` must be `replica_id(site, instanceUuid)`; one that exists gets this record."""
        expected = replica_id(record.source_site, record.source_instance_uuid)
        if record.id != expected:
            raise RepositoryError(f"the record of replica {expected} must not call itself {record.id}")
        return ReplicaFolder.create(self._replica_path(record.id), record)

    def remove_replica(self, source_site: str, source_instance_uuid: str) -> None:
        """Forget a replica (its VM is none of the repository's business); one that is gone is fine.

        Wants its lock held.
        """
        path = self._replica_path(replica_id(source_site, source_instance_uuid))
        # Without its record the folder is no replica any more, so a crash in the middle leaves nothing half.
        if path.is_dir():
            remove_file(path / "replica.json")
            with naming(path, "remove"):
                shutil.rmtree(path)
            sync_directory(path.parent)

    def replicas(self, damaged: Damaged | None = None) -> list[ReplicaFolder]:
        """By the names of their sources.

        `damaged` is told of each whose record cannot be believed, and the others are returned; without it that raises.
        """
        directory = self.path / "replicas"
        with naming(directory, "list"):
            paths = sorted(path for path in directory.iterdir() if path.is_dir()) if directory.is_dir() else []
        return sorted(_load_all(paths, damaged), key=lambda folder: folder.record.source_name)

    def unfinished(self, damaged: Damaged) -> list[ReplicaFolder]:
        """Those whose last run did not end: it is going on, or is dead. Looks into no other replica's folder."""
        return _load_all([path.parent for path in sorted((self.path / "replicas").glob("*/intent.json"))], damaged)

    def set_aside_damaged(self) -> list[Path]:
        """Rename every document of a replica that is damaged, so that it can be made anew; returns those.

        Raises LockedError if a run holds such a replica.
        """
        directory = self.path / "replicas"
        with naming(directory, "list"):
            paths = sorted(path for path in directory.iterdir() if path.is_dir()) if directory.is_dir() else []
        return [file for path in paths for file in ReplicaFolder.set_aside_damaged(path)]

    def _replica_path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise RepositoryError(f"{name!r} cannot name a folder", hint="give the site a plain name")
        return self.path / "replicas" / name

    # Locks

    def job_lock(
        self, job: str, wait_seconds: float = 0, *, sleep: Callable[[float], None] = time.sleep
    ) -> AbstractContextManager[None]:
        """Raises LockedError naming the owner's pid, host and command, after waiting so long for it.

        `sleep` waits between two looks; what it raises ends the waiting.
        """
        return holding(self._job_path(job), f"job {job}", wait_seconds, sleep=sleep)

    def is_job_locked(self, job: str) -> bool:
        return is_held(self._job_path(job))

    def _job_path(self, job: str) -> Path:
        return self.path / "jobs" / f"{quote(job, safe=' ')}.lock"

    def locks(self) -> list[LockHolder]:
        """Every lock that has, or had, an owner."""
        replicas = self.path / "replicas"
        with naming(self.path, "list"):
            named = [(f"replica {path.parent.name}", path) for path in sorted(replicas.glob("*/lock"))]
        return self.job_locks() + self._with_owners(named)

    def job_locks(self) -> list[LockHolder]:
        """Those of `locks` that are jobs'."""
        jobs = self.path / "jobs"
        with naming(self.path, "list"):
            return self._with_owners([(f"job {unquote(path.stem)}", path) for path in sorted(jobs.glob("*.lock"))])

    def _with_owners(self, named: list[tuple[str, Path]]) -> list[LockHolder]:
        found = []
        for name, path in named:
            owner = read_owner(path)
            held = is_held(path)
            if owner is not None or held:
                found.append(LockHolder(name, path, held, str(owner or "an unknown process")))
        return found

    def unlock(self) -> list[LockHolder]:
        """Clean up after dead owners; live ones are only reported, for a lock is released by its process's end."""
        return [LockHolder(lock.name, lock.path, not clear_dead(lock.path), lock.owner) for lock in self.locks()]

    def budgets(self) -> Budgets:
        """A new part in the budgets that all runs of this repository share."""
        return Budgets(self.path / "budgets")

    # Run reports

    def save_run(self, run_id: str, report: dict[str, Any]) -> None:
        """`report`: what `replicate --json` prints; opaque here. Durable before it returns."""
        make_directory(self.path / "runs")
        RUN_DOCUMENT.write(self._run_path(run_id), StoredRun(report))
        for path in self._run_paths()[KEEP_RUNS:]:
            remove_file(path)

    def runs(self, limit: int | None = None, damaged: Damaged | None = None) -> list[dict[str, Any]]:
        """Newest first (by when they were saved); those that are damaged are passed over, and `damaged` is told."""
        found: list[dict[str, Any]] = []
        for path in self._run_paths():
            if limit is not None and len(found) >= limit:
                break
            try:
                run = RUN_DOCUMENT.read(path)
            except RepositoryError as error:
                if damaged is not None:
                    damaged(error)
                continue
            if run is not None:
                found.append(run.report)
        return found

    def run(self, run_id: str) -> dict[str, Any] | None:
        """Raises DamagedError if its report is damaged."""
        run = RUN_DOCUMENT.read(self._run_path(run_id))
        return None if run is None else run.report

    def _run_path(self, run_id: str) -> Path:
        if not _NAME.fullmatch(run_id):
            raise RepositoryError(f"{run_id!r} is no id of a run")
        return self.path / "runs" / f"{run_id}.json"

    def _run_paths(self) -> list[Path]:
        directory = self.path / "runs"
        with naming(directory, "list"):
            return sorted(directory.glob("*.json"), key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)


def _load_all(paths: Iterable[Path], damaged: Damaged | None) -> list[ReplicaFolder]:
    found = []
    for path in paths:
        try:
            folder = ReplicaFolder.load(path)
        except RepositoryError as error:
            if damaged is None:
                raise
            damaged(error)
            continue
        if folder is not None:
            found.append(folder)
    return found


def replica_id(source_site: str, source_instance_uuid: str) -> str:
    """The id of a replica's record and the name of its folder."""
    return f"{source_site}-{source_instance_uuid}"
