"""How vrepl marks the temporary snapshots that it takes, so that only its own leavings are ever removed.

The description of such a snapshot is one line for people and one line of JSON for the next run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from vrepl.model import Snapshot

SOURCE_SNAPSHOT_PREFIX = "vrepl-source-"
SAN_SNAPSHOT_PREFIX = "vrepl-san-"
FAILBACK_SNAPSHOT_PREFIX = "vrepl-before-failback-"
RESTORE_POINT_SNAPSHOT_PREFIX = "vrepl "


def restore_point_snapshot_name(restore_point_id: str) -> str:
    """What the snapshot is called that a restore point is."""
    return f"{RESTORE_POINT_SNAPSHOT_PREFIX}{restore_point_id}"


@dataclass(frozen=True, slots=True)
class SourceMark:
    """Which repository and run made a snapshot of a source VM."""

    repository_id: str
    run_id: str

    @property
    def snapshot_name(self) -> str:
        return f"{SOURCE_SNAPSHOT_PREFIX}{self.run_id}"

    def description(self) -> str:
        return _description("source-snapshot", self.repository_id, self.run_id)


@dataclass(frozen=True, slots=True)
class SanMark:
    """Which repository and run made a snapshot of a replica in order to write its disks over SAN."""

    repository_id: str
    run_id: str

    @property
    def snapshot_name(self) -> str:
        return f"{SAN_SNAPSHOT_PREFIX}{self.run_id}"

    def description(self) -> str:
        return _description("san-snapshot", self.repository_id, self.run_id)


@dataclass(frozen=True, slots=True)
class FailoverMark:
    """Of a snapshot that a failover took of a replica."""

    repository_id: str
    epoch: int
    """Of the replica's state then."""
    stands_on: str = ""
    """Ref of the snapshot that was its parent when it was asked for; "" where that does not matter."""

    def description(self, what: str) -> str:
        body = {
            "vrepl": 1,
            "kind": "failover",
            "repository": self.repository_id,
            "epoch": self.epoch,
            "stands_on": self.stands_on,
        }
        return f"{what}\n{json.dumps(body)}"


@dataclass(frozen=True, slots=True)
class FailbackMark:
    """Of the snapshot that keeps what an original was before a failback into it."""

    repository_id: str
    failback_id: str

    @property
    def snapshot_name(self) -> str:
        return f"{FAILBACK_SNAPSHOT_PREFIX}{self.failback_id}"

    def description(self) -> str:
        body = {"vrepl": 1, "kind": "failback", "repository": self.repository_id, "failback": self.failback_id}
        return f"What the VM was before its failback: vrepl failback undo reverts to it.\n{json.dumps(body)}"


def failback_mark_of(snapshot: Snapshot) -> FailbackMark | None:
    """The mark of such a snapshot; None where vrepl did not make it."""
    body = _body(snapshot, FAILBACK_SNAPSHOT_PREFIX, "failback") or {}
    repository, failback = body.get("repository"), body.get("failback")
    if isinstance(repository, str) and isinstance(failback, str):
        return FailbackMark(repository, failback)
    return None


def failover_mark_of(snapshot: Snapshot, name: str) -> FailoverMark | None:
    """The mark of a snapshot whose name begins with `name`; None where vrepl did not make it."""
    body = _body(snapshot, name, "failover")
    if body is None:
        return None
    repository, epoch, stands_on = body.get("repository"), body.get("epoch"), body.get("stands_on", "")
    if isinstance(repository, str) and isinstance(epoch, int) and isinstance(stands_on, str):
        return FailoverMark(repository, epoch, stands_on)
    return None


def source_mark_of(snapshot: Snapshot) -> SourceMark | None:
    """The mark that a snapshot carries; None where vrepl did not make it."""
    found = _parse(snapshot, SOURCE_SNAPSHOT_PREFIX, "source-snapshot")
    return SourceMark(*found) if found else None


def san_mark_of(snapshot: Snapshot) -> SanMark | None:
    """The mark that a snapshot of a replica carries; None where it was not taken for writing over SAN."""
    found = _parse(snapshot, SAN_SNAPSHOT_PREFIX, "san-snapshot")
    return SanMark(*found) if found else None


def _description(kind: str, repository_id: str, run_id: str) -> str:
    body = {"vrepl": 1, "kind": kind, "repository": repository_id, "run": run_id}
    return f"Temporary snapshot of a vrepl run; the run, or the next one, removes it.\n{json.dumps(body)}"


def _parse(snapshot: Snapshot, prefix: str, kind: str) -> tuple[str, str] | None:
    """(repository ID, run ID)"""
    body = _body(snapshot, prefix, kind) or {}
    repository, run = body.get("repository"), body.get("run")
    return (repository, run) if isinstance(repository, str) and isinstance(run, str) else None


def _body(snapshot: Snapshot, prefix: str, kind: str) -> dict[str, object] | None:
    if not snapshot.name.startswith(prefix):
        return None
    for line in snapshot.description.splitlines():
        if not line.startswith("{"):
            continue
        try:
            body = json.loads(line)
        except ValueError:
            continue
        if isinstance(body, dict) and body.get("kind") == kind:
            return body
    return None
