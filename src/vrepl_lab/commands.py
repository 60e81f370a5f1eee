"""`vrepl lab`: a simulated vSphere to try vrepl on."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vrepl.cli.state import State, examples, json_option, pass_state

if TYPE_CHECKING:
    from vrepl_lab.lab import Lab

DISK_MIB = 256
WRITE_PIECE = 4 * 1024 * 1024


def folder_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--dir",
        "folder",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="The lab's folder [default: $XDG_STATE_HOME/vrepl/lab].",
    )(function)


NO_VDDK = click.option(
    "--no-vddk", "vddk", flag_value=False, default=True, help="Without any libvixDiskLib: vrepl takes its own engine."
)

PROXY = click.option(
    "--proxy",
    type=click.Choice(["bare", "hotadd", "san"]),
    default="bare",
    show_default=True,
    help="Of the jobs: a machine that reaches ports alone, one that is a VM of both sites, one that sees all LUNs.",
)


def disk_arguments(function: Callable[..., Any]) -> Callable[..., Any]:
    for name, kind in (("index", click.IntRange(min=0)), ("vm", click.STRING), ("site", click.STRING)):
        function = click.argument(name, type=kind)(function)
    return function


UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


class Size(click.ParamType[int]):
    """Bytes, or with a suffix KiB, MiB, GiB (also K, M, G)."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value).strip().lower().removesuffix("b").removesuffix("i")
        unit = text[-1:] if text[-1:] in ("k", "m", "g") else ""
        digits = text.removesuffix(unit).strip() if unit else text
        if not digits.isdecimal():
            self.fail(f"{value!r} is not a size such as 65536, 64KiB or 8MiB", param, ctx)
        return int(digits) * UNITS[unit]


SIZE = Size()


def tell(state: State, data: dict[str, Any], text: str = "") -> None:
    """What was done, as JSON if that was asked for; else this line, if there is any."""
    state.result({"version": 1, **data}, lambda _out: click.echo(text) if text else None)


def disk_of(site: str, vm: str, index: int) -> dict[str, Any]:
    return {"site": site, "vm": vm, "index": index}


def attached(folder: Path | None) -> Lab:
    from vrepl_lab.folder import default_folder
    from vrepl_lab.lab import Lab

    return Lab.attach(folder or default_folder())


@click.group(
    short_help="A simulated vSphere to try vrepl on.",
    epilog=examples(
        "vrepl lab up --dir mylab",
        "vrepl --config mylab/vrepl.toml replicate demo",
        "vrepl lab down --dir mylab",
    ),
)
def lab() -> None:
    """A simulated vSphere: two vCenters, ESXi hosts, guests with file systems, and a VixDiskLib to reach them."""


@lab.command(epilog=examples("vrepl lab up --dir mylab --disk-mib 512"))
@folder_option
@click.option(
    "--disk-mib",
    type=click.IntRange(min=16),
    default=DISK_MIB,
    show_default=True,
    help="Size of web-01's disk; db-01's two follow at a quarter and a half, app-01's at a quarter.",
)
@click.option(
    "--vms",
    "extra_vms",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Small extra VMs vm-0001… in prod.",
)
@click.option(
    "--esx",
    type=click.Choice(["prod", "dr", "both"]),
    is_flag=False,
    flag_value="both",
    help="A standalone ESXi host in place of this site's vCenter; --esx alone: in place of both.",
)
@click.option(
    "--proxies",
    metavar="N+M",
    help="So many proxies at prod and at dr that are machines of their own, reached over ssh; job demo takes them.",
)
@NO_VDDK
@PROXY
@json_option
@pass_state
def up(
    state: State,
    folder: Path | None,
    disk_mib: int,
    extra_vms: int,
    esx: str | None,
    proxies: str | None,
    vddk: bool,
    proxy: str,
) -> None:
    """Start a lab, and return when it serves.

    The first time, the simulator and the library are built. In a stopped lab's folder the lab is made anew.
    """
    from vrepl_lab.folder import default_folder
    from vrepl_lab.lab import Lab, find_running
    from vrepl_lab.spec import demo_spec, standalone

    place = (folder or default_folder()).absolute()
    running = bool(find_running(place))
    if running:
        click.echo(f"a lab is running in {place} already", err=True)
    else:
        spec = standalone(replace(demo_spec(disk_mib, extra_vms, vddk=vddk), job_proxy=proxy), esx)
        if proxies is not None:
            spec = spec.with_machines(*machine_counts(proxies))
        Lab.start(place, spec, detached=True)
        click.echo(f"lab: ready in {place}", err=True)
        if proxies is not None:
            click.echo(f"first: vrepl --config {place / 'vrepl.toml'} proxy install", err=True)
        click.echo(f"try: vrepl --config {place / 'vrepl.toml'} replicate demo", err=True)
    config = str(place / "vrepl.toml")
    tell(state, {"folder": str(place), "config": config, "started": not running}, config)


