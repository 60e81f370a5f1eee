"""`vrepl failover test`: tries failovers on clones, and throws them away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vrepl.cli.failover_plans import keep_going_option, ordered, scripts_option
from vrepl.cli.parameters import DURATION
from vrepl.cli.replica_selection import Selected, at_target, finish, network_map_of, selection
from vrepl.cli.state import State, examples, json_option, pass_state
from vrepl.errors import UsageError

if TYPE_CHECKING:
    from vrepl.engine.failover.replicas import FoundReplica
    from vrepl.engine.failover.testing import FailoverTests
    from vrepl.model.plans import FailoverPlan


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
        "vrepl failover test --plan site",
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
@keep_going_option
@scripts_option
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
    keep_going: bool,
    scripts: bool | None,
) -> None:
    """Start linked clones of restore points, isolated; measure how long they take to serve; throw them away.

    Nothing of the replicas changes, and replication goes on meanwhile. A script gets VREPL_VM, VREPL_CLONE and
    VREPL_ADDRESS in its environment; it is asked again until it ends with 0.

    With --plan, clones start in the order of a failover plan, all on one network, and its gates are the checks unless
    --check says others. The plan's scripts before and after are not run.
    """
    from vrepl.app.failover import tests_at
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
    with at_target(state, selected) as failovers:
        tests = tests_at(failovers)
        if selected.plan is None:
            report = tests.run(_tested(tests, selected), wish)
        else:
            order = ordered(failovers, selected, keep_going=keep_going, scripts=scripts)
            order.tell()
            report = order.tested(tests, wish, gates if checks else None)
            order.note(report)
    finish(state, context, report)


@test.command(name="stop", short_help="Throw away what is kept.", epilog=examples("vrepl failover test stop web-01"))
@selection
@json_option
@click.pass_context
@pass_state
def stop_test(state: State, context: click.Context, selected: Selected) -> None:
    """Throw away the copies that tests left, with the networks that were made for them."""
    from vrepl.app.failover import tests_at

    with at_target(state, selected) as failovers:
        tests = tests_at(failovers)
        plan = None
        if selected.plan is not None:
            plan = ordered(failovers, selected, keep_going=False, scripts=None).plan
        report = tests.stop(_tested(tests, selected, plan))
    finish(state, context, report)


def _tested(tests: FailoverTests, selected: Selected, plan: FailoverPlan | None = None) -> list[FoundReplica]:
    """Nobody is asked: nothing is at stake."""
    from vrepl.engine.failover.replicas import choose

    return choose(tests.find(), selected.vms, job=selected.job, every=selected.every, plan=plan)
