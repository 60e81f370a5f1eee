"""Points at which a test may interfere with a transfer, and the death that it may simulate there."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum


class Point(StrEnum):
    """Where a transfer stands when its hook is called; the number beside it is the bytes settled so far."""

    OPENED = "opened"
    WRITE = "write"
    """Before a write is issued (leave to write is durable)."""
    FLUSH = "flush"
    """Every write is acknowledged, nothing is flushed yet."""
    FLUSHED = "flushed"
    """Flushed, not yet recorded."""
    RECORDED = "recorded"


class SimulatedKill(BaseException):
    """Raised by a hook: from here on nothing is written, flushed, recorded or closed, as after SIGKILL."""


Hook = Callable[[Point, int], None]


def no_hook(point: Point, settled: int) -> None:
    """Interfere with nothing."""
