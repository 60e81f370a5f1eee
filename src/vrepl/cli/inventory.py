"""`vrepl vms`: the VMs of a site."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vrepl.cli.completion import complete_sites
from vrepl.cli.state import State, examples, json_option, pass_state

if TYPE_CHECKING:
    from rich.console import Console


@click.command(
    short_help="The VMs of a site.",
    epilog=examples(
        "vrepl vms prod",
        "vrepl vms prod --json",
        """vrepl vms prod --select 'tags = ["Backup/Gold"], exclude = { names = ["*-test"] }'""",
    ),
)
@click.argument("site", shell_complete=complete_sites)
@click.option(
    "--select", metavar="CRITERIA", help="Only what a job's `select = { CRITERIA }` would find (docs/configuration.md)."
)
@json_option
@pass_state
def vms(state: State, site: str, select: str | None) -> None:
    """List the VMs of SITE, and which of them cannot be replicated and why."""
    from vrepl.app.sites import Sites
    from vrepl.config.load import parse_selection
    from vrepl.planner.selection import choose
    from vrepl.report.listing import vm_row

    loaded = state.config()
    with Sites(loaded) as sites:
        there = sites(loaded.require_site(site))
        listed = there.list_vms()
        if select is not None:
            wanted = parse_selection(select)
            chosen = choose(there.candidates(wanted.tag_patterns), [], wanted)
            refs = {one.ref for one in chosen.vms}
            listed = [vm for vm in listed if vm.ref in refs]
        rows = [vm_row(vm) for vm in sorted(listed, key=lambda vm: vm.name)]
        data = {"version": 1, "site": site, "vms": rows, "soap_calls": there.soap_calls}

    def show(out: Console) -> None:
        from vrepl.report import console
        from vrepl.report import format as words

        listing = console.table(
            "VM", "Power", "Disks", "Size", "Snapshots", "CBT", "Replicable",
            right=("Disks", "Size", "Snapshots"),
            gives_way=("CBT", "Snapshots", "Disks", "Size", "Power"),
        )  # fmt: skip
        for row in rows:
            listing.add_row(
                row["name"],
                row["power"].removeprefix("powered").lower(),
                str(len(row["disks"])),
                words.size(sum(disk["capacity"] for disk in row["disks"])),
                str(len(row["snapshots"])),
                "on" if row["cbt"] else "off",
                "yes" if row["replicable"] else "no",
            )
        out.print(listing)
        for row in rows:
            if not row["replicable"]:
                console.line(out, f"{row['name']}: {row['reason']}")

    state.result(data, show)
