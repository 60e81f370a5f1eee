"""How vrepl marks what it makes on a source VM, so that only its own leavings are ever removed.

The description of a source snapshot is one line for people and one line of JSON for the next run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from vrepl.model import Snapshot

SOURCE_SNAPSHOT_PREFIX = "vrepl-source-"


@dataclass(frozen=True, slots=True)
class SourceMark:
    """Which repository and run made a snapshot of a source VM."""

    repository_id: str
    run_id: str

    @property
    def snapshot_name(self) -> str:
        return f"{SOURCE_SNAPSHOT_PREFIX}{self.run_id}"

    def description(self) -> str:
        body = {"vrepl": 1, "kind": "source-snapshot", "repository": self.repository_id, "run": self.run_id}
        return f"Temporary snapshot of a vrepl run; the run, or the next one, removes it.\n{json.dumps(body)}"


def source_mark_of(snapshot: Snapshot) -> SourceMark | None:
    """The mark that a snapshot carries; None where vrepl did not make it."""
    if not snapshot.name.startswith(SOURCE_SNAPSHOT_PREFIX):
        return None
    for line in snapshot.description.splitlines():
        if not line.startswith("{"):
            continue
        try:
            body = json.loads(line)
        except ValueError:
            continue
        if isinstance(body, dict) and body.get("kind") == "source-snapshot":
            repository, run = body.get("repository"), body.get("run")
            if isinstance(repository, str) and isinstance(run, str):
                return SourceMark(repository, run)
    return None
