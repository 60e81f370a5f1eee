"""What crosses a data mover's pipes arrives whole: every field of every message, and all that an error says.

A field that is lost on its way is not seen in tests that pass messages by (the in-memory world), and a safety field
that is lost harms replicas. So the property is checked for all messages, and for the property itself: a mutant that
drops any one field of any one type must be caught.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from vrepl import errors
from vrepl.errors import MoverError, VreplError
from vrepl.extents import Extent
from vrepl.movers import encoding, messages
from vrepl.movers.messages import Message
from vrepl.ports import VerifyResult
from vrepl.stream.error_json import error_from_json, error_to_json

MESSAGES: tuple[type, ...] = get_args(Message)


def within(kind: Any) -> Iterator[type]:
    """The dataclasses that a type hint mentions, itself included."""
    if isinstance(kind, type) and is_dataclass(kind):
        yield kind
        for hint in get_type_hints(kind).values():
            yield from within(hint)
    for argument in get_args(kind):
        yield from within(argument)


CLASSES = list(dict.fromkeys(kind for message in MESSAGES for kind in within(message)))
FIELDS = [(kind, field.name) for kind in CLASSES for field in fields(kind)]


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Anything that a field of this type may hold."""
    origin, arguments = get_origin(hint), get_args(hint)
    simple: dict[Any, st.SearchStrategy[Any]] = {
        type(None): st.none(),
        bool: st.booleans(),
        int: st.integers(),
        float: st.floats(allow_nan=False),
        str: st.text(),
        Path: st.text(min_size=1).map(Path),
    }
    if hint in simple:
        return simple[hint]
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(hint)
    if isinstance(hint, type) and (is_dataclass(hint) or issubclass(hint, tuple)):
        hints = {name: each for name, each in get_type_hints(hint).items() if not name.startswith("_")}
        return st.builds(hint, **{name: values(each) for name, each in hints.items()})
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if origin is Sequence:
        return st.lists(values(arguments[0]), max_size=3)
    if origin is Mapping:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=3)
    return st.one_of(*(values(argument) for argument in arguments))


def crossed(message: Any) -> Any:
    """As it is at the other end."""
    return messages.decode(type(message), messages.from_line(messages.to_line(messages.encode(message))))


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@pytest.mark.slow
def test_every_message_arrives_as_it_was_sent(kind: type) -> None:
    @settings(deadline=None, max_examples=40)
    @given(values(kind))
    def arrives(message: Any) -> None:
        assert crossed(message) == message

    arrives()


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=[f"{kind.__name__}.{name}" for kind, name in FIELDS])
def test_a_field_that_is_dropped_at_both_ends_is_caught(kind: type, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (message,) = [each for each in MESSAGES if kind in within(each)][:1]
    monkeypatch.setattr(encoding, "codec_of", encoding.codec_of.__wrapped__)
    whole = encoding.fields_of
    monkeypatch.setattr(
        encoding, "fields_of", lambda each: [field for field in whole(each) if (each, field) != (kind, name)]
    )

    @settings(
        deadline=None, max_examples=200, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(values(message))
    def arrives(sent: Any) -> None:
        assert crossed(sent) == sent

    with pytest.raises((AssertionError, MoverError, BaseExceptionGroup)):
        arrives()


def test_a_message_with_a_field_too_few_or_too_many_is_none() -> None:
    whole = messages.encode(VerifyResult(bytes_read=1, bad_extents=[Extent(0, 65536)], mode="nbd", seconds=0.5))
    broken: list[Any] = [{**whole, "more": 1}, {key: whole[key] for key in whole if key != "mode"}, 7, None]
    for value in broken:
        with pytest.raises(MoverError, match="no VerifyResult"):
            messages.decode(VerifyResult, value)


@dataclass
class _Puzzling:
    which: int | str


def test_a_field_that_nobody_could_tell_apart_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot be sent"):
        encoding.encode(_Puzzling(7))


ERRORS = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, VreplError)]
SAID: dict[str, st.SearchStrategy[Any]] = {
    "code": st.none() | st.integers(),
    "offset": st.none() | st.integers(),
    "problems": st.lists(st.text()),
}


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_an_error_arrives_with_all_that_it_says(kind: type[VreplError]) -> None:
    arguments = {name: SAID.get(name, st.text()) for name in inspect.signature(kind).parameters}

    @settings(deadline=None, max_examples=20)
    @given(st.builds(kind, **arguments), st.none() | st.text())
    def arrives(error: VreplError, place: str | None) -> None:
        error.at(vm=place, disk=place, step=place)
        found = error_from_json(json.loads(json.dumps(error_to_json(error))))
        assert type(found) is kind
        assert (vars(found), str(found), found.args) == (vars(error), str(error), error.args)

    arrives()


@pytest.mark.parametrize("value", [{}, {"class": "Path", "message": "x"}, {"class": "DiskError"}])
def test_what_is_no_error_of_ours_is_told_as_it_came(value: dict[str, Any]) -> None:
    found = error_from_json(value)
    assert isinstance(found, MoverError)
    assert str(value) in found.message
