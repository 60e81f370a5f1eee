"""A commit record is read back from where it was written, or not at all: one that was cut is no commit."""

from __future__ import annotations

import datetime as dt
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrepl.model import Consistency, DiskPoint, RestorePoint, TransferKind
from vrepl.repository.commit_record import (
    COMMIT_RECORD_FORMAT,
    INLINE_LIMIT,
    CommitRecord,
    ReplicaMark,
    commit_record_format,
    is_header,
    lay_out,
    named_restore_point,
    parse_commit_record,
    read_commit_record,
    read_mark,
)


def record(disks: int) -> CommitRecord:
    points = tuple(
        DiskPoint(
            source_key=2000 + number, index=number, label=f"Hard disk {number + 1}", capacity=1 << 30,
            source_disk_uuid=f"6000C29{number:029x}", source_base_path=f"[prod-vmfs-01] web-01/web-01_{number}.vmdk",
            change_id=f"52 de c0 d9 b9 43 9d 10-61 d5 4c 1b e9 7b 65 {number:02x}/{number}", target_key=2000 + number,
            kind=TransferKind.INCREMENTAL, bytes_moved=number << 20,
        )
        for number in range(disks)
    )  # fmt: skip
    return CommitRecord(
        "repo-1", "prod", "50226f00-0000-0000-0000-00000000000a", "web-01",
        RestorePoint(
            id="20261124T080000Z-abcdef", time=dt.datetime(2026, 11, 24, 8, tzinfo=dt.UTC), run_id="run", job="web",
            consistency=Consistency.QUIESCED, snapshot_name="vrepl 20261124T080000Z-abcdef", parent_id=None,
            disks=points,
        ),
    )  # fmt: skip


def test_a_short_record_stands_in_the_description() -> None:
    text = lay_out(record(2))
    assert text.is_inline
    assert read_commit_record(text.description, {}) == record(2) == parse_commit_record(text.description)
    assert not is_header(text.description)


def test_a_record_of_60_disks_stands_in_extra_config() -> None:
    whole = record(60)
    text = lay_out(whole)
    assert len(text.description) < 255
    assert sum(map(len, text.extra_config.values())) > INLINE_LIMIT * 4
    assert all(key.startswith("vrepl.commit.") and value.isascii() for key, value in text.extra_config.items())
    assert read_commit_record(text.description, {**text.extra_config, "vrepl.run": "x"}) == whole
    assert named_restore_point(text.description) == whole.restore_point.id
    assert is_header(text.description)


def test_a_short_record_that_did_not_survive_can_go_to_extra_config_too() -> None:
    text = lay_out(record(1), inline=False)
    assert not text.is_inline
    assert read_commit_record(text.description, text.extra_config) == record(1)


def test_a_vrepl_that_knows_no_headers_sees_a_newer_format() -> None:
    assert commit_record_format(lay_out(record(60)).description) == COMMIT_RECORD_FORMAT
    assert parse_commit_record(lay_out(record(60)).description) is None


@given(inline=st.booleans(), where=st.floats(0, 1), part=st.integers(0, 2), drop=st.booleans())
def test_whatever_is_cut_is_no_commit(inline: bool, where: float, part: int, drop: bool) -> None:
    text = lay_out(record(3 if inline else 60), inline=inline)
    if inline:
        cut = text.description[: int(len(text.description) * where * 0.999)]
        assert read_commit_record(cut, {}) is None
        assert named_restore_point(cut) is None
        return
    key = f"vrepl.commit.{part}"
    keys = dict(text.extra_config)
    if drop:
        del keys[key]
    else:
        keys[key] = keys[key][: int(len(keys[key]) * where * 0.999)]
    assert read_commit_record(text.description, keys) is None
    cut = text.description[: int(len(text.description) * where * 0.999)]
    assert read_commit_record(cut, text.extra_config) is None


def test_parts_of_another_record_are_not_taken_for_it() -> None:
    """A revert brings old extraConfig back; the digest tells."""
    old, new = lay_out(record(59)), lay_out(record(60))
    assert read_commit_record(new.description, old.extra_config) is None


@pytest.mark.parametrize(
    "header",
    [{"vrepl": 2}, {"vrepl": 2, "parts": "3", "restore_point_id": "x", "repository_id": "r", "blake3": "0"}],
)
def test_a_header_that_makes_no_sense_is_none(header: dict[str, object]) -> None:
    assert read_commit_record(json.dumps(header), {}) is None
    assert named_restore_point(json.dumps(header)) is None


def test_a_clone_inherits_the_mark_but_not_the_identity() -> None:
    mark = ReplicaMark("repo-1", "prod", "source-uuid", "run", replica_instance_uuid="replica-uuid")
    read = read_mark(mark.to_extra_config())
    assert read == mark
    assert read is not None
    assert read.is_of("replica-uuid")
    assert not read.is_of("clone-uuid")
    older = read_mark(ReplicaMark("repo-1", "prod", "source-uuid", "run").to_extra_config())
    assert older is not None
    assert older.is_of("whatever"), "marks of before the identity was written down tell nothing of it"
