"""`vrepl failover test`: tries failovers on clones, and throws them away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from vrepl.cli.parameters import DURATION
from vrepl.cli.replica_selection import Selected, at_target, finish, network_map_of, selection
from vrepl.cli.state import State, examples, json_option, pass_state
from vrepl.errors import UsageError

if TYPE_CHECKING:
    from vrepl.engine.failover.replicas import FoundReplica
    from vrepl.engine.failover.testing import FailoverTests


class TestGroup(click.Group):
    """`failover test VM...` tests; `failover test stop VM...` ends what is kept."""

    __test__ = False

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, "--help", "-h"}:
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(
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
