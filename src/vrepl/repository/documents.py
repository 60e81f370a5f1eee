"""JSON documents of the repository: a format version, a schema (the dataclass), and atomic replacement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from vrepl.errors import RepositoryError
from vrepl.repository.files import naming, remove_file, replace_bytes

__all__ = ["DamagedError", "from_value", "read_document", "remove_file", "to_value", "write_document"]

Document = TypeVar("Document")

REBUILD_HINT = "`vrepl repository check` lists what is damaged; `vrepl repository rebuild` makes it anew"


class DamagedError(RepositoryError):
    """A document cannot be made sense of. Not one of a newer format: that one is for another vrepl to read."""


_adapters: dict[type[Any], TypeAdapter[Any]] = {}
"""Building one takes milliseconds, so each is built once."""


def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def to_value(kind: type[Document], value: Document) -> Any:
    """The JSON value (dicts, lists, numbers, strings) of a dataclass."""
    return _adapter(kind).dump_python(value, mode="json")


def from_value(kind: type[Document], value: Any) -> Document:
    """The dataclass of a JSON value; raises ValueError (pydantic's, naming each key) if it does not fit."""
    result: Document = _adapter(kind).validate_python(value)
    return result


def write_document(path: Path, kind: type[Document], value: Document, version: int) -> None:
    """Durable before it returns. Raises RepositoryError naming the path."""
    content = {"format": version, **to_value(kind, value)}
    replace_bytes(path, (json.dumps(content, indent=1) + "\n").encode())


def read_document(path: Path, kind: type[Document], version: int) -> Document | None:
    """None if there is no such file. Raises DamagedError, or RepositoryError if it is of a newer format."""
    content = read_json(path)
    if content is None:
        return None
    check_format(path, content, version)
    try:
        return from_value(kind, content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DamagedError(f"{path} is damaged: {place}: {first['msg']}", hint=REBUILD_HINT) from error


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is no such file. Raises DamagedError if it is no JSON object."""
    try:
        with naming(path, "read"):
            text = path.read_bytes()
    except RepositoryError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
    except ValueError as error:
        raise DamagedError(f"{path} is damaged: {error}", hint=REBUILD_HINT) from error
    return content


def check_format(path: Path, content: dict[str, Any], known: int) -> None:
    """Raises DamagedError if `content` has no format version, RepositoryError if it has a newer one than `known`."""
    found = content.get("format")
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise DamagedError(f"{path} is damaged: it has no format version", hint=REBUILD_HINT)
    if found > known:
        raise RepositoryError(
            f"{path} has format {found}; this vrepl knows formats up to {known}",
            hint="use the newer vrepl that wrote it; nothing was changed",
        )
