"""Digest sets: what they say of a restore point is right or unknown, through seals, removals, deaths and damage."""

from __future__ import annotations

import dataclasses
import random
import shutil
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.crash import dying
from vrepl.errors import RepositoryError
from vrepl.extents import GRAIN, Extent, from_grains
from vrepl.model import TransferKind
from vrepl.ports import DigestFiles, DigestLookup
from vrepl.repository import digests as digests_module
from vrepl.repository.digest_folder import BASE_NAME, DiskFolder
from vrepl.repository.digest_sets import DigestSet, open_lookup
from vrepl.repository.digest_writing import fold, merge_deltas, runs_of_entries, write_base, write_delta
from vrepl.repository.digests import (
    GRAINS_PER_PAGE,
    HEADER,
    PAGE,
    ZERO,
    encode_header,
    read_base_header,
    read_delta_header,
)
from vrepl.repository.intent import DiskIntent
from vrepl.repository.transferlog import DigestRun, TransferLogWriter

GRAINS = 3 * GRAINS_PER_PAGE + 10
CAPACITY = GRAINS * GRAIN - 512
"""Bytes: four pages of a base, the last of them short, and so is the last grain."""
WHOLE = (Extent(0, CAPACITY),)

Contents = dict[int, bytes]
"""Grain -> digest; what is not there is a zero grain."""


def digest(number: int) -> bytes:
    return b"D" + number.to_bytes(15, "big")


def everything(lookup: DigestSet) -> list[bytes | None]:
    return [lookup.digest_of(grain) for grain in range(GRAINS)]


def of(contents: Contents) -> list[bytes | None]:
    return [contents.get(grain, ZERO) for grain in range(GRAINS)]


def runs(contents: Contents) -> list[DigestRun]:
    return list(runs_of_entries(sorted(contents.items())))


def base_of(path: Path, name: str, contents: Contents) -> None:
    write_base(path, name, CAPACITY, runs(contents), background_known=True)


# Files


@pytest.mark.slow
def test_a_base_reads_back_and_leaves_holes_for_zeros(tmp_path: Path) -> None:
    path = tmp_path / BASE_NAME
    capacity = 1 << 40
    grains = capacity // GRAIN
    two_runs = [DigestRun(grains - 1, 1, digest(1)), DigestRun(5, 1, digest(2))]
    write_base(path, "r1", capacity, two_runs, background_known=True)
    assert path.stat().st_size > 200 * 1024 * 1024
    assert path.stat().st_blocks * 512 <= 64 * 1024
    assert path.stat().st_mode & 0o777 == 0o600
    lookup = open_lookup(DigestFiles(path), capacity)
    assert lookup.digest_of(grains - 1) == digest(1)
    assert list(lookup.not_zero(Extent(0, capacity))) == [Extent(5 * GRAIN, GRAIN), Extent(capacity - GRAIN, GRAIN)]
    lookup.close()


def test_a_lookup_is_what_the_pipeline_asks_for(tmp_path: Path) -> None:
    path = tmp_path / BASE_NAME
    base_of(path, "r1", {3: digest(3)})
    lookup: DigestLookup = open_lookup(DigestFiles(path), CAPACITY)
    assert lookup.digest_of(3) == digest(3)
    assert lookup.digest_of(4) == ZERO


@pytest.mark.parametrize("background_known", [True, False])
def test_grains_without_a_digest_are_zeros_or_unknown(tmp_path: Path, background_known: bool) -> None:
    path = tmp_path / BASE_NAME
    given_runs = [DigestRun(1, 2, digest(1) + ZERO), DigestRun(300, GRAINS_PER_PAGE, None)]
    write_base(path, "r1", CAPACITY, given_runs, background_known=background_known)
    lookup = open_lookup(DigestFiles(path), CAPACITY)
    zeros = {2, *range(300, 300 + GRAINS_PER_PAGE)}
    for grain in range(GRAINS):
        expected = digest(1) if grain == 1 else ZERO if grain in zeros or background_known else None
        assert lookup.digest_of(grain) == expected
    unknown = [] if background_known else from_grains(set(range(GRAINS)) - zeros - {1}, CAPACITY)
    assert list(lookup.unknown()) == unknown
    assert list(lookup.not_zero(WHOLE[0])) == (
        [Extent(GRAIN, GRAIN)] if background_known else from_grains(set(range(GRAINS)) - zeros, CAPACITY)
    )
    lookup.close()


