"""The folder of one replica."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from vrepl.model import ReplicaRecord, RestorePoint
from vrepl.ports import DigestFiles
from vrepl.repository.intent import Intent


@dataclass(frozen=True, slots=True)
class Verification:
    """When a restore point was last read back, and whether every grain agreed with its digest."""

    time: dt.datetime
    good: bool
    detail: str = ""


class ReplicaFolder:
    """What the repository holds of one replica. Everything that writes wants `lock` held; raises RepositoryError."""

    path: Path

    @property
    def record(self) -> ReplicaRecord:
        raise NotImplementedError

    def save_record(self, record: ReplicaRecord) -> None:
        raise NotImplementedError

    def lock(self, wait_seconds: float = 0) -> AbstractContextManager[None]:
        """Raises LockedError naming the owner. Once held, half-done changes of dead owners are completed."""
        raise NotImplementedError

    def is_locked(self) -> bool:
        raise NotImplementedError

    def restore_points(self) -> list[RestorePoint]:
        """Oldest first."""
        raise NotImplementedError

    def restore_point(self, restore_point_id: str) -> RestorePoint | None:
        raise NotImplementedError

    def add_restore_point(self, restore_point: RestorePoint) -> None:
        """Without digests (those come by `seal`); one that is there already is overwritten."""
        raise NotImplementedError

    def remove_restore_point(self, restore_point_id: str) -> None:
        """With its digests, which the next one's are made independent of; one that is gone already is fine."""
        raise NotImplementedError

    def mark_verified(self, restore_point_id: str, verification: Verification) -> None:
        raise NotImplementedError

    def verification(self, restore_point_id: str) -> Verification | None:
        raise NotImplementedError

    def intent(self) -> Intent | None:
        raise NotImplementedError

    def save_intent(self, intent: Intent) -> None:
        raise NotImplementedError

    def clear_intent(self) -> None:
        raise NotImplementedError

    def transfer_log(self, disk_key: int) -> Path:
        """Where the disk's log is or will be; its folder exists."""
        raise NotImplementedError

    def discard_logs(self) -> None:
        """Giving up: remove all transfer logs, and what an unfinished seal made of them."""
        raise NotImplementedError

    def seal(self, restore_point: RestorePoint) -> None:
        """Turn the transfer logs into digests of `restore_point`, add it, clear the intent.

        To be called once the replica's snapshot exists, and again after a crash at any step: it completes.
        """
        raise NotImplementedError

    def digest_files(self, disk_key: int, restore_point_id: str) -> DigestFiles:
        """The set that describes that restore point; base None, no deltas and fresh False where none does."""
        raise NotImplementedError

    def write_digests(
        self, disk_key: int, restore_point_id: str, capacity: int, entries: Iterable[tuple[int, bytes]]
    ) -> None:
        """Record digests that were made by reading the restore point's disk; grains not among them are unknown."""
        raise NotImplementedError
