"""The state machine is only worth something if it catches the mistakes that corrupt replicas. Here they are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from tests.support.memory_disk import MemoryHandle
from tests.support.replication_machine import CAPACITY, ReplicationMachine
from vrepl.engine.changes import changed_extents
from vrepl.extents import Extent
from vrepl.model import Disk
from vrepl.planner.disks import DiskDecision, DiskFacts, decide_disk
from vrepl.ports import DigestFiles, TransferOrder
from vrepl.repository.replica_folder import ReplicaFolder

pytestmark = pytest.mark.slow


class DenseMachine(ReplicationMachine):
    """The machine with what brings mistakes to light soon."""

    @rule(pattern=st.integers(0, 1))
    def guest_fills_the_disk(self, pattern: int) -> None:
        self.world.source.guest_write(self.vm, 0, 0, bytes([pattern]) * CAPACITY)

    @rule()
    def guest_unmaps_the_disk(self) -> None:
        self.world.source.guest_unmap(self.vm, 0, Extent(0, CAPACITY))

    @rule()
    def tracking_is_reset(self) -> None:
        self.world.source.reset_cbt(self.vm, 0)


HUNT = settings(
    max_examples=4000,  # a hunt ends with its catch: what is caught late only costs time
    stateful_step_count=20,
    deadline=None,
    phases=[Phase.generate],
    derandomize=True,  # the same hunt each time: its length is known
    database=None,
    suppress_health_check=list(HealthCheck),
)


def change_id_advances_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted attempt counts as if it had settled all that it planned."""

    def mutant(disk: Disk, facts: DiskFacts) -> DiskDecision:
        return replace(decide_disk(disk, facts), carry=())

    monkeypatch.setattr("vrepl.engine.deciding.decide_disk", mutant)


def digests_of_another_restore_point_are_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ReplicaFolder.digest_files

    def mutant(self: ReplicaFolder, disk_key: int, restore_point_id: str) -> DigestFiles:
        return real(self, disk_key, self.restore_points()[0].id)

    monkeypatch.setattr(ReplicaFolder, "digest_files", mutant)


def a_flush_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryHandle, "flush", lambda self: None)
    real = MemoryHandle.close

    def close(self: MemoryHandle) -> None:
        for offset, data in self._pending:
            self._disk.write(offset, data)
        self._pending.clear()
        real(self)

    monkeypatch.setattr(MemoryHandle, "close", close)


def dirty_grains_are_suppressed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros, and digests of the parent, are believed for grains that an interrupted attempt may have written."""
    monkeypatch.setattr(
        "vrepl.engine.disk_crossing.TransferOrder", lambda **fields: TransferOrder(**{**fields, "dirty": ()})
    )


def unallocated_grains_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changed but no longer allocated means: write zeros."""
    from tests.support import memory_disk as memory

    monkeypatch.setattr(memory.MemoryHandle, "submit_zeros", lambda self, offset, length, done: done(None))


def last_page_of_changes_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    def mutant(ask: Callable[[int], Any], capacity: int) -> Any:
        first = ask(0)
        return changed_extents(ask, capacity) if first.length < capacity // 2 else list(first.areas)

    monkeypatch.setattr("vrepl.engine.deciding.changed_extents", mutant)


@pytest.mark.parametrize(
    "mutate",
    [
        change_id_advances_early,
        digests_of_another_restore_point_are_believed,
        a_flush_is_left_out,
        dirty_grains_are_suppressed,
        unallocated_grains_are_skipped,
        last_page_of_changes_is_missed,
    ],
)
def test_mutant_is_caught(mutate: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    with pytest.raises((AssertionError, BaseExceptionGroup)):
        run_state_machine_as_test(DenseMachine, settings=HUNT)


def test_without_a_mutant_there_is_nothing_to_catch() -> None:
    run_state_machine_as_test(DenseMachine, settings=settings(HUNT, max_examples=40))
