"""`vrepl plan` and `vrepl replicate`."""

from __future__ import annotations

import datetime as dt
import gc
from typing import TYPE_CHECKING

import click

from vrepl.cli.completion import complete_jobs, complete_vms
from vrepl.cli.parameters import DURATION, TIME_OF_DAY
from vrepl.cli.state import State, examples, json_option, pass_state
from vrepl.cli.streams import say

if TYPE_CHECKING:
    from rich.console import Console

    from vrepl.cli.running import Outcome, Selection
    from vrepl.report.model import RunReport


PAST_RUNS = 10
"""How many of the newest runs a plan's estimate goes by."""

vm_option = click.option(
    "--vm",
    "vms",
    metavar="NAME",
    multiple=True,
    shell_complete=complete_vms,
    help="Only this VM (may be given again).",
)
map_option = click.option(
    "--map",
    "mappings",
    metavar="SOURCE=VM",
    multiple=True,
    help="Make the VM of the target site, which is powered off, SOURCE's replica; only what differs crosses.",
)


@click.command(
    short_help="What `replicate` would do, and why.", epilog=examples("vrepl plan", "vrepl plan web --vm web-01 --json")
)
@click.argument("jobs", metavar="[JOB]...", nargs=-1, shell_complete=complete_jobs)
@click.option(
    "--vm", "vms", metavar="NAME", multiple=True, shell_complete=complete_vms, help="Only this VM (may be given again)."
)
@map_option
@json_option
@click.pass_context
@pass_state
def plan(
    state: State, context: click.Context, jobs: tuple[str, ...], vms: tuple[str, ...], mappings: tuple[str, ...]
) -> None:
    """Show what `replicate` would do, and why; nothing is changed. Without JOB: every job.

    Of a running VM, what changed cannot be asked before a snapshot exists: the plan then gives an upper bound
    and the last run's figure.
    """
    context.exit(_plan(state, jobs, vms, mappings))


