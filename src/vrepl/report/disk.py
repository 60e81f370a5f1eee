"""One disk in the report of a run or a plan (`report.model`): what was moved, how, and over which road."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vrepl.model import TransferKind


@dataclass(slots=True)
class SideTransport:
    """How one side of one disk was (or would be) reached."""

    mode: str | None = None
    """What VDDK really used; in a plan, the mode that would be tried first."""
    reason: str = ""
    """Why this mode."""
    chosen: str | None = None
    """The mode that was tried first, by rule."""
    ruled_out: list[tuple[str, str]] = field(default_factory=list)
    """(mode, why not) for the modes that the rules excluded."""
    fallbacks: list[str] = field(default_factory=list)
    """Modes that failed on the way, in words."""
    engine: str | None = None
    """`vddk` or `own`: whose code opens the disk; None where no mode reaches it, and in reports of older versions."""
    proxy: str | None = None
    """The configured proxy whose movers open the disk; None: this machine's."""

    def to_json(self) -> dict[str, Any]:
        return {
            "mode": self.mode,
            "engine": self.engine,
            "proxy": self.proxy,
            "reason": self.reason,
            "chosen": self.chosen,
            "ruled_out": [{"mode": mode, "reason": reason} for mode, reason in self.ruled_out],
            "fallbacks": list(self.fallbacks),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SideTransport:
        return cls(
            mode=data.get("mode"),
            reason=data.get("reason", ""),
            chosen=data.get("chosen"),
            ruled_out=[(item["mode"], item["reason"]) for item in data.get("ruled_out", ())],
            fallbacks=list(data.get("fallbacks", ())),
            engine=data.get("engine"),
            proxy=data.get("proxy"),
        )


@dataclass(slots=True)
class DiskReport:
    """One disk of one VM. In a plan, byte figures that cannot be known before a snapshot exists are None."""

    index: int
    label: str
    kind: TransferKind
    reason: str
    """Why this kind: `no restore point yet`, `changed areas since …`, or what made CBT untrustworthy."""
    capacity: int
    bytes_read: int | None = None
    bytes_moved: int | None = None
    bytes_skipped: int | None = None
    """Settled without a write: surely equal already."""
    bytes_bound: int | None = None
    """Plan: at most this much will be read."""
    last_bytes_moved: int | None = None
    """Plan: what the last run moved."""
    resumed: bool = False
    attempts: int = 0
    retries: list[str] = field(default_factory=list)
    """Why each attempt after the first was made, in words."""
    seconds: float | None = None
    waits: dict[str, float] = field(default_factory=dict)
    """Seconds that the pipeline waited for: source, mover, network, target."""
    source: SideTransport = field(default_factory=SideTransport)
    target: SideTransport = field(default_factory=SideTransport)

    def to_json(self) -> dict[str, Any]:
        return {
            "index": self.index,
            "label": self.label,
            "kind": self.kind.value,
            "reason": self.reason,
            "capacity": self.capacity,
            "bytes_read": self.bytes_read,
            "bytes_moved": self.bytes_moved,
            "bytes_skipped": self.bytes_skipped,
            "bytes_bound": self.bytes_bound,
            "last_bytes_moved": self.last_bytes_moved,
            "resumed": self.resumed,
            "attempts": self.attempts,
            "retries": list(self.retries),
            "seconds": None if self.seconds is None else round(self.seconds, 3),
            "waits": {stage: round(seconds, 3) for stage, seconds in self.waits.items()},
            "transport": {"source": self.source.to_json(), "target": self.target.to_json()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DiskReport:
        transport = data.get("transport", {})
        return cls(
            index=data["index"],
            label=data.get("label", ""),
            kind=TransferKind(data["kind"]),
            reason=data.get("reason", ""),
            capacity=data["capacity"],
            bytes_read=data.get("bytes_read"),
            bytes_moved=data.get("bytes_moved"),
            bytes_skipped=data.get("bytes_skipped"),
            bytes_bound=data.get("bytes_bound"),
            last_bytes_moved=data.get("last_bytes_moved"),
            resumed=data.get("resumed", False),
            attempts=data.get("attempts", 0),
            retries=list(data.get("retries", ())),
            seconds=data.get("seconds"),
            waits=dict(data.get("waits", {})),
            source=SideTransport.from_json(transport.get("source", {})),
            target=SideTransport.from_json(transport.get("target", {})),
        )
