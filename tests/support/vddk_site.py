"""Two disks behind the lab's libvixDiskLib and `fake_nfc`, as vrepl's own movers reach them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.fake_nfc import GRAIN, PASSWORD, THUMBPRINT, Disk, make_link
from tests.support.vixdisklib_lab import FakeLab
from vrepl.extents import Extent, subtract
from vrepl.model import TransferKind, TransportMode
from vrepl.movers.settings import MoverSettings
from vrepl.ports import DigestFiles, DiskAddress, SiteConnection, TransferOrder, TransferProgress
from vrepl.repository.transferlog import read_log

CAPACITY = 16 * (1 << 20) + 1536
SOURCE, TARGET = "[prod] web/web.vmdk", "[dr] web-replica/web.vmdk"


@dataclass
class VddkSite:
    """One vCenter that serves a source and a target disk; `lab` has its settings and faults."""

    lab: FakeLab
    capacity: int
    connections_asked: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.lab.folder

    @property
    def source(self) -> Disk:
        return self.lab.nfc.disks[SOURCE]

    @property
    def target(self) -> Disk:
        return self.lab.nfc.disks[TARGET]

    def connection(self, site: str) -> SiteConnection:
        self.connections_asked.append(site)
        return SiteConnection("vc.lab", 443, 0, "user", PASSWORD, THUMBPRINT)

    def settings(self, site: str = "prod") -> MoverSettings:
        return MoverSettings(self.folder)

    def address(self, path: str, modes: tuple[TransportMode, ...] = (TransportMode.NBDSSL,)) -> DiskAddress:
        site = "prod" if path == SOURCE else "dr"
        return DiskAddress(site, "vm-1", None, path, self.capacity, modes, "web-01", "disk 0 (Hard disk 1)")

    def order(
        self,
        *,
        dirty: list[Extent] | None = None,
        attempt: int = 1,
        compare_with_target: bool = False,
        fresh: bool = True,
        regions: list[Extent] | None = None,
    ) -> TransferOrder:
        return TransferOrder(
            kind=TransferKind.FULL,
            source=self.address(SOURCE),
            target=self.address(TARGET),
            regions=[Extent(0, self.capacity)] if regions is None else regions,
            allocated_only=True,
            dirty=dirty or [],
            parent=DigestFiles(None, fresh=fresh),
            compare_with_target=compare_with_target,
            log=self.folder / "transfer.log",
            attempt=attempt,
        )


def make_site(lab: FakeLab, capacity: int, grains: dict[int, bytes]) -> VddkSite:
    """Source and target disks of `capacity` bytes; the source holds `grains`, the target nothing."""
    folder = lab.folder
    for path, name, present in ((SOURCE, "source", grains), (TARGET, "target", {})):
        lab.nfc.disks[path] = Disk(capacity, [make_link(folder / name, capacity, present)], vm=name)
    return VddkSite(lab, capacity)


def some_grains(count: int, seed: int = 1) -> dict[int, bytes]:
    """Grain -> random bytes for those below `count`, with a hole of four grains in every twelve."""
    rng = random.Random(seed)
    return {grain: rng.randbytes(GRAIN) for grain in range(count) if grain // 4 % 3}


def ignore(progress: TransferProgress) -> None:
    """For those who do not look at the progress."""


def resumed(site: VddkSite, attempt: int = 2) -> TransferOrder:
    """What the engine orders after a failed attempt: what is not done, dirty as far as writes were allowed."""
    last = read_log(site.folder / "transfer.log").last
    assert last is not None
    whole = [Extent(0, site.capacity)]
    return site.order(
        attempt=attempt,
        regions=subtract(whole, last.done),
        dirty=subtract([Extent(0, min(last.allowed, site.capacity))], last.done),
    )
