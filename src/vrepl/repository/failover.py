"""The repository's copy of each replica's failover state, for those who look without asking the target."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vrepl.model import ReplicaState
from vrepl.model.failover import FailoverRecord
from vrepl.model.failover_settings import FailoverSettings
from vrepl.model.failover_tests import FailoverTest, ReplicaTests
from vrepl.repository.documents import DamagedError, DocumentType

if TYPE_CHECKING:
    from vrepl.repository.replica_folder import ReplicaFolder

FAILOVER_DOCUMENT = DocumentType(FailoverRecord)
FILE = "failover.json"
TESTS_DOCUMENT = DocumentType(ReplicaTests)
TESTS_FILE = "failover-tests.json"
SETTINGS_DOCUMENT = DocumentType(FailoverSettings)
SETTINGS_FILE = "failover-settings.json"


@dataclass(frozen=True, slots=True)
class ReplicaUse:
    """What a replica is used for, and how its last test went."""

    state: ReplicaState
    last_test: FailoverTest | None
    deadline: dt.datetime | None = None
    """By the target's clock: the next run after it undoes the failover."""


def replica_use(folder: ReplicaFolder) -> ReplicaUse:
    """As the repository knows it: the one place that tells. A damaged copy tells nothing; the next save mends it."""
    try:
        record = read_failover(folder)
    except DamagedError:
        record = None
    try:
        tests = read_tests(folder)
    except DamagedError:
        tests = None
    return ReplicaUse(
        record.state if record else folder.record.state,
        tests.last if tests else None,
        record.deadline if record else None,
    )


def save_failover(folder: ReplicaFolder, record: FailoverRecord) -> None:
    """Durable before it returns. The copy at the replica is the one that decides."""
    FAILOVER_DOCUMENT.write(folder.path / FILE, record)


def read_failover(folder: ReplicaFolder) -> FailoverRecord | None:
    """None: the replica was never failed over nor tested. Raises DamagedError, RepositoryError for a newer format."""
    return FAILOVER_DOCUMENT.read(folder.path / FILE)


def save_tests(folder: ReplicaFolder, tests: ReplicaTests) -> None:
    """Likewise for what is known of the replica's tests."""
    TESTS_DOCUMENT.write(folder.path / TESTS_FILE, tests)


def read_tests(folder: ReplicaFolder) -> ReplicaTests | None:
    """None: it was never tested. Raises as `read_failover`."""
    return TESTS_DOCUMENT.read(folder.path / TESTS_FILE)


def save_settings(folder: ReplicaFolder, settings: FailoverSettings) -> None:
    """What lies beside the replica, so that a run knows it without asking."""
    SETTINGS_DOCUMENT.write(folder.path / SETTINGS_FILE, settings)


def read_settings(folder: ReplicaFolder) -> FailoverSettings | None:
    """None: no run has written them yet. Raises as `read_failover`."""
    return SETTINGS_DOCUMENT.read(folder.path / SETTINGS_FILE)
