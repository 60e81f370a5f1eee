"""What the documents promise must be what the program has."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from vrepl.cli import COMMANDS, main
from vrepl.config import parse
from vrepl.config.fields import SecretTable
from vrepl.config.job import GuestTable, JobTable
from vrepl.config.model import ProxyTable, RepositoryTable, SiteTable, VddkTable
from vrepl.config.plan import PlanGroupTable, PlannedVmTable, PlanTable
from vrepl.vsphere.privileges import NEEDS, Role

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")


def test_the_page_lists_the_privileges_that_check_asks_for() -> None:
    text = (ROOT / "docs" / "privileges.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([A-Za-z.]+)` \| \w+ \| (x?) ?\| (x?) ?\| (x?) ?\|", text, re.M)
    written = {row[0]: {role for role, mark in zip(ROLES, row[1:], strict=True) if mark} for row in rows}
    needed: dict[str, set[Role]] = {}
    for role in ROLES:
        for need in NEEDS[role]:
            needed.setdefault(need.privilege, set()).add(role)
    assert written == needed


ROLES = (Role.SOURCE, Role.TARGET, Role.HOTADD_PROXY)


def test_the_readmes_configuration_is_valid() -> None:
    lines = README[README.index("    [sites.prod]") : README.index("**4. Check")]
    text = "\n".join(line.removeprefix("    ") for line in lines.splitlines())
    assert set(parse(text, "README.md", Path("/")).jobs) == {"web"}


@pytest.mark.parametrize(
    "table",
    [
        SiteTable,
        SecretTable,
        RepositoryTable,
        VddkTable,
        ProxyTable,
        JobTable,
        GuestTable,
        PlanTable,
        PlanGroupTable,
        PlannedVmTable,
    ],
)
def test_every_key_is_documented(table: type) -> None:
    keys = set(table.model_fields)  # type: ignore[attr-defined]
    assert {key for key in keys if not re.search(rf"`(\{{ )?{key}\b", CONFIGURATION)} == set()


def test_every_command_stands_in_the_readme() -> None:
    context = click.Context(main)
    commands = README[README.index("## Commands") : README.index("## What does not work yet")]
    for name in COMMANDS:
        command = main.get_command(context, name)
        assert f"`{name}" in commands or f", `{name}" in commands, name
        if isinstance(command, click.Group) and name != "lab":
            assert all(inner in commands for inner in command.commands), name


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = re.compile(r"^ {4,}(?:\.venv/bin/|/usr/local/bin/)?vrepl +(.+)$", re.M)


def command_lines() -> list[str]:
    """Every line of a block that begins with `vrepl`, without the words beside it."""
    found = [line for page in PAGES for line in COMMAND.findall(page.read_text(encoding="utf-8"))]
    return sorted({re.split(r" {2,}| *\\?$", line)[0].strip() for line in found})


@pytest.mark.parametrize("line", command_lines())
def test_every_command_of_the_pages_is_one(line: str) -> None:
    """It is read as the program would read it, options and arguments included; nothing is done."""
    arguments = shlex.split(line.replace("[", "").replace("]", "").replace("…", ""))
    if arguments in (["--version"], ["--help"]):
        return
    command: click.Command = main
    context = main.make_context("vrepl", arguments)
    while isinstance(command, click.Group) and (rest := [*context._protected_args, *context.args]):
        name, inner, left = command.resolve_command(context, rest)
        assert inner is not None
        context = inner.make_context(name, left, parent=context)
        command = inner
    assert command is not main
