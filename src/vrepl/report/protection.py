"""Is every VM protected? What the configuration promises against what the repository knows, without asking any site."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from vrepl.errors import EXIT_OK, EXIT_PARTIAL
from vrepl.report import format as words
from vrepl.report.model import Json, Result, time_to_json

STATUS_VERSION = 1


@dataclass(frozen=True, slots=True)
class ReplicaStanding:
    """What a replica is used for. Failover tells it; until a replica has been failed over it is `ready`."""

    state: str
    last_test: dt.datetime | None = None


IN_SERVICE = frozenset({"failing-over", "failed-over", "failing-back", "committed"})
"""States of a replica in which its job has no objective."""


class Need(IntEnum):
    """How much a VM needs somebody's attention, most first."""

    OBJECTIVE_MISSED = 0
    DOUBTFUL = 1
    """Its newest restore point was read back and differs."""
    FAILED = 2
    NEVER_REPLICATED = 3
    IN_USE = 4
    """Failed over, or on the way there or back."""
    NOTHING = 5


@dataclass(frozen=True, slots=True)
class AuditStanding:
    """How far the audit of change tracking is, over all disks of a VM."""

    rounds: int
    """How often all of it was read."""
    percent: int
    """Of the round that goes on."""
    paid: dt.datetime
    """Up to when what was due has been read."""

    def to_json(self) -> Json:
        return {"rounds": self.rounds, "percent": self.percent, "up_to": time_to_json(self.paid)}


@dataclass(frozen=True, slots=True)
class VmProtection:
    """One VM of one job."""

    name: str
    job: str
    standing: ReplicaStanding | None
    """None: there is no replica yet."""
    restore_point: str | None = None
    """ID of the newest that is not known to be bad."""
    restore_point_time: dt.datetime | None = None
    """When its source was snapshotted: what came later would be lost."""
    rpo: float | None = None
    """Seconds; None: the job promises nothing."""
    doubtful: str | None = None
    """A newer restore point that was read back and differs, or of which an audit found that changes were missed."""
    verified: dt.datetime | None = None
    """When a restore point was last read back whole and found good."""
    last_result: Result | None = None
    last_finished: dt.datetime | None = None
    last_seconds: float | None = None
    last_bytes: int | None = None
    """Written by the last run; None where that is not known."""
    error: str | None = None
    hint: str | None = None
    running: bool = False
    audit: AuditStanding | None = None
    """None: nothing has been audited yet."""

    def age(self, now: dt.datetime) -> float | None:
        """Seconds since the last good restore point; never negative."""
        return None if self.restore_point_time is None else max(0.0, (now - self.restore_point_time).total_seconds())

    @property
    def in_service(self) -> bool:
        """Whether the replica itself is what works, or is on the way there or back: then nothing is replicated."""
        return self.standing is not None and self.standing.state in IN_SERVICE

    def objective_met(self, now: dt.datetime) -> bool | None:
        """None where nothing is promised. A VM without a restore point meets no objective."""
        if self.rpo is None or self.in_service:
            return None
        age = self.age(now)
        return age is not None and age <= self.rpo

    @property
    def failed(self) -> bool:
        return self.last_result is Result.FAILED

    def need(self, now: dt.datetime) -> Need:
        if self.objective_met(now) is False:
            return Need.OBJECTIVE_MISSED
        if self.doubtful is not None:
            return Need.DOUBTFUL
        if self.failed:
            return Need.FAILED
        if self.restore_point is None:
            return Need.NEVER_REPLICATED
        return Need.IN_USE if self.in_service else Need.NOTHING

    def to_json(self, now: dt.datetime) -> Json:
        age = self.age(now)
        standing = self.standing
        return {
            "name": self.name,
            "job": self.job,
            "state": None if standing is None else standing.state,
            "restore_point": self.restore_point,
            "restore_point_time": time_to_json(self.restore_point_time),
            "age_seconds": None if age is None else round(age),
            "rpo_seconds": None if self.rpo is None else round(self.rpo),
            "rpo_met": self.objective_met(now),
            "last_result": None if self.last_result is None else self.last_result.value,
            "error": self.error,
            "hint": self.hint,
            "doubtful": self.doubtful,
            "running": self.running,
            "audit": None if self.audit is None else self.audit.to_json(),
            "last_test": None if standing is None else time_to_json(standing.last_test),
        }


