"""The root group: commands imported at their first use, and one place where errors become words and exit codes."""

from __future__ import annotations

import difflib
import errno
import gc
import importlib
import json
import logging
import os
import re
import resource
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from vrepl.cli.root_options import take_root_options
from vrepl.cli.state import State
from vrepl.cli.streams import hold_standard_streams, make_standard_streams_endure, say
from vrepl.errors import EXIT_USAGE, ConfigError, InterruptedRunError, UsageError, VreplError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

PRIVATE = 0o077
"""The umask of every command; what others are to read (metrics, pages) is given its mode where it is written."""
GARBAGE_THRESHOLD = 20_000
"""Objects. Answers of the API are trees of thousands that refer to nothing in a circle: with Python's 700 a tenth of an
unchanged VM's processor time goes into looking for circles among them."""
COMMANDS_OF_OTHERS = "vrepl.commands"
"""Group of entry points: a package that brings a command of `vrepl` names a click command there."""


class LazyGroup(click.Group):
    """Knows its commands by name and imports `module:attribute` when one is used or listed."""

    def __init__(self, *args: Any, lazy: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = dict(lazy or {})
        self._loaded: dict[str, click.Command] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self._lazy, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = self._lazy.get(cmd_name)
        if target is None:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = target.partition(":")
        if target not in self._loaded:
            self._loaded[target] = _a_command(getattr(importlib.import_module(module), attribute))
        return self._loaded[target]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            near = difflib.get_close_matches(name, self.list_commands(ctx), n=1, cutoff=0.75)
            known = f"did you mean {near[0]}?" if near else _help_hint(ctx)
            raise UsageError(f"there is no command {name}", hint=known)
        return super().resolve_command(ctx, args)


def _a_command(found: object) -> click.Command:
    assert isinstance(found, click.Command)
    return take_root_options(found)


class RootGroup(LazyGroup):
    """Runs a command and exits as errors.py says. Other packages join with commands by entry points."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *sorted(entry.name for entry in _joined_commands())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """vrepl's own commands first; packages are only asked for what it does not have."""
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        for entry in _joined_commands():
            if entry.name == cmd_name and cmd_name not in self._loaded:
                self._loaded[cmd_name] = _a_command(entry.load())
        return self._loaded.get(cmd_name)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Always ends in SystemExit, unless `standalone_mode=False`: then exceptions come through."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        arguments = list(sys.argv[1:] if args is None else args)
        state = State()
        gc.set_threshold(GARBAGE_THRESHOLD)
        _end_on_sigterm()
        # Whatever the user's: state and logs are their owner's alone, and their owner can get at them.
        os.umask(PRIVATE)
        hold_standard_streams()
        make_standard_streams_endure()
        try:
            code = super().main(arguments, prog_name, complete_var, standalone_mode=False, obj=state, **extra)
            sys.stdout.flush()
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message(), err=True)
            sys.exit(EXIT_USAGE)
        except Exception as error:
            _fail(error, as_json=state.json or "--json" in arguments, verbose=state.verbose > 0)
        except KeyboardInterrupt:
            _fail(_interrupted(), as_json=state.json, verbose=False)
        sys.exit(code if isinstance(code, int) else 0)


def _joined_commands() -> EntryPoints:
    from importlib.metadata import entry_points

    return entry_points(group=COMMANDS_OF_OTHERS)


def _fail(error: Exception, *, as_json: bool, verbose: bool) -> NoReturn:
    """Say it on stderr (and as JSON on stdout, if results were to be JSON), and exit."""
    known = _as_vrepl_error(error)
    if verbose and not isinstance(error, (VreplError, click.ClickException, click.Abort)):
        logging.getLogger("vrepl").error("unexpected error", exc_info=error)
    for line in _lines(known):
        say(line)
    if known.hint:
        say(f"hint: {known.hint}")
    if as_json:
        from vrepl.report.model import FORMAT_VERSION  # a quarter of the time that `vrepl --version` took

        click.echo(json.dumps({"version": FORMAT_VERSION, "error": error_to_json(known)}, indent=2))
    sys.exit(known.exit_code)


def _lines(error: VreplError) -> list[str]:
    """An error is one line, whatever names are in it; a mistaken configuration has one for each mistake."""
    if isinstance(error, ConfigError):
        head = error.message.partition("\n")[0]
        return [f"error: {head}", *(f"  - {problem}" for problem in error.problems)]
    return [f"error: {error}"]


def error_to_json(error: VreplError) -> dict[str, Any]:
    """The documented shape of an error; a ConfigError also lists its `problems`."""
    shape: dict[str, Any] = {
        "message": error.message,
        "hint": error.hint,
        "vm": error.vm,
        "disk": error.disk,
        "step": error.step,
        "exit_code": error.exit_code,
    }
    if isinstance(error, ConfigError):
        shape["problems"] = list(error.problems)
    return shape


def _as_vrepl_error(error: Exception) -> VreplError:
    match error:
        case VreplError():
            return error
        case click.Abort():
            return _interrupted()
        case click.NoSuchOption():
            near = f"did you mean {' or '.join(sorted(error.possibilities))}?" if error.possibilities else None
            said = re.split(r" \(?Did you mean", error.format_message())[0]
            return UsageError(said, hint=near or _help_hint(error.ctx))
        case click.UsageError():
            return UsageError(" ".join(error.format_message().split()), hint=_help_hint(error.ctx))
        case click.ClickException():
            return UsageError(" ".join(error.format_message().split()))
        case _ if is_lack_of_memory(error):
            return VreplError(
                f"there is too little memory: {error or type(error).__name__}",
                hint="raise the limit (ulimit -v, MemoryMax= of the unit), or run fewer VMs and disks at once "
                "(parallel_vms, parallel_disks)",
            )
        case OSError(errno=errno.ENOSPC):
            return VreplError(f"cannot write: {error}", hint="free some space; `vrepl report` tells of a run again")
        case _:
            return VreplError(
                f"unexpected {type(error).__name__}: {error}",
                hint="this is a mistake in vrepl; run again with -v for the place, and report it",
            )


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether the machine, or a limit (setrlimit(2), RLIMIT_AS), gave no more memory: it has several faces."""
    match error:
        case MemoryError():
            return True
        case OSError():
            return error.errno in {errno.ENOMEM, errno.EAGAIN}
        case ImportError():
            # http.client swallows that ssl could not be mapped, and is then without what needs it.
            return (
                "cannot allocate memory" in str(error).lower() or "failed to map segment" in str(error) or _is_limited()
            )
        case SystemError():
            return "without exception set" in str(error) or "without setting an exception" in str(error)
        case RuntimeError():
            return "can't start new thread" in str(error)
    return False


def _is_limited() -> bool:
    """Whether this process may map only so much: then what cannot be imported was there, and had no room."""
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def _help_hint(context: click.Context | None) -> str | None:
    return f"{context.command_path} --help" if context is not None else None


def _interrupted() -> VreplError:
    return InterruptedRunError("interrupted")


def _end_on_sigterm() -> None:
    """SIGTERM ends a command like Ctrl-C does: clean-up runs, and the exit code is 130."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)
