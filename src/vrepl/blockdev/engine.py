"""HotAdd by the public API as the disk engine of a data mover: attach, find, open; close, let go, detach."""

from __future__ import annotations

import errno
import os
import stat

from vrepl.blockdev.disk import MODE, BlockDisk
from vrepl.blockdev.guest import APPEAR_SECONDS, BUSY, NO_ACCESS, ScsiDisk, check_node, find_disk, let_go, scsi_disks
from vrepl.errors import DiskError, DiskLockedError, TransportModeError, VreplError
from vrepl.model import TransportMode
from vrepl.movers.allocation import tracked_allocation
from vrepl.movers.engine import EngineSettings, Log
from vrepl.ports import AttachedDisk, ControlDesk, DiskAddress, DiskRequest, SiteConnection, TicketSource


class BlockEngine:
    """A `movers.engine.DiskEngine`."""

    def __init__(
        self, settings: EngineSettings, log: Log, desk: ControlDesk, *, within: float = APPEAR_SECONDS
    ) -> None:
        """`within`: seconds in which a disk that was attached must have appeared."""
        self._within = within
        self._sysroot = settings.sysroot
        self._log = log
        self._desk = desk

    @property
    def about(self) -> dict[str, str | int]:
        return {"library": "vrepl's own HotAdd"}

    def open(self, address: DiskAddress, site: SiteConnection, *, writable: bool) -> BlockDisk:
        """Attached anew each time, so that no other client's disk is ever taken for it."""
        del site
        side = "target" if writable else "source"
        if address.modes[0] is not TransportMode.HOTADD:
            raise TransportModeError(
                f"HotAdd does not reach disks over {address.modes[0]}", mode=str(address.modes[0]), code=6, side=side
            )
        request = DiskRequest(address.site, address.vm_ref, address.snapshot_ref, address.path, writable, address.proxy)
        try:
            attached = self._desk.attach(request)
            try:
                return self._opened(request, attached)
            except BaseException:
                self._give_back(attached)
                raise
        except (DiskLockedError, TransportModeError):
            raise
        except VreplError as error:
            raise TransportModeError(
                f"{error.message}, over {MODE}",
                mode=MODE,
                code=error.code if isinstance(error, DiskError) else NO_ACCESS,
                hint=error.hint or "the next mode is tried",
                side=side,
            ) from error

    def prepare_for_access(self, site: SiteConnection, vm_ref: str, identity: str) -> None:
        """VDDK's: nobody asks it of this engine."""
        raise DiskError(f"a migration of {vm_ref} can only be blocked through VDDK", code=6)

    def end_access(self, site: SiteConnection, vm_ref: str, identity: str) -> None:
        """VDDK's, as well."""
        raise DiskError(f"migrations of {vm_ref} can only be allowed again through VDDK", code=6)

    def cleanup(self, site: SiteConnection, vm_ref: str) -> tuple[int, int]:
        """The control process does this without a data mover."""
        return 0, 0

    def exit(self) -> None:
        """Disks are detached as they are closed."""

    def _opened(self, request: DiskRequest, attached: AttachedDisk) -> BlockDisk:
        disk = find_disk(self._sysroot, attached, within=self._within)
        node = self._sysroot / "dev" / disk.name
        direct, cached = open_node(str(node), writable=request.writable)
        try:
            check_node(self._sysroot, disk, direct if direct is not None else cached)
        except BaseException:
            for descriptor in (direct, cached):
                if descriptor is not None:
                    os.close(descriptor)
            raise
        return BlockDisk(
            cached if direct is None else direct,
            f"{attached.path} ({disk.device})",
            attached.capacity,
            attached.uuid,
            writable=request.writable,
            alignment=logical_block(disk),
            cached=None if direct is None else cached,
            allocated=tracked_allocation(self._desk, request, attached.capacity, self._log),
            still_there=lambda: disk in scsi_disks(self._sysroot),
            closed=lambda: self._detach(disk, attached),
        )

    def _detach(self, disk: ScsiDisk, attached: AttachedDisk) -> None:
        let_go(disk)
        self._give_back(attached)

    def _give_back(self, attached: AttachedDisk) -> None:
        """What cannot be detached now is found by the clean-up after the run, which tries again and tells."""
        try:
            self._desk.detach(attached)
        except VreplError as error:
            self._log("warn", f"detaching {attached.path} from the proxy failed: {error.message}")


def open_node(node: str, *, writable: bool) -> tuple[int | None, int]:
    """The device without the page cache (None where it cannot be had so), and with it. Raises DiskError.

    To be written it is opened exclusively: a device that is mounted, or part of a volume group, is refused by the
    kernel then (open(2), O_EXCL on block devices).
    """
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
    try:
        if writable and stat.S_ISBLK(os.stat(node).st_mode):
            flags |= os.O_EXCL
        cached = os.open(node, flags)
    except OSError as error:
        raise DiskError(
            f"{node} cannot be opened: {error.strerror}",
            code=BUSY if error.errno == errno.EBUSY else NO_ACCESS,
            hint="the proxy's own system uses the disk (a file system was mounted, or LVM or RAID took it): keep it "
            "from touching disks that are added"
            if error.errno == errno.EBUSY
            else "vrepl must be root, or a member of the group that owns block devices (disk)",
        ) from error
    try:
        # The second descriptor of the same process would be refused with O_EXCL as well only to other holders.
        return os.open(node, (flags & ~os.O_EXCL) | os.O_DIRECT), cached
    except OSError:  # a file system that cannot: slower, and as right
        return None, cached


def logical_block(disk: ScsiDisk) -> int:
    """Bytes that O_DIRECT must be aligned to."""
    try:
        text = (disk.folder / "block" / disk.name / "queue/logical_block_size").read_text(encoding="ascii")
        return max(int(text), 512)
    except (OSError, ValueError):
        return 4096


def start(settings: EngineSettings, log: Log, tickets: TicketSource, desk: ControlDesk) -> BlockEngine:
    """Nothing is loaded, and nothing can fail yet."""
    del tickets
    return BlockEngine(settings, log, desk)
