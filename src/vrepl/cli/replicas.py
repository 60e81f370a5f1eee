"""`vrepl replicas` and `vrepl restore-points`: what the repository knows."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import click

from vrepl.cli.asking import confirm
from vrepl.cli.completion import complete_replicas
from vrepl.cli.damage import messages, warn_of
from vrepl.cli.state import State, examples, json_option, pass_state
from vrepl.errors import RepositoryError

if TYPE_CHECKING:
    from rich.console import Console


@click.group(
    short_help="The replicas that the repository knows.",
    invoke_without_command=True,
    epilog=examples("vrepl replicas", "vrepl replicas --json", "vrepl replicas remove web-01"),
)
@json_option
@click.pass_context
@pass_state
def replicas(state: State, context: click.Context) -> None:
    """List the replicas that the repository knows, with their newest restore points; or remove one."""
    if context.invoked_subcommand is not None:
        return
    from vrepl.app.sites import open_repository
    from vrepl.report.listing import replica_rows

    damaged: list[RepositoryError] = []
    rows = replica_rows(open_repository(state.config()), damaged)
    warn_of(damaged)

    def show(out: Console) -> None:
        from vrepl.report import console
        from vrepl.report import format as words

        if not rows:
            console.line(out, "no replicas yet; `vrepl replicate` makes them")
            return
        listing = console.table(
            "Source", "Replica", "Site", "State", "Points", "Newest", "Tested",
            right=("Points",),
            gives_way=("Site", "Points", "Tested", "Replica", "Newest"),
        )  # fmt: skip
        now = dt.datetime.now(dt.UTC)
        for row in rows:
            newest = row["last_restore_point"]
            listing.add_row(
                row["source"]["name"],
                row["name"] or "(not made yet)",
                row["target"]["site"],
                state_in_words(row, now),
                str(row["restore_points"]),
                words.age(dt.datetime.fromisoformat(newest["time"]), now) if newest else "–",
                _tested(row["last_test"], now),
            )
        out.print(listing)

    state.result({"version": 1, "replicas": rows, "damaged": messages(damaged)}, show)


@replicas.command(
    short_help="Take a replica out of service for good.",
    epilog=examples("vrepl replicas remove web-01", "vrepl replicas remove web-01 --keep-vm --yes"),
)
@click.argument("vm", shell_complete=complete_replicas)
@click.option("--keep-vm", is_flag=True, help="The VM stays, with its snapshots; vrepl only forgets it.")
@click.option("--source-is-gone", is_flag=True, help="Do not ask the source: what an unfinished run left there stays.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@pass_state
def remove(state: State, vm: str, keep_vm: bool, source_is_gone: bool, yes: bool) -> None:
    """Destroy VM's replica with all its restore points, and forget it. VM is the name of the source or of the replica.

    Only a VM that bears this repository's mark is touched, and never one that is failed over or powered on. As long as
    a job has the VM, its next run makes a new replica.
    """
    from vrepl.app.composition import Workshop
    from vrepl.app.routes import verification_route
    from vrepl.engine.retirement import retire
    from vrepl.report.listing import find_replica

    loaded = state.config()
    with Workshop(loaded) as workshop:
        folder = find_replica(workshop.repository.replicas(), vm)
        record = folder.record
        what = "forget" if keep_vm else "destroy"
        count = len(folder.restore_point_ids())
        confirm(
            f"{what} {record.target_name or 'the replica'} on {record.target_site}, the replica of "
            f"{record.source_name} with {count} restore points",
            yes,
        )
        engine = workshop.engine(verification_route(loaded, [record]))
        asked = folder.intent() is not None and not source_is_gone
        done = retire(
            engine.services,
            folder,
            workshop.sites(record.target_site),
            workshop.sites(record.source_site) if asked else None,
            keep_vm=keep_vm,
        )
    jobs = [name for name, job in loaded.config.jobs.items() if record.source_name in job.vms]
    if jobs:
        done.append(f"job {', '.join(jobs)} still has {record.source_name}: its next run makes a new replica")
    data = {"version": 1, "vm": record.source_name, "replica": record.target_name, "kept": keep_vm, "done": done}

    def show(out: Console) -> None:
        from vrepl.report import console

        for line in done:
            console.line(out, line)

    state.result(data, show)


@click.command(
    short_help="The restore points of a replica.",
    epilog=examples("vrepl restore-points web-01", "vrepl restore-points web-01 --json"),
)
@click.argument("vm", shell_complete=complete_replicas)
@json_option
@pass_state
def restore_points(state: State, vm: str) -> None:
    """List the restore points of VM's replica, oldest first. VM is the name of the source or of the replica."""
    from vrepl.app.sites import open_repository
    from vrepl.report.listing import find_replica, restore_point_row

    damaged: list[RepositoryError] = []
    folders = open_repository(state.config()).replicas(damaged.append)
    warn_of(damaged)
    folder = find_replica(folders, vm)
    rows = [
        restore_point_row(point, folder.verification(point.id), folder.doubt(point.id))
        for point in folder.restore_points()
    ]
    record = folder.record
    data = {
        "version": 1,
        "vm": record.source_name,
        "replica": record.target_name,
        "restore_points": rows,
    }

    def show(out: Console) -> None:
        from vrepl.report import console
        from vrepl.report import format as words

        if not rows:
            console.line(out, f"no restore points of {record.source_name} yet; `vrepl replicate` makes them")
            return
        listing = console.table(
            "Restore point", "Time", "Size", "Moved", "Consistency", "Verified",
            right=("Size", "Moved"),
            gives_way=("Time", "Size", "Moved", "Consistency"),
            dense=True,
        )  # fmt: skip
        for row in rows:
            listing.add_row(
                row["id"],
                words.minute(dt.datetime.fromisoformat(row["time"])),
                words.size(row["capacity"]),
                words.size(row["bytes_moved"]),
                row["consistency"],
                _verdict(row["verified"]),
            )
        out.print(listing)

    state.result(data, show)


def state_in_words(row: Any, now: dt.datetime) -> str:
    """With the end that a failover was given (`--rollback-after`)."""
    state = str(row["state"]) + (" (running)" if row["running"] else "")
    if row["deadline"] is None:
        return state
    deadline = dt.datetime.fromisoformat(row["deadline"])
    if deadline <= now:
        return f"{state}, to be undone by the next run"
    return f"{state} until {deadline.astimezone():%Y-%m-%d %H:%M}"


def _tested(last: dict[str, Any] | None, now: dt.datetime) -> str:
    """When, and how long it took to serve."""
    from vrepl.report import format as words

    if last is None:
        return "never"
    when = words.age(dt.datetime.fromisoformat(last["time"]), now)
    return f"{when}: {words.duration(last['seconds'])}" if last["passed"] else f"{when}: FAILED"


def _verdict(verified: dict[str, Any] | None) -> str:
    if verified is None:
        return "not yet"
    return "yes" if verified["good"] else "DIFFERS"
