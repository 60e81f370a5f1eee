"""Which restore points to keep. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass

from vrepl.model import RestorePoint, RetentionPolicy


@dataclass(frozen=True, slots=True)
class RetentionDecision:
    """Whether one restore point stays, and why."""

    restore_point: RestorePoint
    keep: bool
    reason: str


def apply_retention(
    restore_points: Iterable[RestorePoint], policy: RetentionPolicy, now: dt.datetime
) -> list[RetentionDecision]:
    """One decision for each, oldest first: the order to remove in. Days and weeks are those of `now`'s time zone."""
    raise NotImplementedError
