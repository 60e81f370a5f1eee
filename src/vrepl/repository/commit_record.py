"""The commit record: a restore point as JSON in the description of the replica's snapshot, and the `vrepl.*` keys.

With these alone, and the disks, the repository can be rebuilt. Descriptions that people or other tools wrote are
not commit records and are passed over.

How long a description may be is documented nowhere, and 60 disks take 21 KB. A record that is long, or that did not
survive, goes to the replica's extraConfig just before the seal instead, in parts, and so into the snapshot's own
configuration; the description then holds a header that names the restore point and the record's digest. (That
extraConfig takes a lot is known: cloud-init's VMware datasource gets whole user-data files through it.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from blake3 import blake3
from pydantic import ValidationError

from vrepl.model import RestorePoint
from vrepl.repository.documents import from_value, to_value

COMMIT_RECORD_FORMAT = 2
"""The newest that is understood: 1 is a record in the description, 2 a header for one in extraConfig."""
INLINE_FORMAT = 1
MARK_FORMAT = 1
INLINE_LIMIT = 4000
"""Characters of a record that is tried in the description at all (a guess)."""
PART = 8000
"""Characters of a record in one extraConfig value."""

KEY_FORMAT = "vrepl.format"
KEY_REPOSITORY = "vrepl.repository"
KEY_SOURCE_SITE = "vrepl.source.site"
KEY_SOURCE_INSTANCE_UUID = "vrepl.source.instanceUuid"
KEY_RUN = "vrepl.run"
"""The run that registered the replica."""
KEY_REPLICA_INSTANCE_UUID = "vrepl.replica.instanceUuid"
MARK_KEYS = (
    KEY_FORMAT, KEY_REPOSITORY, KEY_SOURCE_SITE, KEY_SOURCE_INSTANCE_UUID, KEY_RUN, KEY_REPLICA_INSTANCE_UUID,
)  # fmt: skip
"""All that make a replica's mark."""
"""The replica's own instanceUuid: a clone inherits the mark, but gets an instanceUuid of its own."""
COMMIT_KEYS = "vrepl.commit."
"""Prefix of the keys of a record's parts: `vrepl.commit.0` and so on."""


@dataclass(frozen=True, slots=True)
class ReplicaMark:
    """What a replica's extraConfig says of it; none of it ever changes (a revert brings old settings back)."""

    repository_id: str
    source_site: str
    source_instance_uuid: str
    run_id: str = ""
    format: int = MARK_FORMAT
    replica_instance_uuid: str = ""
    """"" in marks of before this was written down, and in one that a site is to complete."""

    def is_of(self, instance_uuid: str) -> bool:
        """Whether the VM with this instanceUuid is the replica, and not a clone of it; yes where that is not told."""
        return self.replica_instance_uuid in {"", instance_uuid}

    def to_extra_config(self) -> dict[str, str]:
        return {
            KEY_FORMAT: str(self.format),
            KEY_REPOSITORY: self.repository_id,
            KEY_SOURCE_SITE: self.source_site,
            KEY_SOURCE_INSTANCE_UUID: self.source_instance_uuid,
            KEY_RUN: self.run_id,
            **({KEY_REPLICA_INSTANCE_UUID: self.replica_instance_uuid} if self.replica_instance_uuid else {}),
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
    return ReplicaMark(
        repository_id,
        site,
        instance_uuid,
        run_id=extra_config.get(KEY_RUN, ""),
        format=version,
        replica_instance_uuid=extra_config.get(KEY_REPLICA_INSTANCE_UUID, ""),
    )


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


@dataclass(frozen=True, slots=True)
class CommitText:
    """A commit record as it is written: the snapshot's description, and what stands in extraConfig before the seal."""

    description: str
    extra_config: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_inline(self) -> bool:
        return not self.extra_config


def format_commit_record(record: CommitRecord) -> str:
    """The snapshot description: one line of compact JSON in ASCII."""
    content = {"vrepl": INLINE_FORMAT, **to_value(CommitRecord, record)}
    return json.dumps(content, separators=(",", ":"))


def lay_out(record: CommitRecord, *, inline: bool = True) -> CommitText:
    """Whole in the description, where that is wished and the record is short; else in parts, with a header."""
    text = format_commit_record(record)
    if inline and len(text) <= INLINE_LIMIT:
        return CommitText(text)
    parts = [text[start : start + PART] for start in range(0, len(text), PART)]
    header = {
        "vrepl": COMMIT_RECORD_FORMAT,
        "repository_id": record.repository_id,
        "restore_point_id": record.restore_point.id,
        "parts": len(parts),
        "blake3": _digest(text),
    }
    keys = {f"{COMMIT_KEYS}{number}": part for number, part in enumerate(parts)}
    return CommitText(json.dumps(header, separators=(",", ":")), keys)


def read_commit_record(description: str, extra_config: Mapping[str, str]) -> CommitRecord | None:
    """A record of either form; `extra_config`: the snapshot's own. None: foreign, damaged, cut, or of a newer one."""
    header = _header(description)
    if header is None:
        return parse_commit_record(description)
    text = "".join(extra_config.get(f"{COMMIT_KEYS}{number}", "") for number in range(int(header["parts"])))
    if _digest(text) != header["blake3"]:
        return None
    record = parse_commit_record(text)
    return record if record is not None and record.restore_point.id == header["restore_point_id"] else None


def named_restore_point(description: str) -> str | None:
    """The ID of the restore point that a snapshot's description names, in either form; None if it names none.

    Of a header it says nothing of whether the record behind it can be read.
    """
    header = _header(description)
    if header is not None:
        return str(header["restore_point_id"])
    record = parse_commit_record(description)
    return record.restore_point.id if record is not None else None


def is_header(description: str) -> bool:
    """Whether the record itself stands in the snapshot's extraConfig."""
    return _header(description) is not None


def parse_commit_record(description: str) -> CommitRecord | None:
    """A record that stands in the description itself.

    None: a foreign description, a damaged one, a header, or one of a newer format (`commit_record_format` tells).
    """
    content = _ours(description)
    if content is None or content["vrepl"] > INLINE_FORMAT:
        return None
    try:
        return from_value(CommitRecord, content)
    except ValidationError:
        return None


def commit_record_format(description: str) -> int | None:
    """The format version of a commit record; None for a foreign description."""
    content = _ours(description)
    return content["vrepl"] if content is not None else None


def _digest(text: str) -> str:
    return blake3(text.encode()).hexdigest(length=16)


def _header(description: str) -> dict[str, int | str] | None:
    content: dict[str, int | str] | None = _ours(description)  # type: ignore[assignment]
    if content is None or content["vrepl"] != COMMIT_RECORD_FORMAT:
        return None
    kinds = {"parts": int, "restore_point_id": str, "repository_id": str, "blake3": str}
    return content if all(isinstance(content.get(name), kind) for name, kind in kinds.items()) else None


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
