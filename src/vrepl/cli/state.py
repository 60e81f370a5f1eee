"""What every command shares: the global options, the configuration, and how results leave the process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

    from vrepl.config import LoadedConfig

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass
class State:
    """Made by the root group, filled in by its options and by each command's --json."""

    config_path: Path | None = None
    json: bool = False
    quiet: bool = False
    verbose: int = 0
    log_file: Path | None = None
    log_format: str = "text"
    _loaded: LoadedConfig | None = None

    def config(self) -> LoadedConfig:
        """The configuration, read at first use. Raises UsageError or ConfigError."""
        if self._loaded is None:
            from vrepl import config

            self._loaded = config.load(config.find(self.config_path))
        return self._loaded

    def result(self, data: dict[str, Any], show: Callable[[Console], None]) -> None:
        """Put a command's result on stdout: as JSON if asked for, else as `show` writes it."""
        if self.json:
            # Where stdout cannot hold every character, JSON still can.
            unicode = (getattr(sys.stdout, "encoding", None) or "").lower().startswith("utf")
            click.echo(json.dumps(data, indent=2, ensure_ascii=not unicode))
        else:
            show(stdout_console())


pass_state = click.make_pass_decorator(State, ensure=True)


def stdout_console() -> Console:
    """A console for results: as wide as the terminal; 100 columns into a file or pipe, and without colour."""
    from vrepl.report.console import make_console

    return make_console(sys.stdout, width=None if sys.stdout.isatty() else 100)


def json_option(command: Command) -> Command:
    """`--json` on a command; also known to the error handler."""

    def note(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
        if value:
            context.ensure_object(State).json = True

    return click.option(
        "--json",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=note,
        help="Write the result as JSON (see docs/json.md).",
    )(command)


def examples(*lines: str) -> str:
    """A command's epilog: lines that can be pasted."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)
