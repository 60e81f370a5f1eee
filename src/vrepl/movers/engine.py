"""What opens disks in a data mover, as a Protocol: VDDK, or an engine of vrepl's own. One engine a process.

An engine is a module-level function `start(settings, log, tickets, desk) -> DiskEngine`, named to the worker as
`package.module:name`, so that a mover imports the one that it is told to and nothing of the others: VDDK and the
system's OpenSSL cannot share a process. All methods are called from the mover's main thread, which owns what they open.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vrepl.ports import ControlDesk, DiskAddress, SiteConnection, TicketSource
from vrepl.transport.disk import DiskWriter

Log = Callable[[str, str], None]
"""Kind (`log`, `warn` or `panic`) and text; from any thread."""


class OpenDisk(DiskWriter, Protocol):
    """A disk that an engine has open. One that was not opened to be written refuses writes."""

    @property
    def uuid(self) -> str:
        """As the engine is told; empty where it is told none."""
        ...


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What is fixed when an engine starts."""

    libdir: Path | None
    """VDDK's folder; None for an engine that needs none."""
    state_folder: Path
    """Where on this machine engines may keep files of their own."""
    buffer_units: int
    """NFC buffer size in units of 64 KiB."""
    buffer_count: int
    """NFC buffers per disk."""
    readback: str = "sample"
    """How much of what an engine of vrepl's own wrote is read back: `sample` or `all`."""
    sysroot: Path = Path("/")
    """Under which this machine's `dev` and `sys` lie."""


class DiskEngine(Protocol):
    """Opens disks, and tells vSphere of it. Raises LibraryError where it cannot start, else DiskError and below."""

    @property
    def about(self) -> dict[str, str | int]:
        """What it is, for the log: at least `library`."""
        ...

    def open(self, address: DiskAddress, site: SiteConnection, *, writable: bool) -> OpenDisk:
        """Over the first of the address's modes. Raises TransportModeError where another may do."""
        ...

    def prepare_for_access(self, site: SiteConnection, vm_ref: str, identity: str) -> None:
        """Block the VM's relocation. `identity`: at most 50 characters."""
        ...

    def end_access(self, site: SiteConnection, vm_ref: str, identity: str) -> None: ...

    def cleanup(self, site: SiteConnection, vm_ref: str) -> tuple[int, int]:
        """Detach what HotAdd left of this VM on this machine: how many disks were detached, how many remain."""
        ...

    def exit(self) -> None:
        """Nothing may be open any more."""
        ...


StartEngine = Callable[[EngineSettings, Log, TicketSource, ControlDesk], DiskEngine]
"""The control process alone is logged in: it gives tickets, one whenever a disk is opened over the network, and its
desk attaches disks to the VM that this machine is. To be asked from the main thread."""
