"""Two movers as on two machines: what TLS costs, and what is left of a line of 100 Mbit/s with a delay of 50 ms."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks.bench import Bench, files_on
from tests.support.hosts import HostHere, Tamper, settings_by_role
from tests.support.shaper import Shaper
from tests.support.vddk_site import VddkSite
from vrepl.extents import GRAIN, Extent
from vrepl.movers.pool import VddkMovers
from vrepl.proxy.certificates import StreamAuthority
from vrepl.stream.end import StreamEnd

MIB = 1 << 20
REPEATS = 5
RATE = 12_500_000.0
"""Bytes/s of 100 Mbit/s."""
DELAY = 0.025
"""Seconds one way: 50 ms there and back."""
ON_THE_LINE = 48 * MIB


def plain(end: StreamEnd) -> StreamEnd:
    return replace(end, encrypted=False)


def as_it_is(end: StreamEnd) -> StreamEnd:
    return end


@contextmanager
def far_movers(site: VddkSite, tamper: Tamper) -> Iterator[VddkMovers]:
    movers = VddkMovers(
        site.connection,
        settings_by_role(site, "far", "near"),
        launchers=lambda name: HostHere(str(name), tamper=tamper),
        authority=StreamAuthority,
    )
    try:
        yield movers
    finally:
        movers.close()


def through(shaper: Shaper) -> Tamper:
    """The end that connects is led through the line."""

    def tamper(end: StreamEnd) -> StreamEnd:
        return end if end.address is None else replace(end, port=shaper.lead_to(end.port))

    return tamper


def copy(bench: Bench, tamper: Tamper) -> float:
    """Seconds of the second copy by new movers onto an empty target."""
    with far_movers(bench.site, tamper) as movers:
        bench.transfer(movers, bench.site.order())
        bench.empty_target(bench.site)
        return bench.transfer(movers, bench.site.order()).seconds


def of_the_line(bench: Bench, data: bytes | None) -> float:
    """Bytes of the disk that crossed in a second, of what the line carries; of disks filled with `data` or noise."""
    if data is not None:
        with bench.site.source.flat().open("r+b") as file:
            file.write((data * (ON_THE_LINE // len(data) + 1))[:ON_THE_LINE])
    shaper = Shaper(delay=DELAY, rate=RATE)
    order = bench.site.order(regions=[Extent(0, ON_THE_LINE // GRAIN * GRAIN)])
    try:
        with far_movers(bench.site, through(shaper)) as movers:
            bench.transfer(movers, bench.site.order(regions=[Extent(0, GRAIN)]))  # movers that stand, as in a run
            bench.empty_target(bench.site)
            seconds = bench.transfer(movers, order).seconds
    finally:
        shaper.close()
    return ON_THE_LINE / seconds / RATE


def run() -> dict[str, object]:
    with tempfile.TemporaryDirectory(dir=files_on()) as folder:
        bench = Bench(Path(folder))
        pairs = []
        for number in range(REPEATS):
            ways = [(plain, 0), (as_it_is, 1)]
            seconds = [0.0, 0.0]
            for tamper, place in ways if number % 2 else reversed(ways):
                seconds[place] = copy(bench, tamper)
            pairs.append(seconds[0] / seconds[1])
        text = Path(__file__).read_bytes()
        return {
            "tls_vs_plain": round(statistics.median(pairs), 3),
            "tls_vs_plain_all": [round(pair, 3) for pair in sorted(pairs)],
            "line_50ms_100mbit": round(of_the_line(bench, None), 3),
            "line_compressible": round(of_the_line(bench, text), 3),
        }
