"""`vrepl repository`: check it, rebuild it from the replicas, clean up after dead runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vrepl.cli.state import State, examples, json_option, pass_state
from vrepl.errors import EXIT_FAILED, EXIT_OK, EXIT_PARTIAL

if TYPE_CHECKING:
    from rich.console import Console


@click.group(epilog=examples("vrepl repository check"))
def repository() -> None:
    """Check, rebuild and unlock the repository."""


@repository.command(
    short_help="Report what is wrong with it.",
    epilog=examples("vrepl repository check", "vrepl repository check --json"),
)
@json_option
@click.pass_context
@pass_state
def check(state: State, context: click.Context) -> None:
    """Walk the whole repository and report what is wrong; changes nothing. Exit code 1 if there is an error."""
    from vrepl.app.sites import open_repository
    from vrepl.repository.check import Severity
    from vrepl.repository.check import check as check_repository

    store = open_repository(state.config())
    findings = check_repository(store)
    sound = not any(finding.severity is Severity.ERROR for finding in findings)
    data = {
        "version": 1,
        "path": str(store.path),
        "sound": sound,
        "findings": [
            {
                "severity": finding.severity.value,
                "path": finding.path,
                "message": finding.message,
                "hint": finding.hint or None,
            }
            for finding in findings
        ],
    }

    def show(out: Console) -> None:
        from vrepl.report import console

        for finding in findings:
            console.line(out, f"{finding.severity.value}: {finding.path}: {finding.message}")
            if finding.hint:
                console.line(out, f"hint: {finding.hint}")
        console.line(out, f"{store.path}: {'sound' if sound else 'damaged'}")

    state.result(data, show)
    context.exit(EXIT_OK if sound else EXIT_FAILED)


@repository.command(
    short_help="Make it anew from the replicas.",
    epilog=examples("vrepl repository rebuild", "vrepl repository rebuild --site dr"),
)
@click.option("--site", "sites", metavar="NAME", multiple=True, help="Target site to look at; default: of every job.")
@click.option("--adopt", is_flag=True, help="Also take in replicas that another repository made.")
@json_option
@click.pass_context
@pass_state
def rebuild(state: State, context: click.Context, sites: tuple[str, ...], adopt: bool) -> None:
    """Make the repository anew from the replicas themselves: their marks and their snapshots' descriptions.

    What the repository still holds stays; documents that are damaged, or that the replicas contradict, are made anew
    (the old ones are kept as NAME.damaged). Digests are not on the replicas: the next run goes by change tracking,
    and where it cannot, reads.
    """
    from vrepl.app.sites import Sites
    from vrepl.repository.commit_record import is_header, read_mark
    from vrepl.repository.rebuild import FoundReplica
    from vrepl.repository.rebuild import rebuild as rebuild_repository
    from vrepl.repository.store import Repository

    loaded = state.config()
    names = [loaded.require_site(site) for site in sites] or list(
        dict.fromkeys(job.target for job in loaded.config.jobs.values())
    )
    store = Repository.open(loaded.config.repository.path, mend=True)
    with Sites(loaded) as connect:
        found = [
            FoundReplica(
                name,
                vm,
                snapshot_settings={
                    snapshot.ref: connect(name).read_snapshot(snapshot.ref).extra_config
                    for snapshot in vm.snapshots
                    if is_header(snapshot.description)
                },
            )
            for name in names
            for vm in connect(name).list_vms()
            if read_mark(vm.extra_config) is not None
        ]
    rebuilt = rebuild_repository(store, found, adopt=adopt)
    passed_over = [one for one in rebuilt if one.problem]
    data: dict[str, Any] = {
        "version": 1,
        "path": str(store.path),
        "replicas": [
            {
                "vm": one.vm_name,
                "id": one.replica_id,
                "restore_points": one.restore_points,
                "problem": one.problem or None,
                "mended": list(one.mended),
            }
            for one in rebuilt
        ],
    }

    def show(out: Console) -> None:
        from vrepl.report import console

        if not rebuilt:
            console.line(out, f"no replica of vrepl's on {', '.join(names)}")
        for one in rebuilt:
            what = f"passed over: {one.problem}" if one.problem else f"{one.restore_points} restore points"
            console.line(out, f"{one.vm_name}: {what}")
            for path in one.mended:
                console.line(out, f"  made anew: {path}")

    state.result(data, show)
    context.exit(EXIT_OK if not passed_over else EXIT_PARTIAL if len(passed_over) < len(rebuilt) else EXIT_FAILED)


@repository.command(short_help="Clean up after dead owners.", epilog=examples("vrepl repository unlock"))
@json_option
@pass_state
def unlock(state: State) -> None:
    """Clean up locks whose owners are dead; a lock that is held stays, for it ends with its process."""
    from vrepl.app.sites import open_repository_to_write

    locks = open_repository_to_write(state.config()).unlock()
    data = {
        "version": 1,
        "locks": [
            {"name": lock.name, "path": str(lock.path), "held": lock.held, "owner": lock.owner} for lock in locks
        ],
    }

    def show(out: Console) -> None:
        from vrepl.report import console

        for lock in locks:
            verdict = "is held by" if lock.held else "cleaned up; its owner was"
            console.line(out, f"{lock.name}: {verdict} {lock.owner or 'unknown'}")
        if not locks:
            console.line(out, "no locks")

    state.result(data, show)
