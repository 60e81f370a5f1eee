"""`vrepl failback`: brings home what runs at the target, takes that back, or makes it final."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from vrepl.cli.replica_selection import (
    Selected,
    chosen_replicas,
    finish,
    network_map_of,
    selection_at_site,
    shutdown_limit_option,
)
from vrepl.cli.state import State, examples, json_option, pass_state
from vrepl.errors import UsageError

if TYPE_CHECKING:
    from vrepl.app.failback import WayHome
    from vrepl.engine.failback.command import Failbacks, NewPlace
    from vrepl.engine.failover.replicas import FoundReplica
    from vrepl.report.failover import FailoverReport


@click.group(
    short_help="Bring home what was failed over.",
    epilog=examples(
        "vrepl failback start web-01",
        "vrepl failback undo web-01",
        "vrepl failback commit web-01",
    ),
)
def failback() -> None:
    """Bring home what was failed over. docs/failover.md, "Coming home", tells how to go about it."""


@failback.command(
    short_help="Bring VMs home.",
    epilog=examples(
        "vrepl failback start web-01",
        "vrepl failback start --job web --shutdown-limit 10m --yes",
        "vrepl failback start web-01 --new --datastore prod-02",
    ),
)
@selection_at_site
@shutdown_limit_option
@click.option("--power-off", is_flag=True, help="Power off a guest that does not shut down in time.")
@click.option("--new", is_flag=True, help="Into a new VM; everything crosses. For where the original is gone.")
@click.option("--to-site", metavar="SITE", help="With --new: another site than the one where it was.")
@click.option("--datastore", metavar="NAME", help="With --new: where its disks lie.")
@click.option("--host", metavar="NAME", help="With --new: the ESXi host or cluster; default: any.")
@click.option("--name", metavar="NAME", help="With --new: of one VM; default: the original's, which must be gone.")
@click.option("--network", "networks", multiple=True, metavar="OLD=NEW", help="With --new: adapters on OLD go to NEW.")
@json_option
@click.pass_context
@pass_state
def start(
    state: State,
    context: click.Context,
    selected: Selected,
    shutdown_limit: float,
    power_off: bool,
    new: bool,
    to_site: str | None,
    datastore: str | None,
    host: str | None,
    name: str | None,
    networks: tuple[str, ...],
) -> None:
    """Bring the original to the replica's state, shut the replica's guest down, and start the original.

    The original must be off, and is snapshotted first. What differs is found and moved while the replica still runs;
    after its shutdown only what it wrote meanwhile crosses. What was begun and cut off goes on when the same command is
    given again. Until it is committed, `vrepl failback undo` takes it back.
    """
    if not new and (to_site or datastore or host or name or networks):
        raise UsageError("--to-site, --datastore, --host, --name and --network say where a new VM is made: --new")
    if new and datastore is None:
        raise UsageError("--new needs --datastore", hint="the name of a datastore at home")
    if name is not None and len(selected.vms) != 1:
        raise UsageError("--name takes exactly one VM")
    network_map = network_map_of(networks)
    with _home(state, selected, to_site) as (failbacks, way):
        failbacks.shutdown_seconds = shutdown_limit

        def place(replica: FoundReplica) -> NewPlace | None:
            return way.new_place(replica, datastore, host, name, network_map) if datastore is not None else None

        chosen = chosen_replicas(
            failbacks.failovers,
            selected,
            "overwrite the originals of {}, shut down what runs at site {}, and go home",
            failbacks.can_start,
        )
        report = failbacks.start(chosen, place, power_off=power_off)
    finish(state, context, report)


@failback.command(
    short_help="Let the replicas run again.",
    epilog=examples("vrepl failback undo web-01", "vrepl failback undo --all --yes"),
)
@selection_at_site
@json_option
@click.pass_context
@pass_state
def undo(state: State, context: click.Context, selected: Selected) -> None:
    """Revert the original to what it was before the failback, and power the replica on.

    Only what ran at home since is lost; the replica goes on where its guest was shut down.
    """
    _with_those_on_their_way(
        state, context, selected, "power off {} at home, and start it again at site {}", lambda one: one.undo
    )


@failback.command(
    short_help="Stay at home.",
    epilog=examples("vrepl failback commit web-01", "vrepl failback commit --job web --yes"),
)
@selection_at_site
@json_option
@click.pass_context
@pass_state
def commit(state: State, context: click.Context, selected: Selected) -> None:
    """Remove the original's snapshot: the job goes on as before, with a comparison first, then incrementally.

    What the replica was when its guest was shut down stays as a restore point. This cannot be undone.
    """
    _with_those_on_their_way(
        state, context, selected, "let {} stay at home, and replicate to site {} again", lambda one: one.commit
    )


def _with_those_on_their_way(
    state: State,
    context: click.Context,
    selected: Selected,
    question: str,
    act: Callable[[Failbacks], Callable[[Sequence[FoundReplica]], FailoverReport]],
) -> None:
    """What ends a failback, one way or the other."""
    with _home(state, selected) as (failbacks, _):
        report = act(failbacks)(chosen_replicas(failbacks.failovers, selected, question, failbacks.is_on_its_way))
    finish(state, context, report)


@contextmanager
def _home(state: State, selected: Selected, to_site: str | None = None) -> Iterator[tuple[Failbacks, WayHome]]:
    from vrepl.app.failback import way_home
    from vrepl.cli.running import events_for, stop_on_signals

    stop = threading.Event()
    with (
        events_for(state) as events,
        way_home(state.config(), selected.site, selected.job, to_site, events, stop, selected.plan) as (failbacks, way),
        stop_on_signals(way.stop, stop, "stopping; what has crossed stays, and the same command goes on"),
    ):
        yield failbacks, way
