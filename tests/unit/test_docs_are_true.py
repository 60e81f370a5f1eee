"""What the documents promise must be what the program has."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from vrepl.cli import COMMANDS, main
from vrepl.config import parse
from vrepl.config.model import JobTable, ProxyTable, RepositoryTable, SecretTable, SiteTable, VddkTable
from vrepl.vsphere.privileges import NEEDS, Role

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")


def test_the_readme_lists_the_privileges_that_check_asks_for() -> None:
    rows = re.findall(r"^\| `([A-Za-z.]+)` \| \w+ \| (x?) ?\| (x?) ?\| (x?) ?\|", README, re.M)
    written = {row[0]: {role for role, mark in zip(ROLES, row[1:], strict=True) if mark} for row in rows}
    needed: dict[str, set[Role]] = {}
    for role in ROLES:
        for need in NEEDS[role]:
            needed.setdefault(need.privilege, set()).add(role)
    assert written == needed


ROLES = (Role.SOURCE, Role.TARGET, Role.HOTADD_PROXY)


def test_the_readmes_configuration_is_valid() -> None:
    lines = README[README.index("    [sites.prod]") : README.index("**5. Check")]
    text = "\n".join(line.removeprefix("    ") for line in lines.splitlines())
    assert set(parse(text, "README.md", Path("/")).jobs) == {"web"}


@pytest.mark.parametrize("table", [SiteTable, SecretTable, RepositoryTable, VddkTable, ProxyTable, JobTable])
def test_every_key_is_documented(table: type) -> None:
    keys = set(table.model_fields)  # type: ignore[attr-defined]
    assert {key for key in keys if not re.search(rf"`(\{{ )?{key}\b", CONFIGURATION)} == set()


def test_every_command_stands_in_the_readme() -> None:
    context = click.Context(main)
    commands = README[README.index("## Commands") : README.index("## What is simulated")]
    for name in COMMANDS:
        command = main.get_command(context, name)
        assert f"`{name}" in commands or f", `{name}" in commands, name
        if isinstance(command, click.Group) and name != "lab":
            assert all(inner in commands for inner in command.commands), name
