"""Data movers in this very process: the one pipeline over whatever disks an opener gives.

The engine's property tests run on it with memory disks. `hook` lets a test interfere at every point of a transfer; when
it raises SimulatedKill, nothing more is written, flushed, recorded or closed, and the target's unflushed writes are
lost as its `abandon` says.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from vrepl.errors import InterruptedRunError
from vrepl.ports import (
    DigestFiles,
    DigestLookup,
    TransferLog,
    TransferOrder,
    TransferProgress,
    TransferResult,
    VerifyOrder,
    VerifyResult,
)
from vrepl.transport.hooks import Hook, Point, no_hook
from vrepl.transport.pipeline import Pipeline
from vrepl.transport.transfer import Opener, Records, perform_transfer, perform_verify
from vrepl.transport.tuning import SINGLE_THREADED, Tuning

OrderHook = Callable[[TransferOrder | VerifyOrder, Point, int], None]


class LocalMovers:
    """`ports.DataMovers` by threads of this process; by default single-threaded and deterministic per call."""

    def __init__(
        self,
        opener: Opener,
        open_lookup: Callable[[DigestFiles, int], DigestLookup],
        open_log: Callable[[TransferOrder], TransferLog],
        *,
        tuning: Tuning = SINGLE_THREADED,
        hook: OrderHook | None = None,
    ) -> None:
        self._opener = opener
        self._records = Records(open_lookup, open_log)
        self._tuning = tuning
        self.hook = hook
        self._lock = threading.Lock()
        self._running: set[Pipeline] = set()
        self._stopped = False

    def transfer(self, order: TransferOrder, progress: Callable[[TransferProgress], None]) -> TransferResult:
        """As `ports.DataMovers.transfer`."""
        return perform_transfer(
            order, self._opener, self._records, tuning=self._tuning, progress=progress,
            hook=self._hook_of(order), running=self._enter,
        )  # fmt: skip

    def verify(self, order: VerifyOrder, progress: Callable[[TransferProgress], None]) -> VerifyResult:
        """As `ports.DataMovers.verify`."""
        return perform_verify(
            order, self._opener, self._records, tuning=self._tuning, progress=progress,
            hook=self._hook_of(order), running=self._enter,
        )  # fmt: skip

    def guards_access(self, site: str) -> bool:
        """As VDDK does."""
        return True

    def prepare_for_access(self, site: str, vm_ref: str, identity: str) -> None:
        """Nothing relocates VMs here."""

    def end_access(self, site: str, vm_ref: str, identity: str) -> None:
        """Nothing relocates VMs here."""

    def cleanup(self, site: str, vm_ref: str, proxy: str | None = None) -> int:
        """Nothing is hot-added here."""
        return 0

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
