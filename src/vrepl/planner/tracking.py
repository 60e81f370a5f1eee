"""Whether changed block tracking (CBT) of a disk goes on from an earlier position, and if not, why. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from vrepl.model import TrackingPosition


class BreakKind(StrEnum):
    """What ended a disk's tracking."""

    OTHER_DISK = "other-disk"
    NONE_THEN = "no-change-id-then"
    NONE_NOW = "no-change-id-now"
    RESET = "reset"
    RESIZED = "resized"
    MOVED = "moved"


@dataclass(frozen=True, slots=True)
class TrackingBreak:
    """CBT cannot say what changed since that position."""

    kind: BreakKind
    reason: str
    """In words, for plan and report."""


def tracking_id(change_id: str) -> str:
    """The part of a change ID that says which tracking it belongs to; the part after the slash is the position."""
    return change_id.split("/", 1)[0]


def tracking_break(
    then: TrackingPosition, now: TrackingPosition, *, what: str = "the last restore point"
) -> TrackingBreak | None:
    """None: CBT says what changed from `then` to `now`. `what`: that which `then` belongs to, for the words.

    CBT is a property of one disk in one place: another disk, a reset, another size or another base of its chain of
    links void what it counted (VMware KB 1020128; vSphere API reference, QueryChangedDiskAreas).
    """
    if now.disk_uuid != then.disk_uuid:
        return TrackingBreak(BreakKind.OTHER_DISK, "its disk UUID changed: another disk stands in its place")
    if then.change_id is None:
        return TrackingBreak(BreakKind.NONE_THEN, f"{what} has no change ID")
    if now.change_id is None:
        return TrackingBreak(BreakKind.NONE_NOW, "CBT gives no change ID for this disk")
    if tracking_id(now.change_id) != tracking_id(then.change_id):
        return TrackingBreak(BreakKind.RESET, f"CBT was reset since {what}")
    if now.capacity != then.capacity:
        return TrackingBreak(BreakKind.RESIZED, f"its capacity changed from {then.capacity} to {now.capacity} bytes")
    if now.base_path != then.base_path:
        return TrackingBreak(BreakKind.MOVED, f"it moved from {then.base_path} to {now.base_path}")
    return None
