"""`repository check`: walk everything, report what is wrong; changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from vrepl.repository.store import Repository


class Severity(StrEnum):
    NOTE = "note"
    """Worth knowing; the next run sees to it."""
    WARNING = "warning"
    """Costs bytes or time, not data: digests unknown."""
    ERROR = "error"
    """Wants a person: `repository rebuild`."""


@dataclass(frozen=True, slots=True)
class Finding:
    severity: Severity
    path: str
    """Relative to the repository."""
    message: str
    hint: str = ""


def check(repository: Repository) -> list[Finding]:
    """Every finding, in the order of the folders; an empty list is a sound repository."""
    raise NotImplementedError
