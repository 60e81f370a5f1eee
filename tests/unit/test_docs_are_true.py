"""What the documents promise must be what the program has."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest

from tests.support.pages import PAGES, ROOT, Block, blocks_of
from vrepl.cli import COMMANDS, main
from vrepl.config import parse
from vrepl.config.fields import SecretTable
from vrepl.config.job import GuestTable, JobTable
from vrepl.config.model import Config, ProxyTable, RepositoryTable, SiteTable, VddkTable
from vrepl.config.plan import PlanGroupTable, PlannedVmTable, PlanTable
from vrepl.config.show import to_toml
from vrepl.vsphere.privileges import NEEDS, Role

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


def command_lines() -> list[str]:
    """Every line of a block that calls vrepl, without what is around it."""
    lines = [line for page in PAGES for block in blocks_of(page) for line in block.commands]
    found = [re.match(r"(?:\w+=\S+ )*(?:[\w./-]*/)?vrepl +([^>|#]+)", line) for line in lines]
    return sorted({match[1].strip() for match in found if match})


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


WEB = {"source": "prod", "target": "dr", "vms": ["web-01", "db-01"], "target_datastore": "dr-vmfs-01"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_is_typed_by_a_test_or_says_why_not(page: Path) -> None:
    """tests/live types the commands of docs/*.md and README on a lab; what belongs into the configuration is valid."""
    for block in blocks_of(page):
        if block.not_run is None and block.is_configuration:
            for text in alternatives(block):
                assert valid_in_a_configuration(text), str(block)
        else:
            assert block.not_run or block.commands, f"{block}: neither commands nor settings; does it want a mark?"


def alternatives(block: Block) -> list[str]:
    """The block as one text; where its lines are ways to write one setting, each of them."""
    keys = [line.split(" = ")[0] for line in block.lines if " = " in line and not line.startswith("[")]
    if len(keys) == len(block.lines) > len(set(keys)):
        return list(block.lines)
    return ["\n".join(block.lines)]


def valid_in_a_configuration(text: str) -> bool:
    """Settings without a table are a job's; a table of a job that is not whole stands in one that is."""
    told = tomllib.loads(text)
    if not any(isinstance(value, dict) and name in Config.model_fields for name, value in told.items()):
        told = {"jobs": {"web": told}}
    site = {"server": "vc", "user": "u", "password": {"file": "f"}}
    values: dict[str, Any] = {"sites": {"prod": site, "dr": site}, "repository": {"path": "r"}, "jobs": {"web": WEB}}
    for name, table in told.items():
        if name in {"sites", "proxies", "jobs"}:
            base = WEB if name == "jobs" else {}
            table = {key: {**base, **inner} for key, inner in table.items()}
        values[name] = {**values.get(name, {}), **table}
    return bool(parse(to_toml(values), "page", Path("/")).sites)
