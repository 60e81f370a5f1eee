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


class Moment(click.ParamType[dt.datetime]):
    """A date and time, local where it does not say otherwise: `2026-03-01T22:00`, `2026-03-01 22:00+00:00`."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dt.datetime:
        if isinstance(value, dt.datetime):
            return value
        try:
            return dt.datetime.fromisoformat(str(value)).astimezone(dt.UTC)
        except ValueError:
            self.fail(f"{value!r} is no moment; write it like 2026-03-01T22:00", param, ctx)


DURATION = Duration()
MOMENT = Moment()
TIME_OF_DAY = TimeOfDay()
