"""The command line. Importing it loads neither VDDK nor pyVmomi: each command imports what it needs when it runs."""

from __future__ import annotations

import click

from vrepl import __version__
from vrepl.cli.logs import set_up_logging
from vrepl.cli.root import RootGroup
from vrepl.cli.root_options import with_root_options
from vrepl.cli.state import State, examples, pass_state

COMMANDS = {
    "vms": "vrepl.cli.inventory:vms",
    "plan": "vrepl.cli.replicate:plan",
    "replicate": "vrepl.cli.replicate:replicate",
    "replicas": "vrepl.cli.replicas:replicas",
    "restore-points": "vrepl.cli.replicas:restore_points",
    "verify": "vrepl.cli.verify:verify",
    "failover": "vrepl.cli.failover:failover",
    "failback": "vrepl.cli.failback:failback",
    "status": "vrepl.cli.status:status",
    "history": "vrepl.cli.history:history",
    "report": "vrepl.cli.history:report",
    "check": "vrepl.cli.check:check",
    "proxy": "vrepl.cli.proxy:proxy",
    "config": "vrepl.cli.config:config",
    "repository": "vrepl.cli.repository:repository",
    "diagnose": "vrepl.cli.diagnose:diagnose",
    "completion": "vrepl.cli.completion:completion",
}


@click.group(
    cls=RootGroup,
    lazy=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples(
        "vrepl config init              write a configuration to start from",
        "vrepl check                    is everything in place?",
        "vrepl replicate web            run a job",
        "vrepl plan web --vm web-01 --config /etc/vrepl/vrepl.toml -v",
    ),
)
@click.version_option(__version__, "--version", message="vrepl %(version)s")
@with_root_options
@pass_state
def main(state: State) -> None:
    """Replicate VMware vSphere virtual machines from one site to another.

    Results go to stdout, everything else to stderr. Exit codes: 0 all well, 1 nothing succeeded, 2 usage or
    configuration, 3 some VMs failed or were skipped, 10 not found, 11 the job is locked, 12 authentication,
    130 interrupted.

    The options below may stand before a command or behind it.
    """
    set_up_logging(state)
