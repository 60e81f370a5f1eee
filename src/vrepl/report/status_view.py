"""`vrepl status` for people: one screen that says whether every VM is protected, and what to do."""

from __future__ import annotations

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


def show_status(out: Console, protection: Protection, running_jobs: dict[str, str]) -> None:
    """`running_jobs`: job -> the process that runs it."""
    if not protection.vms:
        console.line(out, "no job has a VM yet; `vrepl config init -` prints a configuration with one")
    else:
        listing = console.table(
            "VM", "Job", "State", "Last good", "Objective", "Audited", "Tested", "Result",
            right=("Last good",),
            gives_way=("Audited", "Tested", "Job", "Objective", "State"),
            dense=True,
        )  # fmt: skip
        for vm in protection.vms:
            listing.add_row(
                vm.name, vm.job, _state(vm), _age(vm, protection), _objective(vm, protection), _audited(vm),
                _tested(vm, protection),
                _result(vm),
            )  # fmt: skip
        out.print(listing)
        for vm in protection.vms:
            complaint = protection.complaint(vm)
            if complaint is not None:
                console.line(out, f"{vm.name}: {complaint}", NEED_STYLES[vm.need(protection.now)])
                if vm.failed and vm.hint:
                    console.line(out, f"  hint: {vm.hint}")
        if all(vm.restore_point is None for vm in protection.vms):
            console.line(out, "nothing has been replicated yet; `vrepl plan` shows what would be done")
    for job, owner in running_jobs.items():
        console.line(out, f"job {job} is running: {owner}")
    if protection.without_job:
        names = ", ".join(protection.without_job)
        console.line(out, f"replicas without a job: {names}; `vrepl replicas remove VM` removes one")


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
