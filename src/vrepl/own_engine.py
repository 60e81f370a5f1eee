"""The engines of vrepl's own as one, by transport mode: HotAdd to block devices, the rest over the network.

One data mover then reaches one side's disk by HotAdd and the other's over NBD, as a proxy at one site does.
"""

from __future__ import annotations

from vrepl.blockdev.disk import BlockDisk
from vrepl.blockdev.engine import BlockEngine
from vrepl.model import TransportMode
from vrepl.movers.engine import EngineSettings, Log
from vrepl.nfc.disk import NfcDisk
from vrepl.nfc.engine import NfcEngine
from vrepl.ports import ControlDesk, DiskAddress, SiteConnection, TicketSource


class OwnEngine:
    """A `movers.engine.DiskEngine`."""

    def __init__(self, network: NfcEngine, block: BlockEngine) -> None:
        self._network = network
        self._block = block

    @property
    def about(self) -> dict[str, str | int]:
        return self._network.about | {"library": "vrepl's own NFC and HotAdd"}

    def open(self, address: DiskAddress, site: SiteConnection, *, writable: bool) -> NfcDisk | BlockDisk:
        if address.modes[0] is TransportMode.HOTADD:
            return self._block.open(address, site, writable=writable)
        return self._network.open(address, site, writable=writable)

    def prepare_for_access(self, site: SiteConnection, vm_ref: str, identity: str) -> None:
        self._network.prepare_for_access(site, vm_ref, identity)

    def end_access(self, site: SiteConnection, vm_ref: str, identity: str) -> None:
        self._network.end_access(site, vm_ref, identity)

    def cleanup(self, site: SiteConnection, vm_ref: str) -> tuple[int, int]:
        return self._block.cleanup(site, vm_ref)

    def exit(self) -> None:
        self._network.exit()
        self._block.exit()


def start(settings: EngineSettings, log: Log, tickets: TicketSource, desk: ControlDesk) -> OwnEngine:
    """Nothing is loaded, and nothing can fail yet."""
    return OwnEngine(NfcEngine(settings, log, tickets, desk), BlockEngine(settings, log, desk))
