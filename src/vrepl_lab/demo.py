"""`vrepl lab demo`: two vCenters, three VMs, two runs, a proof.

It drives the real command line as a user would, in a child process, and judges the result without it: the exported
disks of source and replica are compared byte by byte and checked with e2fsck.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from vrepl.errors import VreplError
from vrepl.report import console
from vrepl.report.console import Listing
from vrepl.report.format import size
from vrepl_lab.guests import find_tool
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, LabSpec, demo_spec

JOB = "demo"
GUEST_WRITE = 320 * 1024
BLOCK = 4096
GUEST_FILE = "/srv/data/file-0000.bin"
COMPARE_PIECE = 4 * MIB
PIPE_WIDTH = 80


class DemoError(VreplError):
    """The demo did not show what it promises."""


@dataclass(frozen=True, slots=True)
class DiskName:
    vm: str
    index: int


def what_to_prove(spec: LabSpec) -> tuple[list[DiskName], set[str]]:
    """Disks of the job's VMs, and the names of those that run."""
    disks = [
        DiskName(vm.name, index)
        for vm in spec.prod.vms
        if vm.name in spec.names_of_job_vms
        for index in range(len(vm.disks))
    ]
    return disks, {vm.name for vm in spec.prod.vms if vm.power == "poweredOn"}


def run_demo(folder: Path | None, disk_mib: int, *, keep: bool, vddk: bool = True, proxy: str = "bare") -> None:
    """Raises DemoError if a run or a proof fails; the lab is ended on every way out unless `keep`."""
    begun = time.monotonic()
    spec = replace(demo_spec(disk_mib, vddk=vddk), job_proxy=proxy)
    disks, powered_on = what_to_prove(spec)
    with place_of(folder, keep=keep) as place:
        lab = Lab.start(place, spec, detached=keep)
        try:
            show(lab, disks, powered_on, engine="vddk" if vddk else "own", proxy=proxy)
            say(f"demo: done in {time.monotonic() - begun:.0f} s")
        finally:
            if keep:
                say(f"demo: the lab stays up; end it with: vrepl lab down --dir {place}")
            else:
                lab.stop()


def show(lab: Lab, disks: Sequence[DiskName], powered_on: set[str], *, engine: str, proxy: str) -> None:
    step("replicate: the first run moves what is allocated")
    first = replicate(lab)
    step(f"the guests write {GUEST_WRITE // 1024} KiB to each disk of the running VMs")
    for disk in disks:
        if disk.vm in powered_on:
            guest_writes(lab, disk)
    step("replicate: the second run")
    second = replicate(lab)
    through = "VDDK" if engine == "vddk" else f"vrepl's own {'HotAdd' if proxy == 'hotadd' else 'NBD'}"
    step(f"verify: the restore points are read back through {through} against their digests")
    verified = verify(lab)
    step("proof: the disks are exported from both sites, compared byte by byte, and checked with e2fsck")
    proofs = {disk: prove(lab, disk, report_of(second, disk.vm)) for disk in disks}
    for run in (first, second):
        assert_engine(run, engine)
        if proxy == "hotadd":
            assert_mode(run, "hotadd")
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    say("\nof each disk the first run, then the second:\n")
    console.make_console(width=width).print(table(disks, first, second, verified, proofs))


def replicate(lab: Lab) -> dict[str, Any]:
    return vrepl(lab, "replicate", JOB, "--json")


def verify(lab: Lab) -> dict[str, bool]:
    report = vrepl(lab, "verify", "--json")
    return {vm["name"]: vm["result"] == "success" for vm in report["vms"]}


