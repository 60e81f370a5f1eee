"""The documentation for developers names what is there, and nothing that is not."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
ROOM = re.compile(r"^\| `(\w+)` \| \S.* \|$", re.MULTILINE)
PAGES = sorted(path for path in ROOT.glob("*.md")) + sorted((ROOT / "docs").rglob("*.md"))
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")
PATH = re.compile(r"`((?:src|tests|docs|benchmarks|examples)/[\w./-]+)`")


def rooms_in(package: Path) -> set[str]:
    """Packages and modules directly below."""
    names = {path.stem for path in package.glob("*.py")} | {path.parent.name for path in package.glob("*/__init__.py")}
    return names - {"__init__", "__main__"}


def test_the_walk_through_the_tree_names_every_room_once() -> None:
    named = ROOM.findall(ARCHITECTURE)
    assert sorted(named) == sorted(rooms_in(ROOT / "src/vrepl"))


def test_the_walk_goes_up_as_imports_do() -> None:
    """Rooms stand in the order of the layers that `lint-imports` holds, the lowest first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (layers,) = [one["layers"] for one in settings["tool"]["importlinter"]["contracts"] if one["type"] == "layers"]
    level = {room: number for number, layer in enumerate(reversed(layers)) for room in re.split(r"\s*[|:]\s*", layer)}
    heights = [level[room] for room in ROOM.findall(ARCHITECTURE)]
    assert heights == sorted(heights)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    links = [target for target, _ in LINK.findall(text) if "://" not in target and not target.startswith("mailto:")]
    assert [target for target in links if not (page.parent / target).exists()] == []
    assert [path for path in PATH.findall(text) if not (ROOT / path).exists()] == []


def test_the_example_for_newcomers_is_a_test_that_passes(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    found: dict[str, Any] = {}
    exec(compile(example, "CONTRIBUTING.md", "exec"), found)
    (test,) = [value for name, value in found.items() if name.startswith("test_")]
    test(tmp_path)


def test_every_decision_is_in_the_list() -> None:
    folder = ROOT / "docs/decisions"
    listed = [target for target, _ in LINK.findall((folder / "README.md").read_text())]
    assert listed == sorted(path.name for path in folder.glob("[0-9]*.md"))
