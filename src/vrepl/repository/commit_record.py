"""The commit record: a restore point as JSON in the description of the replica's snapshot, and the `vrepl.*` keys.

With these alone, and the disks, the repository can be rebuilt. Descriptions that people or other tools wrote are
none of ours and are passed over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from vrepl.model import RestorePoint
from vrepl.repository.documents import from_value, to_value

COMMIT_RECORD_FORMAT = 1

KEY_FORMAT = "vrepl.format"
KEY_REPOSITORY = "vrepl.repository"
KEY_SOURCE_SITE = "vrepl.source.site"
KEY_SOURCE_INSTANCE_UUID = "vrepl.source.instanceUuid"
KEY_RUN = "vrepl.run"
"""The run that registered the replica."""


@dataclass(frozen=True, slots=True)
class ReplicaMark:
    """What a replica's extraConfig says of it; none of it ever changes (a revert brings old settings back)."""

    repository_id: str
    source_site: str
    source_instance_uuid: str
    run_id: str = ""
    format: int = COMMIT_RECORD_FORMAT

    def to_extra_config(self) -> dict[str, str]:
        return {
            KEY_FORMAT: str(self.format),
            KEY_REPOSITORY: self.repository_id,
            KEY_SOURCE_SITE: self.source_site,
            KEY_SOURCE_INSTANCE_UUID: self.source_instance_uuid,
            KEY_RUN: self.run_id,
        }


def read_mark(extra_config: Mapping[str, str]) -> ReplicaMark | None:
    """None: not a replica of vrepl's, or one of a newer format (`read_mark_format` tells)."""
    version = read_mark_format(extra_config)
    if version is None or version > COMMIT_RECORD_FORMAT:
        return None
    repository_id = extra_config.get(KEY_REPOSITORY, "")
    site = extra_config.get(KEY_SOURCE_SITE, "")
    instance_uuid = extra_config.get(KEY_SOURCE_INSTANCE_UUID, "")
    if not (repository_id and site and instance_uuid):
        return None
    return ReplicaMark(repository_id, site, instance_uuid, run_id=extra_config.get(KEY_RUN, ""), format=version)


def read_mark_format(extra_config: Mapping[str, str]) -> int | None:
    """The format version of a replica's mark; None if it bears none."""
    text = extra_config.get(KEY_FORMAT, "")
    return int(text) if text.isascii() and text.isdigit() else None


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """What a replica snapshot's description says: which restore point it is, of which source, in which repository."""

    repository_id: str
    source_site: str
    source_instance_uuid: str
    source_name: str
    restore_point: RestorePoint


def format_commit_record(record: CommitRecord) -> str:
    """The snapshot description: one line of compact JSON in ASCII."""
    content = {"vrepl": COMMIT_RECORD_FORMAT, **to_value(CommitRecord, record)}
    return json.dumps(content, separators=(",", ":"))


def parse_commit_record(description: str) -> CommitRecord | None:
    """None: a foreign description, a damaged one, or one of a newer format (`commit_record_format` tells)."""
    content = _ours(description)
    if content is None or content["vrepl"] > COMMIT_RECORD_FORMAT:
        return None
    try:
        return from_value(CommitRecord, content)
    except ValidationError:
        return None


def commit_record_format(description: str) -> int | None:
    """The format version of a commit record; None for a foreign description."""
    content = _ours(description)
    return content["vrepl"] if content is not None else None


def _ours(description: str) -> dict[str, int] | None:
    text = description.strip()
    if not text.startswith("{"):
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    version = content.get("vrepl")
    return content if isinstance(version, int) and not isinstance(version, bool) and version >= 1 else None
