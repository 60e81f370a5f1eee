"""`vrepl lab` as a user types it, as far as no lab has to run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from vrepl.cli import main
from vrepl_lab.commands import SIZE, lab
from vrepl_lab.faultrules import ACTIONS, API_ACTIONS, OPERATIONS
from vrepl_lab.settings import SETTINGS


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["lab", *arguments])
    return result.exit_code, result.stdout, result.stderr


def commands(group: click.Group, *path: str) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)


@pytest.mark.parametrize("path", [(), *commands(lab)], ids=" ".join)
def test_every_help_has_an_example(path: tuple[str, ...]) -> None:
    code, text, _ = run(*path, "--help")
    assert code == 0
    assert "Example" in text
    assert "vrepl lab" in text.partition("Example")[2]


@pytest.mark.parametrize("path", [*commands(lab)], ids=" ".join)
def test_every_command_but_the_demo_has_json(path: tuple[str, ...]) -> None:
    _, text, _ = run(*path, "--help")
    assert ("--json" in text) == (path not in [("demo",), ("disk",)])


def test_the_help_of_set_names_every_setting_and_fault() -> None:
    _, text, _ = run("set", "--help")
    missing = [word for word in (*SETTINGS, *OPERATIONS, *ACTIONS, *API_ACTIONS, "faults=none") if word not in text]
    assert not missing


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("0", 0),
        ("65536", 65536),
        ("64KiB", 65536),
        ("64k", 65536),
        ("8 MiB", 8 << 20),
        ("1GB", 1 << 30),
        ("2G", 2 << 30),
    ],
)
def test_sizes(text: str, length: int) -> None:
    assert SIZE.convert(text, None, None) == length


@pytest.mark.parametrize("text", ["", "k", "-1", "1.5MiB", "8 miles"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(click.BadParameter, match="not a size"):
        SIZE.convert(text, None, None)


@pytest.mark.parametrize(
    "arguments",
    [
        ("disk", "write", "prod", "web-01", "0", "--offset", "0"),
        ("disk", "write", "prod", "web-01", "0", "--offset", "0", "--length", "1", "--file", "-"),
        ("disk", "write", "prod", "web-01", "first", "--offset", "0", "--length", "1"),
        ("disk", "export", "prod", "web-01", "-1", "out.img"),
        ("up", "--disk-mib", "8"),
        ("set",),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    code, _, errors = run(*arguments)
    assert code == 2
    assert errors.startswith("error: ")


def test_without_a_lab_the_hint_says_how_to_start_one(tmp_path: Path) -> None:
    for arguments in (("status",), ("set", "latency_us=1"), ("disk", "export", "prod", "a", "0", "out")):
        code, _, errors = run(*arguments[:1], *arguments[1:2], "--dir", str(tmp_path), *arguments[2:])
        assert code == 1
        assert f"hint: vrepl lab up --dir {tmp_path}" in errors


def test_down_refuses_a_folder_that_is_no_labs(tmp_path: Path) -> None:
    code, _, errors = run("down", "--dir", str(tmp_path))
    assert code == 1
    assert "not a lab's folder" in errors
