"""Writes, runs, deaths at any step, resumed runs, retention, drift and CBT resets, in any order, harm no restore point.

Mutants of the rules (a change ID that advances early, a digest believed for the wrong restore point, a flush left out,
a zero skipped on a dirty grain) must be caught: `test_mutants.py` runs the same machine against them.
"""

from __future__ import annotations

import shutil

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from tests.support.replication_machine import GRAIN_NUMBERS, PATTERNS, ReplicationMachine
from vrepl.engine.knowledge import unfinished_disks
from vrepl.extents import GRAIN, Extent, intersect
from vrepl.repository.commit_record import read_mark
from vrepl.repository.rebuild import FoundReplica, rebuild
from vrepl.repository.store import Repository

DRIFT = (
    "cbt reset",
    "storage vmotion",
    "replica written",
    "replica reverted",
    "snapshot removed",
    "replica deleted",
    "repository lost",
)


class EverythingMachine(ReplicationMachine):
    """And whatever an administrator or fate may do."""

    @rule(grain=GRAIN_NUMBERS)
    def guest_writes_one_sector(self, grain: int) -> None:
        self.world.source.guest_write(self.vm, 0, grain * GRAIN, b"\x07" * 512)

    @rule(
        what=st.sampled_from(DRIFT),
        number=GRAIN_NUMBERS,
    )
    def something_drifts(self, what: str, number: int) -> None:
        """One rule for all of it, so that most steps are writes and runs."""
        site, disk = self.world.source, self.vm.disks[0]
        if what == "cbt reset":
            site.reset_cbt(self.vm, 0)
        elif what == "storage vmotion":
            disk.base_path = disk.base_path.replace("web-01/", "web-01/moved-")
        elif what == "repository lost" and number % 3 == 0:
            shutil.rmtree(self.world.folder)
            found = [FoundReplica("dr", vm) for vm in self.world.target.list_vms() if read_mark(vm.extra_config)]
            rebuild(Repository.open(self.world.folder), found)
            self.world.repository = Repository.open(self.world.folder)
        elif self.world.target.vms:
            self._replica_drifts(what, number)

    def _replica_drifts(self, what: str, number: int) -> None:
        target, replica = self.world.target, self.world.replica()
        if what == "replica written" and replica.snapshots and not self._may_have_written(number):
            target.guest_write(replica, 0, number * GRAIN, b"\x09" * 512)
        elif what == "replica reverted" and replica.current:
            target.revert_to_snapshot(replica.ref, replica.current)
        elif what == "snapshot removed" and replica.snapshots:
            target.remove_snapshot(replica.ref, replica.snapshots[number % len(replica.snapshots)].ref)
        elif what == "replica deleted" and number % 4 == 0:
            target.vms.pop(replica.ref)

    def _may_have_written(self, grain: int) -> bool:
        """Whether an unfinished run may have written to this grain itself: then nothing can tell who did."""
        folder = self.world.repository.replica("prod", self.vm.instance_uuid)
        unfinished = unfinished_disks(folder, folder.intent()) if folder else {}
        return any(intersect(disk.maybe_written, [Extent(grain * GRAIN, 1)]) for disk in unfinished.values())

    @rule(steps=st.integers(0, 40), guest=st.lists(st.tuples(GRAIN_NUMBERS, PATTERNS), max_size=2))
    def run_is_killed(self, steps: int, guest: list[tuple[int, int]]) -> None:
        """At the n-th call or point of transfer; meanwhile the guest goes on writing."""
        self.run_killed(steps, guest, anywhere=True, survivors=0)


AT_LENGTH = settings(
    max_examples=1000,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.slow
def test_replication_machine() -> None:
    """The same orders in each run; others, and many more: at length."""
    slice_of_it = settings(AT_LENGTH, max_examples=60, derandomize=True, database=None)
    run_state_machine_as_test(EverythingMachine, settings=slice_of_it)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_replication_machine_at_length() -> None:
    run_state_machine_as_test(EverythingMachine, settings=AT_LENGTH)
