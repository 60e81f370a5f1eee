"""The shapes of JSON documents as `docs/json.md` writes them, to be held against what commands print."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "json.md"
_TOKEN = re.compile(r'"[^"]*"|[{}\[\]:,=]|…|[A-Za-z_0-9.]+')


@dataclass
class Shape:
    """`keys`: of an object, each with its value's shape; `each`: of a list's items, or of a map's values."""

    keys: dict[str, Shape] = field(default_factory=dict)
    each: Shape | None = None
    name: str = ""
    """Written elsewhere on the page."""
    open: bool = False
    """Anything may be in it."""

    @property
    def is_plain(self) -> bool:
        return not (self.keys or self.each or self.name or self.open)


def written(heading: str) -> tuple[Shape, dict[str, Shape]]:
    """The first document below a heading that begins so, and all named shapes of the page."""
    page = PAGE.read_text(encoding="utf-8")
    named = {
        found[1]: _Reader(found[2]).value() for found in re.finditer(r"^    ([A-Z_]+) = (\{(?:.*\n)+?)\n", page, re.M)
    }
    [section] = [one for one in re.split(r"^#+ ", page, flags=re.M) if one.startswith(heading)]
    found = re.search(r"^    (?:[a-z ]+: +)?(\{(?:.*\n)+?)\n", section + "\n", re.M)
    assert found is not None, heading
    return _Reader(found[1]).value(), named


class _Reader:
    def __init__(self, text: str) -> None:
        self._tokens = _TOKEN.findall(text)
        self._at = 0

    def value(self) -> Shape:
        shape = self._one()
        while self._peek() == "or":
            self._at += 1
            other = self._one()
            shape = other if shape.is_plain else shape
        return shape

    def _peek(self) -> str:
        return str(self._tokens[self._at]) if self._at < len(self._tokens) else ""

    def _next(self) -> str:
        self._at += 1
        return str(self._tokens[self._at - 1])

    def _one(self) -> Shape:
        token = self._next()
        if token == "{":
            return self._object()
        if token == "[":
            items = [self.value() for _ in self._until("]")]
            return Shape(each=items[0]) if items else Shape(open=True)
        return Shape(name=token) if token.isupper() and not token.startswith('"') else Shape()

    def _object(self) -> Shape:
        shape = Shape()
        for _ in self._until("}"):
            key = self._next()
            value = Shape()
            if self._peek() == ":":
                self._at += 1
                value = self.value()
            if key.startswith('"'):
                shape.keys[key.strip('"')] = value
            elif key == "…" or not key.isupper():
                shape.open = True
                while self._peek() not in {",", "}", ""}:
                    self._at += 1
            else:
                shape.each = value
        return shape

    def _until(self, end: str) -> Iterator[None]:
        while self._peek() != end:
            if self._peek() in {",", "…"} and end == "]":
                self._at += 1
                continue
            if self._peek() == ",":
                self._at += 1
                continue
            assert self._peek(), f"no {end} in what the page writes"
            yield
        self._at += 1


def differences(real: Any, shape: Shape, named: dict[str, Shape], where: str = "") -> Iterator[str]:
    """What is printed and not written, and the other way round, in words."""
    if shape.name:
        shape = named.get(shape.name, Shape())
    if isinstance(real, list) and shape.each is not None:
        for one in real:
            yield from differences(one, shape.each, named, f"{where}[]")
    elif isinstance(real, dict) and shape.each is not None:
        for one in real.values():
            yield from differences(one, shape.each, named, f"{where}.*")
    elif isinstance(real, dict) and shape.keys:
        yield from (f"{where}.{key} is printed and not written" for key in real.keys() - shape.keys if not shape.open)
        yield from (f"{where}.{key} is written and not printed" for key in shape.keys.keys() - real)
        for key in real.keys() & shape.keys:
            yield from differences(real[key], shape.keys[key], named, f"{where}.{key}")
    elif not shape.open and _has_keys(real):
        yield f"{where} has keys that are not written"


def _has_keys(real: Any) -> bool:
    return bool(real) and (isinstance(real, dict) or (isinstance(real, list) and any(_has_keys(one) for one in real)))
