"""Exceptions of `vrepl.errors` as JSON, for streams and pipes between data movers."""

from __future__ import annotations

from typing import Any

from vrepl import errors
from vrepl.errors import DiskError, MoverError, TransportModeError, VreplError


def error_to_json(error: VreplError) -> dict[str, Any]:
    """Everything that the exception says, under its class's name."""
    value: dict[str, Any] = {"class": type(error).__name__, "message": error.message, "hint": error.hint}
    if isinstance(error, DiskError):
        value |= {"code": error.code, "offset": error.offset}
    if isinstance(error, TransportModeError):
        value |= {"mode": error.mode, "side": error.side}
    return value


def error_from_json(value: dict[str, Any]) -> VreplError:
    """The exception again; a class that is not known becomes a MoverError."""
    kind = getattr(errors, str(value.get("class")), None)
    rest = {key: value[key] for key in ("hint", "code", "offset", "mode", "side") if key in value}
    if not (isinstance(kind, type) and issubclass(kind, VreplError)):
        return MoverError(f"a data mover failed with {value}")
    return kind(value["message"], **rest)
