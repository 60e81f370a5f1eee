"""Amounts for people: binary sizes, rates, durations, times. JSON never goes through here."""

from __future__ import annotations

import datetime as dt


def size(amount: int | None) -> str:
    """`1.5 GiB`, `512 B`; a dash for None."""
    if amount is None:
        return "–"
    value = float(amount)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if round(value) < 1024 or unit == "TiB":
            break
        value /= 1024
    if unit == "B" or value >= 100 or value == int(value):
        return f"{value:.0f} {unit}"
    return f"{value:.1f} {unit}"


def rate(amount: int, seconds: float) -> str:
    """`45 MiB/s`; a dash where no time went by."""
    return f"{size(round(amount / seconds))}/s" if seconds > 0 else "–"


def duration(seconds: float | None) -> str:
    """`0.4 s`, `12 s`, `3 min 05 s`, `2 h 14 min`, `3 d 4 h`; a dash for None."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def period(seconds: float | None) -> str:
    """A length that somebody chose: `30 min`, `2 h`, without zeros that say nothing."""
    return duration(seconds).removesuffix(" 00 s").removesuffix(" 00 min").removesuffix(" 0 h").replace(".0 s", " s")


def moment(time: dt.datetime | None) -> str:
    """In UTC, to the second, and saying so: `2025-03-01 22:00:00Z`; a dash for None."""
    return "–" if time is None else time.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def minute(time: dt.datetime | None) -> str:
    """In UTC, where the year stands beside it: `01 Mar 22:00Z`; a dash for None."""
    return "–" if time is None else time.astimezone(dt.UTC).strftime("%d %b %H:%MZ")


def age(time: dt.datetime | None, now: dt.datetime) -> str:
    """How long ago: `3 min 05 s ago`; a dash for None."""
    return "–" if time is None else f"{duration(max(0.0, (now - time).total_seconds()))} ago"
