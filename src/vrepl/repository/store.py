"""The repository as a whole."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vrepl.model import ReplicaRecord
from vrepl.repository.replica import ReplicaFolder


@dataclass(frozen=True, slots=True)
class LockHolder:
    """One lock file with a name in it. `held` False: its owner is dead, and the lock is free."""

    name: str
    path: Path
    held: bool
    owner: str


class Repository:
    path: Path

    @classmethod
    def open(cls, path: Path, create: bool = True) -> Repository:
        """Raises RepositoryError naming the path: newer format, not a repository, read-only, no space."""
        raise NotImplementedError

    @property
    def id(self) -> str:
        """Short hex; snapshots and replicas bear it."""
        raise NotImplementedError

    def replica(self, source_site: str, source_instance_uuid: str) -> ReplicaFolder | None:
        raise NotImplementedError

    def create_replica(self, record: ReplicaRecord) -> ReplicaFolder:
        """Its `id` must be `replica_id(site, instanceUuid)`; one that exists gets this record."""
        raise NotImplementedError

    def remove_replica(self, source_site: str, source_instance_uuid: str) -> None:
        """Forget a replica (its VM is none of the repository's business); one that is gone is fine."""
        raise NotImplementedError

    def replicas(self) -> list[ReplicaFolder]:
        """By folder name."""
        raise NotImplementedError

    def job_lock(self, job: str) -> AbstractContextManager[None]:
        """Raises LockedError naming the owner's pid, host and command."""
        raise NotImplementedError

    def save_run(self, run_id: str, report: dict[str, Any]) -> None:
        raise NotImplementedError

    def runs(self, limit: int | None = None) -> list[dict[str, Any]]:
        """Newest first."""
        raise NotImplementedError

    def run(self, run_id: str) -> dict[str, Any] | None:
        raise NotImplementedError

    def locks(self) -> list[LockHolder]:
        """Every lock that has, or had, an owner."""
        raise NotImplementedError

    def unlock(self) -> list[LockHolder]:
        """Clean up after dead owners; live ones are only reported, for a lock is released by its process's end."""
        raise NotImplementedError


def replica_id(source_site: str, source_instance_uuid: str) -> str:
    """The id of a replica's record and the name of its folder."""
    return f"{source_site}-{source_instance_uuid}"
