"""What the benchmarks of the data path stand on: a site of two disks over the lab's library, movers, the bare loop."""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.fake_nfc import GRAIN, THUMBPRINT, FakeNfc, make_link
from tests.support.vddk_site import SOURCE, TARGET, VddkSite, make_site
from tests.support.vixdisklib_lab import FakeLab, compile_library, compilers
from vrepl.movers.pair import MoverPair
from vrepl.movers.pool import VddkMovers
from vrepl.movers.settings import MoverSettings
from vrepl.ports import TransferOrder, TransferResult

ROOT = Path(__file__).parents[1]
MIB = 1 << 20
CAPACITY = int(os.environ.get("VREPL_BENCH_MIB", "2048")) * MIB
REPEATS = 5
FASTEST_BLOCK, FASTEST_DEPTH = 2 * MIB, 4
"""What the bare loop is fastest with where calls wait for nothing: more in flight is more for the processors' cache."""
RATE = 500_000_000
"""Bytes/s, for the rows with latency."""
Change = Callable[[MoverSettings], MoverSettings]
SHARED_MEMORY = Path("/dev/shm")


class Copied(NamedTuple):
    """Seconds by the clock, and of processors."""

    seconds: float
    cpu: float


class Bench:
    """A site of two disks, and vrepl's movers over it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        built = folder / "built"
        compile_library(next(iter(compilers().values())), built)
        (folder / "lib64").mkdir()
        for name in ("libvixDiskLib.so.8", "libcrypto.so.3"):
            (folder / "lib64" / name).symlink_to(built / name)
        (folder / "settings.bin").write_bytes(b"")
        self.nfc = FakeNfc({}, nfc_limit_kib=1 << 20)
        (folder / "lib64/lab.conf").write_text(
            f"proxy bench\nserver vc.lab 443 127.0.0.1 {self.nfc.control_port} {THUMBPRINT} {folder / 'settings.bin'}\n"
        )
        self.lab = FakeLab(folder, self.nfc)
        self.lab.set()
        self.site: VddkSite = make_site(self.lab, CAPACITY, {})
        self.fill(self.site, CAPACITY)
        self.peak_memory_mib = 0.0

    @staticmethod
    def fill(site: VddkSite, length: int) -> None:
        """The source's first `length` bytes: incompressible, all grains different. The target's file gets its memory.

        What the first touch of memory costs is the kernel's affair and its host's: on a virtual machine it varies
        tenfold, and it would be most of what is measured.
        """
        with site.target.flat().open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, length)
        noise = random.Random(1).randbytes(8 * MIB + 4096)
        with site.source.flat().open("r+b") as file:
            for number in range(length // (8 * MIB)):
                shift = number % 4096
                file.write(noise[shift : shift + 8 * MIB])
        grains = bytearray(Path(f"{site.source.links[0]}-grains.map").read_bytes())
        grains[: length // GRAIN] = b"\1" * (length // GRAIN)
        Path(f"{site.source.links[0]}-grains.map").write_bytes(grains)

    def replace_site(self, capacity: int, filled: int) -> VddkSite:
        """Other disks in the place of those so far."""
        self.lab.nfc.disks.clear()
        self.site = make_site(self.lab, capacity, {})
        self.fill(self.site, filled)
        return self.site

    def empty_target(self, site: VddkSite) -> None:
        """As a replica's disk is when it has just been made: no grain is there."""
        Path(f"{site.target.links[0]}-grains.map").write_bytes(bytes(-(-site.capacity // GRAIN)))

    def fresh(self, measure: Callable[[], float]) -> Callable[[], float]:
        """The same measurement over an empty target."""

        def measured() -> float:
            self.empty_target(self.site)
            return measure()

        return measured

    def copy(self, *, empty: bool = True, pair: bool = False) -> Copied:
        """The second copy of new movers, onto an empty target or over the same bytes.

        New ones each time: how fast a process copies depends by a tenth and more on where its buffers happen to lie in
        memory, and stays so as long as it lives. The first copy loads VDDK and touches that memory.
        """
        with movers_of(self.site, pair=pair) as movers:
            self.transfer(movers, self.site.order())
            if empty:
                self.empty_target(self.site)
            before = sum(map(cpu_seconds, pids(movers)))
            seconds = self.transfer(movers, self.site.order()).seconds
            return Copied(seconds, sum(map(cpu_seconds, pids(movers))) - before)

    def transfer(self, movers: VddkMovers, order: TransferOrder) -> TransferResult:
        order.log.unlink(missing_ok=True)
        result = movers.transfer(order, lambda progress: None)
        for pid in pids(movers):
            self.peak_memory_mib = max(self.peak_memory_mib, peak_mib(pid))
        return result

    def bare(self, *, naive: bool = False, block: int = MIB, depth: int = 8) -> dict[str, float]:
        """The bare loop, in a process of its own, with `depth` blocks of so many bytes in flight."""
        config, arguments = self.folder / "bare.conf", self.folder / "bare.json"
        config.write_text("vixDiskLib.nfcAio.Session.BufSizeIn64KB=16\nvixDiskLib.nfcAio.Session.BufCount=4\n")
        arguments.write_text(
            json.dumps(
                {
                    "root": str(ROOT),
                    "library": str(self.folder / "lib64/libvixDiskLib.so.8"),
                    "config": str(config),
                    "thumbprint": THUMBPRINT,
                    "source": SOURCE,
                    "target": TARGET,
                    "capacity": CAPACITY,
                    "block": block,
                    "depth": depth,
                    "naive": naive,
                }
            )
        )
        script = Path(__file__).with_name("_bare_loop.py")
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(script), str(arguments)], capture_output=True, text=True, check=True
        )
        measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return measured

    def limit(self) -> float:
        """Seconds that the bare loop takes at its fastest."""
        return self.bare(block=FASTEST_BLOCK, depth=FASTEST_DEPTH)["seconds"]


def files_on() -> Path | None:
    """Where the disks' files lie: in memory if there is room, so that this machine's disk is not what is measured."""
    if not os.access(SHARED_MEMORY, os.W_OK):
        return None
    free = min(shutil.disk_usage(SHARED_MEMORY).free, _available_memory())
    return SHARED_MEMORY if free > 5 * CAPACITY else None


def _available_memory() -> int:
    return int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 1024


def pids(movers: VddkMovers) -> list[int]:
    found = []
    for _, mover in movers._idle:
        found += [mover.source.pid, mover.target.pid] if isinstance(mover, MoverPair) else [mover.pid]
    return sorted(set(found))


def peak_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def unchanged(settings: MoverSettings) -> MoverSettings:
    return settings


@contextmanager
def movers_of(site: VddkSite, change: Change = unchanged, **options: Any) -> Iterator[VddkMovers]:
    """`change`: of the settings that its movers start with."""
    movers = VddkMovers(site.connection, lambda name: change(site.settings(name)), **options)
    try:
        yield movers
    finally:
        movers.close()


def in_turn(*measure: Callable[[], float], repeats: int = REPEATS) -> list[float]:
    """Medians of several measurements that are taken in turn, so that a noisy moment meets all of them."""
    return [statistics.median(column) for column in zip(*rounds_of(*measure, repeats=repeats), strict=True)]


def rounds_of(*measure: Callable[[], float], repeats: int = REPEATS) -> list[list[float]]:
    """What `in_turn` takes the medians of: for each round, what each measured."""
    return [[each() for each in measure] for _ in range(repeats)]


def ratios_to(other: str, mine: Sequence[float], theirs: Sequence[float]) -> dict[str, object]:
    """How often the other's time is of mine, round by round: the median, and where there are several the extremes.

    A round's measurements meet the same moment of a machine that others use, so their ratio varies less than they do.
    """
    ratios = sorted(round(their / my, 3) for my, their in zip(mine, theirs, strict=True))
    return {f"vs_{other}": round(statistics.median(ratios), 3), f"vs_{other}_least_and_most": [ratios[0], ratios[-1]]}


def second_target(bench: Bench, site: VddkSite) -> dict[str, Any]:
    """Makes another target disk; the fields of an order that copies to it."""
    target = bench.lab.nfc.disks[TARGET]
    link = make_link(target.links[0].with_name("target-2"), CAPACITY, {})
    bench.lab.nfc.disks[TARGET + "2"] = type(target)(CAPACITY, [link], vm="target-2")
    return {"target": site.address(TARGET + "2"), "log": bench.folder / "second.log"}


def at_once(bench: Bench, movers: VddkMovers, orders: list[TransferOrder]) -> float:
    """Seconds until all are done. Raises what one of them raised."""
    began = time.perf_counter()
    with ThreadPoolExecutor(len(orders)) as pool:
        list(pool.map(lambda order: bench.transfer(movers, order), orders))
    return time.perf_counter() - began
