"""Amounts as people write them in the configuration and on the command line: rates, durations, times of day.

Every parser raises ValueError with a message that shows what would have been right.
"""

from __future__ import annotations

import datetime as dt
import re

_BYTES = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
_BITS = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_rate(text: str) -> int | None:
    """Bytes per second of `50 MiB/s`, `400 Mbit/s` …; None for `unlimited`."""
    if text.strip().lower() == "unlimited":
        return None
    amount = text.strip()
    if amount.endswith("/s"):
        match = _AMOUNT.fullmatch(amount[:-2])
        if match is not None:
            unit = match[2].lower()
            factor = _BYTES.get(unit) or (_BITS[unit] / 8 if unit in _BITS else None)
            if factor is not None:
                rate = int(float(match[1]) * factor)
                if rate > 0:
                    return rate
    raise ValueError(f'{text!r} is no rate; write it like "50 MiB/s", "400 Mbit/s" or "unlimited"')


def parse_duration(text: str) -> float:
    """Seconds of `30s`, `10m`, `1h30m`, `2d`; a bare number is seconds."""
    stripped = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", stripped):
        return float(stripped)
    if re.fullmatch(r"(\d+(\.\d+)?[smhd]\s*)+", stripped):
        parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", stripped)
        return sum(float(amount) * _SECONDS[unit] for amount, unit in parts)
    raise ValueError(f"{text!r} is no duration; write it like 30s, 10m or 1h30m")


def parse_window(text: str) -> tuple[dt.time, dt.time]:
    """Start and end of a daily window such as `22:00-06:00`."""
    match = re.fullmatch(r"\s*(\d{1,2}:\d{2})\s*-\s*(\d{1,2}:\d{2})\s*", text)
    if match is not None:
        try:
            start, end = (dt.time.fromisoformat(part.zfill(5)) for part in match.groups())
        except ValueError:
            pass
        else:
            if start != end:
                return start, end
    raise ValueError(f'{text!r} is no time window; write it like "22:00-06:00"')


def format_rate(rate: int | None) -> str:
    """The shortest way to write a rate that `parse_rate` reads back as the same number."""
    if rate is None:
        return "unlimited"
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("MB", 10**6), ("KiB", 2**10)):
        if rate % factor == 0:
            return f"{rate // factor} {unit}/s"
    return f"{rate} B/s"
