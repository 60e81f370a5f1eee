"""What became of failovers: one row a VM, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vrepl.report.addresses import AddressReport
from vrepl.report.model import FORMAT_VERSION, ErrorReport, Json, Result, exit_code_of
from vrepl.report.plan import PlanReport, show_plan
from vrepl.report.reprotection import ReverseJob

if TYPE_CHECKING:
    from rich.console import Console

    from vrepl.report.console import Listing


@dataclass(slots=True)
class Crossed:
    """What one failback command moved of a VM."""

    bytes_moved: int = 0
    downtime: float | None = None
    """Seconds from the replica's shutdown to the power-on at home, where one command did both."""


@dataclass(slots=True)
class TestReport:
    """What a test of a failover showed."""

    __test__ = False
    """No test case, whatever its name begins with."""
    clone: str
    kept: bool
    passed: bool
    seconds_to_service: float | None
    """From power-on until every check had passed."""
    checks: Sequence[Json] = ()

    def to_json(self) -> Json:
        seconds = self.seconds_to_service
        return {
            "clone": self.clone,
            "kept": self.kept,
            "passed": self.passed,
            "seconds_to_service": None if seconds is None else round(seconds, 3),
            "checks": list(self.checks),
        }


@dataclass(slots=True)
class FailoverVm:
    """One VM of a failover command."""

    name: str
    """Of the source VM."""
    replica: str
    result: Result
    state: str
    """`ready`, `failed-over` ...: where the replica stands now."""
    restore_point: str | None = None
    seconds: float = 0.0
    error: ErrorReport | None = None
    notes: Sequence[str] = ()
    crossed: Crossed | None = None
    """Of a failback."""
    test: TestReport | None = None
    addresses: AddressReport | None = None
    """Where the guest was to get others."""

    def to_json(self) -> Json:
        error, crossed = self.error, self.crossed
        moved = {} if crossed is None else {"bytes_moved": crossed.bytes_moved, "downtime_seconds": crossed.downtime}
        row: Json = {
            "name": self.name,
            "replica": self.replica,
            "result": self.result.value,
            "state": self.state,
            "restore_point": self.restore_point,
            "seconds": round(self.seconds, 3),
            "error": error.message if error else None,
            "hint": error.hint if error else None,
            "error_step": error.step if error else None,
            "notes": list(self.notes),
            **moved,
        }
        if self.addresses is not None:
            row["addresses"] = self.addresses.to_json()
        return row if self.test is None else {**row, "test": self.test.to_json()}


@dataclass(slots=True)
class FailoverReport:
    """One failover command over its VMs."""

    vms: list[FailoverVm] = field(default_factory=list)
    interrupted: bool = False
    plan: PlanReport | None = None
    """Where a plan said in which order."""
    reverse_jobs: list[ReverseJob] = field(default_factory=list)
    """Of a commit that was to be reprotected."""

    @property
    def exit_code(self) -> int:
        """As `exit_code_of`; a plan's own failure counts as a VM's."""
        plan_failed = self.plan is not None and bool(self.plan.error)
        return exit_code_of(self.vms, interrupted=self.interrupted, more_failed=int(plan_failed))

    def to_json(self) -> Json:
        told: Json = {"version": FORMAT_VERSION, "vms": [vm.to_json() for vm in self.vms]}
        if self.reverse_jobs:
            told["reprotect"] = [job.to_json() for job in self.reverse_jobs]
        return told if self.plan is None else {**told, "plan": self.plan.to_json()}


def show_failover(out: Console, report: FailoverReport) -> None:
    """A table of all VMs, then what went wrong and what is worth knowing."""
    from vrepl.report import console
    from vrepl.report import format as words

    listing = console.table(
        "VM", "Replica", "State", "Restore point", "Took", "Result",
        right=("Took",),
        gives_way=("Took", "Replica", "Restore point", "State"),
        dense=True,
    )  # fmt: skip
    for vm in report.vms:
        listing.add_row(
            vm.name, vm.replica, vm.state, vm.restore_point or "–", words.duration(vm.seconds), vm.result.value
        )
    out.print(listing)
    if report.plan is not None:
        show_plan(out, report.plan)
    if any(vm.test is not None for vm in report.vms):
        out.print(_checks(report))
    for vm in report.vms:
        for text in vm.addresses.lines if vm.addresses is not None else ():
            console.line(out, f"{vm.name}: {text}")
        for note in vm.notes:
            console.line(out, f"{vm.name}: {note}")
        if vm.error is not None:
            console.show_error(out, vm.name, vm.error)
    for job in report.reverse_jobs:
        head = ["to replicate back, take these VMs out of their job, and add to the configuration:", ""]
        table = [f"    {text}" for text in job.toml.splitlines()]
        for text in ["", *head, *table, "", "then:", "", f"    {job.command}"]:
            console.line(out, text)


def _checks(report: FailoverReport) -> Listing:
    from vrepl.report import console
    from vrepl.report import format as words

    listing = console.table("VM", "Check", "Passed", "After", "Why not", right=("After",), dense=True)
    for vm in report.vms:
        for one in vm.test.checks if vm.test is not None else ():
            after = words.duration(one["seconds"])
            listing.add_row(vm.name, one["check"], "yes" if one["passed"] else "NO", after, one["detail"] or "")
    return listing
