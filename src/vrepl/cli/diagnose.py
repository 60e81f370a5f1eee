"""`vrepl diagnose`: a file for those who are to help."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from vrepl.cli.state import State, examples, json_option, pass_state


@click.command(
    short_help="A file for those who are to help.",
    epilog=examples(
        "vrepl diagnose", "vrepl diagnose case-17.tar.gz --log /var/log/vrepl/vrepl.log", "vrepl diagnose --offline"
    ),
)
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False), default="vrepl-diagnosis.tar.gz")
@click.option(
    "--log",
    "logs",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    multiple=True,
    help="Take the end of this log along (may be given again).",
)
@click.option("--offline", is_flag=True, help="Ask no site: without the results of `vrepl check`.")
@json_option
@pass_state
def diagnose(state: State, path: Path, logs: tuple[Path, ...], offline: bool) -> None:
    """Collect versions, configuration, status, last reports, checks and logs in PATH (default: vrepl-diagnosis.tar.gz).

    Passwords, tokens and cookies are taken out; names of sites, hosts and VMs stay: look at it before you give it away.
    A trace ($VREPL_TRACE) is taken along where there is one.
    """
    from vrepl.app.diagnosis import collect, write_bundle
    from vrepl.report import console
    from vrepl.trace import VARIABLE

    loaded = state.config()
    trace = os.environ.get(VARIABLE)
    files = [*logs, *([Path(trace)] if trace and Path(trace).is_file() else [])]
    if state.log_file is not None and state.log_file not in files:
        files.append(state.log_file)

    def checks() -> Sequence[dict[str, Any]]:
        from vrepl.app.checking import check_world
        from vrepl.checks import run_checks

        with check_world(loaded) as world:
            return [
                {
                    "group": one.group,
                    "name": one.name,
                    "status": one.status.value,
                    "detail": one.detail,
                    "hint": one.hint,
                }
                for one in run_checks(world)
            ]

    texts = collect(loaded, None if offline else checks, files)
    write_bundle(path, texts)
    data = {"version": 1, "path": str(path.absolute()), "files": sorted(texts)}
    state.result(
        data, lambda out: console.plain(out, f"wrote {path}: {len(texts)} files; look at it before you give it away")
    )