@dataclass(frozen=True, slots=True)
class Protection:
    """Every VM of every job, what needs attention first; and replicas that no job has any more."""

    now: dt.datetime
    vms: Sequence[VmProtection]
    without_job: Sequence[str] = field(default_factory=tuple)
    """Names of the replicas' sources."""

    @classmethod
    def of(cls, now: dt.datetime, vms: Iterable[VmProtection], without_job: Iterable[str] = ()) -> Protection:
        def urgency(vm: VmProtection) -> tuple[int, float, str, str]:
            age = vm.age(now)
            late = float("inf") if age is None else age - (vm.rpo or 0.0)
            return vm.need(now), -late, vm.job, vm.name

        return cls(now, sorted(vms, key=urgency), sorted(without_job))

    @property
    def exit_code(self) -> int:
        """3 where an objective is missed, the last run of a VM failed, or its newest restore point is bad; else 0."""
        needy = {Need.OBJECTIVE_MISSED, Need.DOUBTFUL, Need.FAILED}
        return EXIT_PARTIAL if any(vm.need(self.now) in needy for vm in self.vms) else EXIT_OK

    def complaint(self, vm: VmProtection) -> str | None:
        """What is wrong with a VM, in one line; None if nothing is."""
        said = []
        if vm.objective_met(self.now) is False:
            age = vm.age(self.now)
            have = "no restore point" if age is None else f"last good copy {words.duration(age)} old"
            said.append(f"{have}, objective {words.period(vm.rpo)}")
        if vm.doubtful is not None:
            said.append(f"restore point {vm.doubtful} is doubtful")
        if vm.failed:
            said.append(f"last run failed: {vm.error or 'see `vrepl report`'}")
        return "; ".join(said) or None

    def to_json(self) -> Json:
        return {
            "version": STATUS_VERSION,
            "vms": [vm.to_json(self.now) for vm in self.vms],
            "without_job": list(self.without_job),
        }


def nagios(protection: Protection) -> tuple[int, str]:
    """Exit code and first line of a monitoring plugin (Monitoring Plugins guidelines, "Plugin Return Codes").

    CRITICAL: an objective is missed, a restore point is bad, or a run failed of a VM that has no objective. WARNING: a
    run failed and the objective is still met. UNKNOWN: there is nothing to watch.
    """
    now = protection.now
    needs = [vm.need(now) for vm in protection.vms]
    critical = [
        vm
        for vm, need in zip(protection.vms, needs, strict=True)
        if need in {Need.OBJECTIVE_MISSED, Need.DOUBTFUL} or (need is Need.FAILED and vm.rpo is None)
    ]
    warning = [vm for vm, need in zip(protection.vms, needs, strict=True) if need is Need.FAILED and vm not in critical]
    if not protection.vms:
        code, name = 3, "UNKNOWN"
    else:
        code, name = (2, "CRITICAL") if critical else (1, "WARNING") if warning else (0, "OK")
    wrong = [f"{vm.name} ({vm.job}): {protection.complaint(vm)}" for vm in [*critical, *warning]]
    told = "; ".join(wrong) or (f"{len(protection.vms)} VMs protected" if protection.vms else "no job has a VM")
    ages = [age for vm in protection.vms if (age := vm.age(now)) is not None]
    figures = (
        f"vms={len(needs)} missed={needs.count(Need.OBJECTIVE_MISSED)} "
        f"failed={sum(vm.failed for vm in protection.vms)} "
        f"never={sum(vm.restore_point is None for vm in protection.vms)} oldest={round(max(ages, default=0))}s"
    )
    # A bar divides words from figures, and a plugin's first line is one line.
    return code, f"VREPL {name} - {told.replace('|', '/')} | {figures}"
