"""The options of `vrepl` itself, which may stand before the command or anywhere behind it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from vrepl.cli.logs import set_up_logging
from vrepl.cli.state import State


def _note(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Into the State that all commands share; one that was not given changes nothing."""
    if value is None or value is False or value == 0:
        return value
    state = context.ensure_object(State)
    match parameter.name:
        case "config_path":
            state.config_path = value
        case "verbose":
            state.verbose += value
        case "quiet":
            state.quiet = True
        case "log_file":
            state.log_file = value
        case "log_format":
            state.log_format = value
        case "as_json":
            state.json = True
    if parameter.name not in {"config_path", "as_json"}:
        set_up_logging(state)
    return value


def root_options(*, hidden: bool = False) -> list[click.Option]:
    """New ones at each call, for each command has its own."""

    def option(*names: str, **more: Any) -> click.Option:
        return click.Option(names, callback=_note, expose_value=False, hidden=hidden, **more)

    return [
        option(
            "--config",
            "config_path",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Configuration file. Default: $VREPL_CONFIG, ./vrepl.toml, ~/.config/vrepl/vrepl.toml, "
            "/etc/vrepl/vrepl.toml.",
        ),
        option("--json", "as_json", is_flag=True, help="Write the result as JSON (see docs/json.md)."),
        option("-v", "--verbose", count=True, help="Say more on stderr; twice for debugging."),
        option("-q", "--quiet", is_flag=True, help="Only errors on stderr, and no progress."),
        option(
            "--log-file",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Also append the log to this file.",
        ),
        option("--log-format", type=click.Choice(["text", "json"]), help="Log lines as text or as JSON objects."),
    ]


def take_root_options(command: click.Command) -> click.Command:
    """Let every command under this one take them as well, but those that mean something else there."""
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            take_root_options(inner)
        if not command.invoke_without_command:
            return command
    taken = {name for parameter in command.params for name in parameter.opts}
    command.params.extend(one for one in root_options(hidden=True) if not taken & set(one.opts))
    return command


def with_root_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """For the root group itself."""
    declared: list[click.Option] = getattr(command, "__click_params__", [])
    # click reads them from the last to the first.
    command.__click_params__ = [*declared, *reversed(root_options())]  # type: ignore[attr-defined]
    return command
