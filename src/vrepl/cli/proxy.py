"""`vrepl proxy`: machines that run data movers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import click

from vrepl.cli.state import State, examples, json_option, pass_state
from vrepl.errors import EXIT_FAILED, EXIT_OK, EXIT_PARTIAL, VreplError

if TYPE_CHECKING:
    from rich.console import Console

    from vrepl.app.proxies import ProxyVerdict
    from vrepl.proxy.ssh import SshMachine

NO_PROXY = "no proxy is configured: data movers run on this machine"


@click.group(epilog=examples("vrepl proxy install proxy-1", "vrepl proxy check"))
def proxy() -> None:
    """Machines that run data movers: install, check, list.

    A proxy is a table of the configuration, [proxies.NAME] with ssh = "HOST"; a job names it as its proxy. Nothing
    runs there between runs of vrepl.
    """


@proxy.command(
    "list", short_help="Proxies by the configuration.", epilog=examples("vrepl proxy list", "vrepl proxy list --json")
)
@json_option
@pass_state
def list_proxies(state: State) -> None:
    """List the configured proxies and the jobs that use them. Connects to nothing."""
    loaded = state.config()
    rows = [
        {
            "name": name,
            "ssh": table.ssh,
            "sites": list(table.sites or loaded.config.sites),
            "slots": table.slots,
            "jobs": [job for job, it in loaded.config.jobs.items() if name in it.proxy.names],
        }
        for name, table in loaded.config.proxies.items()
    ]

    def show(out: Console) -> None:
        from vrepl.planner.modes import THIS_MACHINE
        from vrepl.report import console

        if not rows:
            console.line(out, NO_PROXY)
            return
        table = console.table("proxy", "where", "sites", "slots", "jobs", right=("slots",), gives_way=("where", "jobs"))
        for row in rows:
            sites, jobs = ", ".join(row["sites"]), ", ".join(row["jobs"])  # type: ignore[arg-type]
            table.add_row(str(row["name"]), str(row["ssh"] or THIS_MACHINE), sites, str(row["slots"]), jobs or "-")
        out.print(table)

    state.result({"version": 1, "proxies": rows}, show)


@proxy.command(short_help="Are they ready?", epilog=examples("vrepl proxy check", "vrepl proxy check proxy-1 --json"))
@click.argument("names", metavar="[PROXY]...", nargs=-1)
@json_option
@click.pass_context
@pass_state
def check(state: State, context: click.Context, names: tuple[str, ...]) -> None:
    """Reach each proxy, start a data mover there, and say which VM it is and what it cannot reach.

    Exit code 1 if none is ready, 3 if some are not.
    """
    from vrepl.app.proxies import check_proxies

    loaded = state.config()
    verdicts = check_proxies(loaded, [loaded.require_proxy(name) for name in names] or list(loaded.config.proxies))

    def show(out: Console) -> None:
        from vrepl.report import console

        for verdict in verdicts:
            for text in _lines(verdict):
                console.line(out, text)
        if not verdicts:
            console.line(out, NO_PROXY)

    state.result({"version": 1, "proxies": [_row(verdict) for verdict in verdicts]}, show)
    bad = sum(bool(verdict.problems) for verdict in verdicts)
    context.exit(EXIT_OK if not bad else EXIT_FAILED if bad == len(verdicts) else EXIT_PARTIAL)


@proxy.command(
    short_help="Put this vrepl onto a proxy.",
    epilog=examples("vrepl proxy install proxy-1", "vrepl proxy install        on every proxy behind ssh"),
)
@click.argument("names", metavar="[PROXY]...", nargs=-1)
@json_option
@click.pass_context
@pass_state
def install(state: State, context: click.Context, names: tuple[str, ...]) -> None:
    """Put the vrepl that runs here onto proxies, over ssh, into ~/.local/share/vrepl of the user that ssh logs in.

    Takes a Python from 3.11 on there, and nothing else; do it again after each update of vrepl. Nothing is started.
    """
    from vrepl.app.proxies import ssh_of
    from vrepl.cli.streams import say
    from vrepl.proxy.install import install as install_vrepl

    loaded = state.config()
    wanted = names or tuple(name for name, table in loaded.config.proxies.items() if table.ssh is not None)
    machines = [ssh_of(loaded, name) for name in wanted]

    def install_on(ssh: SshMachine) -> dict[str, Any]:
        try:
            told = install_vrepl(ssh, lambda line: say(f"{ssh.name}: {line}"))
        except VreplError as error:
            return {"name": ssh.name, "build": None, "python": None, "error": error.message, "hint": error.hint}
        return {"name": ssh.name, "build": told["build"], "python": told["python"], "error": None, "hint": None}

    with ThreadPoolExecutor(max_workers=8, thread_name_prefix="proxies") as pool:
        rows = list(pool.map(install_on, machines))

    def show(out: Console) -> None:
        from vrepl.report import console

        for row in rows:
            if row["error"] is None:
                console.line(out, f"{row['name']}: installed, for Python {row['python']}")
                continue
            console.line(out, f"{row['name']}: FAILED: {row['error']}")
            if row["hint"]:
                console.line(out, f"hint: {row['hint']}")
        if not rows:
            console.line(out, "no proxy behind ssh is configured")

    state.result({"version": 1, "proxies": rows}, show)
    bad = sum(row["error"] is not None for row in rows)
    context.exit(EXIT_OK if not bad else EXIT_FAILED if bad == len(rows) else EXIT_PARTIAL)


def _row(verdict: ProxyVerdict) -> dict[str, Any]:
    return {
        "name": verdict.name,
        "where": verdict.where,
        "ready": not verdict.problems,
        "engine": verdict.engine or None,
        "python": verdict.facts.get("python"),
        "vm": verdict.vm,
        "problems": [{"message": what, "hint": hint} for what, hint in verdict.problems],
    }


def _lines(verdict: ProxyVerdict) -> list[str]:
    ready = "ready" if not verdict.problems else "NOT READY"
    lines = [f"{verdict.name} ({verdict.where}): {ready}"]
    if verdict.engine:
        lines.append(f"  engine: {verdict.engine}")
    lines += [f"  at site {site} it is VM {vm}" for site, vm in verdict.vm.items()]
    if verdict.engine and not verdict.vm:
        lines.append("  it is no VM of these sites: no hotadd")
    for what, hint in verdict.problems:
        lines.append(f"  {what}")
        if hint:
            lines.append(f"  hint: {hint}")
    return lines