def test_a_disk_created_empty_is_zeros_and_no_set_is_unknown() -> None:
    fresh = open_lookup(DigestFiles(None, fresh=True), CAPACITY)
    assert fresh.known
    assert fresh.digest_of(7) == ZERO
    assert list(fresh.not_zero(WHOLE[0])) == []
    nothing = open_lookup(DigestFiles(None), CAPACITY)
    assert not nothing.known
    assert nothing.digest_of(7) is None
    assert list(nothing.not_zero(WHOLE[0])) == list(WHOLE)
    assert fresh.digest_of(GRAINS) is None, "there is no such grain"


def two_points(folder: Path) -> tuple[DigestFiles, Contents]:
    before: Contents = {grain: digest(grain) for grain in range(0, 400, 2)}
    change: Contents = {4: digest(1004), 6: ZERO, 401: digest(1401), GRAINS - 1: digest(9)}
    base_of(folder / BASE_NAME, "r1", before)
    parent = open_lookup(DigestFiles(folder / BASE_NAME), CAPACITY)
    write_delta(folder / "r2.delta", "r2", "r1", CAPACITY, runs(change | {8: digest(8)}), parent)
    parent.close()
    after = {grain: value for grain, value in (before | change).items() if value != ZERO}
    return DigestFiles(folder / BASE_NAME, (folder / "r2.delta",), restore_point_id="r2"), after


def test_a_delta_changes_what_it_names_and_leaves_out_what_is_equal(tmp_path: Path) -> None:
    files, after = two_points(tmp_path)
    lookup = open_lookup(files, CAPACITY)
    assert everything(lookup) == of(after)
    lookup.close()
    header = read_delta_header(files.deltas[0])
    assert header is not None
    assert (header.entries, header.zero_ranges) == (3, 1)


def test_only_the_restore_point_asked_for_is_believed(tmp_path: Path) -> None:
    files, _ = two_points(tmp_path)
    assert open_lookup(files, CAPACITY).known
    for wrong in (
        dataclasses.replace(files, restore_point_id="r1"),
        dataclasses.replace(files, deltas=(*files.deltas, *files.deltas)),
        dataclasses.replace(files, base=tmp_path / "missing"),
        dataclasses.replace(files, deltas=(tmp_path / "missing.delta",)),
    ):
        assert not open_lookup(wrong, CAPACITY).known, wrong
    assert not open_lookup(files, CAPACITY + GRAIN).known, "another capacity"


def test_no_flipped_bit_of_a_delta_is_believed(tmp_path: Path) -> None:
    files, after = two_points(tmp_path)
    path = files.deltas[0]
    content = path.read_bytes()
    header_length = content.index(b"\n")
    for position in [*range(header_length), *range(HEADER, len(content), 7)]:
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        assert not open_lookup(files, CAPACITY).known, position
    for length in (0, 100, HEADER, len(content) - 1):
        path.write_bytes(content[:length])
        assert not open_lookup(files, CAPACITY).known, length
    path.write_bytes(content)
    assert everything(open_lookup(files, CAPACITY)) == of(after)


@pytest.mark.slow
def test_a_flipped_bit_of_a_base_makes_one_page_unknown(tmp_path: Path) -> None:
    path = tmp_path / BASE_NAME
    contents = {grain: digest(grain) for grain in range(GRAINS)}
    base_of(path, "r1", contents)
    content = path.read_bytes()
    for position in range(HEADER + PAGE, HEADER + 2 * PAGE, 5):
        path.write_bytes(content[:position] + bytes([content[position] ^ 8]) + content[position + 1 :])
        found = everything(open_lookup(DigestFiles(path), CAPACITY))
        expected: list[bytes | None] = list(of(contents))
        expected[GRAINS_PER_PAGE : 2 * GRAINS_PER_PAGE] = [None] * GRAINS_PER_PAGE
        assert found == expected, position
    path.write_bytes(content[: HEADER + PAGE])
    assert everything(open_lookup(DigestFiles(path), CAPACITY))[GRAINS_PER_PAGE:] == [None] * (GRAINS - GRAINS_PER_PAGE)


def test_pages_in_each_others_place_are_unknown(tmp_path: Path) -> None:
    path = tmp_path / BASE_NAME
    base_of(path, "r1", {grain: digest(grain) for grain in range(GRAINS)})
    content = path.read_bytes()
    first, second = content[HEADER : HEADER + PAGE], content[HEADER + PAGE : HEADER + 2 * PAGE]
    path.write_bytes(content[:HEADER] + second + first + content[HEADER + 2 * PAGE :])
    assert everything(open_lookup(DigestFiles(path), CAPACITY))[: 2 * GRAINS_PER_PAGE] == [None] * 2 * GRAINS_PER_PAGE


