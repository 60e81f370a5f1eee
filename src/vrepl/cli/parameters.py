"""Parameter types that several commands share."""

from __future__ import annotations

import datetime as dt
from typing import Any

import click


class Duration(click.ParamType[float]):
    """Seconds, from `30s`, `10m`, `1h30m`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        from vrepl.config.units import parse_duration

        if isinstance(value, float):
            return value
        try:
            return parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class TimeOfDay(click.ParamType[dt.time]):
    """Local, such as `06:00`."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dt.time:
        if isinstance(value, dt.time):
            return value
        try:
            return dt.time.fromisoformat(str(value).zfill(5))
        except ValueError:
            self.fail(f"{value!r} is no time of day; write it like 06:00", param, ctx)


DURATION = Duration()
TIME_OF_DAY = TimeOfDay()
