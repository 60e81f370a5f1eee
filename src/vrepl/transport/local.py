"""Data movers in this very process: the one pipeline over whatever disks an opener gives.

The engine's property tests run on it with memory disks. `hook` lets a test interfere at every point of a transfer; when
it raises SimulatedKill, nothing more is written, flushed, recorded or closed, and the target's unflushed writes are
lost as its `abandon` says.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from vrepl.errors import InterruptedRunError
from vrepl.ports import (
    DigestFiles,
    DigestLookup,
    DiskAddress,
    TransferLog,
    TransferOrder,
    TransferProgress,
    TransferResult,
    VerifyOrder,
    VerifyResult,
)
from vrepl.transport.disk import DiskReader, DiskWriter
from vrepl.transport.faults import Hook, Point, SimulatedKill, no_hook
from vrepl.transport.pipeline import SINGLE_THREADED, Pipeline, Tuning
from vrepl.transport.transfer import copy_disk, verify_disk


class Opener(Protocol):
    """Opens disks; raises DiskError."""

    def open_reader(self, address: DiskAddress) -> DiskReader: ...

    def open_writer(self, address: DiskAddress) -> DiskWriter: ...


OpenLookup = Callable[[DigestFiles, int], DigestLookup]
OpenLog = Callable[[TransferOrder], TransferLog]
OrderHook = Callable[[TransferOrder | VerifyOrder, Point, int], None]


class LocalMovers:
    """`ports.DataMovers` by threads of this process; by default single-threaded and deterministic per call."""

    def __init__(
        self,
        opener: Opener,
        open_lookup: OpenLookup,
        open_log: OpenLog,
        *,
        tuning: Tuning = SINGLE_THREADED,
        hook: OrderHook | None = None,
    ) -> None:
        self._opener = opener
        self._open_lookup = open_lookup
        self._open_log = open_log
        self._tuning = tuning
        self.hook = hook
        self._lock = threading.Lock()
        self._running: set[Pipeline] = set()
        self._stopped = False

    def transfer(self, order: TransferOrder, progress: Callable[[TransferProgress], None]) -> TransferResult:
        """As `ports.DataMovers.transfer`."""
        began = time.monotonic()
        source = self._opener.open_reader(order.source)
        try:
            target = self._opener.open_writer(order.target)
            try:
                lookup = self._open_lookup(order.parent, order.target.capacity)
                log = self._open_log(order)
                try:
                    pipeline = copy_disk(
                        order,
                        source,
                        target,
                        lookup,
                        log,
                        tuning=self._tuning,
                        progress=progress,
                        hook=self._hook_of(order),
                        running=self._enter,
                    )
                finally:
                    log.close()
            except SimulatedKill:
                abandon = getattr(target, "abandon", None)
                if abandon is not None:
                    abandon()
                raise
            except BaseException:
                target.close()
                raise
            target.close()
        finally:
            source.close()
        return TransferResult(
            bytes_read=pipeline.totals.read,
            bytes_moved=pipeline.totals.moved,
            bytes_skipped=pipeline.totals.skipped,
            source_mode=source.mode,
            target_mode=target.mode,
            seconds=time.monotonic() - began,
            waits=pipeline.waits.as_dict(),
        )

    def verify(self, order: VerifyOrder, progress: Callable[[TransferProgress], None]) -> VerifyResult:
        """As `ports.DataMovers.verify`."""
        began = time.monotonic()
        disk = self._opener.open_reader(order.disk)
        try:
            lookup = self._open_lookup(order.digests, order.disk.capacity)
            pipeline, bad = verify_disk(
                disk,
                lookup,
                tuning=self._tuning,
                progress=progress,
                hook=self._hook_of(order),
                running=self._enter,
            )
        finally:
            disk.close()
        return VerifyResult(pipeline.totals.read, bad, disk.mode, time.monotonic() - began)

    def prepare_for_access(self, site: str, vm_ref: str, identity: str) -> None:
        """Nothing relocates VMs here."""

    def end_access(self, site: str, vm_ref: str, identity: str) -> None:
        """Nothing relocates VMs here."""

    def cleanup(self, site: str, vm_ref: str) -> None:
        """Nothing is hot-added here."""

    def stop(self) -> None:
        """Running and later calls raise InterruptedRunError."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for pipeline in running:
            pipeline.stop()

    def close(self) -> None:
        """Idempotent."""

    def _enter(self, pipeline: Pipeline, running: bool) -> None:
        with self._lock:
            if running and self._stopped:
                raise InterruptedRunError("stopped")
            (self._running.add if running else self._running.discard)(pipeline)

    def _hook_of(self, order: TransferOrder | VerifyOrder) -> Hook:
        hook = self.hook
        if hook is None:
            return no_hook
        return lambda point, settled: hook(order, point, settled)
