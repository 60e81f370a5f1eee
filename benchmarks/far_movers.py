"""Two movers as on two machines: what TLS costs, and what is left of a line of 100 Mbit/s with a delay of 50 ms."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks.bench import CAPACITY, Bench, files_on
from tests.support.hosts import HostHere, Tamper, settings_by_role
from tests.support.shaper import Shaper
from tests.support.tun_line import TunLine
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
ON_THE_LINE, LONG_ON_THE_LINE = 48 * MIB, 128 * MIB
HOST_RATE = 500_000_000
"""Bytes/s of each disk, where the hosts are what limits."""
STREAM_END = StreamEnd("", "", "", "")


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


def copy(bench: Bench, tamper: Tamper) -> tuple[float, float]:
    """Seconds of the second copy by new movers onto an empty target; without limits, then at a real host's pace."""
    site = bench.site
    with far_movers(site, tamper) as movers:
        bench.transfer(movers, site.order())
        bench.empty_target(site)
        fast = bench.transfer(movers, site.order()).seconds
        bench.lab.set(latency_us=1000, bandwidth_bytes_s=HOST_RATE)
        bench.empty_target(site)
        paced = bench.transfer(movers, site.order()).seconds
        bench.lab.set()
        return fast, paced


def of_the_line(bench: Bench, tamper: Tamper, length: int, data: bytes | None = None) -> float:
    """Bytes of the disk that crossed in a second, of what the line carries; of disks filled with `data` or noise."""
    if data is not None:
        with bench.site.source.flat().open("r+b") as file:
            file.write(data)
    order = bench.site.order(regions=[Extent(0, length // GRAIN * GRAIN)])
    with far_movers(bench.site, tamper) as movers:
        bench.transfer(movers, bench.site.order(regions=[Extent(0, GRAIN)]))  # movers that stand, as in a run
        bench.empty_target(bench.site)
        seconds = bench.transfer(movers, order).seconds
    return length / seconds / RATE


def shaped(bench: Bench, data: bytes | None = None) -> float:
    """Over a line whose delay and rate are those of the bytes; TCP has nothing to do with them."""
    shaper = Shaper(delay=DELAY, rate=RATE)
    try:
        return of_the_line(bench, through(shaper), ON_THE_LINE, data)
    finally:
        shaper.close()


def over_tcp(
    bench: Bench, loss: float, congestion: str, length: int, *, rate: float = RATE, packet: int = 1500
) -> float:
    """Over packets, headers and all, that are delayed and lost: what the kernel's TCP makes of the line."""
    line = TunLine(delay=DELAY, rate=rate, loss=loss, congestion="cubic", packet=packet)

    def tamper(end: StreamEnd) -> StreamEnd:
        return replace(end, congestion=congestion, address=None if end.address is None else line.peer)

    try:
        return of_the_line(bench, tamper, length) * RATE / rate
    finally:
        line.close()


def loss(bench: Bench) -> dict[str, object]:
    """What a loss of 0.1 % leaves of 100 Mbit/s at 50 ms; nothing where this user may have no TUN device."""
    try:
        return {
            "line_tcp": round(over_tcp(bench, 0.0, STREAM_END.congestion, LONG_ON_THE_LINE), 3),
            "line_tcp_loss_0.1pct": round(over_tcp(bench, 0.001, STREAM_END.congestion, LONG_ON_THE_LINE), 3),
            "line_tcp_loss_0.1pct_cubic": round(over_tcp(bench, 0.001, "", 16 * MIB), 3),
            "line_tcp_1gbit": round(
                over_tcp(bench, 0.0, STREAM_END.congestion, min(CAPACITY, 1024 * MIB), rate=10 * RATE, packet=16000), 3
            ),
        }
    except OSError as error:
        return {"line_tcp": f"not measured: {error}"}


def sources() -> bytes:
    """Text as it is: what Python files this machine has, until there is enough of it."""
    text, files = bytearray(), Path(os.__file__).parent.rglob("*.py")
    while len(text) < ON_THE_LINE and (file := next(files, None)) is not None:
        text += file.read_bytes()
    return bytes((text * (ON_THE_LINE // len(text) + 1))[:ON_THE_LINE])


def run() -> dict[str, object]:
    with tempfile.TemporaryDirectory(dir=files_on()) as folder:
        bench = Bench(Path(folder))
        fast, paced = [], []
        for number in range(REPEATS):
            ways = [(plain, 0), (as_it_is, 1)]
            seconds = [(0.0, 0.0)] * 2
            for tamper, place in ways if number % 2 else reversed(ways):
                seconds[place] = copy(bench, tamper)
            fast.append(seconds[0][0] / seconds[1][0])
            paced.append(seconds[0][1] / seconds[1][1])
        return {
            "tls_vs_plain": round(statistics.median(fast), 3),
            "tls_vs_plain_all": [round(pair, 3) for pair in sorted(fast)],
            "tls_vs_plain_1ms": round(statistics.median(paced), 3),
            "line_50ms_100mbit": round(shaped(bench), 3),
            **loss(bench),
            "line_compressible": round(shaped(bench, sources()), 3),
        }
