"""Which replicas a command is about, how it reaches them, and how it tells what became of them."""

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
from vrepl.cli.state import State
from vrepl.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from vrepl.engine.failover.command import Failovers
    from vrepl.engine.failover.replicas import FoundReplica
    from vrepl.report.failover import FailoverReport

Command = TypeVar("Command", bound=Callable[..., Any])

SHOWN = 5
"""Names of VMs in a question."""


@dataclass(frozen=True, slots=True)
class Selected:
    """Which replicas, and at which site."""

    vms: tuple[str, ...]
    job: str | None
    plan: str | None
    every: bool
    site: str | None
    server: str | None
    user: str | None
    password_file: Path | None
    ca_file: Path | None
    thumbprint: str | None
    yes: bool


SITE = click.option("--site", metavar="SITE", help="Where the replicas are; default: the only target site.")
WHICH = (
    click.argument("vms", metavar="[VM]...", nargs=-1),
    click.option("--job", metavar="JOB", help="Every VM that this job replicated last."),
    click.option("--plan", metavar="PLAN", help="The VMs of this failover plan."),
    click.option("--all", "every", is_flag=True, help="Every replica at the site."),
    SITE,
)
SERVER = (
    click.option(
        "--server", metavar="HOST[:PORT]", help="Without a configuration: the replicas' vCenter or ESXi host."
    ),
    click.option("--user", metavar="USER", help="With --server. The password is asked for."),
    click.option(
        "--password-file", type=click.Path(path_type=Path, dir_okay=False), help="With --server: instead of asking."
    ),
    click.option("--ca-file", type=click.Path(path_type=Path, dir_okay=False), help="With --server: its authority."),
    click.option("--thumbprint", metavar="SHA256", help="With --server: of its certificate, instead of a CA."),
)
YES = click.option("--yes", is_flag=True, help="Answer every question with yes.")
NOT_ASKED: Mapping[str, Any] = {"vms": (), "every": False, "yes": True}
"""What a command has that does not take these options; None for every other one."""


def selection(command: Command) -> Command:
    """The arguments and options that say which replicas a command is about; given to it as one `Selected`."""
    return _selecting(command, (*WHICH, *SERVER, YES))


def selection_at_site(command: Command) -> Command:
    """The same, for what needs a configuration anyway."""
    return _selecting(command, (*WHICH, YES))


def selection_of_site(command: Command) -> Command:
    """Only where the replicas are."""
    return _selecting(command, (SITE, *SERVER))


def _selecting(command: Command, options: Sequence[Callable[[Any], Any]]) -> Command:
    def wrapped(**values: Any) -> Any:
        names = Selected.__dataclass_fields__
        selected = Selected(**{name: values.pop(name, NOT_ASKED.get(name)) for name in names})
        return command(selected=selected, **values)

    chosen: Any = functools.update_wrapper(wrapped, command)
    for option in reversed(options):
        chosen = option(chosen)
    return chosen  # type: ignore[no-any-return]


shutdown_limit_option = click.option(
    "--shutdown-limit", type=DURATION, default=300.0, metavar="TIME", help="What a guest gets to shut down [5m]."
)


@contextmanager
def at_target(state: State, selected: Selected) -> Iterator[Failovers]:
    from vrepl.app.failover import Server, at_server, at_site
    from vrepl.cli.running import events_for, stop_on_signals

    stop = threading.Event()
    with events_for(state) as events:
        if selected.server is None:
            source = at_site(state.config(), selected.site, selected.job, events, stop, selected.plan)
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

    `meant`: which of all, or of all of a job or a plan; one that was named is always meant.
    """
    from vrepl.engine.failover.plan_book import plan_book
    from vrepl.engine.failover.replicas import choose

    found = failovers.find()
    plan = None
    if selected.plan is not None:
        plan = plan_book(failovers.plans, found, failovers.settings).named(selected.plan)
    chosen = choose(found, selected.vms, job=selected.job, every=selected.every, plan=plan)
    chosen = [one for one in chosen if selected.vms or meant(one)]
    ask_about(failovers, selected, question, chosen)
    return chosen


def ask_about(failovers: Failovers, selected: Selected, question: str, chosen: Sequence[FoundReplica]) -> None:
    """`question` with the names of the VMs and the site; nobody is asked about none."""
    if not chosen:
        return
    names = ", ".join(one.source_name for one in chosen[:SHOWN])
    more = f" and {len(chosen) - SHOWN} more" if len(chosen) > SHOWN else ""
    confirm(question.format(names + more, failovers.context.target.name), selected.yes)


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
