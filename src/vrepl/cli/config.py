"""`vrepl config`: write, validate and show the configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vrepl.cli.state import State, examples, json_option, pass_state
from vrepl.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from vrepl.config.job import JobTable


@click.group(epilog=examples("vrepl config init && $EDITOR vrepl.toml && vrepl config validate"))
def config() -> None:
    """Write, validate and show the configuration."""


@config.command(
    short_help="Write a commented configuration.",
    epilog=examples(
        "vrepl config init                       writes ./vrepl.toml", "vrepl config init /etc/vrepl/vrepl.toml"
    ),
)
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True), default="vrepl.toml")
@click.option("--force", is_flag=True, help="Overwrite a file that exists.")
@json_option
@pass_state
def init(state: State, path: Path, force: bool) -> None:
    """Write a commented configuration to PATH (default ./vrepl.toml; - for stdout)."""
    from vrepl.config.example import EXAMPLE
    from vrepl.report import console

    if str(path) == "-":
        click.echo(EXAMPLE, nl=False)
        return
    try:
        flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if force else os.O_EXCL)
        with open(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
            file.write(EXAMPLE)
    except FileExistsError as error:
        raise UsageError(f"{path} exists", hint="--force overwrites it") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    data = {"version": 1, "path": str(path.absolute())}
    state.result(
        data, lambda out: console.plain(out, f"wrote {path}; edit it, then: vrepl --config {path} config validate")
    )


@config.command(
    short_help="Every mistake at once.",
    epilog=examples("vrepl config validate", "vrepl --config other.toml config validate --json"),
)
@json_option
@pass_state
def validate(state: State) -> None:
    """Validate the configuration; every mistake is told at once, each with its key path.

    Nothing is connected to and no secret is read: that is `vrepl check`.
    """
    loaded = state.config()
    sites, jobs = list(loaded.config.sites), list(loaded.config.jobs)
    reaches = {name: _reach(table) for name, table in loaded.config.jobs.items() if table.every is not None}
    data = {
        "version": 1,
        "path": str(loaded.path),
        "valid": True,
        "sites": sites,
        "jobs": jobs,
        "reach_seconds": reaches,
    }

    def show(out: Console) -> None:
        from vrepl.report import console
        from vrepl.report import format as words

        console.plain(out, f"{loaded.path} is valid")
        console.line(out, f"sites: {', '.join(sites)}; jobs: {', '.join(jobs) or 'none'}")
        for name, reach in reaches.items():
            every = loaded.config.jobs[name].every
            console.line(out, f"job {name}: run every {words.duration(every)}, it reaches {words.duration(reach)} back")

    state.result(data, show)


def _reach(job: JobTable) -> float:
    """Seconds that the restore points of a job reach back, with the schedule that it says it has."""
    import datetime as dt

    from vrepl.retention import reach

    return reach(job.retention.policy(), dt.timedelta(seconds=job.every or 0)).total_seconds()


@config.command(
    short_help="A JSON Schema, for editors.",
    epilog=examples(
        "vrepl config schema > vrepl.schema.json", "#:schema vrepl.schema.json     at the top of vrepl.toml"
    ),
)
@json_option
@pass_state
def schema(state: State) -> None:
    """Print the JSON Schema of the configuration, for editors that complete and check TOML."""
    import json

    from vrepl.config.schema import json_schema
    from vrepl.report import console

    made = json_schema()
    state.result({"version": 1, "schema": made}, lambda out: console.paragraph(out, json.dumps(made, indent=2)))


@config.command(short_help="The effective values.", epilog=examples("vrepl config show", "vrepl config show --json"))
@json_option
@pass_state
def show(state: State) -> None:
    """Show the effective values, defaults included, as TOML. Secrets show only where they come from."""
    from vrepl.config.show import effective, to_toml
    from vrepl.report import console

    loaded = state.config()
    values = effective(loaded.config)
    data = {"version": 1, "path": str(loaded.path), "config": values}
    state.result(data, lambda out: console.paragraph(out, f"# {loaded.path}\n{to_toml(values)}"))


@config.command(
    short_help="The vSphere roles that a site's user needs.",
    epilog=examples(
        "vrepl config role prod                       privileges, where they count, and what for",
        "vrepl config role prod --as govc | sh        makes and assigns them",
        "vrepl config role dr --as powercli --failback",
    ),
)
@click.argument("site")
@click.option(
    "--as", "form", type=click.Choice(["list", "govc", "powercli"]), default="list", show_default=True,
    help="A plain list, or commands that make the roles and assign them.",
)  # fmt: skip
@click.option("--failback", is_flag=True, help="Also what planned failover and failback take.")
@click.option("--every-engine", is_flag=True, help="Also what an engine takes that the configuration rules out.")
@json_option
@pass_state
def role(state: State, site: str, form: str, failback: bool, every_engine: bool) -> None:
    """Print the vSphere roles that the user of SITE needs for the configured jobs. Nothing is connected to."""
    from vrepl.app.roles import EVERY_ENGINE, engines_of, in_form, roles_of, to_json
    from vrepl.report import console

    loaded = state.config()
    table = loaded.config.sites[loaded.require_site(site)]
    engines = EVERY_ENGINE if every_engine else engines_of(loaded.config)
    roles = roles_of(loaded.config, site, failback=failback, engines=engines)
    data = {"version": 1, "site": site, "user": table.user, "roles": [to_json(one) for one in roles]}
    state.result(data, lambda out: console.paragraph(out, in_form(form, roles, table.user)))
