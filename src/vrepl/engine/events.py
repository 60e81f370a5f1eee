"""What a run tells while it runs. Views (live progress, log lines) implement `EngineEvents`; the engine only calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vrepl.ports import TransferProgress
from vrepl.report.model import VmReport
from vrepl.report.plan import PlanReport

Note = Callable[[str], None]
"""Says something of one VM that an operator should know, and keeps it for the report."""


class EngineEvents(Protocol):
    """Called from the run's threads, in order per VM; must return quickly and never raise."""

    def run_started(self, run_id: str, job: str, vms: list[str]) -> None: ...

    def vm_step(self, vm: str, step: str) -> None:
        """The VM entered a step of the run, such as `source snapshot`."""
        ...

    def disk_started(self, vm: str, disk_index: int, title: str, kind: str, reason: str) -> None: ...

    def disk_progress(self, vm: str, disk_index: int, progress: TransferProgress) -> None: ...

    def note(self, vm: str, message: str) -> None:
        """Something an operator should know although it is no failure: drift, a retry, a fallback."""
        ...

    def vm_finished(self, report: VmReport) -> None: ...

    def plan_moved(self, plan: PlanReport) -> None:
        """A failover plan is somewhere else than when it was told of last."""
        ...


class SilentEvents:
    """Events that nobody watches."""

    def run_started(self, run_id: str, job: str, vms: list[str]) -> None:
        del run_id, job, vms

    def vm_step(self, vm: str, step: str) -> None:
        del vm, step

    def disk_started(self, vm: str, disk_index: int, title: str, kind: str, reason: str) -> None:
        del vm, disk_index, title, kind, reason

    def disk_progress(self, vm: str, disk_index: int, progress: TransferProgress) -> None:
        del vm, disk_index, progress

    def note(self, vm: str, message: str) -> None:
        del vm, message

    def vm_finished(self, report: VmReport) -> None:
        del report

    def plan_moved(self, plan: PlanReport) -> None:
        del plan
