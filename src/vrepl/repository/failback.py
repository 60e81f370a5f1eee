"""What a failback keeps between its crossings: an intent and logs of its own, in a folder beside the replica's.

An intent that is no replication's does not belong into `intent.json`, which the next run reads as its own.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from vrepl.model import ReplicaRecord
from vrepl.repository.files import make_directory, naming, sync_directory
from vrepl.repository.intent import Intent, clear_intent, load_intent, save_intent
from vrepl.repository.replica_folder import ReplicaFolder

FOLDER = "failback"


class FailbackFolder:
    """Wants the replica's lock. Raises RepositoryError as that does."""

    def __init__(self, replica: ReplicaFolder) -> None:
        self._replica = replica
        self.path = replica.path / FOLDER

    @property
    def record(self) -> ReplicaRecord:
        return self._replica.record

    def intent(self) -> Intent | None:
        """Of the last crossing, ended or not."""
        return load_intent(self.path / "intent.json")

    def save_intent(self, intent: Intent) -> None:
        """Durable before it returns."""
        make_directory(self.path)
        save_intent(self.path / "intent.json", intent)

    def transfer_log(self, disk_key: int) -> Path:
        """Where the disk's log is or will be; its folder exists. `disk_key`: the original's."""
        folder = self.path / str(disk_key)
        make_directory(folder)
        return folder / "transfer.log"

    def clear(self) -> None:
        """Forget everything; the intent goes first, so that a crash leaves no logs that an intent speaks of."""
        if not self.path.is_dir():
            return
        clear_intent(self.path / "intent.json")
        with naming(self.path, "remove"):
            shutil.rmtree(self.path)
        sync_directory(self._replica.path)
