"""Values as JSON and back, driven by their dataclasses' own type hints: no field is listed twice, so none is forgotten.

What a field may be: None, bool, int, float, str, an enumeration, a path, a NamedTuple or a dataclass of such,
`X | None`, a sequence, and a mapping from strings. Anything else is refused when its class is first met. (pydantic
could do this; a data mover that loads VDDK imports as little as it can.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from vrepl.errors import MoverError

T = TypeVar("T")
Convert = Callable[[Any], Any]


class Codec(NamedTuple):
    """How values of one type cross."""

    encode: Convert
    decode: Convert


def encode(value: Any) -> Any:
    """A dataclass instance as JSON: an object that holds each of its fields."""
    kind: Any = type(value)
    return codec_of(kind).encode(value)


def decode(kind: type[T], value: Any) -> T:
    """The instance again, equal in every field. Raises MoverError where it is none."""
    hint: Any = kind
    try:
        decoded: T = codec_of(hint).decode(value)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise MoverError(f"a data mover sent something that is no {kind.__name__}: {error}") from error
    return decoded


def fields_of(kind: type) -> list[str]:
    """Names of what crosses of a dataclass: all of it."""
    return [each.name for each in fields(kind)]


def _same(value: Any) -> Any:
    return value


SAME = Codec(_same, _same)


@cache
def codec_of(hint: Any) -> Codec:
    """Raises TypeError for what has no JSON form here."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in (NoneType, bool, int, float, str):
        return SAME
    if origin in (Union, UnionType):
        return _optional(arguments)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return Codec(lambda value: value.value, hint)
    if hint is Path:
        return Codec(str, Path)
    if isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields"):
        return _named_tuple(hint)
    if origin is tuple and arguments[1:] == (...,):
        return _sequence(codec_of(arguments[0]), tuple)
    if origin in (Sequence, list):
        return _sequence(codec_of(arguments[0]), list)
    if origin in (Mapping, dict) and arguments[0] is str:
        return _mapping(codec_of(arguments[1]))
    if isinstance(hint, type) and is_dataclass(hint):
        return _dataclass(hint)
    raise TypeError(f"{hint} cannot be sent to or from a data mover")


def _optional(arguments: tuple[Any, ...]) -> Codec:
    kinds = [each for each in arguments if each is not NoneType]
    if len(kinds) != 1 or len(arguments) != 2:
        raise TypeError(f"one of {arguments} cannot be sent to or from a data mover: which one, nobody could tell")
    inner = codec_of(kinds[0])
    return Codec(
        lambda value: None if value is None else inner.encode(value),
        lambda value: None if value is None else inner.decode(value),
    )


def _sequence(inner: Codec, make: type) -> Codec:
    if inner is SAME:
        return Codec(list, make)
    return Codec(
        lambda values: [inner.encode(value) for value in values],
        lambda values: make(inner.decode(value) for value in values),
    )


def _mapping(inner: Codec) -> Codec:
    return Codec(
        lambda values: {key: inner.encode(value) for key, value in values.items()},
        lambda values: {key: inner.decode(value) for key, value in values.items()},
    )


def _named_tuple(kind: Any) -> Codec:
    hints = get_type_hints(kind)
    if all(codec_of(hints[name]) is SAME for name in kind._fields):
        return Codec(list, lambda values: kind(*values))  # the many extents of an order
    codecs = [codec_of(hints[name]) for name in kind._fields]
    return Codec(
        lambda values: [codec.encode(value) for codec, value in zip(codecs, values, strict=True)],
        lambda values: kind(*(codec.decode(value) for codec, value in zip(codecs, values, strict=True))),
    )


def _dataclass(kind: type) -> Codec:
    hints = get_type_hints(kind)
    codecs = {name: codec_of(hints[name]) for name in fields_of(kind)}

    def decoded(value: Any) -> Any:
        if value.keys() != codecs.keys():
            raise ValueError(f"its fields are {sorted(value)}, not {sorted(codecs)}")
        return kind(**{name: codec.decode(value[name]) for name, codec in codecs.items()})

    return Codec(lambda value: {name: codec.encode(getattr(value, name)) for name, codec in codecs.items()}, decoded)
