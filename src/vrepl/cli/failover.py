"""`vrepl failover`: brings replicas into service at the site that is left, takes that back, or makes it final."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vrepl.cli.asking import confirm
from vrepl.cli.parameters import DURATION
from vrepl.cli.state import State, examples, json_option, pass_state
from vrepl.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from vrepl.engine.failover.command import Failovers
    from vrepl.engine.failover.replicas import FoundReplica
    from vrepl.engine.failover.testing import FailoverTests
    from vrepl.report.failover import FailoverReport

Command = TypeVar("Command", bound=Callable[..., Any])

SHOWN = 5
"""Names of VMs in a question."""


@dataclass(frozen=True, slots=True)
class Selected:
    """Which replicas, and at which site."""

    vms: tuple[str, ...]
    job: str | None
    every: bool
    site: str | None
    server: str | None
    user: str | None
    password_file: Path | None
    ca_file: Path | None
    thumbprint: str | None
    yes: bool


WHICH = (
    click.argument("vms", metavar="[VM]...", nargs=-1),
    click.option("--job", metavar="JOB", help="Every VM that this job replicated last."),
    click.option("--all", "every", is_flag=True, help="Every replica at the site."),
    click.option("--site", metavar="SITE", help="Where the replicas are; default: the only target site."),
)
YES = click.option("--yes", is_flag=True, help="Answer every question with yes.")
NO_SERVER = {"server": None, "user": None, "password_file": None, "ca_file": None, "thumbprint": None}


def selection(command: Command) -> Command:
    """The arguments and options that say which replicas a command is about; given to it as one `Selected`."""

    options = (
        *WHICH,
        click.option(
            "--server", metavar="HOST[:PORT]", help="Without a configuration: the replicas' vCenter or ESXi host."
        ),
        click.option("--user", metavar="USER", help="With --server. The password is asked for."),
        click.option(
            "--password-file", type=click.Path(path_type=Path, dir_okay=False), help="With --server: instead of asking."
        ),
        click.option(
            "--ca-file",
            type=click.Path(path_type=Path, dir_okay=False),
            help="With --server: its authority.",
        ),
        click.option("--thumbprint", metavar="SHA256", help="With --server: of its certificate, instead of a CA."),
        YES,
    )
    return _selecting(command, options)


def selection_at_site(command: Command) -> Command:
    """The same, for what needs a configuration anyway."""
    return _selecting(command, (*WHICH, YES))


def _selecting(command: Command, options: Sequence[Callable[[Any], Any]]) -> Command:
    def wrapped(**values: Any) -> Any:
        names = Selected.__dataclass_fields__
        selected = Selected(**{name: values.pop(name, NO_SERVER.get(name)) for name in names})
        return command(selected=selected, **values)

    chosen: Any = functools.update_wrapper(wrapped, command)
    for option in reversed(options):
        chosen = option(chosen)
    return chosen  # type: ignore[no-any-return]


shutdown_limit_option = click.option(
    "--shutdown-limit", type=DURATION, default=300.0, metavar="TIME", help="What a guest gets to shut down [5m]."
)


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
        "vrepl failover start --job web --rollback-after 60m",
        "vrepl failover start web-01 --restore-point 20250301T220000Z-1a2b3c --network 'VM Network=isolated'",
    ),
)
@selection
@click.option("--restore-point", metavar="ID", help="Of one VM; default: the newest.")
@click.option("--planned", is_flag=True, help="Sync, shut the source's guest down, sync again: nothing is lost.")
@shutdown_limit_option
@click.option("--source-is-down", is_flag=True, help="Go on although the source seems to run.")
@click.option("--adopt", is_flag=True, help="Call it failed over if somebody powered it on by hand.")
@click.option(
    "--rollback-after", type=DURATION, metavar="TIME", help="Undo it by itself after so long, unless committed (60m)."
)
@click.option("--network", "networks", multiple=True, metavar="OLD=NEW", help="Connect adapters on OLD to NEW.")
@json_option
@click.pass_context
@pass_state
def start(
    state: State,
    context: click.Context,
    selected: Selected,
    restore_point: str | None,
    planned: bool,
    shutdown_limit: float,
    source_is_down: bool,
    adopt: bool,
    rollback_after: float | None,
    networks: tuple[str, ...],
) -> None:
    """Revert each replica to a restore point and power it on.

    Works from the replicas alone: neither the source site, the repository nor the configuration of the lost site is
    needed. What was begun and cut off goes on when the same command is given again. Until it is committed it can be
    undone; replication runs keep away from a replica that is not ready.
    """
    import datetime as dt

    from vrepl.model.failover import Start

    if planned and (restore_point is not None or selected.server is not None):
        raise UsageError("--planned fails over to what it syncs, with a configuration that knows the source's site")
    if restore_point is not None and len(selected.vms) != 1:
        raise UsageError("--restore-point takes exactly one VM", hint="vrepl restore-points VM lists them")
    network_map = network_map_of(networks)
    with at_target(state, selected) as failovers:
        deadline = None
        if rollback_after is not None:
            deadline = failovers.context.target.current_time() + dt.timedelta(seconds=rollback_after)
        wish = Start(
            restore_point=restore_point,
            source_is_down=source_is_down,
            adopt=adopt,
            deadline=deadline,
            networks=network_map,
            planned=planned,
        )
        failovers.shutdown_seconds = shutdown_limit
        if planned:
            from vrepl.app.failover import planned as planned_failover

            chosen = chosen_replicas(failovers, selected, "shut down {} and start it at site {}")
            with planned_failover(state.config(), failovers, failovers.context.services.events, shutdown_limit) as plan:
                report = plan.run(chosen, wish)
        else:
            report = failovers.run(chosen_replicas(failovers, selected, "start {} at site {}"), lambda _: wish)
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
    epilog=examples("vrepl failover commit web-01", "vrepl failover commit --job web --yes"),
)
@selection
@json_option
@click.pass_context
@pass_state
def commit(state: State, context: click.Context, selected: Selected) -> None:
    """Merge the replica's restore points: it is the VM from now on, and its job replicates it no longer.

    This cannot be undone.
    """
    from vrepl.model.failover import Commit

    with at_target(state, selected) as failovers:
        report = failovers.run(chosen_replicas(failovers, selected, "make {} at site {} final"), lambda _: Commit())
    finish(state, context, report)


class TestGroup(click.Group):
    """`failover test VM...` tests; `failover test stop VM...` ends what is kept."""

    __test__ = False

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, "--help", "-h"}:
            args = ["run", *args]
        return super().parse_args(ctx, args)


@failover.group(
    name="test",
    cls=TestGroup,
    short_help="Try a failover without touching anything.",
    epilog=examples(
        "vrepl failover test web-01",
        "vrepl failover test web-01 db-01 --check heartbeat --check port:443 --timeout 10m",
        "vrepl failover test --job web --network test-lan --keep",
        "vrepl failover test stop web-01",
    ),
)
def test() -> None:
    """Start a copy of a restore point on a network that leads nowhere, check it, throw it away.

    `failover test VM...` is short for `failover test run VM...`.
    """


@test.command(
    name="run",
    short_help="Test replicas.",
    epilog=examples("vrepl failover test web-01", "vrepl failover test web-01 --check 'script:/usr/local/bin/ask'"),
)
@selection
@click.option("--restore-point", metavar="ID", help="Of one VM; default: the newest.")
@click.option("--keep", is_flag=True, help="Leave the copy running; failover test stop ends it.")
@click.option("--network", "networks", multiple=True, metavar="NAME|OLD=NEW", help="Instead of one made for the test.")
@click.option(
    "--check", "checks", multiple=True, metavar="CHECK", help="heartbeat, port:N or script:COMMAND [heartbeat]."
)
@click.option("--timeout", type=DURATION, default=300.0, metavar="TIME", help="For every check, from power-on [5m].")
@json_option
@click.pass_context
@pass_state
def run_test(
    state: State,
    context: click.Context,
    selected: Selected,
    restore_point: str | None,
    keep: bool,
    networks: tuple[str, ...],
    checks: tuple[str, ...],
    timeout: float,
) -> None:
    """Start linked clones of restore points, isolated; measure how long they take to serve; throw them away.

    Nothing of the replicas changes, and replication goes on meanwhile. A script gets VREPL_VM, VREPL_CLONE and
    VREPL_ADDRESS in its environment; it is asked again until it ends with 0.
    """
    from vrepl.model.failover_tests import TestWish
    from vrepl.model.plans import parse_gate

    if restore_point is not None and len(selected.vms) != 1:
        raise UsageError("--restore-point takes exactly one VM", hint="vrepl restore-points VM lists them")
    everywhere = [text for text in networks if "=" not in text]
    if len(everywhere) > 1:
        raise UsageError(f"--network {' '.join(everywhere)}: one network for all, or OLD=NEW each")
    try:
        gates = tuple(parse_gate(text, timeout) for text in checks or ("heartbeat",))
    except ValueError as error:
        raise UsageError(f"--check {error}") from error
    wish = TestWish(
        restore_point=restore_point,
        network=everywhere[0] if everywhere else None,
        networks=network_map_of(tuple(text for text in networks if "=" in text)),
        checks=gates,
        keep=keep,
    )
    with _tests(state, selected) as tests:
        report = tests.run(_tested(tests, selected), wish)
    finish(state, context, report)


@test.command(name="stop", short_help="Throw away what is kept.", epilog=examples("vrepl failover test stop web-01"))
@selection
@json_option
@click.pass_context
@pass_state
def stop_test(state: State, context: click.Context, selected: Selected) -> None:
    """Throw away the copies that tests left, with the networks that were made for them."""
    with _tests(state, selected) as tests:
        report = tests.stop(_tested(tests, selected))
    finish(state, context, report)


@contextmanager
def _tests(state: State, selected: Selected) -> Iterator[FailoverTests]:
    from vrepl.app.failover import tests_at

    with at_target(state, selected) as failovers:
        yield tests_at(failovers)


def _tested(tests: FailoverTests, selected: Selected) -> list[FoundReplica]:
    """Nobody is asked: nothing is at stake."""
    from vrepl.engine.failover.replicas import choose

    return choose(tests.find(), selected.vms, job=selected.job, every=selected.every)


# -- what the commands share ----------------------------------------------------------------------------------------


@contextmanager
def at_target(state: State, selected: Selected) -> Iterator[Failovers]:
    from vrepl.app.failover import Server, at_server, at_site
    from vrepl.cli.running import events_for, stop_on_signals

    stop = threading.Event()
    with events_for(state) as events:
        if selected.server is None:
            source = at_site(state.config(), selected.site, selected.job, events, stop)
        elif selected.user is None:
            raise UsageError("--server needs --user", hint="--server HOST --user USER")
        else:
            server = Server(selected.server, selected.user, _password(selected), selected.ca_file, selected.thumbprint)
            source = at_server(server, events, stop)
        with source as failovers, stop_on_signals(stop.set, stop, "stopping after the step that is under way"):
            yield failovers


def _password(selected: Selected) -> str:
    from vrepl.secrets import SecretReference, Secrets

    if selected.password_file is not None:
        reference = SecretReference("file", (str(selected.password_file),))
        return Secrets().resolve(reference).get_secret_value()
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to be asked for the password", hint="--password-file FILE")
    password: str = click.prompt(f"Password of {selected.user}", hide_input=True, err=True)
    return password


def chosen_replicas(
    failovers: Failovers,
    selected: Selected,
    question: str,
    meant: Callable[[FoundReplica], bool] = lambda _: True,
) -> list[FoundReplica]:
    """The replicas that the operator meant, once the question was answered.

    `meant`: which of all, or of all of a job; one that was named is always meant.
    """
    from vrepl.engine.failover.replicas import choose

    chosen = choose(failovers.find(), selected.vms, job=selected.job, every=selected.every)
    chosen = [one for one in chosen if selected.vms or meant(one)]
    if not chosen:
        return []
    names = ", ".join(one.source_name for one in chosen[:5]) + (
        f" and {len(chosen) - 5} more" if len(chosen) > 5 else ""
    )
    confirm(question.format(names, failovers.context.target.name), selected.yes)
    return chosen


def finish(state: State, context: click.Context, report: FailoverReport) -> None:
    def show(out: Console) -> None:
        from vrepl.report.console import line
        from vrepl.report.failover import show_failover

        if report.vms:
            show_failover(out, report)
        else:
            line(out, "nothing to do: no such replicas here")

    state.result(report.to_json(), show)
    context.exit(report.exit_code)


def network_map_of(texts: tuple[str, ...]) -> Mapping[str, str]:
    mapped: dict[str, str] = {}
    for text in texts:
        old, _, new = text.partition("=")
        if not old or not new:
            raise UsageError(f"--network {text}: expected OLD=NEW", hint="such as --network 'VM Network=isolated'")
        mapped[old] = new
    return mapped
