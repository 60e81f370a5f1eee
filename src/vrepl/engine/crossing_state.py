"""How a disk's crossing stands: what its ends are reached by, and what was moved. Reports are made of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from vrepl.model import TransportPlan
from vrepl.ports import TransferResult
from vrepl.report.disk import SideTransport


@dataclass(slots=True)
class Reached:
    """How one end of a disk is reached: as the rules choose, and in the end as it really was."""

    mode: str | None = None
    reason: str = ""
    chosen: str | None = None
    """By the rules, before anything failed."""
    ruled_out: list[tuple[str, str]] = field(default_factory=list)
    fallbacks: list[str] = field(default_factory=list)
    engine: str | None = None
    proxy: str | None = None

    def take(self, plan: TransportPlan) -> None:
        first = plan.usable[0]
        self.chosen = self.chosen or first.mode.value
        self.engine = plan.engine.value
        self.proxy = plan.proxy or None
        self.reason, self.mode = first.reason, first.mode.value
        self.ruled_out = [(choice.mode.value, choice.reason) for choice in plan.ruled_out]

    def report(self) -> SideTransport:
        return SideTransport(
            self.mode, self.reason, self.chosen, list(self.ruled_out), list(self.fallbacks), self.engine, self.proxy
        )


@dataclass(slots=True)
class Tally:
    """What was moved so far, in bytes, and how long it took, over all attempts."""

    attempts: int = 0
    retries: list[str] = field(default_factory=list)
    """Why each attempt after the first was made."""
    read: int = 0
    moved: int = 0
    skipped: int = 0
    seconds: float = 0.0
    waits: dict[str, float] = field(default_factory=dict)

    def add(self, read: int, moved: int, skipped: int = 0) -> None:
        self.read += read
        self.moved += moved
        self.skipped += skipped

    def add_result(self, result: TransferResult) -> None:
        self.add(result.bytes_read, result.bytes_moved, result.bytes_skipped)
        self.seconds += result.seconds
        for stage, seconds in result.waits.items():
            self.waits[stage] = self.waits.get(stage, 0.0) + seconds
