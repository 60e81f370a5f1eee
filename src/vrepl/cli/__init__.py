"""The command line. Importing it loads neither VDDK nor pyVmomi: each command imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path

import click

from vrepl import __version__
from vrepl.cli.logs import set_up_logging
from vrepl.cli.root import RootGroup
from vrepl.cli.state import State, examples, pass_state

COMMANDS = {
    "vms": "vrepl.cli.inventory:vms",
    "plan": "vrepl.cli.replicate:plan",
    "replicate": "vrepl.cli.replicate:replicate",
    "replicas": "vrepl.cli.replicas:replicas",
    "restore-points": "vrepl.cli.replicas:restore_points",
    "verify": "vrepl.cli.verify:verify",
    "status": "vrepl.cli.status:status",
    "history": "vrepl.cli.history:history",
    "report": "vrepl.cli.history:report",
    "check": "vrepl.cli.check:check",
    "config": "vrepl.cli.config:config",
    "repository": "vrepl.cli.repository:repository",
}


@click.group(
    cls=RootGroup,
    lazy=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples(
        "vrepl config init              write a configuration to start from",
        "vrepl check                    is everything in place?",
        "vrepl replicate web            run a job",
        "vrepl --config /etc/vrepl/vrepl.toml -v plan web --vm web-01",
    ),
)
@click.version_option(__version__, "--version", message="vrepl %(version)s")
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Configuration file. Default: $VREPL_CONFIG, ./vrepl.toml, ~/.config/vrepl/vrepl.toml, /etc/vrepl/vrepl.toml.",
)
@click.option("-v", "--verbose", count=True, help="Say more on stderr; twice for debugging.")
@click.option("-q", "--quiet", is_flag=True, help="Only errors on stderr, and no progress.")
@click.option("--log-file", type=click.Path(path_type=Path, dir_okay=False), help="Also append the log to this file.")
@click.option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", help="Log lines as text or as JSON objects."
)
@pass_state
def main(
    state: State, config_path: Path | None, verbose: int, quiet: bool, log_file: Path | None, log_format: str
) -> None:
    """Replicate VMware vSphere virtual machines from one site to another.

    Results go to stdout, everything else to stderr. Exit codes: 0 all well, 1 nothing succeeded, 2 usage or
    configuration, 3 some VMs failed or were skipped, 10 not found, 11 the job is locked, 12 authentication,
    130 interrupted.
    """
    state.config_path = config_path
    state.verbose = verbose
    state.quiet = quiet
    state.log_file = log_file
    state.log_format = log_format
    set_up_logging(state)
