"""`vrepl history` and `report`: what ran, and how it went."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vrepl.cli.completion import complete_jobs
from vrepl.cli.damage import messages, warn_of
from vrepl.cli.state import State, examples, json_option, pass_state
from vrepl.errors import NotFoundError, RepositoryError

if TYPE_CHECKING:
    from rich.console import Console


@click.command(short_help="Runs, newest first.", epilog=examples("vrepl history", "vrepl history --job web --limit 50"))
@click.option("--job", shell_complete=complete_jobs, help="Only the runs of this job.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="How many, newest first.")
@json_option
@pass_state
def history(state: State, job: str | None, limit: int) -> None:
    """List runs, newest first."""
    from vrepl.app.sites import open_repository
    from vrepl.report.listing import run_row

    damaged: list[RepositoryError] = []
    runs = open_repository(state.config()).runs(damaged=damaged.append)
    warn_of(damaged)
    rows = [run_row(run) for run in runs if job is None or run["run"]["job"] == job][:limit]

    def show(out: Console) -> None:
        from vrepl.report import console
        from vrepl.report import format as words

        # A run's ID begins with the time it started at, so that a column for that would only say it again.
        listing = console.table(
            "Run", "Job", "Took", "Read", "Moved", "Result",
            right=("Took", "Read", "Moved"),
            gives_way=("Read", "Moved", "Took", "Job"),
        )  # fmt: skip
        for row in rows:
            listing.add_row(
                row["id"],
                row["job"],
                words.duration(row["seconds"]),
                words.size(row["bytes_read"]),
                words.size(row["bytes_moved"]),
                row["result"],
            )
        out.print(listing)

    state.result({"version": 1, "runs": rows, "damaged": messages(damaged)}, show)


@click.command(
    short_help="The report of a run.",
    epilog=examples(
        "vrepl report                the last run", "vrepl report RUN --json", "vrepl report --html report.html"
    ),
)
@click.argument("run", required=False)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a page with it, and with what all runs say together, to this file.",
)
@json_option
@pass_state
def report(state: State, run: str | None, html: Path | None) -> None:
    """Show the report of RUN (default: the last run), as `replicate` showed it."""
    from vrepl.app.sites import open_repository
    from vrepl.report.model import RunReport

    repository = open_repository(state.config())
    damaged: list[RepositoryError] = []
    newest = [] if run else repository.runs(limit=1, damaged=damaged.append)
    warn_of(damaged)
    found = repository.run(run) if run else (newest[0] if newest else None)
    if found is None:
        raise NotFoundError(
            f"there is no run {run}" if run else "no run has been made yet", hint="`vrepl history` lists runs"
        )
    try:
        told = RunReport.from_json(found)
    except (KeyError, TypeError, ValueError) as error:
        raise RepositoryError(f"the report of run {run or 'that was the last'} is damaged: {error!r}") from error

    def show(out: Console) -> None:
        from vrepl.report import console

        if html is not None:
            console.plain(out, f"wrote {html}")
        else:
            console.show_run(out, told)

    if html is not None:
        from vrepl.app.files import write_readable
        from vrepl.app.pages import history_of
        from vrepl.app.sites import now
        from vrepl.report.pages import page

        moment = now()
        history = history_of(state.config(), repository, moment, frozenset())
        write_readable(html, page(moment, run=told, history=history).encode())
    state.result(told.to_json(), show)
