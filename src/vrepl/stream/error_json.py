"""Exceptions of `vrepl.errors` as JSON, for streams and pipes between data movers."""

from __future__ import annotations

from typing import Any

from vrepl import errors
from vrepl.errors import MoverError, VreplError


def error_to_json(error: VreplError) -> dict[str, Any]:
    """Everything that the exception says, under its class's name."""
    return {"class": type(error).__name__, **vars(error)}


def error_from_json(value: dict[str, Any]) -> VreplError:
    """The exception again, with all that it said; a class that is not known becomes a MoverError."""
    kind = getattr(errors, str(value.get("class")), None)
    if not (isinstance(kind, type) and issubclass(kind, VreplError) and isinstance(value.get("message"), str)):
        return MoverError(f"a data mover failed with {value}")
    error = kind.__new__(kind, value["message"])  # what its constructor makes of its arguments has been made already
    said = {name: tuple(item) if isinstance(item, list) else item for name, item in value.items() if name != "class"}
    vars(error).update(vars(VreplError(value["message"])) | said)
    return error