def vrepl(lab: Lab, *arguments: str) -> dict[str, Any]:
    """Run the command line; its progress goes to our stderr, its result comes back as JSON."""
    command = [sys.executable, "-c", "from vrepl.cli import main; main()", "--config", str(lab.config_file)]
    done = subprocess.run([*command, *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise DemoError(
            f"vrepl {' '.join(arguments)} ended with exit code {done.returncode}", hint=reasons(done.stdout) or None
        )
    report = json.loads(done.stdout)
    assert isinstance(report, dict)
    return report


def reasons(output: str) -> str:
    """The errors of a report, for a failed run."""
    try:
        vms = json.loads(output).get("vms", [])
    except (ValueError, AttributeError):
        return ""
    return "; ".join(f"{vm['name']}: {vm['error']}" for vm in vms if vm.get("error"))


def guest_writes(lab: Lab, disk: DiskName) -> None:
    """Overwrite part of a file of the guest's, where its bytes lie: the file system stays sound."""
    with tempfile.TemporaryDirectory(prefix="vrepl-demo-") as temporary:
        image = lab.export("prod", disk.vm, disk.index, Path(temporary) / "disk.img")
        offset = file_offset(image, GUEST_FILE)
    lab.write_random("prod", disk.vm, disk.index, offset, GUEST_WRITE, seed=f"{disk.vm}/{disk.index}")


def file_offset(image: Path, path: str) -> int:
    """Byte offset of a stretch of GUEST_WRITE bytes that belongs to one file of an ext4 image, and to nothing else.

    Raises DemoError if the file is not there or too scattered.
    """
    done = subprocess.run(
        [find_tool("debugfs"), "-R", f"blocks {path}", str(image)], capture_output=True, text=True, check=False
    )
    blocks = [int(word) for word in done.stdout.split()]
    length = GUEST_WRITE // BLOCK
    for first in range(len(blocks) - length + 1):
        if blocks[first : first + length] == list(range(blocks[first], blocks[first] + length)):
            return blocks[first] * BLOCK
    raise DemoError(f"{path} holds no {GUEST_WRITE} bytes in a row: {done.stderr.strip()}")


def prove(lab: Lab, disk: DiskName, report: dict[str, Any]) -> bool:
    """Are source and replica equal, and is the replica's file system clean?"""
    replica = report.get("replica") or f"{disk.vm}-replica"
    with tempfile.TemporaryDirectory(prefix="vrepl-demo-") as temporary:
        source = lab.export("prod", disk.vm, disk.index, Path(temporary) / "source.img")
        target = lab.export("dr", str(replica), disk.index, Path(temporary) / "replica.img")
        if not same_bytes(source, target):
            raise DemoError(f"{disk.vm} disk {disk.index}: the replica's bytes differ from the source's")
        checked = subprocess.run([find_tool("e2fsck"), "-fn", str(target)], capture_output=True, text=True, check=False)
        if checked.returncode:
            raise DemoError(f"{disk.vm} disk {disk.index}: e2fsck finds fault with the replica:\n{checked.stdout}")
    return True


def same_bytes(left: Path, right: Path) -> bool:
    if left.stat().st_size != right.stat().st_size:
        return False
    with left.open("rb") as one, right.open("rb") as other:
        while piece := one.read(COMPARE_PIECE):
            if piece != other.read(COMPARE_PIECE):
                return False
    return True


def assert_engine(run: dict[str, Any], engine: str) -> None:
    """Raises DemoError where another engine than this one opened a disk."""
    for vm in run["vms"]:
        for disk in vm["disks"]:
            used = {side["engine"] for side in disk["transport"].values() if side["mode"]}
            if used - {engine}:
                raise DemoError(f"{vm['name']} disk {disk['index']} was opened by engine {', '.join(sorted(used))}")


def assert_mode(run: dict[str, Any], mode: str) -> None:
    """Raises DemoError where a disk crossed another way."""
    for vm in run["vms"]:
        for disk in vm["disks"]:
            used = {side["mode"] for side in disk["transport"].values() if side["mode"]}
            if used - {mode}:
                raise DemoError(f"{vm['name']} disk {disk['index']} crossed over {', '.join(sorted(used))}")


def report_of(run: dict[str, Any], vm: str) -> dict[str, Any]:
    for report in run["vms"]:
        if report["name"] == vm:
            assert isinstance(report, dict)
            return report
    raise DemoError(f"the run's report does not name {vm}")


def table(
    disks: Sequence[DiskName],
    first: dict[str, Any],
    second: dict[str, Any],
    verified: dict[str, bool],
    proofs: dict[DiskName, bool],
) -> Listing:
    """VM and disk; of each run the transport mode, bytes read and moved, and the restore point; proven or not."""
    shown = console.table(
        "VM", "Disk", "Mode", "Read", "Moved", "Restore point", "Proven", right=("Disk", "Read", "Moved")
    )
    for disk in disks:
        reports = [report_of(run, disk.vm) for run in (first, second)]
        runs = [next(entry for entry in report["disks"] if entry["index"] == disk.index) for report in reports]
        if not (verified.get(disk.vm, False) and proofs[disk]):
            raise DemoError(f"vrepl verify did not confirm {disk.vm}")
        for name, index, run, report, proven in (
            (disk.vm, str(disk.index), runs[0], reports[0], ""),
            ("", "", runs[1], reports[1], "yes"),
        ):
            figures = (size(run["bytes_read"]), size(run["bytes_moved"]))
            shown.add_row(name, index, modes(run), *figures, str(report["restore_point"]), proven)
    return shown


def modes(run: dict[str, Any]) -> str:
    """The transport modes used, source and target; a run that moved nothing opened no disk and may name none."""
    used = [run["transport"][side]["mode"] for side in ("source", "target")]
    return ", ".join(dict.fromkeys(mode for mode in used if mode)) or "-"


@contextmanager
def place_of(folder: Path | None, *, keep: bool) -> Iterator[Path]:
    """The folder asked for; else a temporary one, which goes unless the lab is kept."""
    if folder is not None:
        yield folder.absolute()
    elif keep:
        yield Path(tempfile.mkdtemp(prefix="vrepl-demo-"))
    else:
        with tempfile.TemporaryDirectory(prefix="vrepl-demo-", ignore_cleanup_errors=True) as temporary:
            yield Path(temporary)


def step(text: str) -> None:
    say(f"\n== {text}")


def say(text: str) -> None:
    click.echo(text, err=True)
