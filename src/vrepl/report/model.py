"""The one report of a run, or of a plan, that every view shows: JSON, console, history.

The engine fills these in; `to_json` gives the documented shape (docs/json.md), `from_json` reads it back from
the repository. Sizes are bytes, durations seconds, times UTC-aware. Within one FORMAT_VERSION keys are only
ever added.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from vrepl.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_PARTIAL,
    EXIT_USAGE,
    VreplError,
    exit_code_of_run,
)
from vrepl.model import Consistency
from vrepl.report.disk import DiskReport

FORMAT_VERSION = 1
WORTH_NAMING = 0.05
"""Share of the disks' time from which on waits have a place worth naming."""

Json = dict[str, Any]


class Result(StrEnum):
    """Of a VM, or of a run. `partial`: only some VMs of the run succeeded; `planned`: nothing was done."""

    SUCCESS = "success"
    PARTIAL = "partial"
    FAILED = "failed"
    SKIPPED = "skipped"
    INTERRUPTED = "interrupted"
    PLANNED = "planned"


@dataclass(slots=True)
class ErrorReport:
    """A failure, taken apart so that every view can show its parts."""

    message: str
    hint: str | None = None
    disk: str | None = None
    step: str | None = None
    exit_code: int = 1
    retryable: bool = False

    @classmethod
    def of(cls, error: BaseException) -> ErrorReport:
        """From any exception; those of vrepl bring hint and place, others their type's name."""
        if isinstance(error, VreplError):
            return cls(error.message, error.hint, error.disk, error.step, error.exit_code, error.retryable)
        text = str(error)
        return cls(f"{type(error).__name__}: {text}" if text else type(error).__name__)


class HasOutcome(Protocol):
    """What became of one VM, in whichever report."""

    @property
    def result(self) -> Result: ...

    @property
    def error(self) -> ErrorReport | None: ...


def exit_code_of(vms: Sequence[HasOutcome], *, interrupted: bool, more_failed: int = 0) -> int:
    """130 when interrupted, else as `exit_code_of_run`; a lone failed VM gives its error's code.

    `more_failed`: failures that are no VM's.
    """
    if interrupted:
        return EXIT_INTERRUPTED
    if len(vms) == 1 and vms[0].error is not None:
        return vms[0].error.exit_code
    failed = sum(vm.result in {Result.FAILED, Result.INTERRUPTED} for vm in vms)
    skipped = sum(vm.result is Result.SKIPPED for vm in vms)
    return exit_code_of_run(len(vms) - failed - skipped, failed + more_failed, skipped)


def why_not(one: HasOutcome) -> str | None:
    """Why it did not succeed, in words; None: it did."""
    if one.result is Result.SUCCESS:
        return None
    return one.error.message if one.error is not None else one.result.value


@dataclass(slots=True)
class AuditReport:
    """What a run read of what change tracking calls unchanged, in bytes."""

    bytes_read: int = 0
    bytes_missed: int = 0
    """Changed, and not told by change tracking: an alarm."""
    bytes_zeroed: int = 0
    """Read as zeros now, and did not: a guest may have given it back (TRIM). Settled, no alarm."""
    bytes_recorded: int = 0
    """Had no sure digest to be judged by; read and settled like what changed."""
    doubtful: list[str] = field(default_factory=list)
    """IDs of restore points that may not be what the source was."""

    def to_json(self) -> Json:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AuditReport:
        return cls(**{key: data[key] for key in cls.__slots__ if key in data})


