"""The data path against the limit of its library: copying, latency, two movers, sparse disks, small changes, throttle.

Every figure is a ratio within this run, over the lab's libvixDiskLib and the same files; each pair of measurements is
repeated in turn and the medians are compared. `VREPL_BENCH_MIB` is the size of the disks (default 2048).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

CONTRACT = Path(__file__).parents[1] / "tests" / "contract"
sys.path.insert(0, str(CONTRACT))

from fake_nfc import GRAIN, PASSWORD, THUMBPRINT, FakeNfc, make_link  # noqa: E402
from vddk_site import SOURCE, TARGET, VddkSite, make_site  # noqa: E402
from vixdisklib_lab import FakeLab, compile_library, compilers  # noqa: E402

from benchmarks import _nbdcopy  # noqa: E402
from vrepl.extents import Extent, from_grains  # noqa: E402
from vrepl.ports import DigestFiles, TransferOrder, TransferResult, VerifyOrder  # noqa: E402
from vrepl.vddk.movers import VddkMovers  # noqa: E402

MIB = 1 << 20
CAPACITY = int(os.environ.get("VREPL_BENCH_MIB", "2048")) * MIB
REPEATS = 5
MORE_REPEATS = 9
"""Where what is compared has other processes and other needs, so that a noisy moment does not meet both alike."""
FASTEST = {"block": 2 * MIB, "depth": 4}
"""What the bare loop is fastest with where calls wait for nothing: more in flight is more for the processors' cache."""
RATE = 500_000_000
"""Bytes/s, for the rows with latency."""
THROTTLE = 50_000_000
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
                    "client": str(CONTRACT),
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
        found += [each.pid for each in (getattr(mover, "source", mover), getattr(mover, "target", mover))]
    return sorted(set(found))


def peak_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def movers_of(site: VddkSite, **options: Any) -> Iterator[VddkMovers]:
    movers = VddkMovers(site.connection, site.settings, **options)
    try:
        yield movers
    finally:
        movers.close()


