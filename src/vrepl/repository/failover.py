"""The repository's copy of each replica's failover state, for those who look without asking the target."""

from __future__ import annotations

from vrepl.model.failover import FailoverRecord
from vrepl.model.failover_tests import ReplicaTests
from vrepl.repository.documents import DocumentType
from vrepl.repository.replica_folder import ReplicaFolder

FAILOVER_DOCUMENT = DocumentType(FailoverRecord)
FILE = "failover.json"
TESTS_DOCUMENT = DocumentType(ReplicaTests)
TESTS_FILE = "failover-tests.json"


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
