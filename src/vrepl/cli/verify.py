"""`vrepl verify`: read restore points back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vrepl.cli.completion import complete_replicas
from vrepl.cli.state import State, examples, json_option, pass_state

if TYPE_CHECKING:
    from rich.console import Console


@click.command(
    short_help="Read restore points back and compare.",
    epilog=examples(
        "vrepl verify",
        "vrepl verify web-01 --json",
        "vrepl verify web-01 --restore-point 20250301T220000Z-1a2b3c",
        "vrepl verify --source web-01 --sample 5%",
    ),
)
@click.argument("vms", metavar="[VM]...", nargs=-1, shell_complete=complete_replicas)
@click.option("--restore-point", metavar="ID", help="This restore point of one VM; default: the newest.")
@click.option(
    "--source",
    is_flag=True,
    help="Of one VM: read at the source what change tracking calls unchanged, through a fresh snapshot.",
)
@click.option("--sample", metavar="SHARE", help="With --source: only so much of it, such as 5%, taken at random.")
@json_option
@click.pass_context
@pass_state
def verify(
    state: State,
    context: click.Context,
    vms: tuple[str, ...],
    restore_point: str | None,
    source: bool,
    sample: str | None,
) -> None:
    """Read a restore point of each VM's replica back through VDDK and compare every grain with its digest.

    VM is the name of the source or of the replica; without VM, every replica is read. Nothing is changed but the
    note of what was verified. Exit code 3 if some restore points differ, 1 if all do.

    With --source the newest restore point is compared with its source instead: a change that change tracking missed
    is missing from replica and digests alike, and nothing else finds it.
    """
    from vrepl.app.composition import Workshop
    from vrepl.app.routes import route_of, verification_route
    from vrepl.app.telling import Teller
    from vrepl.cli import running
    from vrepl.cli.running import events_for
    from vrepl.errors import RepositoryError, UsageError
    from vrepl.report.listing import find_replica
    from vrepl.report.model import ErrorReport, Result
    from vrepl.report.verification import VmVerification

    if restore_point is not None and len(vms) != 1:
        raise UsageError(
            "--restore-point takes exactly one VM", hint="vrepl verify VM --restore-point ID; `vrepl restore-points VM`"
        )
    if source and (len(vms) != 1 or restore_point is not None):
        raise UsageError("--source takes exactly one VM, and its newest restore point", hint="vrepl verify --source VM")
    if sample is not None and not source:
        raise UsageError("--sample belongs to --source", hint="vrepl verify --source VM --sample 5%")
    share = share_of(sample) if sample is not None else 1.0
    loaded = state.config()
    with events_for(state) as events, Workshop(loaded, events) as workshop:
        damaged: list[RepositoryError] = []
        known = workshop.repository.replicas(damaged.append)
        folders = [find_replica(known, vm) for vm in dict.fromkeys(vms)] or known
        if source:
            job = loaded.job(folders[0].record.job)
            workshop.log_in(job.source, job.target)
            engine = workshop.engine(route_of(loaded, job))
        else:
            workshop.log_in(*(folder.record.target_site for folder in folders))
            engine = workshop.engine(verification_route(loaded, [folder.record for folder in folders]))

        def stop() -> None:
            workshop.stop(engine, running.left_behind(workshop.repository))

        with running.stop_on_signals(stop, workshop.stopped):
            if source:
                report = engine.verify_source(folders[0], job, sample=share)
            else:
                report = engine.verify(
                    folders, restore_point_id=restore_point, jobs={one.name: one for one in loaded.jobs(())}
                )
        Teller.of(workshop).tell(report.to_json())

    if not vms:
        # Nobody named it, and nobody can be told that it is right.
        report.vms += [VmVerification("?", Result.FAILED, error=ErrorReport.of(error)) for error in damaged]

    def show(out: Console) -> None:
        from vrepl.report import console

        if not report.vms:
            console.line(out, "no replicas yet; `vrepl replicate` makes them")
        else:
            console.show_verification(out, report)

    state.result(report.to_json(), show)
    context.exit(report.exit_code)


def share_of(text: str) -> float:
    """0.05 of `5%`. Raises UsageError."""
    from vrepl.errors import UsageError

    try:
        share = float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UsageError(f"--sample {text} is no share", hint="write it like 5% or 0.05")
    return share
