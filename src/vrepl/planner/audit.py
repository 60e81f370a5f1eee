"""Which part of a disk is audited next: what change tracking calls unchanged is read all the same. Pure.

A disk is gone round from its start to its end, and again. How much a run reads follows from the time that has passed
since the last: `capacity x elapsed / period`. So the whole disk is read within one period, however often the job runs;
the worst that a clock which jumps can do is that more is read.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from vrepl.extents import GRAIN, Extent, intersect, normalise, subtract, total

MIB = 1024 * 1024
LEAST = 64 * MIB
"""Bytes: less is not worth opening a disk for; it is left to a later run, when more is due."""
MOST = 16 * 1024 * MIB
"""Bytes of one disk in one run; what is due beyond it stays due."""


@dataclass(frozen=True, slots=True)
class AuditedPart:
    """Found equal to the source at the snapshot that this restore point was made from."""

    offset: int
    length: int
    restore_point_id: str


@dataclass(frozen=True, slots=True)
class DiskAudit:
    """How far the audit of one disk is."""

    capacity: int
    paid: dt.datetime
    """Up to when what was due has been read."""
    position: int = 0
    """Bytes: where the next part begins."""
    rounds: int = 0
    """How often the end of the disk was reached."""
    parts: tuple[AuditedPart, ...] = ()
    """What was read when, each byte once."""

    @property
    def percent(self) -> int:
        """Of the round that goes on."""
        return 100 * self.position // self.capacity if self.capacity else 0


@dataclass(frozen=True, slots=True)
class AuditBook:
    """`audit.json` of a replica: source device key -> how far its audit is."""

    disks: Mapping[int, DiskAudit] = field(default_factory=dict)


def due_part(audit: DiskAudit, period: dt.timedelta, now: dt.datetime) -> list[Extent]:
    """What to read in a run now: normal, grain-aligned but for the disk's end; empty where too little is due."""
    share = min(max((now - audit.paid) / period, 0.0), 1.0)
    due = min(int(audit.capacity * share), MOST)
    if due < min(LEAST, audit.capacity):
        return []
    due = min(-(-due // GRAIN) * GRAIN, audit.capacity)
    first = Extent(audit.position, min(due, audit.capacity - audit.position))
    rest = due - first.length
    return normalise([first, *([Extent(0, rest)] if rest else [])])


def after_part(
    audit: DiskAudit, part: Sequence[Extent], period: dt.timedelta, now: dt.datetime, restore_point_id: str
) -> DiskAudit:
    """The audit once `part` (as `due_part` gave it) has been read for this restore point."""
    read = total(part)
    if not read:
        return audit
    position = audit.position + read
    paid = min(max(audit.paid, now - period) + period * (read / audit.capacity), now)
    done = _noted(audit, part, restore_point_id)
    if position >= audit.capacity:
        return replace(done, paid=paid, position=position - audit.capacity, rounds=audit.rounds + 1)
    return replace(done, paid=paid, position=position)


def after_whole(capacity: int, before: DiskAudit | None, now: dt.datetime, restore_point_id: str) -> DiskAudit:
    """The audit once a run has read the whole disk: it begins anew."""
    rounds = before.rounds if before else 0
    return DiskAudit(capacity, now, 0, rounds, (AuditedPart(0, capacity, restore_point_id),))


def after_reading(
    capacity: int, before: DiskAudit | None, judged: Sequence[Extent], started: dt.datetime, restore_point_id: str
) -> DiskAudit:
    """The audit once `judged` was read out of turn and found right: what is due in turn stays due."""
    if before is None or before.capacity != capacity:
        before = DiskAudit(capacity, started)
    return _noted(before, judged, restore_point_id)


def _noted(audit: DiskAudit, part: Sequence[Extent], restore_point_id: str) -> DiskAudit:
    kept = [
        AuditedPart(left.offset, left.length, one.restore_point_id)
        for one in audit.parts
        for left in subtract([Extent(one.offset, one.length)], part)
    ]
    added = [AuditedPart(extent.offset, extent.length, restore_point_id) for extent in part]
    return replace(audit, parts=tuple(sorted([*kept, *added], key=lambda one: one.offset)))


def last_audited(audit: DiskAudit | None, bad: Sequence[Extent], order: Sequence[str]) -> str | None:
    """The latest restore point at which all of `bad` was surely right; None: of some of it nothing is known.

    `order`: IDs of restore points, oldest first; one that is gone since lies before all of them and counts as none.
    """
    if audit is None or subtract(bad, [Extent(one.offset, one.length) for one in audit.parts]):
        return None
    touched = {one.restore_point_id for one in audit.parts if intersect(bad, [Extent(one.offset, one.length)])}
    if not touched <= set(order):
        return None
    return min(touched, key=list(order).index)
