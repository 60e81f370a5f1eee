"""Which restore points to keep: a pure function of the restore points, the policy and the time.

A restore point stays if any rule wants it: it is among the `last` ones, or the newest of one of the `hourly` hours,
`daily` days, `weekly` ISO weeks or `monthly` months that have any. Periods without restore points do not count, so an
outage costs no history. The newest one always stays. Periods are those of the time zone that `now` is given in.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from vrepl.model import RestorePoint, RetentionPolicy

MAX_RESTORE_POINTS = 28
"""vSphere allows 32 snapshots in a chain; failover, verification and a run's own want the rest."""


@dataclass(frozen=True, slots=True)
class RetentionDecision:
    """Whether one restore point stays, and why."""

    restore_point: RestorePoint
    keep: bool
    reason: str


def apply_retention(
    restore_points: Iterable[RestorePoint], policy: RetentionPolicy, now: dt.datetime
) -> list[RetentionDecision]:
    """One decision for each, oldest first: the order to remove in."""
    newest_first = sorted(restore_points, key=lambda point: (point.time, point.id), reverse=True)
    reasons: dict[str, str] = {}
    for number, point in enumerate(newest_first[: max(policy.last, 1)], start=1):
        reasons[point.id] = "the newest" if number == 1 else f"one of the last {policy.last}"

    def hour(point: RestorePoint) -> str:
        # With its offset: when clocks go back, one hour of the day is there twice.
        return point.time.astimezone(now.tzinfo).strftime("%Y-%m-%d %H:00 %z")

    def day(point: RestorePoint) -> str:
        return point.time.astimezone(now.tzinfo).date().isoformat()

    def week(point: RestorePoint) -> str:
        year, number, _ = point.time.astimezone(now.tzinfo).isocalendar()
        return f"{year}-W{number:02}"

    def month(point: RestorePoint) -> str:
        return point.time.astimezone(now.tzinfo).strftime("%Y-%m")

    rules: tuple[tuple[str, int, Callable[[RestorePoint], str]], ...] = (
        ("hour", policy.hourly, hour),
        ("day", policy.daily, day),
        ("week", policy.weekly, week),
        ("month", policy.monthly, month),
    )
    for kind, periods, period_of in rules:
        for point, name in _newest_of_each(newest_first, periods, period_of):
            reasons.setdefault(point.id, f"the newest of {kind} {name}")

    kept = 0
    decisions = []
    for point in newest_first:
        reason = reasons.get(point.id)
        if reason is None:
            decisions.append(RetentionDecision(point, False, f"{_age(now - point.time)} old, and no rule keeps it"))
        elif kept == MAX_RESTORE_POINTS:
            full = f"{reason}, but there are {MAX_RESTORE_POINTS} newer ones and a chain of snapshots takes no more"
            decisions.append(RetentionDecision(point, False, full))
        else:
            kept += 1
            decisions.append(RetentionDecision(point, True, reason))
    return decisions[::-1]


def removable(
    restore_points: Sequence[RestorePoint],
    created: Mapping[str, dt.datetime],
    policy: RetentionPolicy,
    now: dt.datetime,
) -> list[RestorePoint]:
    """What may be removed, oldest first: what the policy lets go by the time in its record *and* by `created`.

    `created`: restore point ID -> when the target says that its snapshot was made. The one time is by the clock of
    the machine that ran, the other by the target's: a single clock that was wrong never decides what is removed. In
    doubt more is kept; only that a chain takes no more than `MAX_RESTORE_POINTS` goes by their order alone.
    """
    let_go = {one.restore_point.id for one in apply_retention(restore_points, policy, now) if not one.keep}
    by_target = [replace(point, time=created.get(point.id, point.time)) for point in restore_points]
    let_go &= {one.restore_point.id for one in apply_retention(by_target, policy, now) if not one.keep}
    in_order = sorted(restore_points, key=lambda point: (point.time, point.id))
    kept = [point.id for point in in_order if point.id not in let_go]
    let_go |= set(kept[: max(len(kept) - MAX_RESTORE_POINTS, 0)])
    return [point for point in in_order if point.id in let_go]


def reach(policy: RetentionPolicy, every: dt.timedelta) -> dt.timedelta:
    """How far back restore points reach at the least, once a job has run `every` so long for long enough.

    What is kept of a day is its newest restore point, so that just after midnight seven days reach back over five whole
    days; likewise hours, weeks and months (of 28 days here). The rule that reaches furthest counts.
    """
    periods = (
        (policy.hourly, dt.timedelta(hours=1)),
        (policy.daily, dt.timedelta(days=1)),
        (policy.weekly, dt.timedelta(weeks=1)),
        (policy.monthly, dt.timedelta(days=28)),
    )
    reaches = [every * (max(policy.last, 1) - 1)]
    for count, length in periods:
        if count > 1:
            # Runs that are further apart than the periods: each has a period to itself.
            reaches.append(every * (count - 1) if every >= length else length * (count - 2))
    return max(reaches)


def _newest_of_each(
    newest_first: list[RestorePoint], periods: int, period_of: Callable[[RestorePoint], str]
) -> list[tuple[RestorePoint, str]]:
    """The newest restore point of each of the newest `periods` periods that have any."""
    found: dict[str, RestorePoint] = {}
    for point in newest_first:
        found.setdefault(period_of(point), point)
    return [(point, name) for name, point in list(found.items())[:periods]]


def _age(age: dt.timedelta) -> str:
    seconds = max(int(age.total_seconds()), 0)
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = seconds // size
            return f"{count} {unit}{'s' if count != 1 else ''}"
    return "under a minute"
