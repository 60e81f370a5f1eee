"""Where a replica's failover state lies: two files beside the replica, written in turn, each with an epoch and a sum.

A write that is cut off spoils one of the two at the most, and the other one counts; of two whole ones the higher epoch
does. A revert cannot take them back, and they are there when the repository is gone.
"""

from __future__ import annotations

import hashlib
import json

from vrepl.errors import LockedError, RepositoryError
from vrepl.model import VirtualMachine
from vrepl.model.failover import FailoverRecord
from vrepl.ports.failover import ReplicaFiles
from vrepl.repository.documents import from_value, to_value

FORMAT = 1
SLOTS = ("vrepl-failover-0.json", "vrepl-failover-1.json")


class ReplicaStates:
    """Reads and saves the records of replicas at one site."""

    def __init__(self, files: ReplicaFiles, writer: str) -> None:
        """`writer`: an ID of this process, so that two that save the same epoch find out."""
        self._files = files
        self._writer = writer

    def read(self, replica: VirtualMachine) -> FailoverRecord | None:
        """The record that counts; None where none was ever written whole. Raises RepositoryError for a newer format."""
        found = self._newest(replica)
        return found[0] if found else None

    def changed_since(self, replica: VirtualMachine, epoch: int) -> bool:
        """Whether a higher epoch was saved: by one look at the file that the next epoch goes to."""
        found = self._read(replica, SLOTS[(epoch + 1) % len(SLOTS)])
        return found is not None and found[0].epoch > epoch

    def save(self, replica: VirtualMachine, record: FailoverRecord) -> None:
        """Durable at the replica before it returns.

        Raises LockedError where another process has saved a record since this one was read.
        """
        name = SLOTS[record.epoch % len(SLOTS)]
        before = self._read(replica, name)  # whoever saved this epoch did so here
        if before is not None and before[0].epoch >= record.epoch:
            raise _overtaken(replica, before[0])
        self._files.write_vm_file(replica, name, encode(record, self._writer))
        now = self._newest(replica)
        if now is None or now != (record, self._writer):
            raise _overtaken(replica, now[0] if now else record)

    def _newest(self, replica: VirtualMachine) -> tuple[FailoverRecord, str] | None:
        whole = [found for name in SLOTS if (found := self._read(replica, name)) is not None]
        return max(whole, key=lambda one: one[0].epoch, default=None)

    def _read(self, replica: VirtualMachine, name: str) -> tuple[FailoverRecord, str] | None:
        content = self._files.read_vm_file(replica, name)
        found = decode(content) if content is not None else None
        return found if found is not None and _is_of(found[0], replica) else None


def encode(record: FailoverRecord, writer: str) -> bytes:
    """One line of JSON for the sum, the record as people can read it below."""
    content = {"format": FORMAT, "writer": writer, "record": to_value(FailoverRecord, record)}
    return (json.dumps({"sum": _sum(content), **content}, indent=1) + "\n").encode()


def decode(content: bytes) -> tuple[FailoverRecord, str] | None:
    """The record and its writer; None for what was not written whole. Raises RepositoryError for a newer format."""
    try:
        value = json.loads(content)
        claimed = value.pop("sum")
        if claimed != _sum(value):
            return None
    except (ValueError, AttributeError, KeyError, RecursionError):
        return None
    if value["format"] > FORMAT:
        raise RepositoryError(
            f"a replica's failover state has format {value['format']}; this vrepl knows formats up to {FORMAT}",
            hint="use the newer vrepl that wrote it; nothing was changed",
        )
    return from_value(FailoverRecord, value["record"]), str(value["writer"])


def _sum(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _is_of(record: FailoverRecord, replica: VirtualMachine) -> bool:
    """A file may have come along with a copy of another VM's folder."""
    return record.replica_instance_uuid == replica.instance_uuid


def _overtaken(replica: VirtualMachine, record: FailoverRecord) -> LockedError:
    return LockedError(
        f"another process changed the state of replica {replica.name} (epoch {record.epoch}, {record.state})",
        hint="look with `vrepl replicas`, then run the command again",
    )
