"""`ports.DataMovers` over child processes that hold VDDK. Movers stay warm between disks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vrepl.errors import InterruptedRunError, NfcMemoryError
from vrepl.ports import (
    DiskAddress,
    SiteConnection,
    TransferOrder,
    TransferProgress,
    TransferResult,
    VerifyOrder,
    VerifyResult,
)
from vrepl.vddk import messages
from vrepl.vddk.messages import Json
from vrepl.vddk.process import MoverProcess, MoverSettings, Spawner

logger = logging.getLogger("vrepl.mover")


class VddkMovers:
    """Each running call has a mover of its own; idle ones are kept and taken again by what they were started with."""

    def __init__(
        self,
        connections: Callable[[str], SiteConnection],
        settings: Callable[[str], MoverSettings],
    ) -> None:
        """`connections` and `settings` by site name; asked at each call, from its thread."""
        self._connections = connections
        self._settings = settings
        self._spawner = Spawner()
        self._lock = threading.Lock()
        self._idle: list[MoverProcess] = []
        self._busy: set[MoverProcess] = set()
        self._smaller: dict[str, MoverSettings] = {}
        self._stopped = False

    def transfer(self, order: TransferOrder, progress: Callable[[TransferProgress], None]) -> TransferResult:
        """As `ports.DataMovers.transfer`."""
        reply = self._request_with_smaller_buffers(
            order.target.site,
            "transfer",
            (order.source, order.target),
            progress,
            order=messages.order_to_json(order),
        )
        return messages.result_from_json(reply)

    def verify(self, order: VerifyOrder, progress: Callable[[TransferProgress], None]) -> VerifyResult:
        """As `ports.DataMovers.verify`."""
        reply = self._request_with_smaller_buffers(
            order.disk.site, "verify", (order.disk,), progress, order=messages.verify_order_to_json(order)
        )
        return messages.verify_result_from_json(reply)

    def probe(self, address: DiskAddress, offsets: tuple[int, ...] = (0,)) -> Json:
        """`{"mode", "capacity", "uuid", "samples": {offset: digest of up to 4 KiB}}`; opens the disk for reading."""
        reply: Json = self._request_with_smaller_buffers(
            address.site,
            "probe",
            (address,),
            None,
            address=messages.address_to_json(address),
            offsets=list(offsets),
        )
        return reply

    def prepare_for_access(self, site: str, vm_ref: str, identity: str) -> None:
        """As `ports.DataMovers.prepare_for_access`."""
        self._request(self._settings(site), "prepare_for_access", [site], None, vm_ref=vm_ref, identity=identity)

    def end_access(self, site: str, vm_ref: str, identity: str) -> None:
        """As `ports.DataMovers.end_access`; works after `stop` too, for it undoes."""
        self._undo(site, "end_access", vm_ref=vm_ref, identity=identity)

    def cleanup(self, site: str, vm_ref: str) -> None:
        """As `ports.DataMovers.cleanup`; works after `stop` too, for it undoes."""
        self._undo(site, "cleanup", vm_ref=vm_ref)

    def stop(self) -> None:
        """Running calls end soon with InterruptedRunError, later ones at once."""
        with self._lock:
            self._stopped = True
            busy = list(self._busy)
        for mover in busy:
            mover.stop()

    def close(self) -> None:
        """End every mover. Idempotent."""
        with self._lock:
            self._stopped = True
            idle, self._idle = self._idle, []
        for mover in idle:
            mover.close()
        self._spawner.end()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _request_with_smaller_buffers(
        self,
        site: str,
        operation: str,
        addresses: tuple[DiskAddress, ...],
        progress: Callable[[TransferProgress], None] | None,
        **arguments: Any,
    ) -> Any:
        """As `_request`; where a host has too little NFC memory to *open* a disk, with ever smaller buffers.

        Once bytes have moved, the error is the caller's: only it knows what must be written again.
        """
        settings = self._smaller.get(site) or self._settings(site)
        moved = False

        def watch(figures: TransferProgress) -> None:
            nonlocal moved
            moved = True
            if progress is not None:
                progress(figures)

        while True:
            try:
                return self._request(settings, operation, [address.site for address in addresses], watch, **arguments)
            except NfcMemoryError:
                smaller = settings.smaller()
                if smaller is None:
                    raise
                logger.warning(
                    "%s: NFC memory is short; going on with buffers of %.2f MiB a disk instead of %.2f",
                    site, smaller.nfc_mib, settings.nfc_mib,
                )  # fmt: skip
                settings = self._smaller[site] = smaller
                if moved:
                    raise

    def _request(
        self,
        settings: MoverSettings,
        operation: str,
        sites: list[str],
        progress: Callable[[TransferProgress], None] | None,
        **arguments: Any,
    ) -> Any:
        report: Callable[[Json], None] | None = None
        if progress is not None:

            def report(value: Json) -> None:
                progress(messages.progress_from_json(value))

        with self._mover(settings) as mover:
            return mover.request(operation, report, sites=self._sites(sites), **arguments)

    def _undo(self, site: str, operation: str, **arguments: Any) -> None:
        """What gives things back must be done whether or not the run was stopped: then by a mover of its own."""
        settings = self._settings(site)
        if not self._stopped:
            try:
                self._request(settings, operation, [site], None, **arguments)
            except InterruptedRunError:
                pass  # stopped just now
            else:
                return
        mover = MoverProcess(settings, self._spawner)
        try:
            mover.request(operation, None, sites=self._sites([site]), **arguments)
        finally:
            mover.close()

    def _sites(self, names: list[str]) -> Mapping[str, Json]:
        return {name: messages.site_to_json(self._connections(name)) for name in names}

    @contextmanager
    def _mover(self, settings: MoverSettings) -> Iterator[MoverProcess]:
        """An idle mover with these settings, or a new one; kept afterwards if it still lives."""
        mover = self._take(settings)
        try:
            yield mover
        finally:
            with self._lock:
                self._busy.discard(mover)
                keep = mover.alive and not self._stopped
                if keep:
                    self._idle.append(mover)
            if not keep:
                mover.close()

    def _take(self, settings: MoverSettings) -> MoverProcess:
        with self._lock:
            if self._stopped:
                raise InterruptedRunError("stopped")
            for mover in self._idle:
                if mover.settings == settings and mover.alive:
                    self._idle.remove(mover)
                    self._busy.add(mover)
                    return mover
        mover = MoverProcess(settings, self._spawner)
        with self._lock:
            if not self._stopped:
                self._busy.add(mover)
                return mover
        mover.close()
        raise InterruptedRunError("stopped")