def in_turn(*measure: Callable[[], float], repeats: int = REPEATS) -> list[float]:
    """Medians of several measurements that are taken in turn, so that a noisy moment meets all of them."""
    rounds = [[each() for each in measure] for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def run() -> dict[str, object]:
    """The ratios; which way is good, and how good they are to be, is in the README's table."""
    base = files_on()
    folder = Path(tempfile.mkdtemp(prefix="vrepl-bench-", dir=base))
    bench = Bench(folder)
    try:
        ratios: dict[str, object] = {}
        for part in (copying, peer, latency, small_changes, pair, sparse, throttle):
            ratios |= part(bench)
        return ratios | {
            "peak_memory_mib": round(bench.peak_memory_mib, 1),
            "disk_mib": CAPACITY // MIB,
            "files_in_memory": base is not None,
        }
    finally:
        bench.nfc.close()
        shutil.rmtree(folder)


def copying(bench: Bench) -> dict[str, object]:
    """A full copy with digests, zero detection and checkpoints, against calls alone."""
    site, cpu = bench.site, []

    def ours() -> float:
        copied = bench.copy()
        cpu.append(copied.cpu)
        return copied.seconds

    def limit() -> float:
        return bench.bare(**FASTEST)["seconds"]

    copied, bare, slow = in_turn(ours, bench.fresh(limit), bench.fresh(lambda: bench.bare(naive=True)["seconds"]))
    over, bare_over = in_turn(lambda: bench.copy(empty=False).seconds, limit)
    with movers_of(site) as movers:
        verified = statistics.median(
            movers.verify(VerifyOrder(site.address(SOURCE), DigestFiles(None, fresh=True)), lambda _: None).seconds
            for _ in range(3)
        )
        bench.lab.set(latency_us=1000)
        few = in_turn(
            lambda: bench.transfer(movers, site.order()).seconds,
            lambda: bench.bare()["seconds"],
            lambda: bench.bare(naive=True)["seconds"],
            repeats=1,
        )
        bench.lab.set()
    return {
        "copy_mb_s": round(CAPACITY / copied / 1e6),
        "copy_vs_limit": round(bare / copied, 3),
        "copy_vs_limit_overwriting": round(bare_over / over, 3),
        "copy_vs_naive": round(slow / copied, 3),
        "copy_vs_limit_1ms": round(few[1] / few[0], 3),
        "copy_vs_naive_1ms": round(few[2] / few[0], 3),
        "cpu_s_per_gib": round(statistics.median(cpu) / (CAPACITY / 2**30), 3),
        "verify_vs_copy": round(copied / verified, 3),
    }


def peer(bench: Bench) -> dict[str, object]:
    """The same copy by nbdkit's vddk plugin and nbdcopy; nothing where they are not on this machine."""
    if not _nbdcopy.available():
        return {}
    site = bench.site
    used: dict[str, list[float]] = {"ours": [], "theirs": []}

    def ours() -> float:
        copied = bench.copy()
        used["ours"].append(copied.cpu)
        return copied.seconds

    def theirs() -> float:
        bench.empty_target(site)
        bench.lab.set(allocated_supported=2)  # nbdkit asks from another thread than the one that opened
        copied = _nbdcopy.copy(bench.folder, PASSWORD, THUMBPRINT, SOURCE, TARGET)
        bench.lab.set()
        used["theirs"].append(copied["cpu"])
        return copied["seconds"]

    def limit() -> float:
        bench.empty_target(site)
        return bench.bare(**FASTEST)["seconds"]

    mine, other, bare = in_turn(ours, theirs, limit, repeats=MORE_REPEATS)
    cpu = {name: statistics.median(seconds) for name, seconds in used.items()}
    return {
        "copy_vs_nbdcopy": round(other / mine, 3),
        "cpu_vs_nbdcopy": round(cpu["ours"] / cpu["theirs"], 3),
        "limit_vs_nbdcopy": round(other / bare, 3),
        "nbdcopy_cpu_s_per_gib": round(cpu["theirs"] / (CAPACITY / 2**30), 3),
    }


def latency(bench: Bench) -> dict[str, object]:
    """What is left of a bandwidth of 500 MB/s per handle when every call takes 1 or 5 ms."""
    found: dict[str, object] = {}
    with movers_of(bench.site) as movers:
        movers.probe(bench.site.address(SOURCE))
        for milliseconds in (1, 5):
            bench.lab.set(latency_us=milliseconds * 1000, bandwidth_bytes_s=RATE)
            seconds = statistics.median(bench.transfer(movers, bench.site.order()).seconds for _ in range(3))
            found[f"latency_{milliseconds}ms_vs_bandwidth"] = round(CAPACITY / seconds / RATE, 3)
        bench.lab.set()
    return found


def small_changes(bench: Bench) -> dict[str, object]:
    """1 % of the grains of a disk twice as large, scattered, against the time that so many bytes take in a full copy.

    1 ms, 500 MB/s.
    """
    capacity = 2 * CAPACITY
    site = bench.replace_site(capacity, capacity)
    count = capacity // GRAIN
    grains = random.Random(3).sample(range(count), count // 100)
    regions = from_grains(grains, capacity)
    with movers_of(site) as movers:
        movers.probe(site.address(SOURCE))
        bench.lab.set(latency_us=1000, bandwidth_bytes_s=RATE)
        full, small = in_turn(
            lambda: bench.transfer(movers, site.order()).seconds,
            lambda: bench.transfer(movers, site.order(regions=regions, fresh=False)).seconds,
            repeats=3,
        )
        bench.lab.set()
    bench.replace_site(CAPACITY, CAPACITY)
    return {"incremental_1pct_vs_full_rate": round(small / (full * len(grains) / count), 3)}


def pair(bench: Bench) -> dict[str, object]:
    """A mover at each end of a stream against one that has both disks open; no limits, and at 1 ms and 500 MB/s."""
    one, two = in_turn(lambda: bench.copy().seconds, lambda: bench.copy(pair=True).seconds, repeats=MORE_REPEATS)
    site = bench.site
    bench.lab.set(latency_us=1000, bandwidth_bytes_s=RATE)
    with movers_of(site) as single, movers_of(site, pair=True) as double:
        slow_one, slow_two = (bench.transfer(movers, site.order()).seconds for movers in (single, double))
    bench.lab.set()
    return {"pair_vs_single": round(one / two, 3), "pair_vs_single_1ms": round(slow_one / slow_two, 3)}


def sparse(bench: Bench) -> dict[str, object]:
    """1 TiB of which as much is allocated as a whole disk of the other rows holds."""
    small_order = bench.site.order()
    with movers_of(bench.site) as movers:
        small = bench.transfer(movers, small_order).seconds
    site = bench.replace_site(1 << 40, CAPACITY)
    with movers_of(site) as movers:
        result = bench.transfer(movers, site.order())
    bench.replace_site(CAPACITY, CAPACITY)
    return {
        "sparse_1tib_extra_s": round(result.seconds - small, 2),
        "sparse_1tib_read_vs_allocated": round(result.bytes_read / CAPACITY, 4),
    }


def throttle(bench: Bench) -> dict[str, object]:
    """One limit over two transfers at a time, each with a mover of its own."""
    length = min(CAPACITY // 2, 128 * MIB)
    halves = [[Extent(0, length)], [Extent(length, length)]]
    others = [
        make_site(bench.lab, CAPACITY, {}),
    ]
    bench.fill(others[0], 2 * length)
    orders = [others[0].order(regions=regions, fresh=False) for regions in halves]
    with movers_of(others[0], bandwidth=lambda: THROTTLE) as movers:
        orders[1] = replace(orders[1], **second_target(bench, others[0]))
        ready = [threading.Thread(target=movers.probe, args=(others[0].address(SOURCE),)) for _ in orders]
        for thread in ready:
            thread.start()
        for thread in ready:
            thread.join()
        seconds = at_once(bench, movers, orders)
    return {"throttled_vs_limit": round(2 * length / seconds / THROTTLE, 3)}


def second_target(bench: Bench, site: VddkSite) -> dict[str, Any]:
    """Makes another target disk; the fields of an order that copies to it."""
    target = bench.lab.nfc.disks[TARGET]
    link = make_link(target.links[0].with_name("target-2"), CAPACITY, {})
    bench.lab.nfc.disks[TARGET + "2"] = type(target)(CAPACITY, [link], vm="target-2")
    return {"target": site.address(TARGET + "2"), "log": bench.folder / "second.log"}


def at_once(bench: Bench, movers: VddkMovers, orders: list[TransferOrder]) -> float:
    """Seconds until all are done."""
    began = time.perf_counter()
    threads = [threading.Thread(target=bench.transfer, args=(movers, order)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
