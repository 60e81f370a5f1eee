"""What the data path's settings are worth: the rate of a full copy with each, against the rate with the defaults.

Each setting is measured without limits and at 1 ms a call with 500 MB/s per handle, in turn with the defaults, so that
a noisy moment meets both. Not part of the README's table: it says why the defaults are what they are.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.bench import CAPACITY, RATE, Bench, Change, at_once, files_on, in_turn, movers_of, second_target
from tests.support.vddk_site import SOURCE
from vrepl.extents import Extent
from vrepl.movers.pool import VddkMovers

SETTINGS: dict[str, Change] = {
    "nfc 4 x 64 KiB (VDDK's own)": lambda usual: replace(usual, buffer_units=1, buffer_count=4),
    "nfc 16 x 256 KiB": lambda usual: replace(usual, buffer_units=4, buffer_count=16),
    "nfc 8 x 1 MiB": lambda usual: replace(usual, buffer_units=16, buffer_count=8),
    "ring of 4": lambda usual: replace(usual, ring=4),
    "ring of 8": lambda usual: replace(usual, ring=8),
    "ring of 32": lambda usual: replace(usual, ring=32),
    "nobody helps to hash": lambda usual: replace(usual, hashers=0),
    "2 threads help to hash": lambda usual: replace(usual, hashers=2),
}


CONDITIONS: tuple[tuple[str, dict[str, int]], ...] = (
    ("no limits", {}),
    ("1 ms", {"latency_us": 1000, "bandwidth_bytes_s": RATE}),
)


def run() -> dict[str, object]:
    """Above 1: faster than with the defaults, which are NFC 4 x 1 MiB, a ring of 16, one thread that helps to hash."""
    folder = Path(tempfile.mkdtemp(prefix="vrepl-bench-", dir=files_on()))
    bench = Bench(folder)
    try:
        return settings_against_defaults(bench) | two_disks(bench)
    finally:
        bench.nfc.close()
        shutil.rmtree(folder)


def settings_against_defaults(bench: Bench) -> dict[str, object]:
    site = bench.site
    found: dict[str, object] = {}
    for condition, limits in CONDITIONS:
        for name, change in SETTINGS.items():
            bench.lab.set(**limits)
            with ExitStack() as stack:
                changed = stack.enter_context(movers_of(site, change))
                default = stack.enter_context(movers_of(site))
                for movers in (default, changed):
                    movers.probe(site.address(SOURCE))
                usual, other = in_turn(
                    *(bench.fresh(partial(seconds_of, bench, movers)) for movers in (default, changed)),
                    repeats=5 if not limits else 1,
                )
            found[f"{name}, {condition}"] = round(usual / other, 3)
    bench.lab.set()
    return found


def seconds_of(bench: Bench, movers: VddkMovers) -> float:
    """Of a transfer of the whole disk."""
    return bench.transfer(movers, bench.site.order()).seconds


def two_disks(bench: Bench) -> dict[str, object]:
    """Two disks at once, each with a mover of its own, against one after the other through one mover."""
    site = bench.site
    half = Extent(0, CAPACITY // 2)
    first = site.order(regions=[half])
    second = replace(first, **second_target(bench, site))
    found: dict[str, object] = {}
    with movers_of(site) as movers:
        for condition, limits in CONDITIONS:
            bench.lab.set(**limits)
            at_once(bench, movers, [first, second])  # both movers are warm now
            apart, together = in_turn(
                lambda: at_once(bench, movers, [first]) + at_once(bench, movers, [second]),
                lambda: at_once(bench, movers, [first, second]),
                repeats=3,
            )
            found[f"two disks at once, {condition}"] = round(apart / together, 3)
    bench.lab.set()
    return found


if __name__ == "__main__":
    os.environ.setdefault("VREPL_BENCH_MIB", "1024")
    for name, value in run().items():
        print(f"{name:<44} {value}")
