"""What one check says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from vrepl.errors import VreplError


class Status(StrEnum):
    OK = "ok"
    WARNING = "warning"
    """Works, but not as well or not for ever."""
    FAILED = "failed"
    SKIPPED = "skipped"
    """Could not be asked, because of something else that failed or is not there."""


class NagiosStatus(IntEnum):
    """Exit codes of the Nagios plugin interface (Monitoring Plugins guidelines, "Plugin Return Codes")."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


@dataclass(frozen=True, slots=True)
class CheckResult:
    """`name` says what was checked, such as `port 902 of esx-1 (prod)`."""

    name: str
    status: Status
    detail: str = ""
    hint: str | None = None
    group: str = ""
    """What it belongs to: `this machine`, a site, a job."""

    @classmethod
    def ok(cls, name: str, detail: str = "") -> CheckResult:
        return cls(name, Status.OK, detail)

    @classmethod
    def failed(cls, name: str, error: VreplError) -> CheckResult:
        return cls(name, Status.FAILED, error.message, error.hint)


def nagios_status(results: Sequence[CheckResult]) -> NagiosStatus:
    statuses = {result.status for result in results}
    if Status.FAILED in statuses:
        return NagiosStatus.CRITICAL
    if Status.WARNING in statuses:
        return NagiosStatus.WARNING
    return NagiosStatus.OK if Status.OK in statuses else NagiosStatus.UNKNOWN


def nagios_line(results: Sequence[CheckResult]) -> str:
    """The plugin's first line: status, what is wrong by name, and counts as performance data."""
    counts = {status: sum(result.status is status for result in results) for status in Status}
    wrong = [f"{r.name}: {r.detail}" for r in results if r.status in {Status.FAILED, Status.WARNING}]
    said = "; ".join(wrong).replace("|", "/").replace("\n", " ") or f"{counts[Status.OK]} checks passed"
    figures = " ".join(f"{status.value}={count}" for status, count in counts.items())
    return f"VREPL {nagios_status(results).name} - {said} | {figures}"
