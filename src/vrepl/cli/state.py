"""What every command shares: the global options, the configuration, and how results leave the process."""

from __future__ import annotations

import json
import logging
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
    from rich.console import Console

    terminal = sys.stdout.isatty()
    return Console(file=sys.stdout, highlight=False, width=None if terminal else 100, soft_wrap=False)


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


class _CurrentStderr(logging.StreamHandler[Any]):
    """Writes to whatever sys.stderr is now: the live progress view stands in for it while it draws."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        del value


def set_up_logging(state: State) -> None:
    """Only vrepl's own loggers: those of HTTP libraries would write request bodies, passwords included."""
    logger = logging.getLogger("vrepl")
    logger.handlers.clear()
    logger.propagate = False
    console = _CurrentStderr()
    # Where it happened in vrepl says something to those who ask for more words.
    console.setFormatter(logging.Formatter("%(levelname)s" + (" %(name)s" if state.verbose else "") + ": %(message)s"))
    level = {0: logging.WARNING, 1: logging.INFO}.get(state.verbose, logging.DEBUG)
    console.setLevel(logging.ERROR if state.quiet else level)
    logger.addHandler(console)
    logger.setLevel(console.level)
    if state.log_file is not None:
        from vrepl.errors import UsageError

        try:
            file = logging.FileHandler(state.log_file, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"the log file {state.log_file} cannot be written: {error.strerror}") from error
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        file.setLevel(min(level, logging.INFO))
        logger.addHandler(file)
        logger.setLevel(min(file.level, console.level))
