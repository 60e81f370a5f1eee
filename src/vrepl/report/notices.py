"""What people are to be told, each thing once: a VM fails, its objective is missed, it is well again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from vrepl.report.model import Json, Result
from vrepl.report.protection import Protection, VmProtection

NOTICE_VERSION = 1


class Trouble(StrEnum):
    FAILURE = "failure"
    OBJECTIVE_MISSED = "rpo-missed"
    DOUBTFUL = "doubtful"


RECOVERY = "recovery"
Key = tuple[str, str, str]
"""Job, VM, and the kind of trouble that was told."""


@dataclass(frozen=True, slots=True)
class Notice:
    kind: str
    """A Trouble, or `recovery`."""
    job: str
    vm: str
    message: str

    def to_json(self) -> Json:
        return {"kind": self.kind, "job": self.job, "vm": self.vm, "message": self.message}


def due(protection: Protection, told: frozenset[Key]) -> tuple[list[Notice], frozenset[Key]]:
    """What is new since `told`, and what has been told after that.

    A VM that no job has any more is forgotten: nobody waits for its recovery.
    """
    notices: list[Notice] = []
    now: set[Key] = set()
    for vm in protection.vms:
        troubles = _troubles(vm, protection)
        before = {Trouble(kind) for job, name, kind in told if (job, name) == (vm.job, vm.name)}
        for trouble, message in troubles.items():
            now.add((vm.job, vm.name, trouble.value))
            if trouble not in before:
                notices.append(Notice(trouble.value, vm.job, vm.name, message))
        over = before - set(troubles)
        # A run that was skipped or stopped says nothing about whether the failure is over.
        if Trouble.FAILURE in over and vm.last_result is not Result.SUCCESS:
            over.discard(Trouble.FAILURE)
            now.add((vm.job, vm.name, Trouble.FAILURE.value))
        if over and not any((vm.job, vm.name) == key[:2] for key in now):
            notices.append(Notice(RECOVERY, vm.job, vm.name, f"{vm.name} is protected again"))
    return notices, frozenset(now)


def _troubles(vm: VmProtection, protection: Protection) -> Mapping[Trouble, str]:
    said: dict[Trouble, str] = {}
    complaint = protection.complaint(vm) or ""
    if vm.failed:
        said[Trouble.FAILURE] = f"{vm.name}: last run failed: {vm.error or 'see `vrepl report`'}"
    if vm.objective_met(protection.now) is False:
        said[Trouble.OBJECTIVE_MISSED] = f"{vm.name}: {complaint.partition(';')[0]}"
    if vm.doubtful is not None:
        said[Trouble.DOUBTFUL] = f"{vm.name}: restore point {vm.doubtful} differs from its digests"
    return said