@dataclass(slots=True)
class ScriptReport:
    """One script that was run around the source snapshot."""

    moment: str
    """`pre_freeze` or `post_thaw`."""
    place: str
    """`guest` or `control host`."""
    status: int | None = None
    """Exit code; None where it could not be started, or was ended."""
    output: str = ""
    """The last 16 KiB of what it wrote, without what looks like a secret."""
    output_cut: bool = False
    seconds: float | None = None
    error: str | None = None

    def to_json(self) -> Json:
        return {
            "moment": self.moment,
            "place": self.place,
            "status": self.status,
            "output": self.output,
            "output_cut": self.output_cut,
            "seconds": None if self.seconds is None else round(self.seconds, 3),
            "error": self.error,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ScriptReport:
        return cls(
            moment=data["moment"],
            place=data["place"],
            status=data.get("status"),
            output=data.get("output", ""),
            output_cut=data.get("output_cut", False),
            seconds=data.get("seconds"),
            error=data.get("error"),
        )


@dataclass(slots=True)
class VmReport:
    """One VM of a run, a plan, or a verification."""

    name: str
    result: Result
    instance_uuid: str | None = None
    replica: str | None = None
    """Name of the replica."""
    error: ErrorReport | None = None
    restore_point: str | None = None
    """ID of the restore point that the run sealed; None where it sealed none."""
    consistency: Consistency | None = None
    notes: list[str] = field(default_factory=list)
    """What an operator should know although it is no failure: drift handled, what was recovered."""
    removed_restore_points: list[str] = field(default_factory=list)
    consolidation_needed: bool = False
    seconds: float | None = None
    disks: list[DiskReport] = field(default_factory=list)
    scripts: list[ScriptReport] = field(default_factory=list)
    audit: AuditReport | None = None
    """None where nothing was due, or the job has `audit = "off"`."""

    @property
    def alarm(self) -> bool:
        """Change tracking was caught missing changes: this restore point is right, earlier ones may not be."""
        return self.audit is not None and self.audit.bytes_missed > 0

    def to_json(self) -> Json:
        error = self.error
        return {
            "name": self.name,
            "instance_uuid": self.instance_uuid,
            "replica": self.replica,
            "result": self.result.value,
            "error": error.message if error else None,
            "hint": error.hint if error else None,
            "error_disk": error.disk if error else None,
            "error_step": error.step if error else None,
            "error_exit_code": error.exit_code if error else None,
            "error_retryable": error.retryable if error else None,
            "restore_point": self.restore_point,
            "consistency": self.consistency.value if self.consistency else None,
            "notes": list(self.notes),
            "removed_restore_points": list(self.removed_restore_points),
            "consolidation_needed": self.consolidation_needed,
            "seconds": None if self.seconds is None else round(self.seconds, 3),
            "disks": [disk.to_json() for disk in self.disks],
            "audit": self.audit.to_json() if self.audit else None,
            "scripts": [script.to_json() for script in self.scripts],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> VmReport:
        error = None
        if data.get("error") is not None:
            error = ErrorReport(
                message=data["error"],
                hint=data.get("hint"),
                disk=data.get("error_disk"),
                step=data.get("error_step"),
                exit_code=data.get("error_exit_code") or 1,
                retryable=bool(data.get("error_retryable")),
            )
        consistency = data.get("consistency")
        return cls(
            name=data["name"],
            result=Result(data["result"]),
            instance_uuid=data.get("instance_uuid"),
            replica=data.get("replica"),
            error=error,
            restore_point=data.get("restore_point"),
            consistency=Consistency(consistency) if consistency else None,
            notes=list(data.get("notes", ())),
            removed_restore_points=list(data.get("removed_restore_points", ())),
            consolidation_needed=data.get("consolidation_needed", False),
            seconds=data.get("seconds"),
            disks=[DiskReport.from_json(disk) for disk in data.get("disks", ())],
            audit=AuditReport.from_json(data["audit"]) if data.get("audit") else None,
            scripts=[ScriptReport.from_json(script) for script in data.get("scripts", ())],
        )


@dataclass(slots=True)
class RunReport:
    """One run of one job, or what a run would do (`result` planned; then `id` and the times are None)."""

    job: str
    id: str | None = None
    started: dt.datetime | None = None
    finished: dt.datetime | None = None
    vms: list[VmReport] = field(default_factory=list)
    interrupted: bool = False
    soap_calls: dict[str, int] = field(default_factory=dict)
    """API calls of this run, per site."""
    estimate_seconds: float | None = None
    """Plan: how long the transfers will take, by past runs."""
    new_vms: list[str] = field(default_factory=list)
    """VMs that the job means, and has not replicated before."""
    vanished_vms: list[str] = field(default_factory=list)
    """VMs that the job has replicated, and means no longer."""

    def count(self, result: Result) -> int:
        return sum(vm.result is result for vm in self.vms)

    @property
    def result(self) -> Result:
        if self.interrupted:
            return Result.INTERRUPTED
        if self.id is None:
            return Result.PLANNED
        succeeded, failed, skipped = (
            self.count(Result.SUCCESS),
            self.count(Result.FAILED),
            self.count(Result.SKIPPED),
        )
        if not failed and not skipped:
            return Result.PARTIAL if any(vm.alarm for vm in self.vms) else Result.SUCCESS
        return Result.PARTIAL if succeeded else Result.FAILED

    @property
    def exit_code(self) -> int:
        """130 when interrupted, else as `exit_code_of_run`.

        A lone failed VM gives its error's code, and so do several that all fail for a mistake of the configuration. An
        alarm of the audit is 3: the run is well, and restore points before it may not be.
        """
        codes = {vm.error.exit_code if vm.error is not None else EXIT_OK for vm in self.vms}
        if codes == {EXIT_USAGE} and not self.interrupted:
            return EXIT_USAGE
        code = exit_code_of(self.vms, interrupted=self.interrupted)
        return EXIT_PARTIAL if code == EXIT_OK and any(vm.alarm for vm in self.vms) else code

    def causes(self) -> list[tuple[ErrorReport, list[str]]]:
        """What VMs failed of, each cause once, with the names of those that have it."""
        found: dict[tuple[str, str | None, str | None, str | None], tuple[ErrorReport, list[str]]] = {}
        for vm in self.vms:
            if (error := vm.error) is not None:
                cause = (error.message, error.hint, error.disk, error.step)
                found.setdefault(cause, (error, []))[1].append(vm.name)
        return list(found.values())

    @property
    def seconds(self) -> float | None:
        """From the start to the end."""
        if self.started is None or self.finished is None:
            return None
        return round((self.finished - self.started).total_seconds(), 3)

    @property
    def bytes_read(self) -> int:
        return sum(disk.bytes_read or 0 for vm in self.vms for disk in vm.disks)

    @property
    def bytes_moved(self) -> int:
        return sum(disk.bytes_moved or 0 for vm in self.vms for disk in vm.disks)

    def bottleneck(self) -> dict[str, float]:
        """Share (0..1) of the measured waits per stage, greatest first; empty where there was nothing to wait for."""
        total: dict[str, float] = {}
        worked = 0.0
        for vm in self.vms:
            for disk in vm.disks:
                worked += disk.seconds or 0.0
                for stage, seconds in disk.waits.items():
                    total[stage] = total.get(stage, 0.0) + seconds
        whole = sum(total.values())
        if whole <= WORTH_NAMING * worked:
            return {}
        return {stage: total[stage] / whole for stage in sorted(total, key=lambda name: -total[name])}

    def followed_by(self, later: RunReport) -> RunReport:
        """One report of this run and a later one of some of its VMs: each VM as it was left, both runs' time."""
        again = {vm.name: vm for vm in later.vms}
        return RunReport(
            job=self.job,
            id=later.id,
            started=self.started,
            finished=later.finished,
            vms=[again.get(vm.name, vm) for vm in self.vms],
            interrupted=later.interrupted,
            new_vms=self.new_vms,
            vanished_vms=self.vanished_vms,
            soap_calls={
                site: self.soap_calls.get(site, 0) + later.soap_calls.get(site, 0)
                for site in (self.soap_calls | later.soap_calls)
            },
        )

    def to_json(self) -> Json:
        return {
            "version": FORMAT_VERSION,
            "run": {
                "id": self.id,
                "job": self.job,
                "started": time_to_json(self.started),
                "finished": time_to_json(self.finished),
                "seconds": self.seconds,
                "result": self.result.value,
                "bytes_read": None if self.id is None else self.bytes_read,
                "bytes_moved": None if self.id is None else self.bytes_moved,
                "bottleneck": {stage: round(share, 4) for stage, share in self.bottleneck().items()},
                "soap_calls": dict(self.soap_calls),
                "new_vms": list(self.new_vms),
                "vanished_vms": list(self.vanished_vms),
                "estimate_seconds": None if self.estimate_seconds is None else round(self.estimate_seconds, 1),
            },
            "vms": [vm.to_json() for vm in self.vms],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunReport:
        """Raises KeyError or ValueError where the data is not a report of this version."""
        if data["version"] != FORMAT_VERSION:
            raise ValueError(f"report format {data['version']!r} is not {FORMAT_VERSION}")
        run = data["run"]
        started, finished = time_from_json(run["started"]), time_from_json(run["finished"])
        if started is not None and run.get("seconds") is not None:
            # Times are written to the second; what lies between them is known better.
            finished = started + dt.timedelta(seconds=run["seconds"])
        return cls(
            job=run["job"],
            id=run["id"],
            started=started,
            finished=finished,
            vms=[VmReport.from_json(vm) for vm in data["vms"]],
            interrupted=run["result"] == Result.INTERRUPTED.value,
            soap_calls=dict(run.get("soap_calls", {})),
            estimate_seconds=run.get("estimate_seconds"),
            new_vms=list(run.get("new_vms", ())),
            vanished_vms=list(run.get("vanished_vms", ())),
        )


def time_to_json(moment: dt.datetime | None) -> str | None:
    """ISO 8601 in UTC with its offset, to the second: `2025-03-01T22:00:00+00:00`."""
    return None if moment is None else moment.astimezone(dt.UTC).isoformat(timespec="seconds")


def time_from_json(text: str | None) -> dt.datetime | None:
    return None if text is None else dt.datetime.fromisoformat(text)
