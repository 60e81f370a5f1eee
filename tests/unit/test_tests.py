"""Tests stand alone: what two of them share lies in tests/support, and each can be run or thrown away by itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]
FILES = sorted(TESTS.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Full names of what a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def is_a_test(name: str, known: set[str]) -> bool:
    """Whether a full name leads to a test file, or into a folder of tests."""
    parts = name.split(".")
    return parts[0] in known or (parts[0] == "tests" and parts[1] not in {"support", "record"})


def test_no_test_is_imported() -> None:
    known = {path.stem for path in FILES if path.stem.startswith("test_")}
    found = {path: [name for name in imported(path) if is_a_test(name, known)] for path in FILES}
    assert {str(path.relative_to(TESTS)): names for path, names in found.items() if names} == {}


def test_names_of_test_files_are_used_once() -> None:
    """pytest imports them by their bare names."""
    names = [path.name for path in FILES if path.name.startswith("test_")]
    assert sorted(set(names)) == sorted(names)
