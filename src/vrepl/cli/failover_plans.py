"""Failover plans on the command line: which one a command goes by, and what a plan would do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

import click

from vrepl.cli.replica_selection import Selected, at_target, selection_of_site
from vrepl.cli.state import State, examples, json_option, pass_state
from vrepl.cli.streams import say

if TYPE_CHECKING:
    from rich.console import Console

    from vrepl.engine.failover.command import Failovers
    from vrepl.engine.failover.plan_book import PlanBook
    from vrepl.engine.failover.plan_failover import PlanFailover
    from vrepl.engine.failover.replicas import FoundReplica
    from vrepl.engine.failover.testing import FailoverTests
    from vrepl.model.failover import Start
    from vrepl.model.failover_tests import TestWish
    from vrepl.model.plans import FailoverPlan, Gate
    from vrepl.report.failover import FailoverReport
    from vrepl.report.failover_preview import FailoverPreviewReport

keep_going_option = click.option("--keep-going", is_flag=True, help="With a plan: go on without what does not come up.")
scripts_option = click.option(
    "--scripts/--no-scripts",
    default=None,
    help="Run a plan's commands on this machine [those of its own configuration, not of plans beside replicas].",
)


@dataclass(slots=True)
class Order:
    """The replicas of one command, and by which plan they go, if by any."""

    failovers: Failovers
    book: PlanBook
    replicas: dict[str, FoundReplica]
    chosen: list[FoundReplica]
    plan: FailoverPlan | None
    notes: list[str]

    def tell(self) -> None:
        """What the operator should know before the question."""
        for note in self.notes:
            say(note)

    def note(self, report: FailoverReport) -> None:
        """The same stays with the report."""
        if report.plan is not None:
            report.plan = replace(report.plan, notes=(*report.plan.notes, *self.notes))
        elif self.notes and report.vms:
            report.vms[0].notes = [*report.vms[0].notes, *self.notes]

    def walk(self, wish: Start) -> PlanFailover:
        from vrepl.app.failover import plan_walk

        assert self.plan is not None, "it goes by a plan"
        made = plan_walk(self.failovers, self.plan, self.replicas)
        made.wish = lambda _: wish
        return made

    def tested(self, tests: FailoverTests, wish: TestWish, checks: tuple[Gate, ...] | None) -> FailoverReport:
        """`checks`: what each VM must pass instead of its gates."""
        from vrepl.engine.failover.plan_test import PlanTest
        from vrepl.planner.plans import with_gates

        assert self.plan is not None, "it goes by a plan"
        plan = self.plan if checks is None else with_gates(self.plan, checks)
        tests.find()  # what dead tests left is thrown away
        return PlanTest(tests, plan, self.replicas, wish, self.failovers.context.services.events.plan_moved).run()

    def preview(self, wish: Start) -> FailoverPreviewReport:
        from vrepl.engine.failover.preview import preview, preview_plan

        if self.plan is None:
            report = preview(self.failovers, self.chosen, lambda _: wish)
        else:
            report = preview_plan(
                self.failovers, self.plan, self.replicas, lambda _: wish, from_replicas=self.book.from_replicas
            )
        report.notes = self.notes
        return report


def ordered(failovers: Failovers, selected: Selected, *, keep_going: bool, scripts: bool | None) -> Order:
    """The plan that was named, that of all where all are meant, or none, with a warning where there is one."""
    from vrepl.engine.failover.plan_book import plan_book, runnable
    from vrepl.engine.failover.replicas import by_name, choose
    from vrepl.model.plans import OnGateFailure

    found = failovers.find()
    whole = selected.plan is not None or selected.every
    chosen = [] if selected.plan is not None else choose(found, selected.vms, job=selected.job, every=selected.every)
    book = plan_book(failovers.plans, found, failovers.settings, None if whole else chosen)
    replicas = by_name(found)
    order = Order(failovers, book, replicas, chosen, None, [])
    if selected.plan is not None:
        order.plan = book.named(selected.plan)
        order.chosen = choose(found, selected.vms, job=selected.job, every=selected.every, plan=order.plan)
    elif selected.every and book.plans:
        order.plan = book.of_all()
    else:
        order.notes = book.warning([name for name, one in replicas.items() if one in chosen])
        return order
    order.plan, order.notes = runnable(book, order.plan, scripts)
    if keep_going:
        order.plan = replace(order.plan, on_failure=OnGateFailure.CONTINUE)
    return order


@click.group(short_help="Look at failover plans.", epilog=examples("vrepl failover plan show site"))
def plan() -> None:
    """Failover plans: which VMs start in which order, and what must answer before the next ones do."""


@plan.command(
    short_help="What plans would do now.",
    epilog=examples(
        "vrepl failover plan show",
        "vrepl failover plan show site",
        "vrepl failover plan show --server vc-dr.example.org --user administrator@vsphere.local",
    ),
)
@click.argument("names", metavar="[PLAN]...", nargs=-1)
@selection_of_site
@json_option
@click.pass_context
@pass_state
def show(state: State, context: click.Context, selected: Selected, names: tuple[str, ...]) -> None:
    """Show plans over the replicas that there are: their groups, gates, and what would become of each VM.

    Plans are those of the configuration; where it has none, those that runs left beside the replicas. Nothing is
    started. That sources still run is nothing that this tells.
    """
    from vrepl.engine.failover.plan_book import plan_book
    from vrepl.engine.failover.replicas import by_name
    from vrepl.errors import EXIT_OK
    from vrepl.model.failover import Start
    from vrepl.report.model import FORMAT_VERSION

    with at_target(state, selected) as failovers:
        found = failovers.find()
        book = plan_book(failovers.plans, found, failovers.settings)
        plans = [book.named(name) for name in dict.fromkeys(names)] or list(book.plans)
        orders = [Order(failovers, book, by_name(found), [], one, []) for one in plans]
        previews = [order.preview(Start(source_is_down=True)) for order in orders]

    def show_all(out: Console) -> None:
        from vrepl.report.console import line
        from vrepl.report.failover_preview import show_preview

        for number, one in enumerate(previews):
            if number:
                line(out, "")
            show_preview(out, one)
        if not previews:
            line(out, "there is no failover plan")

    state.result({"version": FORMAT_VERSION, "plans": [one.body() for one in previews]}, show_all)
    context.exit(max((one.exit_code for one in previews), default=EXIT_OK))


def show_dry_run(state: State, context: click.Context, report: FailoverPreviewReport) -> NoReturn:
    """Nobody is asked: nothing is changed."""
    from vrepl.report.failover_preview import show_preview

    state.result(report.to_json(), lambda out: show_preview(out, report))
    context.exit(report.exit_code)
