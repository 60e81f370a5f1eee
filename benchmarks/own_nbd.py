"""NBD and NBDSSL by vrepl itself, over the lab's hosts, against bare requests on the same connections.

Every figure is a ratio within this run; measurements are taken in turn and their medians compared. `VREPL_BENCH_MIB` is
the size of the disk (1024 here at the most: the hosts share this machine).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from benchmarks.bench import CAPACITY, MIB, Copied, cpu_seconds, files_on, in_turn, peak_mib, pids
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

SIZE = min(CAPACITY, 1024 * MIB)
DEPTH = 4
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
        self.cpu: list[float] = []

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
            before = sum(map(cpu_seconds, pids(movers)))
            seconds = movers.transfer(self.order(mode), lambda progress: None).seconds
            self.peak_memory_mib = max(self.peak_memory_mib, *map(peak_mib, pids(movers)))
            return Copied(seconds, sum(map(cpu_seconds, pids(movers))) - before)
        finally:
            movers.close()

    def bare(self, mode: TransportMode) -> float:
        """Seconds of bare requests."""
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
        return float(json.loads(done.stdout)["seconds"])


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
            lab.write_random("prod", NAMES["source"], 0, 0, SIZE, "bench")
            bench = NbdBench(lab, folder)
            figures: dict[str, object] = {"disk_mib": SIZE // MIB}
            for mode in (TransportMode.NBDSSL, TransportMode.NBD):
                cpu: list[float] = []

                def ours(mode: TransportMode = mode, cpu: list[float] = cpu) -> float:
                    copied = bench.copy(bench.own, mode)
                    cpu.append(copied.cpu)
                    return copied.seconds

                limit: Callable[[], float] = lambda mode=mode: bench.bare(mode)  # type: ignore[misc]  # noqa: E731
                vddk: Callable[[], float] = lambda mode=mode: bench.copy(bench.vddk, mode).seconds  # type: ignore[misc]  # noqa: E731
                mine, bare, theirs = in_turn(ours, limit, vddk, repeats=3)
                figures |= {
                    f"{mode}_mb_s": round(SIZE / mine / 1e6),
                    f"{mode}_vs_bare": round(bare / mine, 3),
                    f"{mode}_vs_lab_vddk": round(theirs / mine, 3),
                    f"{mode}_cpu_s_per_gib": round(sorted(cpu)[len(cpu) // 2] / (SIZE / 2**30), 3),
                }
            bench.site.close()
            return figures | {"peak_memory_mib": round(bench.peak_memory_mib, 1)}
