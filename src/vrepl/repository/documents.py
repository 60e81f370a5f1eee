"""JSON documents of the repository: a format version, a checksum, a schema (the dataclass), and atomic replacement.

From format 2 on a document carries a checksum over its content, so that damage that still parses is seen:

    {"format": 2, "checksum": "<64 hex digits>", ...the fields of the dataclass...}

The checksum is BLAKE3 over the canonical JSON (keys sorted, no spaces, ASCII) of everything but the checksum itself.
Format 1 had none: such a document is read as it stands, and its owner compares it with what is known elsewhere before
it is written anew. One that says format 1 and yet has a checksum was changed by something else than vrepl.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from blake3 import blake3
from pydantic import TypeAdapter, ValidationError

from vrepl.errors import RepositoryError
from vrepl.repository.files import create_bytes, failure, remove_file, replace_bytes

__all__ = ["DamagedError", "DocumentType", "Read", "from_value", "read_json", "remove_file", "to_value"]

Document = TypeVar("Document")
Content = dict[str, Any]
Upgrade = Callable[[Content], Content]

FORMAT = 2
"""Of every kind of document that says nothing else."""
CHECKSUM_SINCE = 2
"""The first format whose documents carry a checksum."""
CHECKSUM = "checksum"
REBUILD_HINT = "`vrepl repository rebuild` makes it anew from the replicas"


class DamagedError(RepositoryError):
    """A document cannot be believed: it makes no sense, its checksum is wrong, or what it says is known not to be so.

    Not one of a newer format: that one is for another vrepl to read.
    """

    def __init__(self, path: Path, reason: str, *, hint: str = REBUILD_HINT) -> None:
        super().__init__(f"{path} is damaged: {reason}", hint=hint)
        self.path = path
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Read(Generic[Document]):
    """A document as it was found; `format` is what stands on disk, `value` is upgraded already."""

    value: Document
    format: int


@dataclass(frozen=True)
class DocumentType(Generic[Document]):
    """One kind of document. A kind that is added later states its schema, and is checked like the others."""

    schema: type[Document]
    format: int = FORMAT
    upgrades: Mapping[int, Upgrade] = field(default_factory=dict)
    """Format -> what makes its content that of the next one; a format without an entry needs no change."""
    valid: Callable[[Document], str | None] = lambda value: None
    """What is wrong with a value that fits the schema; None if nothing is."""

    def write(self, path: Path, value: Document) -> None:
        """Durable before it returns. Raises RepositoryError naming the path."""
        replace_bytes(path, self.encode(value))

    def create(self, path: Path, value: Document) -> bool:
        """Like `write`, but never over a file that is there: False then."""
        return create_bytes(path, self.encode(value))

    def read(self, path: Path) -> Document | None:
        """None if there is no such file. Raises DamagedError, or RepositoryError if it is of a newer format."""
        found = self.read_as_found(path)
        return None if found is None else found.value

    def read_as_found(self, path: Path) -> Read[Document] | None:
        """As `read`, with the format that the file has."""
        content = read_json(path)
        return None if content is None else self._checked(path, content)

    def decode(self, place: Path, text: bytes) -> Document:
        """A document that lies elsewhere than in a file here; `place` is what messages call it. Raises as `read`."""
        return self._checked(place, parse_json(place, text)).value

    def _checked(self, path: Path, content: Content) -> Read[Document]:
        found = check_format(path, content, self.format)
        check_checksum(path, content, found)
        fields = {key: value for key, value in content.items() if key not in {"format", CHECKSUM}}
        try:
            for version in range(found, self.format):
                fields = self.upgrades.get(version, _unchanged)(fields)
            value = from_value(self.schema, fields)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise DamagedError(path, f"{place}: {first['msg']}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError(path, f"it cannot be brought to format {self.format}: {error}") from error
        wrong = self.valid(value)
        if wrong is not None:
            raise DamagedError(path, wrong)
        return Read(value, found)

    def encode(self, value: Document) -> bytes:
        """What is written for it."""
        content = {"format": self.format, **to_value(self.schema, value)}
        return (json.dumps(with_checksum(content), indent=1) + "\n").encode()


def _unchanged(content: Content) -> Content:
    return content


def with_checksum(content: Content) -> Content:
    """The content with the checksum that belongs to it, right behind its format."""
    rest = {key: value for key, value in content.items() if key not in {"format", CHECKSUM}}
    return {"format": content["format"], CHECKSUM: checksum_of(content), **rest}


def checksum_of(content: Content) -> str:
    """64 hex digits. Raises ValueError for numbers that JSON does not know."""
    bare = {key: value for key, value in content.items() if key != CHECKSUM}
    canonical = json.dumps(bare, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return blake3(canonical.encode()).hexdigest()


def check_checksum(path: Path, content: Content, found: int) -> None:
    """Raises DamagedError if a document has not the checksum that its format and content ask for."""
    if found < CHECKSUM_SINCE:
        if CHECKSUM in content:
            raise DamagedError(path, f"it says format {found}, which had no checksum, and has one")
        return
    try:
        right = content.get(CHECKSUM) == checksum_of(content)
    except (ValueError, RecursionError):
        right = False
    if not right:
        raise DamagedError(path, "its checksum is not that of its content: something else than vrepl changed it")


_adapters: dict[Any, TypeAdapter[Any]] = {}
"""Building one takes milliseconds, so each is built once."""


def _adapter(kind: Any) -> TypeAdapter[Any]:
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


def read_json(path: Path) -> Content | None:
    """The object in a JSON file; None if there is no such file. Raises DamagedError if it is no JSON object."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise failure(error, path, "read") from error
    return parse_json(path, text)


def parse_json(path: Path, text: bytes) -> Content:
    """The object in a JSON text. Raises DamagedError if it is none."""
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
    except (ValueError, RecursionError) as error:
        raise DamagedError(path, str(error)) from error
    return content


def check_format(path: Path, content: Content, known: int) -> int:
    """The document's format. Raises DamagedError if it has none, RepositoryError if it is newer than `known`."""
    found = content.get("format")
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise DamagedError(path, "it has no format version")
    if found > known:
        if CHECKSUM in content:
            check_checksum(path, content, found)  # every later format has it too: else the number is what is wrong
        raise RepositoryError(
            f"{path} has format {found}; this vrepl knows formats up to {known}",
            hint="use the newer vrepl that wrote it; nothing was changed",
        )
    return found
