"""What checkpoints cost a copy, and what a kill costs in spite of them.

The same copy with its transfer log on a real disk, where each record waits for the disk, and in memory, where it does
not; at full speed (the most records a second of work can want) and at 500 MB/s. `lost_mib_*` is what a kill at the
worst moment would throw away: the most that was settled between two checkpoints.
"""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.bench import CAPACITY, MIB, RATE, SHARED_MEMORY, Bench, in_turn, movers_of
from tests.support.vddk_site import SOURCE
from vrepl.repository.transferlog import ALLOW, DONE, RECORD, RUN, ZEROS, read_log

GIB = CAPACITY / 2**30


def run() -> dict[str, object]:
    base = SHARED_MEMORY if SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="vrepl-bench-", dir=base))
    on_disk = Path(tempfile.mkdtemp(prefix="vrepl-bench-log-", dir=os.environ.get("VREPL_BENCH_LOG_DIR")))
    bench = Bench(folder)
    found: dict[str, object] = {}
    try:
        with movers_of(bench.site) as movers:
            movers.probe(bench.site.address(SOURCE))
            for name, rate in (("full_speed", 0), ("500_mb_s", RATE)):
                bench.lab.set(bandwidth_bytes_s=rate)
                in_memory = bench.site.order()
                durable = replace(in_memory, log=on_disk / "transfer.log")
                with_disk, without = in_turn(
                    lambda order=durable: bench.transfer(movers, order).seconds,  # type: ignore[misc]
                    lambda order=in_memory: bench.transfer(movers, order).seconds,  # type: ignore[misc]
                )
                records, lost = anatomy(durable.log)
                found |= {
                    f"cost_{name}": round(with_disk / without - 1, 3),
                    f"records_per_gib_{name}": round(records / GIB, 1),
                    f"lost_mib_{name}": round(lost / MIB, 1),
                    f"log_kib_per_gib_{name}": round(durable.log.stat().st_size / 1024 / GIB, 1),
                }
        return found
    finally:
        bench.nfc.close()
        shutil.rmtree(folder)
        shutil.rmtree(on_disk)


def anatomy(log: Path) -> tuple[int, int]:
    """(records that were waited for, most bytes settled by one checkpoint) of a finished transfer's log."""
    if read_log(log).damaged:
        raise AssertionError(f"{log} is damaged")
    content, at, waited, settled = log.read_bytes(), 0, 0, [0]
    while at < len(content):
        _, kind, _, length, _ = RECORD.unpack_from(content, at)
        if kind in {ALLOW, DONE}:
            waited += 1
        if kind == DONE:
            payload = content[at + RECORD.size : at + RECORD.size + length]
            (runs,) = struct.unpack_from("<I", payload)
            settled.append(sum(RUN.unpack_from(payload, 4 + RUN.size * index)[1] for index in range(runs)) * 65536)
        elif kind == ZEROS:
            waited += 1
        at += RECORD.size + length
    return waited, max(settled)
