"""Which block device of this machine an attached disk is: found by address, proved by identity, never by being new.

A virtual disk's unit on its SCSI controller is the target of its address in the guest, `HOST:0:UNIT:0` (Linux,
drivers/scsi/vmw_pvscsi.c: a message of an added device names bus, target, lun; hystax/OpenVixDiskLib docs/hotadd.md
finds disks so). Which HOST a controller is depends on the guest. Where the VM has `disk.EnableUUID`, page 0x83 of the
disk is its uuid as a NAA name, which Kubernetes has gone by for years (pkg/volume/vsphere_volume: `/dev/disk/by-id/` +
`wwn-0x` + the uuid without dashes). Linux shows it as `wwid` of the SCSI device.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vrepl.errors import DiskError
from vrepl.ports import AttachedDisk

SECTOR = 512
"""Bytes: the unit of `size` in /sys, whatever the disk's own sectors are (Linux, Documentation/block/stat.rst)."""
APPEAR_SECONDS = 60.0
RESCAN_AFTER = 2.0
"""Seconds until the SCSI hosts are asked to look, and twice as many until the next time: with a paravirtual controller
a disk appears by itself."""
POLL = 0.05
NOT_FOUND, NO_ACCESS, BUSY = 4, 13, 5
"""Codes as VDDK has them for the same (`vddk.codes`)."""


@dataclass(frozen=True, slots=True)
class ScsiDisk:
    """One SCSI disk as /sys shows it."""

    folder: Path
    """Of the SCSI device."""
    unit: int
    name: str
    """Of its block device, such as `sdb`."""
    wwid: str
    """`naa.` and 32 hexadecimal digits; empty where the disk does not tell."""
    capacity: int

    @property
    def device(self) -> str:
        return f"/dev/{self.name}"


def scsi_disks(sysroot: Path) -> Iterator[ScsiDisk]:
    """All that this machine has; one that goes meanwhile is left out."""
    for folder in sorted((sysroot / "sys/bus/scsi/devices").glob("*:*:*:*")):
        with suppress(OSError, ValueError):
            _, _, target, _ = folder.name.split(":")
            for block in (folder / "block").iterdir():
                yield ScsiDisk(
                    folder, int(target), block.name, _text(folder / "wwid"), int(_text(block / "size")) * SECTOR
                )


def wwid_of(uuid: str) -> str:
    """What a guest is told of a disk with this uuid."""
    return "naa." + uuid.replace("-", "").replace(" ", "").lower()


def find_disk(
    sysroot: Path,
    attached: AttachedDisk,
    *,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    within: float = APPEAR_SECONDS,
) -> ScsiDisk:
    """Wait for the disk, and prove that it is the one. Raises DiskError where it is not, or cannot be told apart."""
    began = monotonic()
    scan_at = RESCAN_AFTER
    wanted = wwid_of(attached.uuid)
    while True:
        disks = list(scsi_disks(sysroot))
        named = [disk for disk in disks if disk.wwid == wanted]
        if len(named) > 1:
            raise DiskError(
                f"this machine has {len(named)} disks with the identity of {attached.path} "
                f"({', '.join(disk.device for disk in named)}), so which one it is is not sure",
                code=NO_ACCESS,
                hint="a copy of the disk is attached to the proxy; detach it, or give it another uuid "
                "(vmkfstools -J setuuid)",
            )
        if named:
            return _proved(named[0], attached)
        waited = monotonic() - began
        if waited >= within:
            raise _missing(attached, disks, within)
        if waited >= scan_at:
            scan_at *= 2
            rescan(sysroot)
        sleep(POLL)


def rescan(sysroot: Path) -> None:
    """Have all SCSI hosts look for devices; takes root, and where that is missing nothing happens."""
    for scan in (sysroot / "sys/class/scsi_host").glob("host*/scan"):
        with suppress(OSError):
            _write(scan, "- - -")


def let_go(disk: ScsiDisk) -> None:
    """Tell the guest that the disk goes, before it goes; takes root, and is only polite."""
    with suppress(OSError):
        _write(disk.folder / "delete", "1")


def check_node(sysroot: Path, disk: ScsiDisk, descriptor: int) -> None:
    """What was opened is that device, and still has its identity. Raises DiskError."""
    status = os.fstat(descriptor)
    if stat.S_ISBLK(status.st_mode):
        number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        known = _text(disk.folder / "block" / disk.name / "dev")
        if number != known:
            raise DiskError(f"{disk.device} is device {number}, and /sys says {known} of it", code=NO_ACCESS)
    if disk not in scsi_disks(sysroot):
        raise DiskError(f"{disk.device} became another disk while it was opened", code=NOT_FOUND)


def _proved(disk: ScsiDisk, attached: AttachedDisk) -> ScsiDisk:
    if disk.unit != attached.unit or disk.capacity != attached.capacity:
        raise DiskError(
            f"{disk.device} has the identity of {attached.path}, but is unit {disk.unit} with {disk.capacity} bytes "
            f"instead of unit {attached.unit} with {attached.capacity}",
            code=NO_ACCESS,
            hint="is a copy of the disk attached to the proxy?",
        )
    return disk


def _missing(attached: AttachedDisk, disks: list[ScsiDisk], within: float) -> DiskError:
    nameless = [disk for disk in disks if disk.unit == attached.unit and not disk.wwid]
    if nameless:
        return DiskError(
            f"{nameless[0].device} may be {attached.path}, but it does not tell its identity",
            code=NO_ACCESS,
            hint="set disk.EnableUUID = TRUE on the proxy's VM while it is off: without it, empty disks cannot be told "
            "apart",
        )
    return DiskError(
        f"{attached.path} was attached as unit {attached.unit}, and this machine saw no such disk within "
        f"{within:.0f} s",
        code=NOT_FOUND,
        hint="does vrepl run on the VM that it takes for the proxy? A controller that is not paravirtual needs a scan "
        "of the SCSI bus, which takes root",
    )


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return ""


def _write(file: Path, text: str) -> None:
    descriptor = os.open(file, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode("ascii"))
    finally:
        os.close(descriptor)
