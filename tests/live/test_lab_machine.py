"""A short walk of the state machine of runs on the lab: real processes, real SIGKILLs, the library and both vCenters.

The in-memory machine goes through far more; this one proves that the world it believes in is the lab's.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests.support import plain_api
from tests.support.plain_api import vm_named
from tests.support.vrepl_runs import GRAIN, Image, Runs
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

CAPACITY = 16 * MIB + 512
GRAINS = 16 * MIB // GRAIN
RETENTION = 3
SPEC = LabSpec.of_vms(VmSpec("web-01", disks=(DiskSpec(CAPACITY, content="random", fill=0.8),)), job_vms=["web-01"])
SETTINGS = settings(
    max_examples=2,
    stateful_step_count=10,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)

grains = st.integers(0, GRAINS - 17)


def machine_on(start_lab: Callable[[LabSpec], Lab], folders: Callable[[], Path]) -> type[RuleBasedStateMachine]:
    class LabMachine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.lab = start_lab(SPEC)
            self.runs = Runs(self.lab, folders())
            self.runs.set_in_job(f"retention = {{ last = {RETENTION} }}")
            self.lab.set("lock_linger_s=0.2")
            self.sealed: dict[str, Image] = {}

        def teardown(self) -> None:
            self.lab.stop()

        @rule(
            grain=grains,
            count=st.sampled_from([1, 3, 16]),
            what=st.sampled_from(["A", "B", "zeros", "unmap", "last sector"]),
        )
        def guest_changes(self, grain: int, count: int, what: str) -> None:
            """Few patterns, so that A -> B -> A happens."""
            offset, length = grain * GRAIN, count * GRAIN
            if what == "unmap":
                self.lab.unmap("prod", "web-01", 0, offset, length)
            elif what == "last sector":
                self.lab.write("prod", "web-01", 0, CAPACITY - 512, bytes([grain]) * 512)
            else:
                self.lab.write("prod", "web-01", 0, offset, {"A": b"A", "B": b"B", "zeros": b"\0"}[what] * length)

        @precondition(lambda self: bool(self.sealed))
        @rule()
        def change_tracking_is_reset(self) -> None:
            self.lab.reset_cbt("prod", "web-01", 0)

        @rule()
        def run_succeeds(self) -> None:
            self._check(self.runs.replicate())

        @rule(milliseconds=st.integers(300, 1000))
        def run_is_killed(self, milliseconds: int) -> None:
            """At whatever moment."""
            self._kill(self.runs.start(), milliseconds / 1000)

        @rule(milliseconds=st.integers(0, 1300), write=st.booleans())
        def run_is_killed_in_transfer(self, milliseconds: int, write: bool) -> None:
            """Counted from when the transfer log grows."""
            if write:
                self.lab.write_random("prod", "web-01", 0, 0, 8 * MIB, str(milliseconds))
            self.lab.set("prod.bandwidth_mib_s=10")
            before = self._log_sizes()
            process = self.runs.start()
            while process.poll() is None and self._log_sizes() == before:
                time.sleep(0.01)
            self._kill(process, milliseconds / 1000)
            self.lab.set("prod.bandwidth_mib_s=0")

        def _log_sizes(self) -> dict[Path, int]:
            with suppress(FileNotFoundError):
                return {log: log.stat().st_size for log in self.lab.folder.glob("repository/**/transfer.log")}
            return {}

        def _kill(self, process: subprocess.Popen[str], seconds: float) -> None:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
            _, said = process.communicate()
            assert process.returncode in {0, -signal.SIGKILL}, said
            self._note_restore_points()

        def _restore_points(self) -> list[str]:
            with plain_api.session(self.lab, "dr") as api:
                if not any(
                    vm.name == "web-01-replica" for vm in api.content.rootFolder.childEntity[0].vmFolder.childEntity
                ):
                    return []
                replica = vm_named(api, "web-01-replica")
                names = _names(replica.snapshot.rootSnapshotList) if replica.snapshot else []
            return [name.removeprefix("vrepl ") for name in names]

        def _note_restore_points(self) -> None:
            """The guest does not write while a run goes on: a new restore point holds the source as it is now."""
            for point in self._restore_points():
                self.sealed.setdefault(point, self.runs.source())

        def _check(self, report: Any) -> None:
            assert self.runs.restore_point(report["restore_point"]) == self.runs.source()
            self._note_restore_points()
            with plain_api.session(self.lab) as api:
                vm = vm_named(api, "web-01")
                assert vm.snapshot is None
                assert not vm.runtime.consolidationNeeded
            points = self._restore_points()
            assert points[-1] == report["restore_point"]
            assert len(points) <= RETENTION

        @invariant()
        def sealed_restore_points_are_intact(self) -> None:
            for point in self._restore_points():
                assert self.runs.restore_point(point) == self.sealed[point], f"restore point {point} was harmed"

    return LabMachine


def _names(tree: Any) -> list[str]:
    return [name for node in tree for name in (node.name, *_names(node.childSnapshotList))]


def test_runs_and_kills_on_the_lab(start_lab: Callable[[LabSpec], Lab], lab_folders: Callable[[], Path]) -> None:
    run_state_machine_as_test(machine_on(start_lab, lab_folders), settings=SETTINGS)
