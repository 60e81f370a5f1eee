"""Shell completion: the script, and names from configuration and repository. No site is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem, get_completion_class

from vrepl.cli.state import State, examples

if TYPE_CHECKING:
    from vrepl.config import LoadedConfig

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
VARIABLE = "_VREPL_COMPLETE"


def _completer(names: Callable[[LoadedConfig], Iterable[str]]) -> Completer:
    def complete(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        state = context.find_object(State) or State()
        try:
            found = list(dict.fromkeys(names(state.config())))
        except Exception:
            return []  # whoever presses Tab wants names, not the mistakes of a configuration
        return [CompletionItem(name) for name in found if name.startswith(incomplete)]

    return complete


def _vms_of_jobs(loaded: LoadedConfig) -> Iterable[str]:
    return (vm for job in loaded.config.jobs.values() for vm in job.vms)


def _sources_of_replicas(loaded: LoadedConfig) -> Iterable[str]:
    from vrepl.repository.store import Repository

    return (
        folder.record.source_name for folder in Repository.open(loaded.config.repository.path, create=False).replicas()
    )


complete_jobs = _completer(lambda loaded: loaded.config.jobs)
complete_sites = _completer(lambda loaded: loaded.config.sites)
complete_vms = _completer(_vms_of_jobs)
complete_replicas = _completer(_sources_of_replicas)


@click.command(
    short_help="The script for your shell.",
    epilog=examples(
        'eval "$(vrepl completion bash)"                  in ~/.bashrc',
        'eval "$(vrepl completion zsh)"                   in ~/.zshrc',
        "vrepl completion fish > ~/.config/fish/completions/vrepl.fish",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script for SHELL: commands, options, and the names of jobs, sites, VMs and replicas."""
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(context.find_root().command, {}, "vrepl", VARIABLE).source())
