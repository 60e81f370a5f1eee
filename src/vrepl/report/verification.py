"""The report of a verification, of restore points that were read back; docs/json.md has its shape."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field

from vrepl.report.model import FORMAT_VERSION, ErrorReport, Json, Result, exit_code_of, time_to_json


@dataclass(slots=True)
class DiskVerification:
    """One disk of a restore point, read back and compared with its digests."""

    index: int
    label: str
    capacity: int
    bytes_read: int
    bad_extents: list[tuple[int, int]] = field(default_factory=list)
    """(offset, length) in bytes of what differs."""
    mode: str | None = None
    seconds: float | None = None
    bytes_zeroed: int = 0
    """Against the source: reads as zeros now, and did not (a guest may have given it back); no difference."""
    bytes_not_judged: int = 0
    """Against the source: has no sure digest."""
    bytes_changed: int = 0
    """Against the source: change tracking calls it changed since, so it was not read; the next run brings it."""
    not_judged_extents: list[tuple[int, int]] = field(default_factory=list)
    """(offset, length) in bytes of both: nothing is said of the restore point there."""

    def to_json(self) -> Json:
        return {
            "index": self.index,
            "label": self.label,
            "capacity": self.capacity,
            "bytes_read": self.bytes_read,
            "bad_extents": [{"offset": offset, "length": length} for offset, length in self.bad_extents],
            "mode": self.mode,
            "bytes_zeroed": self.bytes_zeroed,
            "bytes_not_judged": self.bytes_not_judged,
            "bytes_changed": self.bytes_changed,
            "not_judged_extents": [{"offset": offset, "length": length} for offset, length in self.not_judged_extents],
            "seconds": None if self.seconds is None else round(self.seconds, 3),
        }


@dataclass(slots=True)
class VmVerification:
    """A verified restore point of one VM: `success` only if every disk was read whole and agrees."""

    name: str
    result: Result
    restore_point: str | None = None
    replica: str | None = None
    error: ErrorReport | None = None
    disks: list[DiskVerification] = field(default_factory=list)

    def to_json(self) -> Json:
        return {
            "name": self.name,
            "replica": self.replica,
            "result": self.result.value,
            "error": self.error.message if self.error else None,
            "hint": self.error.hint if self.error else None,
            "restore_point": self.restore_point,
            "disks": [disk.to_json() for disk in self.disks],
        }


@dataclass(slots=True)
class VerifyReport:
    started: dt.datetime
    finished: dt.datetime
    vms: list[VmVerification] = field(default_factory=list)
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        return exit_code_of(self.vms, interrupted=self.interrupted)

    def to_json(self) -> Json:
        return {
            "version": FORMAT_VERSION,
            "started": time_to_json(self.started),
            "finished": time_to_json(self.finished),
            "vms": [vm.to_json() for vm in self.vms],
        }
