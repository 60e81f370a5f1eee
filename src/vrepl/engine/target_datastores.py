"""The target's datastores, read once for many VMs of a run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from vrepl.model import Datastore
from vrepl.ports import Inventory

FACTS_KEPT = 30.0
"""Seconds that what was read is still told; who counts on free bytes asks the gate, which keeps promises too."""


class TargetDatastores:
    """Thread-safe; whoever asks while another reads waits for that answer."""

    def __init__(self, target: Inventory, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._target = target
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._stores: Sequence[Datastore] | None = None
        self._read = 0.0

    def known(self) -> Sequence[Datastore]:
        """As they were at most FACTS_KEPT seconds ago."""
        with self._lock:
            if self._stores is None or self._monotonic() - self._read > FACTS_KEPT:
                return self._read_now()
            return self._stores

    def now(self) -> Sequence[Datastore]:
        """Read afresh."""
        with self._lock:
            return self._read_now()

    def _read_now(self) -> Sequence[Datastore]:
        began = self._monotonic()
        self._stores = self._target.datastores()
        self._read = began
        return self._stores
