"""HotAdd by vrepl itself, between two devices of one machine, against a bare loop of threads and against `dd`.

The devices are files, opened with O_DIRECT as block devices are; attaching costs nothing here. Every ratio is the
median of those of the rounds, in which the measurements are taken in turn. `VREPL_BENCH_MIB` is the size of the disk
(1024 at the most), `VREPL_BENCH_DIR` where the files lie: on a disk that is the disk's speed, in memory that of the
processors, and there what digests cost is most of the difference: one bare loop makes them too.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks._priority import share_priority
from benchmarks.bench import CAPACITY, MIB, Copied, cpu_seconds, files_on, peak_mib, pids, ratios_to, rounds_of
from tests.support.proxy_guest import ProxyGuest
from vrepl.extents import Extent
from vrepl.model import TransferKind, TransportMode
from vrepl.movers.pool import VddkMovers
from vrepl.movers.settings import MoverSettings
from vrepl.ports import (
    AllocatedExtents,
    AttachedDisk,
    ControlDesk,
    DigestFiles,
    DiskAddress,
    DiskRequest,
    SiteConnection,
    TransferOrder,
)

SIZE = min(CAPACITY, 1024 * MIB)
THREADS = 8
SITE = SiteConnection("vc", 443, 902, "user", "secret", "")
UUIDS = {"source": "6000C291-0000-0000-0000-000000000001", "target": "6000C291-0000-0000-0000-000000000002"}
UNITS = {"source": 1, "target": 2}


class TwoDisks:
    """Implements `ports.DiskAttachments` and `ports.ControlDesk`: the disks hang there all the time."""

    def __init__(self, folder: Path) -> None:
        self.guest = ProxyGuest(folder / "guest")
        self.guest.sysroot.mkdir()
        self.files = {side: folder / side for side in UNITS}
        noise = random.Random(1).randbytes(8 * MIB + 4096)
        with self.files["source"].open("wb") as file:
            for number in range(SIZE // (8 * MIB)):
                file.write(noise[number % 4096 : number % 4096 + 8 * MIB])
            os.fsync(file.fileno())
        with self.files["target"].open("wb") as file:
            file.write(bytes(8 * MIB) * (SIZE // (8 * MIB)))
            os.fsync(file.fileno())
        for side, unit in UNITS.items():
            self.guest.add(self.files[side], unit=unit, wwid="naa." + UUIDS[side].replace("-", "").lower())

    def desk(self, alive: Callable[[], bool]) -> ControlDesk:
        return self

    def clean_up(self, site: str, vm_ref: str, proxy: str | None) -> int:
        return 0

    def clean_up_after(self, site: str, vm_ref: str, proxy: str) -> int:
        return 0

    def attach(self, request: DiskRequest) -> AttachedDisk:
        side = request.path
        return AttachedDisk("prod", request.vm_ref, side, "vm-9", 2000, UNITS[side], UUIDS[side], SIZE)

    def detach(self, disk: AttachedDisk) -> None:
        """It stays."""

    def allocated(self, request: DiskRequest) -> AllocatedExtents:
        return AllocatedExtents((Extent(0, SIZE),))


class HotAddBench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.disks = TwoDisks(folder)
        self.settings = MoverSettings(None, engine="vrepl.own_engine:start", sysroot=self.disks.guest.sysroot)
        self.peak_memory_mib = 0.0

    def order(self) -> TransferOrder:
        log = self.folder / "transfer.log"
        log.unlink(missing_ok=True)
        source, target = (
            DiskAddress("prod", f"vm-{side}", "snapshot-1", side, SIZE, (TransportMode.HOTADD,), side, "disk")
            for side in ("source", "target")
        )
        return TransferOrder(
            TransferKind.FULL, source, target, [Extent(0, SIZE)], True, [], DigestFiles(None, fresh=True), False, log
        )

    def copy(self) -> Copied:
        movers = VddkMovers(lambda name: SITE, lambda name: self.settings, attachments=self.disks)
        try:
            movers.warm_up("prod", "prod")
            share_priority(pids(movers))
            before = sum(map(cpu_seconds, pids(movers)))
            seconds = movers.transfer(self.order(), lambda progress: None).seconds
            self.peak_memory_mib = max(self.peak_memory_mib, *map(peak_mib, pids(movers)))
            return Copied(seconds, sum(map(cpu_seconds, pids(movers))) - before)
        finally:
            movers.close()

    def bare(self, *, digests: bool = False) -> float:
        """Seconds of threads that read (and hash) and write, each a block after the other."""
        files = [str(self.disks.files[side]) for side in ("source", "target")]
        command = [sys.executable, "-m", "benchmarks._bare_block", *files, str(SIZE), str(THREADS), str(int(digests))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(json.loads(done.stdout)["seconds"])

    def dd(self) -> float:
        """Seconds as `dd` says."""
        source, target = self.disks.files["source"], self.disks.files["target"]
        command = [
            "dd", f"if={source}", f"of={target}", "bs=1M", "iflag=direct", "oflag=direct", "conv=notrunc,fdatasync",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"})
        return float(done.stderr.rsplit(" s,", 1)[0].rsplit(" ", 1)[1])


def run() -> dict[str, object]:
    """Ratios; `vs_…` is the other's time against vrepl's. On a disk first, then in memory."""
    place = os.environ.get("VREPL_BENCH_DIR")
    if place:
        return measured(place)
    figures = {f"disk_{name}": value for name, value in measured(None).items()}
    memory = files_on()
    if memory is not None:
        figures |= {f"memory_{name}": value for name, value in measured(str(memory)).items()}
    return figures


def measured(place: str | None) -> dict[str, object]:
    """The figures of files in one folder."""
    with tempfile.TemporaryDirectory(prefix="vrepl-bench-", dir=place) as temporary:
        bench = HotAddBench(Path(temporary))
        cpu: list[float] = []

        def ours() -> float:
            copied = bench.copy()
            cpu.append(copied.cpu)
            return copied.seconds

        rounds = rounds_of(ours, bench.bare, lambda: bench.bare(digests=True), bench.dd)
        mine, bare, with_digests, plain = zip(*rounds, strict=True)
        return {
            "mib": SIZE // MIB,
            "mb_s": round(SIZE / statistics.median(mine) / 1e6),
            **ratios_to("bare", mine, bare),
            **ratios_to("bare_with_digests", mine, with_digests),
            **ratios_to("dd", mine, plain),
            "cpu_s_per_gib": round(statistics.median(cpu) / (SIZE / 2**30), 3),
            "peak_memory_mib": round(bench.peak_memory_mib, 1),
        }
