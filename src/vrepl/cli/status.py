"""`vrepl status`: is every VM protected?"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from vrepl.cli.state import State, examples, json_option, pass_state
from vrepl.errors import UsageError, VreplError

if TYPE_CHECKING:
    from rich.console import Console

    from vrepl.report.protection import Protection

NAGIOS_UNKNOWN = 3
WATCH_SECONDS = 2.0


@click.command(
    short_help="Is every VM protected?",
    epilog=examples(
        "vrepl status",
        "vrepl status --watch",
        "vrepl status --nagios            for a monitoring system",
        "vrepl -q status --notify         from cron: tells of runs that did not come",
        "vrepl status --json | jq '.vms[] | select(.rpo_met == false)'",
    ),
)
@click.option("--nagios", is_flag=True, help="One line and exit codes as the Nagios plugin interface wants them.")
@click.option("--watch", is_flag=True, help="Show it again and again, until Ctrl-C.")
@click.option("--notify", is_flag=True, help="Also tell what is new, as [notify] says; and write the metrics.")
@json_option
@click.pass_context
@pass_state
def status(state: State, context: click.Context, nagios: bool, watch: bool, notify: bool) -> None:
    """Show each VM's last good restore point, its age against the job's objective (`rpo`), and its last result.

    What needs attention comes first. The age counts from when the source was snapshotted. Connects to nothing. Exit
    code 3 where an objective is missed, the last run of a VM failed, or its restore point was read back and differs.

    On a terminal that is too low for them all, VMs that need nothing are counted, not listed; -v lists them.

    A run tells how it went by itself; --notify, from cron, is for runs that do not come.
    """
    if watch and (nagios or state.json):
        raise UsageError("--watch is for people", hint="ask again and again without it")
    if notify:
        from vrepl.app.telling import Teller

        Teller.of_configuration(state.config()).tell()
    if nagios:
        context.exit(_plugin(state))
    if watch:
        context.exit(_watch(state))
    protection, running = _gather(state)

    def show(out: Console) -> None:
        from vrepl.report.status_view import show_status

        show_status(out, protection, running, all_vms=state.verbose > 0)

    state.result({**protection.to_json(), "jobs": _jobs(state, running)}, show)
    context.exit(protection.exit_code)


def _gather(state: State) -> tuple[Protection, dict[str, str]]:
    from vrepl.app.protection import protection_now

    return protection_now(state.config())


def _jobs(state: State, running: dict[str, str]) -> list[dict[str, object]]:
    return [
        {"name": name, "vms": list(job.vms), "running": name in running, "owner": running.get(name)}
        for name, job in state.config().config.jobs.items()
    ]


def _plugin(state: State) -> int:
    from vrepl.report.protection import nagios

    try:
        code, line = nagios(_gather(state)[0])
    except VreplError as error:
        code, line = NAGIOS_UNKNOWN, f"VREPL UNKNOWN - {str(error).replace('|', '/')}"
    from vrepl.cli.state import stdout_console
    from vrepl.report import console

    console.plain(stdout_console(), line)
    return code


def _watch(state: State) -> int:
    """Until Ctrl-C; the exit code is that of the last look."""
    from vrepl.cli.state import stdout_console
    from vrepl.report.format import moment
    from vrepl.report.status_view import show_status

    out = stdout_console()
    protection, running = _gather(state)
    try:
        while True:
            if out.is_terminal:
                out.clear()
            show_status(out, protection, running, all_vms=state.verbose > 0)
            out.print(f"\nat {moment(protection.now)}; Ctrl-C ends")
            time.sleep(WATCH_SECONDS)
            protection, running = _gather(state)
    except KeyboardInterrupt:
        return protection.exit_code
