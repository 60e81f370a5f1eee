"""What HotAdd without VDDK asks of the control process, which alone is logged in: disks attached to the proxy's VM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from vrepl.extents import Extent


@dataclass(frozen=True, slots=True)
class DiskRequest:
    """Which disk: the file `path` of a VM as it is now, or as one of its snapshots has it."""

    site: str
    vm_ref: str
    snapshot_ref: str | None
    path: str
    writable: bool
    proxy: str | None = None
    """Of the address: whose VM it is attached to."""


@dataclass(frozen=True, slots=True)
class AttachedDisk:
    """A disk that hangs on the proxy's VM, and how the guest there tells it from every other."""

    site: str
    vm_ref: str
    """Whose disk it is."""
    path: str
    proxy_ref: str
    """The proxy's VM."""
    device_key: int
    """Of the disk there."""
    unit: int
    """On its SCSI controller: the target of its address in the guest."""
    uuid: str
    """Of the disk, hexadecimal with dashes, as its backing has it."""
    capacity: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class AllocatedExtents:
    """Ascending, in bytes; all else of the disk reads as zeros."""

    extents: tuple[Extent, ...]


class ControlDesk(Protocol):
    """The control process, as an engine of vrepl's own asks it. Every method raises VreplErrors."""

    def attach(self, request: DiskRequest) -> AttachedDisk:
        """Attach a disk to the VM that this machine is. Raises DiskLockedError, or DiskError where it cannot be."""
        ...

    def detach(self, disk: AttachedDisk) -> None:
        """Undo it; nothing may have it open any more. One that is gone already is fine."""
        ...

    def allocated(self, request: DiskRequest) -> AllocatedExtents:
        """What change tracking calls allocated on a snapshot's disk. Raises CbtError where it cannot tell."""
        ...


class DiskAttachments(Protocol):
    """What a pool of data movers asks for them, and after them."""

    def desk(self, alive: Callable[[], bool]) -> ControlDesk:
        """For one data mover; `alive`: whether it still runs, so that its disks are in use."""
        ...

    def clean_up(self, site: str, vm_ref: str, proxy: str | None) -> int:
        """Detach what data movers that run no more left of this VM on a proxy, as `HotAddCleanup.cleanup`."""
        ...

    def clean_up_after(self, site: str, vm_ref: str, proxy: str) -> int:
        """Detach every disk of this VM from a proxy whose machine is gone, whoever's engine had attached it.

        For VMs of which it is known that this repository had disks there. Returns how many.
        """
        ...
