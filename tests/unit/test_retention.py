"""Retention: which restore points stay, why, and in which order the others go."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrepl.model import Consistency, RestorePoint, RetentionPolicy
from vrepl.retention import MAX_RESTORE_POINTS, RetentionDecision, apply_retention, reach

NOW = dt.datetime(2024, 3, 14, 12, 0, tzinfo=dt.UTC)  # a Thursday


def point(when: dt.datetime, name: str | None = None) -> RestorePoint:
    name = name or when.strftime("%m-%dT%H:%M")
    return RestorePoint(name, when, "run", "job", Consistency.CRASH, f"vrepl-{name}", None, ())


def ago(**span: float) -> RestorePoint:
    return point(NOW - dt.timedelta(**span))


def kept(decisions: list[RetentionDecision]) -> list[str]:
    return [decision.restore_point.id for decision in decisions if decision.keep]


def test_last_keeps_the_newest_and_removes_the_oldest_first() -> None:
    points = [ago(hours=hours) for hours in (5, 1, 3, 2, 4)]
    decisions = apply_retention(points, RetentionPolicy(last=2), NOW)
    assert [(one.restore_point.id, one.keep, one.reason) for one in decisions] == [
        ("03-14T07:00", False, "5 hours old, and no rule keeps it"),
        ("03-14T08:00", False, "4 hours old, and no rule keeps it"),
        ("03-14T09:00", False, "3 hours old, and no rule keeps it"),
        ("03-14T10:00", True, "one of the last 2"),
        ("03-14T11:00", True, "the newest"),
    ]


def test_daily_keeps_the_newest_of_each_day_that_has_any() -> None:
    points = [ago(hours=hours) for hours in (1, 2, 13, 14, 24 * 9, 24 * 9 + 1, 24 * 20)]
    decisions = apply_retention(points, RetentionPolicy(last=1, daily=3), NOW)
    assert kept(decisions) == ["03-05T12:00", "03-13T23:00", "03-14T11:00"]
    assert decisions[-3].reason == "the newest of day 2024-03-13"


def test_weekly_keeps_the_newest_of_each_iso_week() -> None:
    monday = dt.datetime(2024, 3, 11, 0, 0, tzinfo=dt.UTC)
    points = [point(monday + dt.timedelta(days=days)) for days in (-8, -7, -1, 0, 3)]
    decisions = apply_retention(points, RetentionPolicy(last=1, weekly=3), NOW)
    assert kept(decisions) == ["03-03T00:00", "03-10T00:00", "03-14T00:00"]
    assert decisions[0].reason == "the newest of week 2024-W09"


def test_an_iso_week_over_new_year_is_one_week() -> None:
    now = dt.datetime(2025, 1, 2, tzinfo=dt.UTC)
    points = [point(dt.datetime(2024, 12, 30, tzinfo=dt.UTC)), point(dt.datetime(2025, 1, 1, tzinfo=dt.UTC))]
    assert kept(apply_retention(points, RetentionPolicy(last=1, weekly=2), now)) == ["01-01T00:00"]


def test_days_are_those_of_the_time_zone_of_now() -> None:
    tokyo = dt.timezone(dt.timedelta(hours=9))
    points = [point(dt.datetime(2024, 3, 13, 14, tzinfo=dt.UTC)), point(dt.datetime(2024, 3, 13, 16, tzinfo=dt.UTC))]
    policy = RetentionPolicy(last=1, daily=2)
    assert kept(apply_retention(points, policy, NOW)) == ["03-13T16:00"]
    assert kept(apply_retention(points, policy, NOW.astimezone(tokyo))) == ["03-13T14:00", "03-13T16:00"]


def test_the_chain_never_grows_past_what_vsphere_allows() -> None:
    points = [ago(days=days) for days in range(60)]
    decisions = apply_retention(points, RetentionPolicy(last=20, daily=25, weekly=9), NOW)
    assert len(kept(decisions)) == MAX_RESTORE_POINTS
    assert any("a chain of snapshots takes no more" in one.reason for one in decisions if not one.keep)


def test_one_from_the_future_is_simply_the_newest() -> None:
    decisions = apply_retention([ago(days=1), ago(days=-1)], RetentionPolicy(last=1), NOW)
    assert kept(decisions) == ["03-15T12:00"]


def test_nothing_is_decided_about_nothing() -> None:
    assert apply_retention([], RetentionPolicy(), NOW) == []


times = st.lists(
    st.datetimes(dt.datetime(2023, 12, 1), dt.datetime(2024, 4, 1), timezones=st.just(dt.UTC)), unique=True, max_size=60
)
policies = st.builds(RetentionPolicy, last=st.integers(1, 28), daily=st.integers(0, 20), weekly=st.integers(0, 10))


@given(times=times, policy=policies)
def test_rules_that_always_hold(times: list[dt.datetime], policy: RetentionPolicy) -> None:
    points = [point(when, f"{when:%Y%m%dT%H%M%S%f}") for when in times]
    decisions = apply_retention(points, policy, NOW)
    assert [one.restore_point for one in decisions] == sorted(points, key=lambda one: one.time)
    assert all(one.reason for one in decisions)
    if points:
        assert decisions[-1].keep
    stay = [one.restore_point for one in decisions if one.keep]
    assert len(stay) <= min(len(points), MAX_RESTORE_POINTS, policy.last + policy.daily + policy.weekly)
    assert len(stay) >= min(len(points), policy.last)
    # What was kept is kept again, so a run that died in the middle of removing goes on with the same ones.
    assert all(one.keep for one in apply_retention(stay, policy, NOW))
    removed = [one.restore_point for one in decisions if not one.keep]
    if removed:
        rest = [one for one in points if one != removed[0]]
        assert kept(apply_retention(rest, policy, NOW)) == [one.id for one in stay]


@pytest.mark.parametrize("field", ["last", "daily", "weekly"])
@given(times=times)
def test_a_larger_policy_keeps_no_fewer(field: str, times: list[dt.datetime]) -> None:
    points = [point(when, f"{when:%Y%m%dT%H%M%S%f}") for when in times]
    small = {"last": 3, "daily": 3, "weekly": 3}
    large = small | {field: 6}
    assert set(kept(apply_retention(points, RetentionPolicy(**small), NOW))) <= set(
        kept(apply_retention(points, RetentionPolicy(**large), NOW))
    )


def test_hourly_and_monthly_keep_the_newest_of_each() -> None:
    points = [ago(minutes=minutes) for minutes in (10, 50, 70, 130, 60 * 30)] + [
        ago(days=days) for days in (20, 40, 41)
    ]
    decisions = apply_retention(points, RetentionPolicy(last=1, hourly=3, monthly=3), NOW)
    assert kept(decisions) == ["02-23T12:00", "03-14T09:50", "03-14T10:50", "03-14T11:50"]
    assert next(one.reason for one in decisions if one.keep) == "the newest of month 2024-02"


@pytest.mark.parametrize(
    ("policy", "every", "reaches"),
    [
        (RetentionPolicy(last=7), dt.timedelta(minutes=15), dt.timedelta(minutes=90)),
        (RetentionPolicy(last=1, hourly=24), dt.timedelta(minutes=15), dt.timedelta(hours=22)),
        (RetentionPolicy(last=4, hourly=12, daily=7), dt.timedelta(minutes=15), dt.timedelta(days=5)),
        (RetentionPolicy(last=4, daily=7), dt.timedelta(days=2), dt.timedelta(days=12)),
        (RetentionPolicy(last=2, monthly=6), dt.timedelta(hours=1), dt.timedelta(days=112)),
    ],
)
def test_how_far_back_a_policy_reaches(policy: RetentionPolicy, every: dt.timedelta, reaches: dt.timedelta) -> None:
    assert reach(policy, every) == reaches


@settings(deadline=None, max_examples=30)
@given(
    st.builds(RetentionPolicy, last=st.integers(1, 5), hourly=st.integers(0, 5), daily=st.integers(0, 5)),
    st.sampled_from([7, 20, 60, 90, 1500]),
)
@pytest.mark.slow
def test_what_reach_promises_is_kept_at_any_time_of_day(policy: RetentionPolicy, minutes: int) -> None:
    every = dt.timedelta(minutes=minutes)
    promised = reach(policy, every)
    points: list[RestorePoint] = []
    now = NOW
    for number in range(min(int(promised / every) * 2 + 60, 500)):
        now = NOW + every * number
        points = [one.restore_point for one in apply_retention([*points, point(now)], policy, now) if one.keep]
        if now - NOW >= promised + dt.timedelta(days=1):
            assert now - points[0].time >= promised
