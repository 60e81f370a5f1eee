"""The page of messages is made from the source, and is not old."""

from __future__ import annotations

from tests.support.troubleshooting import PAGE, kinds, messages, page, words
from vrepl.errors import UsageError


def test_messages_are_found_with_their_hints() -> None:
    import ast

    call = ast.parse('UsageError(f"no proxy {name} is " f"configured", hint="add it")').body[0]
    assert isinstance(call, ast.Expr)
    assert isinstance(call.value, ast.Call)
    assert words(call.value.args[0]) == "no proxy … is configured"
    found = messages()
    assert found[UsageError]["the configuration … cannot be read: …"] == ""
    assert len(found) > len(kinds()) / 2


def test_the_page_is_not_old() -> None:
    """A tenth of it may be, between two releases: `make docs`."""
    here, there = set(PAGE.read_text(encoding="utf-8").splitlines()), set(page().splitlines())
    assert len(there - here) <= len(there) / 10
    assert len(here - there) <= len(here) / 10
