"""`vrepl status` for people: one screen that says whether every VM is protected, and what to do."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from vrepl.report import console
from vrepl.report import format as words
from vrepl.report.console import STYLES
from vrepl.report.protection import Need, Protection, VmProtection

NEED_STYLES = {
    Need.OBJECTIVE_MISSED: "red",
    Need.DOUBTFUL: "red",
    Need.FAILED: "yellow",
    Need.NEVER_REPLICATED: "yellow",
    Need.IN_USE: "cyan",
    Need.NOTHING: "green",
}

MOST_LATE = 20
"""VMs that only miss their objective, with a line each: more are counted, for the table says it of each."""
LINES_BESIDE = 12
"""Of a terminal, that are left for what stands below the table."""


def show_status(out: Console, protection: Protection, running_jobs: dict[str, str], *, all_vms: bool = False) -> None:
    """`running_jobs`: job -> the process that runs it.

    On a terminal that is too low for every VM, those that need nobody are only counted, unless `all_vms`.
    """
    if not protection.vms:
        console.line(out, "no job has a VM yet; `vrepl config init -` prints a configuration with one")
    else:
        shown = protection.vms
        if out.is_terminal and not all_vms and len(shown) > out.height - LINES_BESIDE:
            shown = [vm for vm in shown if vm.need(protection.now) is not Need.NOTHING]
        _show_table(out, protection, shown)
        _show_complaints(out, protection)
        if all(vm.restore_point is None for vm in protection.vms):
            console.line(out, "nothing has been replicated yet; `vrepl plan` shows what would be done")
        _show_count(out, protection, len(protection.vms) - len(shown))
    for job, owner in running_jobs.items():
        console.line(out, f"job {job} is running: {owner}")
    if protection.without_job:
        names = ", ".join(protection.without_job)
        console.line(out, f"replicas without a job: {names}; `vrepl replicas remove VM` removes one")


def _show_table(out: Console, protection: Protection, vms: Sequence[VmProtection]) -> None:
    if not vms:
        return
    listing = console.table(
        "VM", "Job", "State", "Last good", "Objective", "Audited", "Tested", "Result",
        right=("Last good",),
        gives_way=("Audited", "Tested", "Job", "Objective", "State"),
        dense=True,
    )  # fmt: skip
    for vm in vms:
        listing.add_row(
            vm.name, vm.job, _state(vm), _age(vm, protection), _objective(vm, protection), _audited(vm),
            _tested(vm, protection),
            _result(vm),
        )  # fmt: skip
    out.print(listing)


def _show_complaints(out: Console, protection: Protection) -> None:
    """A line for each VM that needs somebody; what several failed of is said once, with all their names."""
    late = [vm for vm in protection.vms if _is_only_late(vm, protection)]
    if len(late) > MOST_LATE:
        oldest = max(late, key=lambda vm: math.inf if (age := vm.age(protection.now)) is None else age)
        age = oldest.age(protection.now)
        has = "has no restore point" if age is None else f"has a last good copy {words.duration(age)} old"
        style = NEED_STYLES[Need.OBJECTIVE_MISSED]
        console.line(out, f"{len(late)} VMs past their objective; {oldest.name} {has}", style)
    alike: dict[tuple[str, str | None] | str, list[VmProtection]] = {}
    for vm in protection.vms:
        if len(late) > MOST_LATE and _is_only_late(vm, protection):
            continue
        if protection.complaint(vm) is not None:
            cause = (vm.error, vm.hint) if vm.failed and vm.error else f"{vm.job} {vm.name}"
            alike.setdefault(cause, []).append(vm)
    for vms in alike.values():
        first = vms[0]
        style = NEED_STYLES[first.need(protection.now)]
        if len(vms) == 1:
            console.line(out, f"{first.name}: {protection.complaint(first)}", style)
        else:
            missed = sum(vm.objective_met(protection.now) is False for vm in vms)
            past = f" ({missed} past their objective)" if missed else ""
            console.line(out, f"{len(vms)} VMs{past}: last run failed: {first.error}", style)
            console.line(out, f"  {', '.join(vm.name for vm in vms)}")
        if first.failed and first.hint:
            console.line(out, f"  hint: {first.hint}")


def _is_only_late(vm: VmProtection, protection: Protection) -> bool:
    return vm.objective_met(protection.now) is False and not vm.failed and vm.doubtful is None


def _show_count(out: Console, protection: Protection, left_out: int) -> None:
    total = len(protection.vms)
    well = sum(vm.need(protection.now) in {Need.NOTHING, Need.IN_USE} for vm in protection.vms)
    said = f"{total} VMs, {'all' if well == total else well} well" if total > 1 else ""
    if left_out:
        said += f"; {left_out} of these are not listed: `vrepl status -v` lists every VM"
    if said:
        console.line(out, said)


def _state(vm: VmProtection) -> str:
    state = "no replica" if vm.standing is None else vm.standing.state
    return f"{state}, running" if vm.running else state


def _age(vm: VmProtection, protection: Protection) -> str:
    return words.duration(vm.age(protection.now))


def _objective(vm: VmProtection, protection: Protection) -> Text:
    met = vm.objective_met(protection.now)
    if met is None:
        return Text("–")
    text = f"{words.period(vm.rpo)} " + ("met" if met else "MISSED")
    return Text(text, style="green" if met else "red")


def _audited(vm: VmProtection) -> str:
    """How far the audit of change tracking is in its round."""
    if vm.audit is None:
        return "–"
    return f"{vm.audit.rounds} x, {vm.audit.percent} %" if vm.audit.rounds else f"{vm.audit.percent} %"


def _tested(vm: VmProtection, protection: Protection) -> str:
    return words.age(vm.standing.last_test if vm.standing else None, protection.now)


def _result(vm: VmProtection) -> Text:
    if vm.last_result is None:
        return Text("never ran")
    return Text(vm.last_result.value, style=STYLES[vm.last_result])