def machine_counts(text: str) -> tuple[int, int]:
    """Raises click.BadParameter."""
    found = re.fullmatch(r"(\d)\+(\d)", text)
    if found is None or not int(found[1]) + int(found[2]):
        raise click.BadParameter("takes two numbers below ten, as 2+2", param_hint="--proxies")
    return int(found[1]), int(found[2])


@lab.command(
    short_help="End a lab's simulators.",
    epilog=examples("vrepl lab down --dir mylab", "vrepl lab down --dir mylab --site prod"),
)
@folder_option
@click.option("--site", metavar="SITE", help="Only this one, as a site is lost; the other goes on.")
@json_option
@pass_state
def down(state: State, folder: Path | None, site: str | None) -> None:
    """End a lab's simulators; its folder stays until the next `up`."""
    from vrepl_lab.folder import default_folder
    from vrepl_lab.lab import stop_in

    place = (folder or default_folder()).absolute()
    ended = stop_in(place, site)
    click.echo(f"ended {' and '.join(ended)} of {place}" if ended else f"no lab was running in {place}", err=True)
    tell(state, {"folder": str(place), "ended": list(ended)})


def setting_lines() -> str:
    from vrepl_lab.settings import SETTINGS

    width = max(map(len, SETTINGS))
    lines = [f"  {name:<{width}}  {setting.help}" for name, setting in SETTINGS.items()]
    return "\n".join([*lines, f"  {'nasty':<{width}}  yes | no: what real sites do to their clients, all at once"])


class SetCommand(click.Command):
    """Its help lists the settings, which live in the lab's own module: imported only when asked for."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from vrepl_lab import faultrules, guestrules

        super().format_epilog(ctx, formatter)
        formatter.write(f"\nSettings:\n{setting_lines()}\n")
        formatter.write(
            f"\nFaults of VixDiskLib:\n  {faultrules.DISK_GRAMMAR}\n"
            f"  OP      {', '.join(faultrules.OPERATIONS)}\n"
            "  ACTION  error:CODE, freeze:MILLISECONDS, crash, lost (connection)\n"
            "  CODE    a VixError, or one of\n"
            f"          {', '.join(faultrules.ERROR_NAMES)}\n"
            f"Faults of the API:\n  {faultrules.API_GRAMMAR}\n"
            "  ACTION  fault:TYPE, task_fault:TYPE, task_hang, http_503, drop, drop_reply, expire_session,\n"
            "          delay:MILLISECONDS\n"
            "N is the matching call that fires first (1: the next), COUNT how many fire (x*: all from then on).\n"
            "Rules add up; faults=none clears all.\n\n"
            f"Guests: {guestrules.GRAMMAR}\n"
            + "".join(f"  {key:<12}{text}\n" for key, (_, text) in guestrules.KEYS.items())
            + "".join(f"  {example}\n" for example in guestrules.EXAMPLES)
            + "\nFault examples:\n"
            + "".join(f"  {example}\n" for example in faultrules.EXAMPLES)
        )


@lab.command(
    name="set",
    cls=SetCommand,
    short_help="Change what a running lab obeys: speed, faults, limits.",
    epilog=examples(
        "vrepl lab set latency_us=1000 bandwidth_mib_s=500",
        "vrepl lab set dr.nfc_closed=all",
        "vrepl lab set fault=write:crash@100,vm=web-01-replica",
    ),
)
@folder_option
@click.argument("assignments", nargs=-1, required=True, metavar="[SITE.]KEY=VALUE...")
@json_option
@pass_state
def set_(state: State, folder: Path | None, assignments: tuple[str, ...]) -> None:
    """Change what a running lab obeys, at once and for open disks too.

    Without SITE (prod or dr) a setting holds for both.
    """
    attached(folder).set(*assignments)
    tell(state, {"set": list(assignments)})


@lab.command(name="power-loss", short_help="Cut a VM's power.", epilog=examples("vrepl lab power-loss prod web-01"))
@folder_option
@click.argument("site")
@click.argument("vms", nargs=-1, required=True, metavar="VM...")
@json_option
@pass_state
def power_loss(state: State, folder: Path | None, site: str, vms: tuple[str, ...]) -> None:
    """Cut the power of VMs of SITE, as a failing host does: change tracking loses what no snapshot holds yet."""
    running = attached(folder)
    for vm in vms:
        running.lose_power(site, vm)
    tell(state, {"site": site, "vms": list(vms)})


@lab.command(short_help="What a running lab serves and holds.", epilog=examples("vrepl lab status --json"))
@folder_option
@json_option
@pass_state
def status(state: State, folder: Path | None) -> None:
    """Show where a running lab serves, open disks, its hosts' NFC memory, and what hangs on the proxy VMs."""
    from vrepl.report import console

    facts = attached(folder).status()
    state.result({"version": 1, "sites": facts}, lambda out: console.paragraph(out, status_text(facts)))


