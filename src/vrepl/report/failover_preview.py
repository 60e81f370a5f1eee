"""What a failover would do: one row a VM, as JSON and as a table. Nothing was changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vrepl.errors import exit_code_of_run
from vrepl.model.plans import FailoverPlan, OnGateFailure, PlannedVm, gate_text
from vrepl.report.addresses import AddressReport
from vrepl.report.model import FORMAT_VERSION, ErrorReport, Json

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(slots=True)
class FailoverPreview:
    """One VM."""

    name: str
    """Of the source VM."""
    replica: str
    state: str = ""
    """Where the replica stands now."""
    restore_point: str | None = None
    """The one that it would be started at."""
    networks: Sequence[str] = ()
    """Adapters that would be connected elsewhere, in words."""
    addresses: AddressReport | None = None
    """None: the guest would keep what it has."""
    error: ErrorReport | None = None
    """Why it would not be started."""
    notes: Sequence[str] = ()

    def to_json(self) -> Json:
        return {
            "name": self.name,
            "replica": self.replica,
            "state": self.state,
            "restore_point": self.restore_point,
            "networks": list(self.networks),
            "addresses": self.addresses.to_json() if self.addresses is not None else None,
            "error": self.error.message if self.error else None,
            "hint": self.error.hint if self.error else None,
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class PreviewedPlan:
    """By which plan, and where that was found."""

    plan: FailoverPlan
    from_replicas: bool

    def to_json(self) -> Json:
        plan = self.plan
        return {
            "name": plan.name,
            "kept": "beside the replicas" if self.from_replicas else "in the configuration",
            "power_ons_per_host": plan.power_ons_per_host,
            "on_failure": plan.on_failure.value,
            "before": list(plan.before),
            "after": list(plan.after),
            "groups": [{"name": group.name, "vms": [_planned(vm) for vm in group.vms]} for group in plan.groups],
        }


def _planned(vm: PlannedVm) -> Json:
    return {
        "name": vm.name,
        "delay": vm.delay,
        "gates": [gate_text(gate) for gate in vm.gates],
        "gate_timeout": max(gate.within for gate in vm.gates) if vm.gates else None,
    }


@dataclass(slots=True)
class FailoverPreviewReport:
    """All of one command, or of one plan; in the order in which they would start, where a plan says one."""

    vms: list[FailoverPreview] = field(default_factory=list)
    plan: PreviewedPlan | None = None
    notes: Sequence[str] = ()

    @property
    def exit_code(self) -> int:
        failed = sum(vm.error is not None for vm in self.vms)
        return exit_code_of_run(len(self.vms) - failed, failed, 0)

    def to_json(self) -> Json:
        return {"version": FORMAT_VERSION, "dry_run": True, **self.body()}

    def body(self) -> Json:
        """Without what says of a whole document what it is."""
        told: Json = {"vms": [vm.to_json() for vm in self.vms], "notes": list(self.notes)}
        return told if self.plan is None else {**told, "plan": self.plan.to_json()}


def show_preview(out: Console, report: FailoverPreviewReport) -> None:
    """A table of all VMs, then what would change of each."""
    from vrepl.report import console

    if report.plan is not None:
        _show_order(out, report.plan)
    listing = console.table(
        "VM", "Replica", "State", "Restore point", "Addresses", gives_way=("Replica", "State"), dense=True
    )
    for vm in report.vms:
        addresses = vm.addresses.result.value if vm.addresses is not None else "as they are"
        listing.add_row(vm.name, vm.replica, vm.state, vm.restore_point or "–", "–" if vm.error else addresses)
    out.print(listing)
    for note in report.notes:
        console.line(out, note)
    for vm in report.vms:
        lines = [*vm.networks, *(vm.addresses.lines if vm.addresses is not None else ()), *vm.notes]
        if vm.addresses is not None:
            lines += vm.addresses.warnings
            if vm.addresses.reason is not None:
                lines.append(f"it would keep its addresses: {vm.addresses.reason} ({vm.addresses.hint})")
        for text in lines:
            console.line(out, f"{vm.name}: {text}")
        if vm.error is not None:
            console.show_error(out, vm.name, vm.error)


def _show_order(out: Console, shown: PreviewedPlan) -> None:
    """The plan as it is: a row a VM."""
    from vrepl.report import console
    from vrepl.report import format as words

    plan = shown.plan
    where = "as it lies beside the replicas" if shown.from_replicas else "of the configuration"
    stops = "stops" if plan.on_failure is OnGateFailure.STOP else "goes on"
    console.line(
        out, f"plan {plan.name}, {where}: {plan.power_ons_per_host} power-ons a host, {stops} at what does not come up"
    )
    for moment, command in (("before", plan.before), ("after", plan.after)):
        if command:
            console.line(out, f"{moment}: {command[0]}")
    listing = console.table(
        "Group", "VM", "Delay", "Gates", "Within", right=("Delay", "Within"), gives_way=("Within",), dense=True
    )
    for group in plan.groups:
        for vm in group.vms:
            gates = ", ".join(gate_text(gate) for gate in vm.gates)
            within = words.duration(max(gate.within for gate in vm.gates)) if vm.gates else "–"
            listing.add_row(group.name, vm.name, words.duration(vm.delay) if vm.delay else "–", gates or "–", within)
    out.print(listing)
