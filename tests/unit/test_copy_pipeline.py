"""The copy pipeline's promises, on memory disks: what it writes, skips, reads, records; and how it fails."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.memory_disk import MemoryDisk, MemoryHandle
from tests.support.memory_records import MemoryDigests, MemoryLog
from vrepl.errors import DiskError, InterruptedRunError, VerificationError
from vrepl.extents import GRAIN, Extent, from_grains, grain_count, total
from vrepl.model import TransferKind, TransportMode
from vrepl.ports import DigestFiles, DiskAddress, TransferOrder, TransferProgress
from vrepl.transport import checkpoints
from vrepl.transport.buffers import LARGEST
from vrepl.transport.decorators import CountingDisk, FailingDisk, LateDisk
from vrepl.transport.grains import ZERO_DIGEST, digest
from vrepl.transport.hooks import Point, SimulatedKill
from vrepl.transport.pipeline import Pipeline
from vrepl.transport.slots import Slot
from vrepl.transport.transfer import copy_disk, verify_disk
from vrepl.transport.tuning import Tuning

SHORT = 1536
MIB = 1 << 20


def order_of(
    capacity: int,
    *,
    regions: list[Extent] | None = None,
    allocated_only: bool = True,
    dirty: list[Extent] | None = None,
    compare_with_target: bool = False,
) -> TransferOrder:
    address = DiskAddress("prod", "vm-1", None, "[a] b.vmdk", capacity, (TransportMode.NBDSSL,), "web-01", "disk 0")
    return TransferOrder(
        kind=TransferKind.FULL,
        source=address,
        target=address,
        regions=[Extent(0, capacity)] if regions is None else regions,
        allocated_only=allocated_only,
        dirty=dirty or [],
        parent=DigestFiles(None),
        compare_with_target=compare_with_target,
        log=Path("unused"),
    )


def fill(capacity: int, grains: dict[int, int]) -> MemoryDisk:
    """Grain -> byte value it is filled with; 0 is an allocated grain of zeros; others are holes."""
    disk = MemoryDisk(capacity)
    for grain, value in grains.items():
        disk.write(grain * GRAIN, bytes([value]) * min(GRAIN, capacity - grain * GRAIN))
    return disk


def digests_of(disk: MemoryDisk) -> dict[int, bytes]:
    return {
        grain: digest(disk.read(grain * GRAIN, min(GRAIN, disk.capacity - grain * GRAIN)))
        for grain in range(grain_count(disk.capacity))
    }


GRAINS = st.dictionaries(st.integers(0, 39), st.integers(0, 2), max_size=40)
TUNINGS = st.sampled_from([Tuning(4, 0), Tuning(2, 0), Tuning(3, 2)])


HOLE = None
BYTE = st.sampled_from([HOLE, 0, 1, 2])
"""What fills a grain: nothing, allocated zeros, or one of two kinds of data."""
FATE = st.tuples(BYTE, BYTE, st.one_of(st.just("untouched"), BYTE), st.booleans(), st.integers(0, 3).map(bool))
"""Of one grain: source, target when sealed, what was scribbled since, whether its digest is known, whether wanted."""


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(
    fates=st.lists(FATE, min_size=24, max_size=24),
    allocated_only=st.booleans(),
    compare_with_target=st.booleans(),
    splits_zeros=st.booleans(),
    knows=st.booleans(),
    block=st.sampled_from([MIB, LARGEST]),
    tuning=TUNINGS,
)
def test_a_transfer_makes_its_regions_equal_and_touches_nothing_else(
    fates: list[tuple[int | None, int | None, int | str | None, bool, bool]],
    allocated_only: bool,
    compare_with_target: bool,
    splits_zeros: bool,
    knows: bool,
    block: int,
    tuning: Tuning,
) -> None:
    capacity = 23 * GRAIN + SHORT
    source_disk = fill(capacity, {grain: fate[0] for grain, fate in enumerate(fates) if fate[0] is not None})
    target = fill(capacity, {grain: fate[1] for grain, fate in enumerate(fates) if fate[1] is not None})
    sealed = digests_of(target)
    parent = {grain: sealed[grain] for grain, fate in enumerate(fates) if fate[3]}
    dirty = [grain for grain, fate in enumerate(fates) if fate[2] != "untouched"]
    for grain in dirty:  # writes since the seal: the digests lie about these
        value = fates[grain][2]
        offset, length = grain * GRAIN, min(GRAIN, capacity - grain * GRAIN)
        if isinstance(value, int):
            target.write(offset, bytes([value]) * length)
        else:
            target.unmap(Extent(offset, length))
    before = target.clone()
    regions = {grain for grain, fate in enumerate(fates) if fate[4]}
    wanted = from_grains(regions, capacity)
    log = MemoryLog()
    writer = CountingDisk(MemoryHandle(target, writable=True, splits_zeros=splits_zeros, block=block))
    order = order_of(
        capacity, regions=wanted, allocated_only=allocated_only,
        dirty=from_grains(dirty, capacity), compare_with_target=compare_with_target,
    )  # fmt: skip

    pipeline = copy_disk(
        order,
        MemoryHandle(source_disk, knows_allocated=knows, block=LARGEST),
        writer,
        MemoryDigests(parent),
        log,
        tuning=tuning,
    )
    writer.close()

    truth = digests_of(source_disk)
    for grain in range(24):
        offset, length = grain * GRAIN, min(GRAIN, capacity - grain * GRAIN)
        expected = source_disk if grain in regions else before
        assert target.read(offset, length) == expected.read(offset, length)
    assert log.done == {grain: truth[grain] for grain in regions}
    assert pipeline.totals.moved == writer.bytes_written
    assert pipeline.totals.moved + pipeline.totals.skipped == total(wanted)
    assert writer.written_outside(wanted) == []
    assert all(extent.end <= log.allowed for extent in writer.writes)
    written = {extent.offset // GRAIN for extent in writer.writes_in_grains()}
    assert written >= regions & set(dirty), "a grain that may be dirty is written whatever it seems to hold"


@settings(deadline=None)
@given(sealed=GRAINS, changed=st.sets(st.integers(0, 39)))
def test_nothing_that_is_surely_equal_is_written(sealed: dict[int, int], changed: set[int]) -> None:
    capacity = 40 * GRAIN
    target = fill(capacity, sealed)
    source = target.clone()
    for grain in changed:
        source.write(grain * GRAIN, b"changed!" * (GRAIN // 8))
    writer = CountingDisk(MemoryHandle(target, writable=True))
    copy_disk(order_of(capacity), MemoryHandle(source), writer, MemoryDigests(digests_of(target)), MemoryLog())
    assert {extent.offset // GRAIN for extent in writer.writes_in_grains()} == changed


def test_a_huge_sparse_disk_costs_only_what_is_allocated() -> None:
    capacity = 1 << 40
    source = fill(capacity, {7: 1, 1 << 20: 2})

    class ExtentLog(MemoryLog):
        def __init__(self) -> None:
            super().__init__()
            self.zeros: list[Extent] = []

        def record_zeros(self, extents: Iterable[Extent]) -> None:
            self.zeros.extend(extents)

    log = ExtentLog()

    class Fresh(MemoryDigests):
        def not_zero(self, extent: Extent) -> Iterator[Extent]:
            return iter(())

    target = MemoryDisk(capacity)
    pipeline = copy_disk(
        order_of(capacity), MemoryHandle(source), MemoryHandle(target, writable=True), Fresh({}, fresh=True), log
    )
    assert pipeline.totals.read == pipeline.totals.moved == 2 * GRAIN
    assert len(log.done) == 2
    assert total(log.zeros) == capacity - 2 * GRAIN
    assert pipeline.totals.skipped == capacity - 2 * GRAIN


def test_small_changes_close_together_are_read_in_one_call_but_gaps_are_not_written() -> None:
    capacity = 32 * GRAIN
    source = CountingDisk(MemoryHandle(fill(capacity, dict.fromkeys(range(32), 1))))
    target = CountingDisk(MemoryHandle(MemoryDisk(capacity), writable=True))
    regions = from_grains([0, 2, 9, 20], capacity)
    pipeline = copy_disk(order_of(capacity, regions=regions), source, target, MemoryDigests({}), MemoryLog())
    assert source.reads == [Extent(0, 3 * GRAIN), Extent(9 * GRAIN, GRAIN), Extent(20 * GRAIN, GRAIN)]
    assert pipeline.totals.read == 5 * GRAIN
    assert target.writes_in_grains() == [Extent(grain * GRAIN, GRAIN) for grain in (0, 2, 9, 20)]


@pytest.mark.parametrize("hashers", [0, 2])
@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.slow
def test_the_first_error_stops_the_transfer_and_what_is_sure_is_recorded(
    side: str, hashers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LEAST_SECONDS", "LEAST_BYTES", "SHARE"):  # a checkpoint whenever anything is settled
        monkeypatch.setattr(checkpoints, name, 0)
    capacity = 64 * MIB
    source_disk = fill(capacity, dict.fromkeys(range(1024), 3))
    target_disk = MemoryDisk(capacity)
    source = MemoryHandle(source_disk)
    target = MemoryHandle(target_disk, writable=True)
    log = MemoryLog()
    error = DiskError("lost", code=14011, offset=20 * MIB)
    late = LateDisk(FailingDisk(target, {"write": (20, error)}) if side == "target" else target, 0.001)
    with pytest.raises(DiskError) as caught:
        copy_disk(
            order_of(capacity),
            FailingDisk(source, {"read": (20, error)}) if side == "source" else source,
            late,
            MemoryDigests({}),
            log,
            tuning=Tuning(4, hashers),
        )
    late.wait()
    target.abandon()
    assert caught.value is error
    assert len(log.done) < 1024
    if side == "source":
        assert len(log.done) >= 15 * 16
    for grain, value in log.done.items():
        assert digest(target_disk.read(grain * GRAIN, GRAIN)) == value


def test_a_failed_flush_records_nothing() -> None:
    capacity = 4 * MIB
    log = MemoryLog()
    target = MemoryHandle(MemoryDisk(capacity), writable=True)
    with pytest.raises(DiskError, match="no room"):
        copy_disk(
            order_of(capacity), MemoryHandle(fill(capacity, {1: 1})),
            FailingDisk(target, {"flush": (1, DiskError("no room", code=8))}), MemoryDigests({}), log,
        )  # fmt: skip
    assert log.done == {}


def test_stop_ends_the_transfer_with_a_valid_checkpoint() -> None:
    capacity = 32 * MIB
    source_disk, target_disk = fill(capacity, dict.fromkeys(range(512), 9)), MemoryDisk(capacity)
    log = MemoryLog()
    running: list[Pipeline] = []

    def hook(point: Point, settled: int) -> None:
        if settled >= 8 * MIB:
            running[0].stop()

    with pytest.raises(InterruptedRunError):
        copy_disk(
            order_of(capacity), MemoryHandle(source_disk), MemoryHandle(target_disk, writable=True),
            MemoryDigests({}), log, hook=hook, running=lambda pipeline, on: running.append(pipeline),
        )  # fmt: skip
    assert 8 * MIB <= len(log.done) * GRAIN < capacity
    assert all(digest(target_disk.read(grain * GRAIN, GRAIN)) == value for grain, value in log.done.items())


@settings(deadline=None, max_examples=60)
@given(
    source=GRAINS,
    point=st.sampled_from(list(Point)),
    at=st.integers(0, 3),
    survivors=st.sets(st.integers(0, 50)),
)
@pytest.mark.slow
def test_after_a_kill_what_is_recorded_is_true_and_what_was_issued_was_allowed(
    source: dict[int, int], point: Point, at: int, survivors: set[int]
) -> None:
    capacity = 39 * GRAIN + SHORT
    source_disk, target_disk = fill(capacity, source), MemoryDisk(capacity)
    target = MemoryHandle(target_disk, writable=True)
    log = MemoryLog()
    seen = 0

    def hook(now: Point, settled: int) -> None:
        nonlocal seen
        if now == point:
            seen += 1
            if seen > at:
                raise SimulatedKill

    try:
        copy_disk(
            order_of(capacity), MemoryHandle(source_disk), target, MemoryDigests({}, fresh=True), log,
            tuning=Tuning(2, 0), hook=hook,
        )  # fmt: skip
        target.close()
    except SimulatedKill:
        target.abandon(lambda number: number in survivors)
    for grain, value in log.done.items():
        assert digest(target_disk.read(grain * GRAIN, min(GRAIN, capacity - grain * GRAIN))) == value
    for grain in range(40):
        if grain * GRAIN >= log.allowed:
            assert not any(target_disk.read(grain * GRAIN, min(GRAIN, capacity - grain * GRAIN)))


@pytest.mark.parametrize("hashers", [0, 2])
def test_verify_names_every_grain_that_differs(hashers: int) -> None:
    capacity = 40 * GRAIN + SHORT
    disk = fill(capacity, {1: 1, 5: 5, 6: 6, 30: 0, 40: 4})
    known = digests_of(disk)
    tuning = Tuning(3, hashers)
    assert verify_disk(MemoryHandle(disk), MemoryDigests(known), tuning=tuning)[1].bad_grains == []
    disk.write(5 * GRAIN + 100 * 512, b"flip" * 128)  # allocated and different
    disk.unmap(Extent(6 * GRAIN, GRAIN))  # should hold data, is a hole
    disk.write(30 * GRAIN, b"junk" * 128)  # should be zeros
    disk.write(40 * GRAIN, b"tail" * 128)
    rule = verify_disk(MemoryHandle(disk), MemoryDigests(known), tuning=tuning)[1]
    assert sorted(rule.bad_grains) == [5, 6, 30, 40]
    assert rule.zeroed_grains == [6], "what a guest may have given back is told apart"


def test_verify_looks_only_where_it_is_told_to() -> None:
    """As at what change tracking hints at: of a part it is no error that a grain has no digest."""
    disk = fill(40 * GRAIN + SHORT, {1: 1, 5: 5, 40: 4})
    known = digests_of(disk)
    del known[2]
    disk.write(5 * GRAIN, b"junk" * 128)
    disk.write(20 * GRAIN, b"junk" * 128)
    disk.write(40 * GRAIN, b"junk" * 128)
    regions = [Extent(0, 8 * GRAIN), Extent(40 * GRAIN, SHORT)]
    pipeline, rule = verify_disk(MemoryHandle(disk), MemoryDigests(known), regions)
    assert sorted(rule.bad_grains) == [5, 40]
    assert rule.unknown_grains == 1
    assert pipeline.totals.read == 2 * GRAIN + SHORT


def test_verify_does_not_pass_what_it_cannot_compare() -> None:
    disk = fill(8 * GRAIN, {1: 1})
    known = digests_of(disk)
    del known[3]
    with pytest.raises(VerificationError, match="1 grain"):
        verify_disk(MemoryHandle(disk), MemoryDigests(known))


def test_progress_ends_with_everything_settled() -> None:
    capacity = 8 * MIB
    seen: list[tuple[int, int, int, int]] = []

    def progress(figures: TransferProgress) -> None:
        seen.append((figures.planned, figures.settled, figures.bytes_read, figures.bytes_moved))

    copy_disk(
        order_of(capacity), MemoryHandle(fill(capacity, {0: 1, 100: 2})),
        MemoryHandle(MemoryDisk(capacity), writable=True), MemoryDigests({}, fresh=True), MemoryLog(),
        progress=progress,
    )  # fmt: skip
    assert seen[-1] == (capacity, capacity, 2 * GRAIN, 2 * GRAIN)


def test_a_target_that_waits_gets_a_block_before_the_next_is_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    hash_slot = Slot.hash

    def noted(slot: Slot) -> None:
        steps.append("hash")
        hash_slot(slot)

    monkeypatch.setattr(Slot, "hash", noted)
    source = fill(64 * GRAIN, dict.fromkeys(range(64), 1))  # four blocks, which are all read at once
    target = MemoryHandle(MemoryDisk(64 * GRAIN), writable=True)
    copy_disk(
        order_of(64 * GRAIN), MemoryHandle(source), target, MemoryDigests({}), MemoryLog(), tuning=Tuning(16, 0),
        hook=lambda point, settled: steps.append("write") if point is Point.WRITE else None,
    )  # fmt: skip
    assert steps.count("hash") == steps.count("write") == 4
    assert steps[:2] == ["hash", "write"]


@pytest.mark.slow
def test_what_was_waited_for_is_told_by_who_held_the_buffers() -> None:
    """Each call of one disk takes 20 ms, the other answers at once: the report names the right bottleneck."""
    capacity = 8 * MIB
    disks = {
        "source": MemoryHandle(fill(capacity, dict.fromkeys(range(128), 1))),
        "target": MemoryHandle(MemoryDisk(capacity), writable=True),
    }
    for slow, fast in (("source", "target"), ("target", "source")):
        both = disks | {slow: LateDisk(disks[slow], 0.02)}
        pipeline = copy_disk(
            order_of(capacity), both["source"], both["target"], MemoryDigests({}), MemoryLog(), tuning=Tuning(2, 1)
        )
        waits = pipeline.waits.as_dict()
        assert waits[slow] > 0.08
        assert waits[slow] > waits[fast]


def test_disks_of_different_size_are_refused() -> None:
    with pytest.raises(DiskError, match="source disk has 65536 bytes, target disk 131072"):
        copy_disk(
            order_of(GRAIN), MemoryHandle(MemoryDisk(GRAIN)), MemoryHandle(MemoryDisk(2 * GRAIN), writable=True),
            MemoryDigests({}), MemoryLog(),
        )  # fmt: skip


def test_a_mistake_in_hashing_ends_the_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> list[bytes]:
        raise RuntimeError("out of digests")

    monkeypatch.setattr("vrepl.transport.slots.digest_grains", broken)
    log = MemoryLog()
    with pytest.raises(RuntimeError, match="out of digests"):
        copy_disk(
            order_of(MIB), LateDisk(MemoryHandle(fill(MIB, {1: 1}))),
            MemoryHandle(MemoryDisk(MIB), writable=True), MemoryDigests({}), log, tuning=Tuning(2),
        )  # fmt: skip
    assert not log.done


def test_hashing_threads_end_with_the_transfer() -> None:
    before = threading.active_count()
    disk = fill(MIB, {1: 1})
    copy_disk(
        order_of(MIB), MemoryHandle(disk), MemoryHandle(MemoryDisk(MIB), writable=True), MemoryDigests({}), MemoryLog(),
        tuning=Tuning(2, 2),
    )  # fmt: skip
    assert threading.active_count() == before


def test_a_zero_digest_is_sixteen_zero_bytes() -> None:
    assert digest(bytes(SHORT)) == ZERO_DIGEST == bytes(16)
    assert digest(bytes(SHORT - 1) + b"x") != ZERO_DIGEST
