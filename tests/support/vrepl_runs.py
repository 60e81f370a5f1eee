"""Runs the command line against a lab as an operator would, and looks at disks from outside of vrepl."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

from tests.support import preloaded
from vrepl_lab.lab import Lab

GRAIN = 65536
VREPL = [sys.executable, "-c", "from vrepl.cli import main; main()"]


def grains_of_image(image: Path) -> dict[int, bytes]:
    """Digest of each 64 KiB grain of a raw image that is not zeros; holes cost nothing."""
    found: dict[int, bytes] = {}
    with image.open("rb") as file:
        position, end = 0, image.stat().st_size
        while position < end:
            try:
                start = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError:
                break
            stop = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            for grain in range(start // GRAIN, -(-stop // GRAIN)):
                file.seek(grain * GRAIN)
                content = file.read(GRAIN)
                if content.count(0) != len(content):
                    found[grain] = blake2b(content, digest_size=16).digest()
            position = stop
    return found


class Image:
    """A disk as it was when it was exported: equal if size and every byte are."""

    def __init__(self, file: Path) -> None:
        self.size = file.stat().st_size
        self.grains = grains_of_image(file)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Image) and (self.size, self.grains) == (other.size, other.grains)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<image of {self.size} bytes, {len(self.grains)} grains not zero>"

    def grains_changed_since(self, before: Image) -> set[int]:
        return {grain for grain in {*self.grains, *before.grains} if self.grains.get(grain) != before.grains.get(grain)}


class Runs:
    """The runs of one job over one VM of a lab."""

    def __init__(self, lab: Lab, scratch: Path, vm: str = "web-01") -> None:
        self.lab = lab
        self.vm = vm
        self._scratch = scratch
        self._numbers = iter(range(10**6))

    def track_exactly(self) -> None:
        """Change tracking without false positives, also on nasty labs: for who counts the bytes that are read."""
        self.lab.set("cbt_false=0", "cbt_empty_page=no")

    # -- the command line ---------------------------------------------------------------------------------------------

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return preloaded.run("--config", str(self.lab.config_file), *arguments)

    def json(self, *arguments: str, code: int = 0) -> Any:
        """What the command prints with --json; it must end with this exit code."""
        done = self.cli(*arguments, "--json")
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stderr}\n{done.stdout}"
        return json.loads(done.stdout)

    def replicate(self, *options: str, code: int = 0) -> Any:
        """The VM's part of the run's report."""
        [vm] = self.json("replicate", "demo", *options, code=code)["vms"]
        return vm

    def plan(self, code: int = 0) -> Any:
        [vm] = self.json("plan", "demo", code=code)["vms"]
        return vm

    def start(self, *command: str) -> subprocess.Popen[str]:
        """In the background: a run, or another command."""
        return preloaded.start("--config", str(self.lab.config_file), *(command or ("replicate", "demo")), "--json")

    def kill_when(self, reached: Callable[[], bool], *command: str) -> None:
        """Start a run (or another command) and SIGKILL it once `reached`; its end before that is a failure."""
        process = self.start(*command)
        deadline = time.monotonic() + 60
        try:
            while not reached():
                assert process.poll() is None, f"the run ended before it could be killed: {process.communicate()}"
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()

    def set_in_job(self, *lines: str) -> None:
        """Add keys to the job `demo`, or change them."""
        keys = {line.split("=")[0].strip() for line in lines}
        kept = [
            line for line in self.lab.config_file.read_text().splitlines() if line.split("=")[0].strip() not in keys
        ]
        at = kept.index("[jobs.demo]") + 1
        self.lab.config_file.write_text("\n".join([*kept[:at], *lines, *kept[at:]]) + "\n")
        self.lab.config_file.chmod(0o600)

    def set_in_site(self, site: str, line: str) -> None:
        """Add a key to a site, or change it."""
        self._set_in(f"[sites.{site}]", line)

    def set_in_proxy(self, proxy: str, line: str) -> None:
        """Add a key to a proxy, or change it."""
        self._set_in(f"[proxies.{proxy}]", line)

    def set_engine(self, engine: str, table: str = "vddk") -> None:
        """Whose code opens disks."""
        self._set_in(f"[{table}]", f'engine = "{engine}"')

    def _set_in(self, table: str, line: str) -> None:
        lines = self.lab.config_file.read_text().splitlines()
        at = lines.index(table) + 1
        end = next((number for number in range(at, len(lines)) if lines[number].startswith("[")), len(lines))
        key = line.split("=")[0]
        kept = [one for one in lines[at:end] if one.split("=")[0].strip() != key.strip()]
        self.lab.config_file.write_text("\n".join([*lines[:at], line, *kept, *lines[end:]]) + "\n")
        self.lab.config_file.chmod(0o600)

    # -- disks --------------------------------------------------------------------------------------------------------

    def _export(self, site: str, vm: str, index: int, snapshot: str | None) -> Image:
        out = self._scratch / f"{next(self._numbers)}.img"
        try:
            return Image(self.lab.export(site, vm, index, out, snapshot))
        finally:
            out.unlink(missing_ok=True)

    def source(self, index: int = 0) -> Image:
        return self._export("prod", self.vm, index, None)

    def replica(self, index: int = 0) -> Image:
        """As it is now."""
        return self._export("dr", f"{self.vm}-replica", index, None)

    def restore_point(self, restore_point: str, index: int = 0, vm: str | None = None) -> Image:
        return self._export("dr", vm or f"{self.vm}-replica", index, f"vrepl {restore_point}")

    def write(self, grain: int, count: int = 1, index: int = 0, seed: str = "x") -> None:
        self.lab.write_random("prod", self.vm, index, grain * GRAIN, count * GRAIN, f"{seed} {grain}")

    def written_on_target(self) -> int:
        """Bytes that lie in the files of the replica's disks."""
        folder = self.lab.folder / "dr" / "datastores"
        files = folder.glob(f"*/{self.vm}-replica*/*-flat.vmdk")
        return sum(file.stat().st_blocks * 512 for file in files)


def moved(report: Any) -> int:
    return sum(disk["bytes_moved"] for disk in report["disks"])


def kinds(report: Any) -> list[str]:
    return [disk["kind"] for disk in report["disks"]]


def until(reached: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert process.poll() is None, f"the run ended first: {process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def api_fault_fired(lab: Lab, site: str) -> bool:
    return any(rule["fired"] for rule in lab.control(site).get("/faults"))


def disk_calls(lab: Lab, site: str) -> int:
    """Calls that the first fault rule of VixDiskLib has seen (docs/lab-internals.md, section 5)."""
    (seen,) = struct.unpack_from("<Q", (lab.folder / site / "settings.bin").read_bytes(), 128 + 40)
    return int(seen)


def change(runs: Runs) -> None:
    for grain, count in ((1, 40), (80, 3)):
        runs.write(grain, count, seed=str(time.monotonic_ns()))
    if runs.vm.startswith(("busy", "new")):
        runs.write(5, 4, index=1, seed=str(time.monotonic_ns()))