def test_a_newer_version_is_unknown_to_a_mover_and_refused_to_a_writer(tmp_path: Path) -> None:
    files, _ = two_points(tmp_path)
    assert files.base is not None
    header = read_base_header(files.base)
    assert header is not None
    content = bytearray(files.base.read_bytes())
    content[:HEADER] = encode_header(dataclasses.replace(header, version=digests_module.DIGESTS_VERSION + 1))
    files.base.write_bytes(content)
    assert not open_lookup(files, CAPACITY).known
    with pytest.raises(RepositoryError, match="this vrepl knows formats up to"):
        fold(files.base, files.deltas[0])
    assert files.base.read_bytes() == content


def test_a_medium_that_fails_in_mid_transfer_makes_the_set_unknown(tmp_path: Path) -> None:
    files, _ = two_points(tmp_path)
    lookup = open_lookup(files, CAPACITY)
    assert lookup.digest_of(0) == digest(0)
    content = bytearray(files.deltas[0].read_bytes())
    content[HEADER] ^= 1
    files.deltas[0].write_bytes(content)
    lookup._deltas[0]._cached = (-1, lookup._deltas[0]._cached[1], b"")
    assert lookup.digest_of(4) is None
    assert not lookup.known
    lookup.close()


@pytest.mark.parametrize("background_known", [True, False])
def test_fold_and_merge_say_what_the_chain_said(tmp_path: Path, background_known: bool) -> None:
    rng = random.Random(3)
    base, first, second = tmp_path / BASE_NAME, tmp_path / "r2.delta", tmp_path / "r3.delta"
    write_base(base, "r1", CAPACITY, runs({g: digest(g) for g in range(300)}), background_known=background_known)
    for path, name, parent in ((first, "r2", "r1"), (second, "r3", "r2")):
        change = {rng.randrange(GRAINS): rng.choice([ZERO, digest(rng.randrange(9999))]) for _ in range(200)}
        zeros = DigestRun(rng.randrange(GRAINS - 280), 280, None)
        write_delta(path, name, parent, CAPACITY, [*runs(change), zeros], None)
    expected = everything(open_lookup(DigestFiles(base, (first, second)), CAPACITY))
    middle = everything(open_lookup(DigestFiles(base, (first,)), CAPACITY))
    merged = tmp_path / "merged" / "r3.delta"
    merged.parent.mkdir()
    merged.write_bytes(second.read_bytes())
    merge_deltas(first, merged)
    assert everything(open_lookup(DigestFiles(base, (merged,), restore_point_id="r3"), CAPACITY)) == expected
    with pytest.raises(ValueError, match="does not follow"):
        fold(base, second)
    fold(base, first)
    assert not first.exists()
    assert everything(open_lookup(DigestFiles(base, restore_point_id="r2"), CAPACITY)) == middle
    fold(base, second)
    assert everything(open_lookup(DigestFiles(base, restore_point_id="r3"), CAPACITY)) == expected
    assert (None in expected) is not background_known


