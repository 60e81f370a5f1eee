"""A proxy's guest in a folder, and a control process that attaches disks to it: no vSphere, no lab.

The device is a file, as in the lab; what /sys says of it is laid out as Linux does for a virtual SCSI disk.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from vrepl.errors import CbtError, VreplError
from vrepl.extents import Extent
from vrepl.ports import AllocatedExtents, AttachedDisk, DiskRequest

UUID = "6000C291-a1b2-c3d4-e5f6-0123456789ab"
WWID = "naa.6000c291a1b2c3d4e5f60123456789ab"


@dataclass
class ProxyGuest:
    """`sysroot` is the guest's root folder."""

    sysroot: Path
    names: list[str] = field(default_factory=lambda: [f"sd{letter}" for letter in "bcdefgh"])

    def add(self, file: Path, *, unit: int, host: int = 2, wwid: str = WWID, sectors: int | None = None) -> str:
        """Show a file's content as a disk; returns the device's name."""
        name = self.names.pop(0)
        node = self.sysroot / f"sys/devices/host{host}/{host}:0:{unit}:0"
        (node / "block" / name / "queue").mkdir(parents=True)
        (node / "block" / name / "queue/logical_block_size").write_text("512\n")
        (node / "block" / name / "size").write_text(f"{sectors or file.stat().st_size // 512}\n")
        (node / "delete").touch()
        if wwid:
            (node / "wwid").write_text(f"{wwid}\n")
        alias = self.sysroot / f"sys/bus/scsi/devices/{host}:0:{unit}:0"
        alias.parent.mkdir(parents=True, exist_ok=True)
        alias.symlink_to(node)
        device = self.sysroot / "dev" / name
        device.parent.mkdir(exist_ok=True)
        device.symlink_to(file)
        return name

    def remove(self, name: str, *, unit: int, host: int = 2) -> None:
        """The disk is gone."""
        (self.sysroot / f"sys/bus/scsi/devices/{host}:0:{unit}:0").unlink()
        shutil.rmtree(self.sysroot / f"sys/devices/host{host}/{host}:0:{unit}:0")
        (self.sysroot / "dev" / name).unlink()


class FakeDesk:
    """A `ports.ControlDesk` over one disk. Disks that are read are attached as copies, which nobody keeps."""

    def __init__(self, guest: ProxyGuest, disk: Path) -> None:
        self.guest = guest
        self.disk = disk
        self.hanging: dict[AttachedDisk, str] = {}
        self.refusal: VreplError | None = None
        self.known: tuple[Extent, ...] | None = None
        self.wwid = WWID
        self.asked: list[str] = []
        self._units = iter(range(1, 100))

    def attach(self, request: DiskRequest) -> AttachedDisk:
        self.asked.append("attach")
        if self.refusal is not None:
            raise self.refusal
        unit = next(self._units)
        file = self.disk
        if not request.writable:
            file = self.disk.with_name(f"copy-{unit}")
            shutil.copy(self.disk, file)
        name = self.guest.add(file, unit=unit, wwid=self.wwid)
        attached = AttachedDisk(
            request.site, request.vm_ref, request.path, "vm-9", 2000 + unit, unit, UUID, self.disk.stat().st_size
        )
        self.hanging[attached] = name
        return attached

    def detach(self, disk: AttachedDisk) -> None:
        self.asked.append("detach")
        self.guest.names.append(self.hanging[disk])
        self.guest.remove(self.hanging.pop(disk), unit=disk.unit)

    def allocated(self, request: DiskRequest) -> AllocatedExtents:
        self.asked.append("allocated")
        if self.known is None:
            raise CbtError("change tracking does not tell")
        return AllocatedExtents(self.known)
