"""What tables of the configuration are made of: the base of all tables, and the kinds of values that many have."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from vrepl.config.units import parse_duration, parse_rate, parse_window
from vrepl.model import Bandwidth, BandwidthWindow
from vrepl.secrets import SecretReference

INLINE_HINT = 'a password never stands in the file; write e.g. { file = "/etc/vrepl/secrets/prod" }'


class Table(BaseModel):
    """A TOML table: unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


def _path(value: Any) -> Any:
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("must not be empty")
        return Path(value).expanduser()
    return value


FilePath = Annotated[Path, BeforeValidator(_path)]
Name = Annotated[str, Field(min_length=1)]
Names = tuple[Name, ...]


def _words(value: Any) -> Any:
    return tuple(shlex.split(value)) if isinstance(value, str) else value


Words = Annotated[tuple[Name, ...], BeforeValidator(_words), Field(min_length=1)]
"""A command and its arguments, or one text that is split as a shell does."""


def _seconds(value: Any) -> Any:
    return parse_duration(value) if isinstance(value, str) else value


Duration = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]
Wait = Annotated[float, BeforeValidator(_seconds), Field(ge=0)]
"""Seconds, or text such as "30m"."""


class SecretTable(Table):
    """Where a password comes from: exactly one of these keys."""

    file: FilePath | None = None
    env: Name | None = None
    command: Words | None = None
    keyring: Annotated[str, Field(pattern=r"^.+/[^/]+$")] | None = None
    credential: Annotated[str, Field(pattern=r"^[^/]+$")] | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_inline_password(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(INLINE_HINT)
        return value

    @model_validator(mode="after")
    def _exactly_one(self) -> SecretTable:
        if len(self.model_fields_set) != 1:
            raise ValueError("takes exactly one of file, env, command, keyring, credential")
        return self

    def reference(self) -> SecretReference:
        kind = next(iter(self.model_fields_set))
        value = getattr(self, kind)
        return SecretReference(kind, value if isinstance(value, tuple) else (str(value),))


def _rate(value: Any) -> Any:
    return parse_rate(value) if isinstance(value, str) else value


Rate = Annotated[int | None, BeforeValidator(_rate)]


class BandwidthTable(Table):
    limit: Rate = None
    windows: dict[str, Rate] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"limit": value} if isinstance(value, str) else value

    @field_validator("windows")
    @classmethod
    def _windows(cls, value: dict[str, int | None]) -> dict[str, int | None]:
        for window in value:
            parse_window(window)
        return value

    def bandwidth(self) -> Bandwidth:
        return Bandwidth(
            self.limit,
            tuple(BandwidthWindow(*parse_window(window), rate) for window, rate in self.windows.items()),
        )
