"""What a failover would do: one row a VM, as JSON and as a table. Nothing was changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vrepl.errors import exit_code_of_run
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


@dataclass(slots=True)
class FailoverPreviewReport:
    """All of one command."""

    vms: list[FailoverPreview] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        failed = sum(vm.error is not None for vm in self.vms)
        return exit_code_of_run(len(self.vms) - failed, failed, 0)

    def to_json(self) -> Json:
        return {"version": FORMAT_VERSION, "dry_run": True, "vms": [vm.to_json() for vm in self.vms]}


def show_preview(out: Console, report: FailoverPreviewReport) -> None:
    """A table of all VMs, then what would change of each."""
    from vrepl.report import console

    listing = console.table("VM", "Replica", "State", "Restore point", "Addresses", dense=True)
    for vm in report.vms:
        addresses = vm.addresses.result.value if vm.addresses is not None else "as they are"
        listing.add_row(vm.name, vm.replica, vm.state, vm.restore_point or "–", "–" if vm.error else addresses)
    out.print(listing)
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
