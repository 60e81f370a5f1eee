"""libvixDiskLib as the disk engine of a data mover."""

from __future__ import annotations

from vrepl.errors import LibraryError
from vrepl.movers.engine import EngineSettings, Log
from vrepl.ports import ControlDesk, DiskAddress, SiteConnection, TicketSource
from vrepl.vddk import handles
from vrepl.vddk.disk import AsyncDisk, DirectDisk
from vrepl.vddk.library import Library, find_library
from vrepl.vddk.opening import open_disk
from vrepl.vddk.purity import assert_pure
from vrepl.vddk.scratch import scratch_folder, write_config


class VddkEngine:
    """A `movers.engine.DiskEngine`. The thread that makes it owns everything that it opens."""

    def __init__(self, library: Library, path: str) -> None:
        self._library = library
        self._path = path

    @property
    def about(self) -> dict[str, str | int]:
        return {"library": self._path, "major": self._library.major}

    def open(self, address: DiskAddress, site: SiteConnection, *, writable: bool) -> AsyncDisk | DirectDisk:
        return open_disk(self._library, address, site, writable=writable)

    def prepare_for_access(self, site: SiteConnection, vm_ref: str, identity: str) -> None:
        handles.prepare_for_access(self._library, site, vm_ref, identity)

    def end_access(self, site: SiteConnection, vm_ref: str, identity: str) -> None:
        handles.end_access(self._library, site, vm_ref, identity)

    def cleanup(self, site: SiteConnection, vm_ref: str) -> tuple[int, int]:
        return handles.cleanup(self._library, site, vm_ref)

    def exit(self) -> None:
        self._library.exit()


def start(settings: EngineSettings, log: Log, tickets: TicketSource, desk: ControlDesk) -> VddkEngine:
    """Load and initialise VDDK, which gets its tickets and attaches disks by itself. Raises LibraryError."""
    del tickets, desk
    if settings.libdir is None:
        raise LibraryError("no folder of VDDK is configured", hint="[vddk] libdir")
    path = find_library(settings.libdir)
    assert_pure(settings.libdir)
    try:
        config = write_config(
            scratch_folder(settings.state_folder),
            buffer_units=settings.buffer_units,
            buffer_count=settings.buffer_count,
        )
    except OSError as error:
        raise LibraryError(
            f"VDDK's folder on this machine cannot be used: {error}",
            hint="it is vrepl/vddk in ~/.local/state, or in the folder that XDG_STATE_HOME names",
        ) from error
    library = Library(path)
    library.initialise(settings.libdir, config, log)
    return VddkEngine(library, str(path))
