"""NFC as the disk engine of a data mover."""

from __future__ import annotations

import ssl
from collections.abc import Callable

from vrepl.errors import DiskError, TransportModeError, VreplError
from vrepl.model import TransportMode
from vrepl.movers.allocation import Allocation, tracked_allocation
from vrepl.movers.engine import EngineSettings, Log
from vrepl.nfc import authd, frames
from vrepl.nfc.disk import NfcDisk
from vrepl.nfc.readback import Readback
from vrepl.nfc.session import Limits, Session
from vrepl.ports import (
    ControlDesk,
    DiskAddress,
    DiskRequest,
    NfcTicket,
    SiteConnection,
    TicketRequest,
    TicketSource,
)

NETWORK_MODES = (TransportMode.NBDSSL, TransportMode.NBD)
COMPRESSIONS = {"none": frames.STORED, "zlib": frames.ZLIB, "skipz": frames.SKIPZ}


class NfcEngine:
    """A `movers.engine.DiskEngine`."""

    def __init__(
        self, settings: EngineSettings, log: Log, tickets: TicketSource, desk: ControlDesk | None = None
    ) -> None:
        """`desk`: asked what is allocated where a host does not tell."""
        self._limits = Limits(
            min(settings.buffer_units * frames.CHUNK, frames.LARGEST_PIECE), max(settings.buffer_count, 1)
        )
        self._log = log
        self._tickets = tickets
        self._desk = desk
        self._readback = Readback(settings.readback)

    @property
    def about(self) -> dict[str, str | int]:
        return {"library": "vrepl's own NFC", "openssl": ssl.OPENSSL_VERSION}

    def open(self, address: DiskAddress, site: SiteConnection, *, writable: bool) -> NfcDisk:
        mode = address.modes[0]
        if mode not in NETWORK_MODES:
            raise TransportModeError(
                f"vrepl's own engine for NBD does not reach disks over {mode}",
                mode=str(mode),
                code=6,
                side="target" if writable else "source",
            )
        try:
            return NfcDisk(
                self._opener(address, site, mode),
                address.path,
                str(mode),
                writable=writable,
                readback=self._readback,
                compression=COMPRESSIONS[site.nfc_compression],
                tracked=self._tracked(address),
            )
        except DiskError as error:
            if len(address.modes) > 1 and type(error) is DiskError:
                raise TransportModeError(
                    f"{error.message}, over {mode}",
                    mode=str(mode),
                    code=error.code,
                    hint=error.hint,
                    side="target" if writable else "source",
                ) from error
            raise

    def prepare_for_access(self, site: SiteConnection, vm_ref: str, identity: str) -> None:
        """VDDK's: nobody asks it of this engine."""
        raise DiskError(f"a migration of {vm_ref} can only be blocked through VDDK", code=6)

    def end_access(self, site: SiteConnection, vm_ref: str, identity: str) -> None:
        """What a run with VDDK blocked, and left."""
        raise DiskError(
            f"migrations of {vm_ref} were blocked through VDDK by a run that ended early, and only VDDK can allow them",
            code=6,
            hint='run the job once with [vddk] engine = "vddk", or enable RelocateVM_Task of the VM in the vCenter\'s '
            "managed object browser",
        )

    def cleanup(self, site: SiteConnection, vm_ref: str) -> tuple[int, int]:
        """Nothing is ever attached."""
        return 0, 0

    def exit(self) -> None:
        """Sessions end with their disks."""

    def _tracked(self, address: DiskAddress) -> Allocation:
        if self._desk is None:
            return lambda: None
        request = DiskRequest(address.site, address.vm_ref, address.snapshot_ref, address.path, False)
        return tracked_allocation(self._desk, request, address.capacity, self._log)

    def _opener(self, address: DiskAddress, site: SiteConnection, mode: TransportMode) -> Callable[[bool], Session]:
        def open_session(writable: bool) -> Session:
            ticket = self._ticket(address, site, writable)
            channel = authd.connect(ticket, mode)
            try:
                return Session(channel, self._limits)
            except BaseException:
                channel.close()
                raise

        return open_session

    def _ticket(self, address: DiskAddress, site: SiteConnection, writable: bool) -> NfcTicket:
        try:
            return self._tickets(TicketRequest(address.site, address.vm_ref, address.path, writable))
        except DiskError:
            raise
        except VreplError as error:
            raise DiskError(f"no ticket for {address.path}: {error.message}", code=3014, hint=error.hint) from error


def start(settings: EngineSettings, log: Log, tickets: TicketSource, desk: ControlDesk | None = None) -> NfcEngine:
    """Nothing is loaded, and nothing can fail yet."""
    return NfcEngine(settings, log, tickets, desk)
