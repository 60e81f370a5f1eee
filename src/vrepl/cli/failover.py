"""`vrepl failover`: brings replicas into service at the site that is left, takes that back, or makes it final."""

from __future__ import annotations

import datetime as dt

import click

from vrepl.cli.failover_plans import keep_going_option, ordered, plan, scripts_option, show_dry_run
from vrepl.cli.failover_tests import test
from vrepl.cli.parameters import DURATION, MOMENT
from vrepl.cli.replica_selection import (
    Selected,
    ask_about,
    at_target,
    chosen_replicas,
    finish,
    network_map_of,
    selection,
    shutdown_limit_option,
)
from vrepl.cli.state import State, examples, json_option, pass_state
from vrepl.errors import UsageError

POINTS_HINT = "vrepl restore-points VM lists them"


@click.group(
    short_help="Bring replicas into service.",
    epilog=examples(
        "vrepl failover start web-01 db-01",
        "vrepl failover start --all --server vc-dr.example.org --user administrator@vsphere.local",
        "vrepl failover undo web-01",
        "vrepl failover commit web-01",
    ),
)
def failover() -> None:
    """Bring replicas into service, undo that, or make it final. docs/failover.md is for the day it matters."""


@failover.command(
    short_help="Start replicas at a restore point.",
    epilog=examples(
        "vrepl failover start web-01",
        "vrepl failover start --plan site",
        "vrepl failover start --job web --rollback-after 60m",
        "vrepl failover start --all --dry-run",
        "vrepl failover start --all --as-of 2026-03-01T22:00",
        "vrepl failover start web-01 --restore-point 20250301T220000Z-1a2b3c --network 'VM Network=isolated'",
    ),
)
@selection
@click.option("--restore-point", metavar="ID", help="Of one VM; default: the newest.")
@click.option("--as-of", type=MOMENT, metavar="TIME", help="Each VM's newest that is no younger (2026-03-01T22:00).")
@click.option("--planned", is_flag=True, help="Sync, shut the source's guest down, sync again: nothing is lost.")
@shutdown_limit_option
@click.option("--source-is-down", is_flag=True, help="Go on although the source seems to run.")
@click.option("--adopt", is_flag=True, help="Call it failed over if somebody powered it on by hand.")
@click.option(
    "--rollback-after", type=DURATION, metavar="TIME", help="Undo it by itself after so long, unless committed (60m)."
)
@click.option("--network", "networks", multiple=True, metavar="OLD=NEW", help="Connect adapters on OLD to NEW.")
@keep_going_option
@scripts_option
@click.option("--dry-run", is_flag=True, help="Show restore points, networks and addresses, and change nothing.")
@json_option
@click.pass_context
@pass_state
def start(
    state: State,
    context: click.Context,
    selected: Selected,
    restore_point: str | None,
    as_of: dt.datetime | None,
    planned: bool,
    shutdown_limit: float,
    source_is_down: bool,
    adopt: bool,
    rollback_after: float | None,
    networks: tuple[str, ...],
    keep_going: bool,
    scripts: bool | None,
    dry_run: bool,
) -> None:
    """Revert each replica to a restore point and power it on.

    Works from the replicas alone: neither the source site, the repository nor the configuration of the lost site is
    needed. What was begun and cut off goes on when the same command is given again. Until it is committed it can be
    undone; replication runs keep away from a replica that is not ready.

    With --plan, VMs start in the order of a failover plan; with --all, in that of every plan there is.
    """
    from vrepl.model.failover import Start

    if planned and (restore_point is not None or as_of is not None or selected.server is not None):
        raise UsageError("--planned fails over to what it syncs, with a configuration that knows the source's site")
    if restore_point is not None and len(selected.vms) != 1:
        raise UsageError("--restore-point takes exactly one VM; for several: --as-of TIME", hint=POINTS_HINT)
    if restore_point is not None and as_of is not None:
        raise UsageError("--restore-point and --as-of say both which restore point", hint=POINTS_HINT)
    network_map = network_map_of(networks)
    with at_target(state, selected) as failovers:
        deadline = None
        if rollback_after is not None:
            deadline = failovers.context.target.current_time() + dt.timedelta(seconds=rollback_after)
        wish = Start(
            restore_point=restore_point,
            as_of=as_of,
            source_is_down=source_is_down,
            adopt=adopt,
            deadline=deadline,
            networks=network_map,
            planned=planned,
        )
        failovers.shutdown_seconds = shutdown_limit
        order = ordered(failovers, selected, keep_going=keep_going, scripts=scripts)
        if dry_run:
            show_dry_run(state, context, order.preview(wish))
        order.tell()
        if planned:
            from vrepl.app.failover import planned as planned_failover

            ask_about(failovers, selected, "shut down {} and start it at site {}", order.chosen)
            with planned_failover(
                state.config(), failovers, failovers.context.services.events, shutdown_limit
            ) as moving:
                report = moving.run_plan(order.walk(wish), wish) if order.plan else moving.run(order.chosen, wish)
        else:
            ask_about(failovers, selected, "start {} at site {}", order.chosen)
            report = order.walk(wish).run() if order.plan else failovers.run(order.chosen, lambda _: wish)
        order.note(report)
        report.vms.extend(failovers.keep_deadlines(list(order.replicas.values()), order.chosen))
    finish(state, context, report)


@failover.command(
    short_help="Make replicas what they were.",
    epilog=examples("vrepl failover undo web-01", "vrepl failover undo --all --yes"),
)
@selection
@click.option("--keep", is_flag=True, help="Keep what ran as the snapshot vrepl-undone.")
@json_option
@click.pass_context
@pass_state
def undo(state: State, context: click.Context, selected: Selected, keep: bool) -> None:
    """Power the replica off and revert it to its newest restore point; only what ran at the target is lost.

    The next run of the job is incremental.
    """
    from vrepl.model.failover import Undo

    with at_target(state, selected) as failovers:
        chosen = chosen_replicas(failovers, selected, "undo the failover of {} at site {}")
        report = failovers.run(chosen, lambda _: Undo(keep_state=keep))
    finish(state, context, report)


@failover.command(
    short_help="Make replicas the VMs.",
    epilog=examples(
        "vrepl failover commit web-01",
        "vrepl failover commit --job web --yes",
        "vrepl failover commit web-01 --reprotect",
    ),
)
@selection
@click.option("--reprotect", is_flag=True, help="Tell the job that replicates it back, seeded from its original.")
@json_option
@click.pass_context
@pass_state
def commit(state: State, context: click.Context, selected: Selected, reprotect: bool) -> None:
    """Merge the replica's restore points: it is the VM from now on, and its job replicates it no longer.

    This cannot be undone. With --reprotect, given now or later, the job in the other direction is shown, as TOML for
    the configuration, with the command of its first run: the original becomes the replica, and only what differs
    crosses.
    """
    from vrepl.model.failover import Commit

    if reprotect and selected.server is not None:
        raise UsageError("--reprotect takes a configuration that knows both sites", hint="leave --server out")
    with at_target(state, selected) as failovers:
        chosen = chosen_replicas(failovers, selected, "make {} at site {} final")
        report = failovers.run(chosen, lambda _: Commit())
        if reprotect:
            from vrepl.app.reprotection import reprotect as tell_reverse_jobs

            tell_reverse_jobs(state.config(), report, chosen, failovers.context.target.name)
    finish(state, context, report)


failover.add_command(test)
failover.add_command(plan)
