"""The JSON Schema takes what the program takes, and the reference says of every key what the models say."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic_core import PydanticUndefined

from vrepl.cli import main
from vrepl.config.example import EXAMPLE
from vrepl.config.model import Config
from vrepl.config.schema import json_schema, tables_of

REFERENCE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
MORE = """
[jobs.web]
rpo = "30m"
bandwidth = { limit = "50 MiB/s", windows = { "22:00-06:00" = "unlimited" } }
"""


def mistakes(document: Any) -> list[str]:
    jsonschema = pytest.importorskip("jsonschema")
    return [error.message for error in jsonschema.Draft202012Validator(json_schema()).iter_errors(document)]


def test_the_example_is_valid_by_the_schema() -> None:
    document = tomllib.loads(EXAMPLE)
    assert mistakes(document) == []
    document["jobs"]["web"] |= tomllib.loads(MORE)["jobs"]["web"]
    assert mistakes(document) == []
    document["jobs"]["web"]["bandwidth"] = "50 MiB/s"
    document["notify"] = {"on_finish": "/usr/local/bin/tell", "urls": [{"command": "pass url"}]}
    assert mistakes(document) == []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("jobs.web.vmz", []),
        ("jobs.web.vms", []),
        ("sites.prod.port", 0),
        ("sites.prod.password", "hunter2"),
        ("nonsense", 1),
    ],
)
def test_mistakes_are_mistakes(place: str, value: Any) -> None:
    document: dict[str, Any] = tomllib.loads(EXAMPLE)
    table: Any = document
    *path, key = place.split(".")
    for name in path:
        table = table[name]
    table[key] = value
    assert mistakes(document)


@pytest.mark.slow
def test_the_command_prints_it() -> None:
    assert json.loads(CliRunner().invoke(main, ["config", "schema"]).stdout) == json_schema()
    assert json.loads(CliRunner().invoke(main, ["config", "schema", "--json"]).stdout)["schema"] == json_schema()


def test_the_reference_gives_the_defaults_that_the_models_have() -> None:
    """Numbers and switches; what else a default is, the reference says in words."""
    rows = re.findall(r"^\| `(\w+)` \| `?([^|`]*)`? \|", REFERENCE, re.M)
    wrong = []
    for table in tables_of(Config):
        for name, field in table.model_fields.items():
            told = {default.strip() for key, default in rows if key == name}
            default = field.default
            if default is PydanticUndefined or not isinstance(default, bool | int) or not told:
                continue
            shown = str(default).lower() if isinstance(default, bool) else str(default)
            if shown not in told and not any(shown in one for one in told):
                wrong.append(f"{table.__name__}.{name}: {shown}, not {sorted(told)}")
    assert wrong == []
