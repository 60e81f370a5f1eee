"""What the audit of change tracking costs a run that finds nothing changed: a part of a disk is opened and read.

An unchanged run opens no disk otherwise, so that its whole cost is the row `audit_seconds`; `open_seconds` is the share
of it that does not grow with the part. `VREPL_BENCH_MIB` is the size of the disk.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from benchmarks.bench import CAPACITY, MIB, Bench, files_on, in_turn, movers_of
from tests.support.vddk_site import SOURCE
from vrepl.extents import GRAIN, Extent
from vrepl.planner.audit import LEAST
from vrepl.ports import DigestFiles, VerifyOrder

LATENCY_US = 1000
"""Of a call over NBD, as on a LAN with a busy host."""


def run() -> dict[str, object]:
    """Seconds for the smallest part that a run reads of a disk, and for one grain, which is the opening alone."""
    folder = Path(tempfile.mkdtemp(prefix="vrepl-bench-", dir=files_on()))
    bench = Bench(folder)
    try:
        part = min(LEAST, CAPACITY)
        with movers_of(bench.site) as movers:
            bench.lab.set(latency_us=LATENCY_US)

            def reading(length: int) -> float:
                order = VerifyOrder(bench.site.address(SOURCE), DigestFiles(None, fresh=True), (Extent(0, length),))
                return movers.verify(order, lambda _: None).seconds

            read, opened = in_turn(lambda: reading(part), lambda: reading(GRAIN))
        return {
            "part_mib": part // MIB,
            "audit_seconds": round(read, 3),
            "open_seconds": round(opened, 3),
            "mib_per_second": round(part / MIB / read, 1),
            "hours_between_parts_of_1_tib": round(30 * 24 * part / (1 << 40), 2),
        }
    finally:
        bench.nfc.close()
        shutil.rmtree(folder)
