"""A machine that lets a guest write and vrepl run, be killed and run again, in any order (hypothesis, stateful).

After every run that succeeds the replica is the source as it was at its snapshot; after every one that does not, each
sealed restore point is untouched, and once a run has succeeded the source holds no snapshot of vrepl's. What else may
happen is added by those who run it: `test_any_order_of_runs_and_deaths.py` everything, `test_mutants.py` what brings
mistakes to light.
"""

from __future__ import annotations

import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from unittest import mock

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.support.memory_disk import MemoryDisk
from tests.support.memory_site import MemoryVm
from tests.support.world import World
from vrepl.extents import GRAIN, Extent
from vrepl.report.model import Result
from vrepl.repository.digest_sets import open_lookup
from vrepl.repository.digests import UNKNOWN
from vrepl.transport import checkpoints
from vrepl.transport.grains import digest

GRAINS = 36
"""Of the disk. Three blocks of the pipeline, so that a transfer can die between two checkpoints."""
CAPACITY = GRAINS * GRAIN + 512
RETENTION = 3

MEMORY = Path("/dev/shm")
"""Where syncing costs nothing; what it promises is the repository's tests' to prove."""
Content = tuple[str, ...]
"""A disk's grains by their digests: pytest explains a failed comparison item by item, and over the bytes themselves
that takes it hours where nothing truncates the explanation (on CI)."""

GRAIN_NUMBERS = st.integers(0, GRAINS)
PATTERNS = st.integers(0, 2)
"""Few, so that A -> B -> A happens; 0 writes zeros."""


@lru_cache(maxsize=4096)
def digest_of_bytes(data: bytes) -> str:
    return digest(data).hex()


def content_of(disk: MemoryDisk) -> Content:
    return tuple(
        digest_of_bytes(disk.read(grain * GRAIN, min(GRAIN, CAPACITY - grain * GRAIN))) for grain in range(GRAINS + 1)
    )


class ReplicationMachine(RuleBasedStateMachine):
    """Without the rules that begin a replica anew: each example resumes and zeroes the more."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="vrepl-machine-", dir=MEMORY if MEMORY.is_dir() else None))
        self.world = World(self.folder / "repository", retention=RETENTION)
        self.vm: MemoryVm = self.world.source.add_vm("web-01", [CAPACITY])
        self.sealed: dict[str, Content] = {}
        """What each restore point must hold: the source at its snapshot."""
        self.at_snapshot: Content | None = None
        self.world.source.after_call = self._after_source_call
        self.eager = mock.patch.multiple(checkpoints, LEAST_BYTES=1, LEAST_SECONDS=0.0, SHARE=0)
        """A checkpoint after every block, where real runs make one a second."""
        self.eager.start()

    def teardown(self) -> None:
        self.eager.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _after_source_call(self, method: str) -> None:
        if method == "create_snapshot":
            self.at_snapshot = content_of(self.vm.disks[0].disk)
        self.world._pass(f"after prod {method}")

    # -- what a guest does ----------------------------------------------------------------------------------------

    @rule(grain=GRAIN_NUMBERS, pattern=PATTERNS, count=st.sampled_from([1, 2, 12, 36]))
    def guest_writes(self, grain: int, pattern: int, count: int) -> None:
        offset = grain * GRAIN
        length = min(count * GRAIN, CAPACITY - offset)
        self.world.source.guest_write(self.vm, 0, offset, bytes([pattern]) * length)

    @rule(grain=GRAIN_NUMBERS, count=st.sampled_from([1, 3, 30]))
    def guest_unmaps(self, grain: int, count: int) -> None:
        offset = grain * GRAIN
        self.world.source.guest_unmap(self.vm, 0, Extent(offset, min(count * GRAIN, CAPACITY - offset)))

    # -- runs -----------------------------------------------------------------------------------------------------

    @rule()
    def run_succeeds(self) -> None:
        report = self.world.run_vm()
        assert report.result is Result.SUCCESS, report.error
        self._check_success(report.restore_point)

    @rule(
        steps=st.integers(1, 16),
        survivors=st.integers(0, 3),
        guest=st.lists(st.tuples(GRAIN_NUMBERS, PATTERNS), max_size=3),
    )
    def run_is_killed_in_transfer(self, steps: int, survivors: int, guest: list[tuple[int, int]]) -> None:
        self.run_killed(steps, guest, anywhere=False, survivors=survivors)

    def run_killed(self, steps: int, guest: list[tuple[int, int]], *, anywhere: bool, survivors: int) -> None:
        left = steps
        writes = list(guest)
        self.world.target.survives = lambda number: bool(survivors >> (number % 2) & 1)

        def kill_at(where: str) -> bool:
            nonlocal left
            in_transfer = where.startswith("transfer")
            if in_transfer and writes:
                grain, pattern = writes.pop()
                offset = grain * GRAIN
                length = min(GRAIN, CAPACITY - offset)
                self.world.source.guest_write(self.vm, 0, offset, bytes([pattern]) * length)
            left -= in_transfer or anywhere
            return left < 0

        report = self.world.run_until(kill_at)
        if report is not None:
            assert report.result is Result.SUCCESS, report.error
            self._check_success(report.restore_point)

    def _check_success(self, restore_point: str | None) -> None:
        assert restore_point is not None
        assert self.at_snapshot is not None
        held = self.world.restore_point_contents(content_of)
        self.sealed[restore_point] = self.at_snapshot
        assert held[restore_point] == [self.at_snapshot]
        assert content_of(self.world.replica().disks[0].disk) == self.at_snapshot
        assert self.world.our_source_snapshots() == []
        assert len(held) <= RETENTION
        folder = self.world.repository.replica("prod", self.vm.instance_uuid)
        assert folder is not None
        assert {point.id for point in folder.restore_points()} == set(held)
        self._verify_digests(held)

    def _verify_digests(self, held: dict[str, list[Content]]) -> None:
        """Every digest set that claims to be known agrees with the bytes of its restore point."""
        folder = self.world.repository.replica("prod", self.vm.instance_uuid)
        assert folder is not None
        for point_id, [content] in held.items():
            files = folder.digest_files(2000, point_id)
            lookup = open_lookup(files, CAPACITY)
            for grain, data in enumerate(content):
                known = lookup.digest_of(grain)
                if known is not None and known != UNKNOWN:
                    assert known.hex() == data, (point_id, grain)
            lookup.close()

    @invariant()
    def sealed_restore_points_are_intact(self) -> None:
        for point, contents in self.world.restore_point_contents(content_of).items():
            if point in self.sealed:
                assert contents == [self.sealed[point]], f"restore point {point} was harmed"
            else:
                # Sealed by a run that died right after: it must hold the source of that moment all the same.
                assert self.at_snapshot is not None
                self.sealed[point] = self.at_snapshot
                assert contents == [self.at_snapshot]