@pytest.mark.slow
def test_a_million_changed_grains_take_little_memory(tmp_path: Path) -> None:
    capacity = 1 << 40
    count = 1_000_000
    base, delta = tmp_path / BASE_NAME, tmp_path / "r2.delta"
    write_base(base, "r1", capacity, [], background_known=True)
    block = b"".join(digest(number) for number in range(1000))
    write_delta(delta, "r2", "r1", capacity, (DigestRun(at * 2000, 1000, block) for at in range(count // 1000)), None)
    tracemalloc.start()
    lookup = open_lookup(DigestFiles(base, (delta,)), capacity)
    assert lookup.digests_of(4000, 16) == block[:256]
    assert lookup.digests_of(1000, 16) == ZERO * 16
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    lookup.close()
    assert peak < 8 * 1024 * 1024
    assert delta.stat().st_size < 26 * count


# A disk's folder, against a model


def settle(folder: DiskFolder, attempt: int, contents: Contents, zeros: tuple[Extent, ...] = ()) -> None:
    log = TransferLogWriter(folder.log, CAPACITY, attempt)
    log.allow(CAPACITY)
    log.record(sorted(contents.items()))
    log.record_zeros(zeros)
    log.close()


def intent(
    planned: tuple[Extent, ...], parent: str | None = None, *, fresh: bool = False, attempt: int = 1
) -> DiskIntent:
    return DiskIntent(
        source_key=2000,
        kind=TransferKind.FULL if fresh else TransferKind.INCREMENTAL,
        capacity=CAPACITY,
        attempt=attempt,
        planned=planned,
        change_id=None,
        parent_restore_point_id=parent,
        fresh=fresh,
        dirty=(),
    )


@pytest.fixture
def folder(tmp_path: Path) -> DiskFolder:
    disk = DiskFolder(tmp_path / "2000")
    disk.make()
    return disk


def said(folder: DiskFolder, name: str) -> list[bytes | None]:
    lookup = open_lookup(folder.files_for(name), CAPACITY)
    try:
        return everything(lookup)
    finally:
        lookup.close()


def test_a_first_seal_takes_the_rest_as_zeros_and_the_next_builds_on_it(folder: DiskFolder) -> None:
    settle(folder, 1, {5: digest(5)}, (Extent(6 * GRAIN, CAPACITY - 6 * GRAIN), Extent(0, 5 * GRAIN)))
    folder.seal(intent(WHOLE, fresh=True), "r1", [])
    folder.log.unlink()
    assert said(folder, "r1") == of({5: digest(5)})
    settle(folder, 1, {5: ZERO, 6: digest(6)})
    folder.seal(intent((Extent(5 * GRAIN, 2 * GRAIN),), "r1"), "r2", ["r1"])
    assert said(folder, "r1") == of({5: digest(5)})
    assert said(folder, "r2") == of({6: digest(6)})
    assert said(folder, "r3") == [None] * GRAINS


def test_the_last_attempt_wins(folder: DiskFolder) -> None:
    settle(folder, 1, {1: digest(1), 2: digest(2)}, (Extent(3 * GRAIN, CAPACITY - 3 * GRAIN), Extent(0, GRAIN)))
    settle(folder, 2, {2: ZERO, 3: digest(33)})
    folder.seal(intent((Extent(2 * GRAIN, 2 * GRAIN),), fresh=True, attempt=2), "r1", [])
    assert said(folder, "r1") == of({1: digest(1), 3: digest(33)})


def test_a_log_that_does_not_show_all_that_was_planned_gives_no_set(folder: DiskFolder) -> None:
    settle(folder, 1, {5: digest(5)})
    folder.seal(intent(WHOLE, fresh=True), "r1", [])
    assert not folder.files_for("r1").known
    settle(folder, 1, {}, (Extent(0, 5 * GRAIN), Extent(6 * GRAIN, CAPACITY - 6 * GRAIN)))
    folder.seal(intent(WHOLE, fresh=True, attempt=2), "r1", [])
    assert not folder.files_for("r1").known, "done by attempt 1, but attempt 2 was to do it again"
    folder.seal(intent(WHOLE, fresh=True), "r1", [])
    assert said(folder, "r1") == of({5: digest(5)})


def test_a_seal_after_a_longer_log_does_not_believe_what_the_shorter_one_gave(folder: DiskFolder) -> None:
    settle(folder, 1, {5: digest(5)}, (Extent(0, 5 * GRAIN), Extent(6 * GRAIN, CAPACITY - 6 * GRAIN)))
    folder.seal(intent(WHOLE, fresh=True), "r1", [])
    settle(folder, 2, {5: digest(55)})
    folder.seal(intent((Extent(5 * GRAIN, GRAIN),), fresh=True, attempt=2), "r1", [])
    assert said(folder, "r1") == of({5: digest(55)})


def test_over_an_unknown_parent_only_what_was_settled_is_known(folder: DiskFolder) -> None:
    settle(folder, 1, {5: digest(5), 6: ZERO})
    folder.seal(intent((Extent(5 * GRAIN, 2 * GRAIN),), "lost"), "r2", ["lost"])
    expected: list[bytes | None] = [None] * GRAINS
    expected[5:7] = [digest(5), ZERO]
    assert said(folder, "r2") == expected
    folder.log.unlink()
    settle(folder, 1, {7: digest(7)})
    folder.seal(intent((Extent(7 * GRAIN, GRAIN),), "r2"), "r3", ["lost", "r2"])
    expected[7] = digest(7)
    assert said(folder, "r3") == expected
    folder.remove("r2")
    assert said(folder, "r3") == expected


def test_comparing_everything_over_an_unknown_parent_knows_everything(folder: DiskFolder) -> None:
    settle(folder, 1, {5: digest(5)}, (Extent(0, 5 * GRAIN), Extent(6 * GRAIN, CAPACITY - 6 * GRAIN)))
    folder.seal(intent(WHOLE, "lost"), "r2", ["lost"])
    assert said(folder, "r2") == of({5: digest(5)})
    assert (folder.path / BASE_NAME).stat().st_blocks * 512 <= 16 * 1024


def test_a_broken_chain_starts_a_second_base_and_keeps_the_first(folder: DiskFolder) -> None:
    settle(folder, 1, {}, WHOLE)
    folder.seal(intent(WHOLE, fresh=True), "r1", [])
    folder.log.unlink()
    settle(folder, 1, {5: digest(5)}, (Extent(0, 5 * GRAIN), Extent(6 * GRAIN, CAPACITY - 6 * GRAIN)))
    folder.seal(intent(WHOLE, "r2"), "r3", ["r1", "r2"])
    assert said(folder, "r1") == of({})
    assert said(folder, "r3") == of({5: digest(5)})
    folder.remove("r1")
    folder.remove("r2")
    assert said(folder, "r3") == of({5: digest(5)})


def test_digests_read_from_the_disk_serve_what_builds_on_it(folder: DiskFolder) -> None:
    settle(folder, 1, {5: digest(5)})
    folder.seal(intent((Extent(5 * GRAIN, GRAIN),), "lost"), "r1", ["lost"])
    folder.log.unlink()
    settle(folder, 1, {7: digest(7)})
    folder.seal(intent((Extent(7 * GRAIN, GRAIN),), "r1"), "r2", ["r1"])
    folder.log.unlink()
    whole = ((grain, digest(5) if grain == 5 else ZERO) for grain in range(GRAINS))
    folder.write_set("r1", CAPACITY, whole, ["r1", "r2"])
    assert said(folder, "r1") == of({5: digest(5)})
    assert said(folder, "r2") == of({5: digest(5), 7: digest(7)})
    folder.write_set("r2", CAPACITY, ((grain, digest(grain)) for grain in range(GRAINS)), ["r1", "r2"])
    assert said(folder, "r1") == of({5: digest(5)})
    assert said(folder, "r2") == of({grain: digest(grain) for grain in range(GRAINS)})


def test_discard_takes_the_log_and_what_an_unfinished_seal_made(folder: DiskFolder) -> None:
    settle(folder, 1, {5: digest(5)}, (Extent(0, 5 * GRAIN), Extent(6 * GRAIN, CAPACITY - 6 * GRAIN)))
    folder.seal(intent(WHOLE, fresh=True), "r1", [])
    folder.log.unlink()
    settle(folder, 1, {6: digest(6)})
    folder.seal(intent((Extent(6 * GRAIN, GRAIN),), "r1"), "r2", ["r1"])
    folder.discard(["r1"])
    assert [path.name for path in folder.path.iterdir()] == [BASE_NAME]
    assert said(folder, "r1") == of({5: digest(5)})


change = st.tuples(
    st.dictionaries(st.integers(0, GRAINS - 1), st.one_of(st.just(ZERO), st.integers(0, 3).map(digest)), max_size=12),
    st.lists(st.tuples(st.integers(0, GRAINS - 1), st.integers(1, 300)), max_size=2),
)
operations = st.lists(
    st.tuples(
        st.one_of(
            st.tuples(st.just("seal"), st.lists(change, min_size=1, max_size=3)),
            st.tuples(st.just("remove"), st.integers(0, 5)),
        ),
        st.lists(st.integers(0, 30), max_size=2),
        st.booleans(),
    ),
    min_size=1,
    max_size=8,
)


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(operations=operations)
def test_seals_and_removals_that_die_anywhere_and_are_done_again(
    tmp_path_factory: pytest.TempPathFactory,
    operations: list[tuple[tuple[str, object], list[int], bool]],
) -> None:
    """A dict per restore point is the model. Each operation dies at the given steps, then is done to the end."""
    folder = DiskFolder(tmp_path_factory.mktemp("disk") / "2000")
    points: dict[str, Contents] = {}
    torn = False
    for number, ((name, argument), deaths, tear) in enumerate(operations, start=1):
        if name == "seal":
            parent = list(points)[-1] if points else None
            contents = dict(points[parent]) if parent else {}
            folder.make()
            with dying():
                touched: set[int] = set()
                for attempt, (grains, ranges) in enumerate(argument, start=1):  # type: ignore[arg-type, var-annotated]
                    zeros = tuple(
                        Extent(at * GRAIN, min((at + count) * GRAIN, CAPACITY) - at * GRAIN) for at, count in ranges
                    )
                    cleared = {grain for at, count in ranges for grain in range(at, min(at + count, GRAINS))}
                    settle(folder, attempt, grains, zeros)
                    contents |= grains | dict.fromkeys(cleared, ZERO)
                    touched = set(grains) | cleared
            planned = tuple(from_grains(touched, CAPACITY))
            order = intent(planned, parent, fresh=parent is None, attempt=len(argument))  # type: ignore[arg-type]
            contents = {grain: value for grain, value in contents.items() if value != ZERO}
            for die_at in deaths:
                with dying(die_at, tear=tear):
                    folder.seal(order, f"r{number}", list(points))
                check(folder, {} if torn else points, points)
                with dying():
                    folder.recover()
            with dying():
                folder.seal(order, f"r{number}", list(points))
                folder.log.unlink()
            points[f"r{number}"] = contents
        elif points:
            gone = list(points)[int(str(argument)) % len(points)]
            contents = points.pop(gone)
            for die_at in deaths:
                with dying(die_at, tear=tear):
                    folder.remove(gone)
                check(folder, {}, {gone: contents, **points})
                with dying():
                    folder.recover()
                # A page torn by a power failure costs what it said; a killed process tears none.
                torn = torn or tear
                check(folder, {} if torn else points, {gone: contents, **points})
            with dying():
                folder.remove(gone)
            assert not folder.files_for(gone).known
        check(folder, {} if torn else points, points)
    problems: list[str] = []
    if folder.path.is_dir():
        folder.check(list(points), lambda path, message: problems.append(f"{path.name} {message}"))
        kept = {*points, "base", *(f"base-{point}" for point in points)}
        assert {path.stem for path in folder.path.iterdir()} <= kept
    assert problems == []


def check(folder: DiskFolder, right: dict[str, Contents], perhaps: dict[str, Contents]) -> None:
    """What a set says is right, or (only in the middle of a change that died) unknown."""
    for name, contents in right.items():
        assert said(folder, name) == of(contents), name
    for name, contents in perhaps.items():
        for found, expected in zip(said(folder, name), of(contents), strict=True):
            assert found in {expected, None}, name


@pytest.mark.parametrize("tear", [False, True])
def test_a_fold_that_dies_at_any_step_is_done_again(tmp_path: Path, tear: bool) -> None:
    folder = DiskFolder(tmp_path / "whole")
    folder.make()
    before = {grain: digest(grain) for grain in range(GRAINS)}
    base_of(folder.path / BASE_NAME, "r1", before)
    change: Contents = {3: digest(1003), 300: ZERO, GRAINS - 1: digest(7)}
    write_delta(folder.path / "r2.delta", "r2", "r1", CAPACITY, runs(change), None)
    after = of({grain: value for grain, value in (before | change).items() if value != ZERO})
    with dying() as steps:
        fold_copy = DiskFolder(tmp_path / "count")
        shutil.copytree(folder.path, fold_copy.path)
        fold_copy.remove("r1")
    for die_at in range(len(steps.made)):
        copy = DiskFolder(tmp_path / f"copy{die_at}")
        shutil.copytree(folder.path, copy.path)
        with dying(die_at, tear=tear):
            copy.remove("r1")
        for name, right in (("r1", of(before)), ("r2", after)):
            assert all(found in {expected, None} for found, expected in zip(said(copy, name), right, strict=True))
        copy.recover()
        found = said(copy, "r2")
        lost = [grain for grain in range(GRAINS) if found[grain] != after[grain]]
        assert all(found[grain] is None for grain in lost)
        # A page that was torn in mid-write keeps only what the delta says of it; others lose nothing.
        assert len({grain // GRAINS_PER_PAGE for grain in lost}) <= (1 if tear else 0)
        assert not set(lost) & set(change)
        copy.remove("r1")
        assert copy.files_for("r2").deltas == ()


def test_a_base_that_is_being_folded_describes_nothing(folder: DiskFolder) -> None:
    files, _ = two_points(folder.path)
    assert files.base is not None
    with dying(2, tear=False):
        fold(files.base, files.deltas[0])
    header = read_base_header(files.base)
    assert header is not None
    assert (header.restore_point_id, header.folding_into) == ("r1", "r2")
    for name in ("r1", "r2"):
        assert not folder.files_for(name).known
    assert not open_lookup(DigestFiles(files.base), CAPACITY).known
    assert not open_lookup(DigestFiles(files.base, files.deltas), CAPACITY).known
