"""`repository check`: walk everything, report what is wrong; changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vrepl.errors import RepositoryError
from vrepl.repository.replica_folder import ReplicaFolder
from vrepl.repository.store import Repository


class Severity(StrEnum):
    NOTE = "note"
    """Worth knowing; the next run deals with it."""
    WARNING = "warning"
    """Costs bytes or time, not data: digests unknown."""
    ERROR = "error"
    """Wants a person: `repository rebuild`."""


@dataclass(frozen=True, slots=True)
class Finding:
    severity: Severity
    path: str
    """Relative to the repository."""
    message: str
    hint: str = ""


def check(repository: Repository) -> list[Finding]:
    """Every finding, in the order of the folders; an empty list is a sound repository.

    A replica whose run is under way is passed over with a note, for its files change meanwhile.
    """
    findings = list(_check_modes(repository.path))
    directory = repository.path / "replicas"
    for path in sorted(directory.iterdir()) if directory.is_dir() else []:
        findings += _Checker(repository.path, path).check()
    findings += _check_runs(repository)
    return findings


def _check_modes(root: Path) -> Iterator[Finding]:
    if root.stat().st_mode & 0o077:
        yield Finding(
            Severity.WARNING,
            ".",
            f"others may look into it (mode {root.stat().st_mode & 0o777:o})",
            f"chmod 0700 {root}",
        )


def _check_runs(repository: Repository) -> Iterator[Finding]:
    for path in sorted((repository.path / "runs").glob("*.json")):
        try:
            repository.run(path.stem)
        except RepositoryError as error:
            yield Finding(Severity.NOTE, str(path.relative_to(repository.path)), error.message, "it may be deleted")


class _Checker:
    def __init__(self, root: Path, path: Path) -> None:
        self._root = root
        self._path = path
        self._findings: list[Finding] = []

    def check(self) -> list[Finding]:
        folder = self._load()
        if folder is None:
            return self._findings
        if folder.is_locked():
            self._add(Severity.NOTE, self._path, "a run holds it; not checked")
            return self._findings
        known = self._check_restore_points(folder)
        try:
            if folder.intent() is not None:
                self._add(Severity.NOTE, self._path / "intent.json", "a run is unfinished; the next one deals with it")
        except RepositoryError as error:
            self._add_error(self._path / "intent.json", error)
        for disk in folder.disk_folders():
            try:
                disk.check(known, lambda path, message: self._add(Severity.WARNING, path, message))
            except RepositoryError as error:
                self._add_error(disk.path, error)
        self._check_parents(folder, known)
        return self._findings

    def _load(self) -> ReplicaFolder | None:
        try:
            folder = ReplicaFolder.load(self._path)
        except RepositoryError as error:
            self._add_error(self._path / "replica.json", error)
            return None
        if folder is None:
            self._add(Severity.ERROR, self._path, "has no replica.json", "`vrepl repository rebuild` makes it anew")
        elif folder.outdated():
            self._add(
                Severity.NOTE,
                self._path,
                "its documents have an older format, without checksums",
                "the next run compares them with the replica and writes them anew",
            )
        return folder

    def _check_restore_points(self, folder: ReplicaFolder) -> list[str]:
        known = []
        for path in sorted((self._path / "restore-points").glob("*.json")):
            try:
                point = folder.restore_point(path.stem)
            except RepositoryError as error:
                self._add_error(path, error)
                continue
            if point is None:
                continue
            known.append(point.id)
            doubt = folder.doubt(point.id)
            if doubt is not None:
                self._add(
                    Severity.WARNING,
                    path,
                    f"is doubtful: {doubt.reason}",
                    "the next run compares what the newest restore point holds; do not fail over to a doubtful one",
                )
        return known

    def _check_parents(self, folder: ReplicaFolder, known: list[str]) -> None:
        """Which disks of the newest restore point have no digests: its next comparison has to read the replica too."""
        if not known:
            return
        try:
            newest = folder.restore_points()[-1]
        except RepositoryError:
            return
        for disk in newest.disks:
            if not folder.digest_files(disk.source_key, newest.id).known:
                self._add(
                    Severity.WARNING,
                    self._path / "disks" / str(disk.source_key),
                    f"no digests of {disk.label} at restore point {newest.id}",
                    "`vrepl verify` cannot check it; runs by CBT go on as before",
                )

    def _add(self, severity: Severity, path: Path, message: str, hint: str = "") -> None:
        self._findings.append(Finding(severity, str(path.relative_to(self._root)), message, hint))

    def _add_error(self, path: Path, error: RepositoryError) -> None:
        self._add(Severity.ERROR, path, error.message, error.hint or "")