@click.command(
    short_help="Replicate the VMs of jobs.",
    epilog=examples(
        "vrepl replicate web",
        "vrepl replicate web --map web-01=web-01-restored",
        "vrepl replicate --dry-run",
        "vrepl -q replicate web --lock-wait 10m --retry 2 --retry-wait 5m --json",
        "vrepl replicate archive --stop-at 06:00",
    ),
)
@click.argument("jobs", metavar="[JOB]...", nargs=-1, shell_complete=complete_jobs)
@click.option(
    "--vm", "vms", metavar="NAME", multiple=True, shell_complete=complete_vms, help="Only this VM (may be given again)."
)
@map_option
@click.option("--dry-run", is_flag=True, help="Show the plan, as `vrepl plan` does.")
@click.option(
    "--lock-wait",
    type=DURATION,
    default=0.0,
    metavar="TIME",
    help="Wait so long (such as 10m) for another run of the job, or a verification of a replica, to end.",
)
@click.option(
    "--retry", "retries", type=click.IntRange(min=0), default=0, metavar="N", help="Run failed VMs again, N times."
)
@click.option(
    "--retry-wait", type=DURATION, default=60.0, metavar="TIME", help="Time before each retry [default: 60s]."
)
@click.option(
    "--stop-at",
    type=TIME_OF_DAY,
    metavar="HH:MM",
    help="Stop cleanly at this local time; the next run goes on. Exit code 3 if it came to that.",
)
@json_option
@click.pass_context
@pass_state
def replicate(
    state: State,
    context: click.Context,
    jobs: tuple[str, ...],
    vms: tuple[str, ...],
    mappings: tuple[str, ...],
    dry_run: bool,
    lock_wait: float,
    retries: int,
    retry_wait: float,
    stop_at: dt.time | None,
) -> None:
    """Replicate the VMs of each JOB to its target; each VM ends in a new restore point. Without JOB: every job.

    With --map, a VM that is at the target already (restored from a backup, shipped on a disk, left by another tool)
    becomes the replica: both sides are read once, and later runs are incremental.

    Ctrl-C (or SIGTERM) stops cleanly: source snapshots are removed, and the next run goes on where this one stopped.
    """
    if dry_run:
        context.exit(_plan(state, jobs, vms, mappings))
    from vrepl.app.composition import Workshop
    from vrepl.app.routes import route_of
    from vrepl.app.telling import Teller
    from vrepl.cli import running
    from vrepl.cli.running import events_for

    loaded = state.config()
    selections = running.select(loaded, jobs, vms)
    replica_map = running.mapping_of(selections, mappings)
    deadline = running.Deadline(stop_at)
    with events_for(state) as events, Workshop(loaded, events) as workshop:
        teller = Teller.of(workshop)

        def run(selection: Selection) -> RunReport:
            vms = selection.vms or selection.job.vms
            return teller.around(selection.job.name, vms, lambda: move(selection))

        def move(selection: Selection) -> RunReport:
            job = selection.job
            workshop.log_in(job.source, job.target)
            route = route_of(loaded, job)
            engine = workshop.engine(route)
            workshop.load_vddk(route, job)
            gc.freeze()  # what is imported by now is never garbage

            def stop() -> None:
                workshop.stop(engine, running.left_behind(workshop.repository))

            told = "stopping: removing what this run made on the source"
            with running.stop_on_signals(stop, workshop.stopped, told), deadline.watch(stop, workshop.stopped):
                return running.with_retries(
                    lambda names: engine.replicate(job, names, lock_wait=lock_wait, replica_map=replica_map),
                    selection.vms,
                    retries=retries,
                    wait=retry_wait,
                    stopped=workshop.stopped,
                    tell=say,
                )

        outcomes = running.go_through(selections, run, workshop.stopped)

    def show(out: Console) -> None:
        from vrepl.report import console

        for number, outcome in enumerate(outcomes):
            if number:
                out.print()
            if outcome.report is not None:
                console.show_run(out, outcome.report, with_errors=False)

    state.result(running.to_json(outcomes), show)
    _show_errors(outcomes)
    context.exit(deadline.exit_code(running.exit_code(outcomes)))


def _plan(state: State, jobs: tuple[str, ...], vms: tuple[str, ...], mappings: tuple[str, ...]) -> int:
    from vrepl.app.composition import Workshop
    from vrepl.app.routes import route_of
    from vrepl.cli import running
    from vrepl.report.estimate import estimate, past_rates

    loaded = state.config()
    selections = running.select(loaded, jobs, vms)
    replica_map = running.mapping_of(selections, mappings)
    with Workshop(loaded) as workshop:
        rates = past_rates(workshop.repository.runs(PAST_RUNS))

        def plan(selection: Selection) -> RunReport:
            engine = workshop.engine(route_of(loaded, selection.job))
            report = engine.plan(selection.job, selection.vms, replica_map=replica_map)
            report.estimate_seconds = estimate(report, rates, selection.job.limits.parallel_disks)
            return report

        outcomes = running.go_through(selections, plan, workshop.stopped)

    def show(out: Console) -> None:
        from vrepl.report.plan_view import show_plan

        for number, outcome in enumerate(outcomes):
            if number:
                out.print()
            if outcome.report is not None:
                show_plan(out, outcome.report, reasons=state.verbose > 0)

    state.result(running.to_json(outcomes), show)
    _show_errors(outcomes)
    return running.exit_code(outcomes)


def _show_errors(outcomes: list[Outcome]) -> None:
    """Every failure of a VM or a job, on stderr: a cron job that keeps stdout apart then mails what went wrong."""
    from vrepl.report import console
    from vrepl.report.model import ErrorReport

    err = console.make_console(stderr=True)
    for outcome in outcomes:
        if outcome.error is not None:
            console.show_error(err, f"job {outcome.job}", ErrorReport.of(outcome.error))
        if outcome.report is not None:
            console.show_errors(err, outcome.report)
