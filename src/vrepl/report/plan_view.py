"""What a run would do, for people: one table with totals, and the reasons behind it where they are asked for."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from vrepl.report import format as words
from vrepl.report.console import line, show_notes, table
from vrepl.report.disk import DiskReport, SideTransport
from vrepl.report.estimate import expected_bytes
from vrepl.report.model import RunReport


def show_plan(out: Console, report: RunReport, *, reasons: bool = False) -> None:
    """`reasons`: why each disk is moved as it is, and which transport modes were ruled out."""
    line(out, f"plan for job {report.job}; nothing was changed")
    listing = table(
        "VM", "Disk", "How", "Reads", "Last moved", "Over",
        right=("Disk", "Reads", "Last moved"),
        gives_way=("Over", "Last moved", "How"),
        dense=True,
    )  # fmt: skip
    for vm in report.vms:
        name = f"{vm.name} → {vm.replica}" if vm.replica else vm.name
        if vm.error is not None or not vm.disks:
            listing.add_row(name, "–", Text("not replicated", style="red"), "–", "–", "–")
            continue
        for disk in vm.disks:
            listing.add_row(
                name, str(disk.index), disk.kind.value, _reads(disk), words.size(disk.last_bytes_moved), _over(disk)
            )
            name = ""
    out.print(listing)
    disks = [disk for vm in report.vms if vm.error is None for disk in vm.disks]
    total = f"{len(report.vms)} VMs, {len(disks)} disks: about {words.size(sum(map(expected_bytes, disks)))} to read"
    if report.estimate_seconds is not None:
        total += f", {words.duration(report.estimate_seconds)} at the rates of past runs"
    line(out, total)
    show_notes(out, report)
    if reasons:
        _show_reasons(out, report)
    elif disks:
        line(out, "-v tells the reasons")


def _reads(disk: DiskReport) -> str:
    if disk.bytes_read is not None:
        return words.size(disk.bytes_read)
    return f"≤ {words.size(disk.bytes_bound)}" if disk.bytes_bound is not None else "–"


def _over(disk: DiskReport) -> str:
    source, target = disk.source.mode or "no mode", disk.target.mode or "no mode"
    return source if source == target else f"{source} → {target}"


def _show_reasons(out: Console, report: RunReport) -> None:
    for vm in report.vms:
        out.print()
        line(out, f"{vm.name} → {vm.replica}" if vm.replica else vm.name, "bold")
        for disk in vm.disks:
            line(out, f"  disk {disk.index} ({disk.label}), {words.size(disk.capacity)}")
            line(out, f"    {disk.kind.value}: {disk.reason}")
            figures = []
            if disk.bytes_read is not None:
                figures.append(f"reads {words.size(disk.bytes_read)}")
            elif disk.bytes_bound is not None:
                figures.append(f"reads at most {words.size(disk.bytes_bound)}")
            if disk.last_bytes_moved is not None:
                figures.append(f"the last run moved {words.size(disk.last_bytes_moved)}")
            if figures:
                line(out, f"    {'; '.join(figures)}")
            _show_side(out, "source", disk.source)
            _show_side(out, "target", disk.target)
        if vm.error is not None:
            line(out, "  would not be replicated; see the error", "red")


def _show_side(out: Console, name: str, side: SideTransport) -> None:
    if side.mode:
        line(out, f"    {name} over {side.mode}" + (f": {side.reason}" if side.reason else ""))
    for mode, reason in side.ruled_out:
        line(out, f"      not {mode}: {reason}", "dim")
