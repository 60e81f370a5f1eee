"""The intent on disk: what was saved comes back, whole, whenever the process died."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.crash import dying
from vrepl.errors import RepositoryError
from vrepl.extents import GRAIN, Extent
from vrepl.model import Side, TransferKind
from vrepl.repository.documents import with_checksum
from vrepl.repository.intent import (
    DiskIntent,
    HotAddedDisks,
    Intent,
    Journal,
    PreparedAccess,
    clear_intent,
    load_intent,
    save_intent,
)

DISK = DiskIntent(
    source_key=2000,
    kind=TransferKind.INCREMENTAL,
    capacity=1 << 30,
    attempt=2,
    planned=(Extent(0, GRAIN), Extent(8 * GRAIN, 2 * GRAIN)),
    change_id="52 ab/17",
    parent_restore_point_id="20240314T120000Z-0a1b2c",
    fresh=False,
    dirty=(Extent(8 * GRAIN, GRAIN),),
    allocated_only=True,
)
INTENT = Intent(
    run_id="0a1b2c",
    restore_point_id="20240314T130000Z-0a1b2d",
    job="nightly",
    disks=(DISK,),
    journal=Journal(
        prepared_for_access=(PreparedAccess("prod", "vm-1", "vrepl-0a1b2c"),),
        hotadd_cleanup=(HotAddedDisks(Side.SOURCE, "vm-1", ""), HotAddedDisks(Side.TARGET, "vm-2", "far:proxy")),
        notes={"ü": "ö"},
    ),
)


def test_an_intent_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "intent.json"
    assert load_intent(path) is None
    save_intent(path, INTENT)
    assert load_intent(path) == INTENT
    assert path.stat().st_mode & 0o777 == 0o600
    loaded = load_intent(path)
    assert loaded is not None
    assert loaded.disk(2000) == DISK
    assert loaded.disk(2001) is None
    assert isinstance(loaded.disks[0].planned[0], Extent)
    clear_intent(path)
    clear_intent(path)
    assert load_intent(path) is None


def test_hotadd_entries_are_read_as_every_vrepl_wrote_them(tmp_path: Path) -> None:
    path = tmp_path / "intent.json"
    save_intent(path, INTENT)
    content = json.loads(path.read_text())
    assert content["journal"]["hotadd_cleanup"] == ["source:vm-1:", "target:vm-2:far:proxy"]
    content["journal"] |= {"hotadd_cleanup": ["target:vm-2"], "source_vm_ref": None, "made_target_vm": False}
    path.write_text(json.dumps(with_checksum(content)))
    loaded = load_intent(path)
    assert loaded is not None
    assert loaded.journal.hotadd_cleanup == (HotAddedDisks(Side.TARGET, "vm-2", None),)


def test_a_newer_intent_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "intent.json"
    save_intent(path, INTENT)
    content = with_checksum(json.loads(path.read_text()) | {"format": 3})
    path.write_text(json.dumps(with_checksum(content)))
    with pytest.raises(RepositoryError, match=r"intent\.json has format 3; this vrepl knows formats up to 2") as raised:
        load_intent(path)
    assert "newer vrepl" in (raised.value.hint or "")
    assert json.loads(path.read_text()) == content


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is damaged"),
        ("[]", "no JSON object"),
        ("{}", "no format version"),
        ('{"format": true}', "no format version"),
        ('{"format": 1, "run_id": "x"}', "restore_point_id: Field required"),
        ('{"format": 1, "run_id": 7}', "run_id"),
    ],
)
def test_a_damaged_intent_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "intent.json"
    path.write_text(text)
    with pytest.raises(RepositoryError, match=message) as raised:
        load_intent(path)
    assert str(path) in raised.value.message


def test_the_new_content_is_synced_before_it_takes_the_name_and_the_name_after(tmp_path: Path) -> None:
    with dying() as steps:
        save_intent(tmp_path / "intent.json", INTENT)
    assert steps.made[-3:] == ["fsync", "replace", "fsync"]
    assert "pwrite" not in steps.made[-3:]


@settings(deadline=None, max_examples=40)
@given(die_at=st.integers(0, 8), tear=st.booleans())
def test_after_dying_in_a_save_the_old_or_the_new_one_is_there(
    tmp_path_factory: pytest.TempPathFactory, die_at: int, tear: bool
) -> None:
    path = tmp_path_factory.mktemp("intent") / "intent.json"
    save_intent(path, INTENT)
    newer = Intent("other", "point", "job")
    with dying(die_at, tear=tear) as steps:
        save_intent(path, newer)
    assert load_intent(path) == (newer if "replace" in steps.made[:die_at] else INTENT)
    save_intent(path, newer)
    assert load_intent(path) == newer


@pytest.mark.slow
def test_a_hundred_thousand_extents_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "intent.json"
    many = tuple(Extent(at * 2 * GRAIN, GRAIN) for at in range(100_000))
    disk = DiskIntent(2000, TransferKind.COMPARE, 1 << 40, 1, many, None, None, True, many)
    save_intent(path, Intent("run", "point", "job", (disk,)))
    loaded = load_intent(path)
    assert loaded is not None
    assert loaded.disks == (disk,)
