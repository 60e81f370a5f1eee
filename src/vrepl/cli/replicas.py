"""`vrepl replicas` and `vrepl restore-points`: what the repository knows."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import click

from vrepl.cli.completion import complete_replicas
from vrepl.cli.damage import messages, warn_of
from vrepl.cli.state import State, examples, json_option, pass_state
from vrepl.errors import RepositoryError

if TYPE_CHECKING:
    from rich.console import Console


@click.command(
    short_help="The replicas that the repository knows.", epilog=examples("vrepl replicas", "vrepl replicas --json")
)
@json_option
@pass_state
def replicas(state: State) -> None:
    """List the replicas that the repository knows, with their newest restore points."""
    from vrepl.app.composition import open_repository
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
        listing = console.table("Source", "Replica", "Site", "State", "Points", "Newest", right=("Points",))
        now = dt.datetime.now(dt.UTC)
        for row in rows:
            newest = row["last_restore_point"]
            listing.add_row(
                row["source"]["name"],
                row["name"] or "(not made yet)",
                row["target"]["site"],
                row["state"] + (" (running)" if row["running"] else ""),
                str(row["restore_points"]),
                words.age(dt.datetime.fromisoformat(newest["time"]), now) if newest else "–",
            )
        out.print(listing)

    state.result({"version": 1, "replicas": rows, "damaged": messages(damaged)}, show)


@click.command(
    short_help="The restore points of a replica.",
    epilog=examples("vrepl restore-points web-01", "vrepl restore-points web-01 --json"),
)
@click.argument("vm", shell_complete=complete_replicas)
@json_option
@pass_state
def restore_points(state: State, vm: str) -> None:
    """List the restore points of VM's replica, oldest first. VM is the name of the source or of the replica."""
    from vrepl.app.composition import open_repository
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
            "Restore point", "Time", "Size", "Moved", "Consistency", "Verified", right=("Size", "Moved"), dense=True
        )
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


def _verdict(verified: dict[str, Any] | None) -> str:
    if verified is None:
        return "not yet"
    return "yes" if verified["good"] else "DIFFERS"
