"""What a write rule lets be written is the same however the digests are asked for, and exactly what it says."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.memory_records import MemoryDigests
from vrepl.extents import GRAIN, Extent, from_grains
from vrepl.transport.buffers import LARGEST, MIB
from vrepl.transport.grains import ZERO_DIGEST
from vrepl.transport.work import Block, Packer
from vrepl.transport.write_rules import DigestRule, VerificationRule

CAPACITY = 80 * GRAIN + 512
DIGEST = st.sampled_from([ZERO_DIGEST, b"a" * 16, b"b" * 16])
GRAIN_NUMBERS = st.integers(0, 80)


class AskedForMany(MemoryDigests):
    """As the digest files answer: many at once."""

    def digests_of(self, start: int, count: int) -> bytes:
        return b"".join(self.digest_of(grain) or b"\xff" * 16 for grain in range(start, start + count))


def blocks(grains: set[int], size: int) -> list[Block]:
    packer = Packer(size=size)
    found = [block for extent in from_grains(grains, CAPACITY) for block in packer.add(extent)]
    return [*found, *packer.finish()]


@settings(deadline=None)
@given(
    wanted=st.one_of(st.sets(GRAIN_NUMBERS, min_size=1), st.just(set(range(81)))),
    now=st.fixed_dictionaries(dict.fromkeys(range(81), DIGEST)),
    known=st.one_of(
        st.just({}), st.just(dict.fromkeys(range(81), ZERO_DIGEST)), st.dictionaries(GRAIN_NUMBERS, DIGEST)
    ),
    dirty=st.one_of(st.just(set()), st.sets(GRAIN_NUMBERS)),
    split_zeros=st.booleans(),
    size=st.sampled_from([MIB, LARGEST]),
)
def test_written_is_what_is_dirty_unknown_or_different(
    wanted: set[int], now: dict[int, bytes], known: dict[int, bytes], dirty: set[int], split_zeros: bool, size: int
) -> None:
    extents = from_grains(dirty, CAPACITY)
    one_by_one = DigestRule(MemoryDigests(known), extents, split_zeros=split_zeros)
    at_once = DigestRule(AskedForMany(known), extents, split_zeros=split_zeros)
    for block in blocks(wanted, size):
        numbers = [grain[0] for grain in block.grains]
        digests = [now[number] for number in numbers]
        runs = at_once.runs(block, digests, None)
        assert runs == one_by_one.runs(block, digests, None)

        due = {number for number in numbers if number in dirty or known.get(number) != now[number]}
        written = [
            (number, run)
            for run in runs
            for number in range(run.offset // GRAIN, -(-(run.offset + run.length) // GRAIN))
        ]
        assert sorted(number for number, _ in written) == sorted(due)
        starts = {number: (start, length) for number, start, length in block.grains}
        for number, run in written:
            start, length = starts[number]
            assert run.start + number * GRAIN - run.offset == start
            assert number * GRAIN + length <= run.offset + run.length
            assert run.zeros == (split_zeros and now[number] == ZERO_DIGEST)
        assert sum(run.length for run in runs) == sum(starts[number][1] for number in due)


@settings(deadline=None)
@given(
    grains=st.one_of(st.sets(GRAIN_NUMBERS, min_size=1), st.just(set(range(81)))),
    now=st.fixed_dictionaries(dict.fromkeys(range(81), DIGEST)),
    wrong=st.sets(GRAIN_NUMBERS, max_size=2),
    unknown=st.sets(GRAIN_NUMBERS, max_size=2),
    size=st.sampled_from([MIB, LARGEST]),
)
def test_verification_names_each_grain_that_differs_and_counts_those_without_a_digest(
    grains: set[int], now: dict[int, bytes], wrong: set[int], unknown: set[int], size: int
) -> None:
    known = {grain: b"w" * 16 if grain in wrong else value for grain, value in now.items() if grain not in unknown}
    for lookup in (MemoryDigests(known), AskedForMany(known)):
        rule = VerificationRule(lookup)
        for block in blocks(grains, size):
            assert rule.runs(block, [now[grain[0]] for grain in block.grains], None) == []
        assert rule.bad_grains == sorted(grains & wrong - unknown)
        assert rule.unknown_grains == len(grains & unknown)


def test_a_block_of_which_nothing_is_known_is_one_run() -> None:
    (block, *_) = blocks(set(range(81)), MIB)
    rule = DigestRule(AskedForMany({}), [])
    assert [(run.offset, run.length) for run in rule.runs(block, [b"a" * 16] * 16, None)] == [Extent(0, MIB)]
