"""`vrepl check`: one line per check, in groups."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import click

from vrepl.cli.completion import complete_jobs
from vrepl.cli.state import State, examples, json_option, pass_state
from vrepl.errors import EXIT_FAILED, EXIT_OK

if TYPE_CHECKING:
    from rich.console import Console


@click.command(
    short_help="Is everything in place?",
    epilog=examples("vrepl check", "vrepl check web", "vrepl check --nagios", "vrepl check --json"),
)
@click.argument("jobs", metavar="[JOB]...", nargs=-1, shell_complete=complete_jobs)
@click.option("--nagios", is_flag=True, help="One line and exit codes as the Nagios plugin interface wants them.")
@json_option
@click.pass_context
@pass_state
def check(state: State, context: click.Context, jobs: tuple[str, ...], nagios: bool) -> None:
    """Check that everything is in place: configuration, secrets, TLS, logins, privileges, ports, VDDK, space, clocks.

    In groups: this machine, each site, each job; nothing is changed. With JOB, only what that job needs. Exit code 1 if
    a check failed.
    """
    from vrepl.app.checking import check_world
    from vrepl.checks import run_checks
    from vrepl.checks.result import Status, nagios_line, nagios_status

    with check_world(state.config()) as world:
        results = list(run_checks(world, jobs))
    failed = any(result.status is Status.FAILED for result in results)
    data = {
        "version": 1,
        "ok": not failed,
        "checks": [
            {
                "group": result.group,
                "name": result.name,
                "status": result.status.value,
                "detail": result.detail,
                "hint": result.hint,
            }
            for result in results
        ],
    }

    def show(out: Console) -> None:
        from vrepl.report import console

        if nagios:
            console.plain(out, nagios_line(results))
            return
        for group, members in groupby(results, key=lambda result: result.group):
            console.line(out, group, "bold")
            for result in members:
                said = f": {result.detail}" if result.detail else ""
                name = _within(group, result.name)
                console.line(out, f"{name}{said}", STYLES[result.status], mark=f"  {MARKS[result.status]} ")
                if result.hint and result.status is not Status.OK:
                    console.line(out, f"      hint: {result.hint}")
        counts = {status: sum(result.status is status for result in results) for status in Status}
        console.line(out, ", ".join(f"{count} {status.value}" for status, count in counts.items() if count))

    state.result(data, show)
    if nagios:
        context.exit(int(nagios_status(results)))
    context.exit(EXIT_FAILED if failed else EXIT_OK)


def _within(group: str, name: str) -> str:
    """The name of a check without what stands above it: `port 443 of vc (prod)` in the group `site prod`."""
    return name.removesuffix(f" ({group})").removesuffix(f" ({group.removeprefix('site ')})")


STYLES = {"ok": "green", "failed": "red", "warning": "yellow", "skipped": "dim"}
MARKS = {"ok": "ok     ", "failed": "FAILED ", "warning": "WARNING", "skipped": "skipped"}
