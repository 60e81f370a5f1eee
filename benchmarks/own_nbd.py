"""NBD and NBDSSL by vrepl itself, over the lab's hosts, against bare requests on the same connections.

Every ratio is the median of those of the rounds, in which the measurements are taken in turn. `VREPL_BENCH_MIB` is the
size of the disk (2048 here at the most: the hosts share this machine).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks._priority import share_priority
from benchmarks.bench import CAPACITY, MIB, Copied, cpu_seconds, files_on, peak_mib, pids, ratios_to, rounds_of
from tests.support import plain_api
from tests.support.plain_api import disk_path, vm_named
from vrepl.extents import Extent
from vrepl.model import TransferKind, TransportMode
from vrepl.movers.pool import VddkMovers
from vrepl.movers.settings import MoverSettings
from vrepl.ports import DigestFiles, DiskAddress, TransferOrder
from vrepl.vsphere.session import SiteSettings
from vrepl.vsphere.site import VsphereSite
from vrepl_lab.lab import SERVER, USER, Lab
from vrepl_lab.spec import DiskSpec, LabSpec, VmSpec

SIZE = min(CAPACITY, 2048 * MIB)
DEPTH = 4
ROUNDS = 5
NAMES = {"source": "source-01", "target": "target-01"}


class NbdBench:
    """Two disks of one lab's site, and movers that reach them by vrepl's own engine or by the lab's VDDK."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.folder = folder
        running = lab.sites["prod"]
        self.site = VsphereSite(
            SiteSettings(
                name="prod",
                server=SERVER,
                port=running.port,
                user=USER,
                password=lab.password("prod"),
                nfc_port=running.nfc_port,
                thumbprint=running.sha256_thumbprint,
            )
        )
        with plain_api.session(lab) as api:
            found = {side: vm_named(api, name) for side, name in NAMES.items()}
            self.refs = {side: str(vm._moId) for side, vm in found.items()}
            self.paths = {side: str(disk_path(vm.config)) for side, vm in found.items()}
        self.vddk = MoverSettings(lab.libdir())
        self.own = MoverSettings(None, engine="vrepl.nfc.engine:start")
        self.peak_memory_mib = 0.0

    def order(self, mode: TransportMode) -> TransferOrder:
        log = self.folder / "transfer.log"
        log.unlink(missing_ok=True)
        addresses = [
            DiskAddress("prod", self.refs[side], None, self.paths[side], SIZE, (mode,), NAMES[side], "disk")
            for side in ("source", "target")
        ]
        return TransferOrder(
            kind=TransferKind.FULL,
            source=addresses[0],
            target=addresses[1],
            regions=[Extent(0, SIZE)],
            allocated_only=True,
            dirty=[],
            parent=DigestFiles(None, fresh=True),
            compare_with_target=False,
            log=log,
        )

    def copy(self, settings: MoverSettings, mode: TransportMode) -> Copied:
        movers = VddkMovers(
            lambda name: self.site.connection(),
            lambda name: settings,
            tickets=lambda request: self.site.nfc_ticket(request.vm_ref, request.path, writable=request.writable),
        )
        try:
            movers.warm_up("prod", "prod")
            share_priority(pids(movers))
            before = sum(map(cpu_seconds, pids(movers)))
            seconds = movers.transfer(self.order(mode), lambda progress: None).seconds
            self.peak_memory_mib = max(self.peak_memory_mib, *map(peak_mib, pids(movers)))
            return Copied(seconds, sum(map(cpu_seconds, pids(movers))) - before)
        finally:
            movers.close()

    def bare(self, mode: TransportMode) -> Copied:
        """Bare requests."""
        tickets = [
            asdict(self.site.nfc_ticket(self.refs[side], self.paths[side], writable=side == "target"))
            for side in ("source", "target")
        ]
        arguments = self.folder / "bare.json"
        arguments.touch(mode=0o600)
        values = {"mode": mode, "depth": DEPTH, "capacity": SIZE, "tickets": tickets, **self.paths}
        arguments.write_text(json.dumps(values))
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks._bare_nfc", str(arguments)], capture_output=True, text=True, check=True
        )
        return Copied(**json.loads(done.stdout))


def run() -> dict[str, object]:
    """Ratios; `…_vs_bare` is the bare loop's time against vrepl's."""
    disk = DiskSpec(SIZE, content="empty")
    spec = LabSpec.of_vms(
        VmSpec(NAMES["source"], disks=(disk,), power="poweredOff", tools="notRunning"),
        VmSpec(NAMES["target"], disks=(disk,), power="poweredOff", tools="notRunning"),
    )
    with tempfile.TemporaryDirectory(prefix="vrepl-bench-", dir=files_on()) as temporary:
        folder = Path(temporary)
        with Lab.start(folder / "lab", spec) as lab:
            share_priority([site.process.pid for site in lab.sites.values()])
            lab.write_random("prod", NAMES["source"], 0, 0, SIZE, "bench")
            bench = NbdBench(lab, folder)
            figures: dict[str, object] = {"disk_mib": SIZE // MIB, "rounds": ROUNDS}
            for mode in (TransportMode.NBDSSL, TransportMode.NBD):
                figures |= {f"{mode}_{name}": value for name, value in measured(bench, mode).items()}
            bench.site.close()
            return figures | {"peak_memory_mib": round(bench.peak_memory_mib, 1)}


def measured(bench: NbdBench, mode: TransportMode) -> dict[str, object]:
    """The figures of one mode."""
    cpu: dict[str, list[float]] = {"own": [], "bare": []}

    def noted(whose: str, copied: Copied) -> float:
        cpu[whose].append(copied.cpu)
        return copied.seconds

    rounds = rounds_of(
        lambda: noted("own", bench.copy(bench.own, mode)),
        lambda: noted("bare", bench.bare(mode)),
        lambda: bench.copy(bench.vddk, mode).seconds,
        repeats=ROUNDS,
    )
    mine, bare, vddk = zip(*rounds, strict=True)
    return {
        "mb_s": round(SIZE / statistics.median(mine) / 1e6),
        **ratios_to("bare", mine, bare),
        **ratios_to("lab_vddk", mine, vddk),
        "cpu_s_per_gib": round(statistics.median(cpu["own"]) / (SIZE / 2**30), 3),
        "bare_cpu_s_per_gib": round(statistics.median(cpu["bare"]) / (SIZE / 2**30), 3),
    }
