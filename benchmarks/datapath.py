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
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks import _nbdcopy
from benchmarks.bench import (
    CAPACITY,
    FASTEST_BLOCK,
    FASTEST_DEPTH,
    MIB,
    RATE,
    Bench,
    at_once,
    files_on,
    in_turn,
    movers_of,
    second_target,
)
from tests.support.fake_nfc import GRAIN, PASSWORD, THUMBPRINT
from tests.support.vddk_site import SOURCE, TARGET, make_site
from vrepl.extents import Extent, from_grains
from vrepl.ports import DigestFiles, VerifyOrder
from vrepl.transport.buffers import LARGEST, Buffer
from vrepl.transport.grains import digest_grains

MORE_REPEATS = 9
"""Where what is compared has other processes and other needs, so that a noisy moment does not meet both alike."""
THROTTLE = 50_000_000


def run() -> dict[str, object]:
    """The ratios; which way is good, and how good they are to be, is in the README's table."""
    base = files_on()
    folder = Path(tempfile.mkdtemp(prefix="vrepl-bench-", dir=base))
    bench = Bench(folder)
    try:
        ratios: dict[str, object] = {}
        for part in (copying, distance, peer, latency, small_changes, pair, sparse, throttle):
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

    copied, bare, slow = in_turn(ours, bench.fresh(bench.limit), bench.fresh(lambda: bench.bare(naive=True)["seconds"]))
    over, bare_over = in_turn(lambda: bench.copy(empty=False).seconds, bench.limit)
    with movers_of(site) as movers:
        verified = statistics.median(
            movers.verify(VerifyOrder(site.address(SOURCE), DigestFiles(None, fresh=True)), lambda _: None).seconds
            for _ in range(3)
        )
    return {
        "copy_mb_s": round(CAPACITY / copied / 1e6),
        "copy_vs_limit": round(bare / copied, 3),
        "copy_vs_limit_overwriting": round(bare_over / over, 3),
        "copy_vs_naive": round(slow / copied, 3),
        "cpu_s_per_gib": round(statistics.median(cpu) / (CAPACITY / 2**30), 3),
        "verify_vs_copy": round(copied / verified, 3),
    }


def distance(bench: Bench) -> dict[str, object]:
    """The full copy against the bare loop at its fastest, where calls take 1 and 5 ms and the bandwidth has no limit.

    `…_vs_possible`: against what this machine's processors allow at all, once hashing is added to what the bare loop
    takes of them. At 1 ms two processors are too few for both.
    """
    found: dict[str, object] = {}
    hashing = hashing_seconds(CAPACITY)
    for milliseconds in (1, 5):
        bench.lab.set(latency_us=milliseconds * 1000)
        bare_cpu: list[float] = []

        def bare(block: int, depth: int, used: list[float] = bare_cpu) -> float:
            measured = bench.bare(block=block, depth=depth)
            used.append(measured["cpu"])
            return measured["seconds"]

        copied, large, small, naive = in_turn(
            lambda: bench.copy().seconds,
            bench.fresh(partial(bare, FASTEST_BLOCK, FASTEST_DEPTH)),
            bench.fresh(partial(bare, MIB, 2 * FASTEST_DEPTH)),
            bench.fresh(lambda: bench.bare(naive=True)["seconds"]),
            repeats=3 if milliseconds == 1 else 1,
        )
        limit = min(large, small)
        possible = max(limit, (statistics.median(bare_cpu) + hashing) / (os.cpu_count() or 1))
        found |= {
            f"copy_vs_limit_{milliseconds}ms": round(limit / copied, 3),
            f"copy_vs_possible_{milliseconds}ms": round(possible / copied, 3),
            f"copy_vs_naive_{milliseconds}ms": round(naive / copied, 3),
        }
    bench.lab.set()
    return found


def hashing_seconds(length: int) -> float:
    """What the digests of so many bytes take of one processor."""
    buffer = Buffer(LARGEST, huge_page=True)
    buffer.view[:] = random.Random(2).randbytes(LARGEST)
    grains = [(number, number * GRAIN, GRAIN) for number in range(LARGEST // GRAIN)]
    began = time.thread_time()
    for _ in range(length // LARGEST):
        digest_grains(buffer, grains, LARGEST)
    return time.thread_time() - began


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

    mine, other, bare = in_turn(ours, theirs, bench.fresh(bench.limit), repeats=MORE_REPEATS)
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
        with ThreadPoolExecutor(len(orders)) as pool:  # a mover for each is ready before the clock starts
            list(pool.map(movers.probe, [others[0].address(SOURCE)] * len(orders)))
        seconds = at_once(bench, movers, orders)
    return {"throttled_vs_limit": round(2 * length / seconds / THROTTLE, 3)}


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