def status_text(facts: dict[str, Any]) -> str:
    lines = []
    for name, site in facts.items():
        lines.append(f"{name}: https://127.0.0.1:{site['port']}/sdk, pid {site['pid']}, NFC port {site['nfc_port']}")
        for host in site.get("nfc", []):
            lines.append(
                f"  {host['host']}: NFC {host['used_kib']} KiB, peak {host['peak_kib']}, limit {host['limit_kib']}"
            )
        for lock in site.get("locks", []):
            kind = "writing" if lock["write"] else "reading"
            rest = ", lingering" if lock.get("lingering") else ""
            lines.append(f"  {lock['vm']}: {kind} {lock['path']} by {lock['mode']} from {lock['proxy']}{rest}")
        for proxy in site.get("proxies", []):
            lines.append(f"  {proxy['vm']}, proxy {proxy['proxy']}, has {', '.join(proxy['disks']) or 'no disk'}")
    return "\n".join(lines)


@lab.group(epilog=examples("vrepl lab disk write prod web-01 0 --offset 8MiB --length 64KiB --seed 1"))
def disk() -> None:
    """Read and change the lab's disks as their guests do."""


@disk.command(epilog=examples("vrepl lab disk export dr web-01-replica 0 replica.img && e2fsck -fn replica.img"))
@folder_option
@disk_arguments
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--snapshot", metavar="NAME", help="As this snapshot froze it, instead of as it is now.")
@json_option
@pass_state
def export(state: State, folder: Path | None, site: str, vm: str, index: int, out: Path, snapshot: str | None) -> None:
    """Write disk INDEX of VM to the file OUT: raw, sparse, as the guest sees it."""
    image = attached(folder).export(site, vm, index, out, snapshot)
    tell(state, disk_of(site, vm, index) | {"file": str(image), "bytes": image.stat().st_size, "snapshot": snapshot})


@disk.command(epilog=examples("vrepl lab disk write prod db-01 1 --offset 1MiB --length 320KiB --seed 7"))
@folder_option
@disk_arguments
@click.option("--offset", type=SIZE, required=True, help="Where to write: bytes, or with KiB, MiB, GiB.")
@click.option("--file", "source", type=click.File("rb"), help="Write this file's content (- reads stdin).")
@click.option("--length", type=SIZE, help="Write so many random bytes.")
@click.option("--seed", default="1", show_default=True, help="What the random bytes are made from.")
@json_option
@pass_state
def write(
    state: State,
    folder: Path | None,
    site: str,
    vm: str,
    index: int,
    offset: int,
    source: Any,
    length: int | None,
    seed: str,
) -> None:
    """Write to disk INDEX of VM as its running guest would."""
    if (source is None) == (length is None):
        raise click.UsageError("give --file, or --length and --seed")
    running = attached(folder)
    if length is not None:
        running.write_random(site, vm, index, offset, length, seed)
    else:
        pieces = iter(lambda: source.read(WRITE_PIECE), b"")
        running.control(site).write(vm, index, offset, pieces)
    tell(state, disk_of(site, vm, index) | {"offset": offset})


@disk.command(epilog=examples("vrepl lab disk unmap prod web-01 0 --offset 64MiB --length 8MiB"))
@folder_option
@disk_arguments
@click.option("--offset", type=SIZE, required=True, help="Where to begin: bytes, or with KiB, MiB, GiB.")
@click.option("--length", type=SIZE, required=True, help="How much: bytes, or with KiB, MiB, GiB.")
@json_option
@pass_state
def unmap(state: State, folder: Path | None, site: str, vm: str, index: int, offset: int, length: int) -> None:
    """Unmap a range of disk INDEX of VM, as a guest's TRIM does."""
    attached(folder).unmap(site, vm, index, offset, length)
    tell(state, disk_of(site, vm, index) | {"offset": offset, "length": length})


@disk.command(name="cbt-reset", epilog=examples("vrepl lab disk cbt-reset prod web-01 0"))
@folder_option
@disk_arguments
@json_option
@pass_state
def cbt_reset(state: State, folder: Path | None, site: str, vm: str, index: int) -> None:
    """Void the change IDs of disk INDEX of VM, as a storage migration or a host's crash may."""
    attached(folder).reset_cbt(site, vm, index)
    tell(state, disk_of(site, vm, index))


@lab.command(
    short_help="Replicate, write, replicate again, prove it.",
    epilog=examples("vrepl lab demo", "vrepl lab demo --no-vddk", "vrepl lab demo --no-vddk --proxy hotadd"),
)
@folder_option
@click.option("--disk-mib", type=click.IntRange(min=16), default=DISK_MIB, show_default=True, help="As for `lab up`.")
@click.option("--keep", is_flag=True, help="Leave the lab running at the end.")
@NO_VDDK
@PROXY
def demo(folder: Path | None, disk_mib: int, keep: bool, vddk: bool, proxy: str) -> None:
    """Start a lab, replicate its VMs, let the guests write, replicate again, verify, show, and end the lab."""
    from vrepl_lab.demo import run_demo

    run_demo(folder, disk_mib, keep=keep, vddk=vddk, proxy=proxy)
