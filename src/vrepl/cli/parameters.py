"""Parameter types that several commands share."""

from __future__ import annotations

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


DURATION = Duration()
