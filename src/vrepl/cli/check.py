"""`vrepl check`: one line per check."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vrepl.cli.state import State, examples, json_option, pass_state
from vrepl.errors import EXIT_FAILED, EXIT_OK

if TYPE_CHECKING:
    from rich.console import Console


@click.command(
    short_help="Is everything in place?", epilog=examples("vrepl check", "vrepl check --nagios", "vrepl check --json")
)
@click.option("--nagios", is_flag=True, help="One line and exit codes as the Nagios plugin interface wants them.")
@json_option
@click.pass_context
@pass_state
def check(state: State, context: click.Context, nagios: bool) -> None:
    """Check that everything is in place: configuration, secrets, TLS, logins, privileges, ports, VDDK, space, clocks.

    One line per check, OK or FAILED with a hint; nothing is changed. Exit code 1 if a check failed.
    """
    from vrepl.app.checking import check_world
    from vrepl.checks import run_checks
    from vrepl.checks.result import Status, nagios_line, nagios_status

    with check_world(state.config()) as world:
        results = list(run_checks(world))
    failed = any(result.status is Status.FAILED for result in results)
    data = {
        "version": 1,
        "ok": not failed,
        "checks": [
            {"name": result.name, "status": result.status.value, "detail": result.detail, "hint": result.hint}
            for result in results
        ],
    }

    def show(out: Console) -> None:
        from vrepl.report import console

        if nagios:
            console.plain(out, nagios_line(results))
            return
        for result in results:
            hint = f"hint: {result.hint}" if result.hint and result.status is not Status.OK else ""
            said = "; ".join(part for part in (result.detail, hint) if part)
            line = f"{result.name}: {result.status.value.upper()}" + (f" ({said})" if said else "")
            console.line(out, line, STYLES.get(result.status.value, ""))

    state.result(data, show)
    if nagios:
        context.exit(int(nagios_status(results)))
    context.exit(EXIT_FAILED if failed else EXIT_OK)


STYLES = {"failed": "red", "warning": "yellow", "skipped": "dim"}
