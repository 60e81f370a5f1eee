"""A token bucket: bytes may pass at a rate that can change at any time, from any thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

BURST_SECONDS = 0.1
"""What may pass at once after a pause."""
LEAST_BURST = 1024 * 1024
"""Bytes: one buffer must always be able to pass."""


class Throttle:
    """`take` sleeps until `rate` (bytes per second, 0: no limit) lets its bytes pass."""

    def __init__(self, rate: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._rate = rate
        self._tokens = 0.0
        self._at = clock()
        self._open = False

    @property
    def rate(self) -> int:
        """Bytes per second; 0: no limit."""
        return self._rate

    def set_rate(self, rate: int) -> None:
        """Takes effect at once, for those who wait too."""
        with self._changed:
            self._refill()
            self._rate = rate
            self._changed.notify_all()

    def open(self) -> None:
        """Let everything pass from now on: what waits must end."""
        with self._changed:
            self._open = True
            self._changed.notify_all()

    @property
    def ready(self) -> bool:
        """Whether `take` would not wait now."""
        with self._changed:
            self._refill()
            return self._open or self._rate <= 0 or self._tokens > 0

    def take(self, length: int) -> None:
        """Take `length` bytes. The balance may become negative: whoever comes next waits for it."""
        if self._rate <= 0:  # no limit: not worth a lock
            return
        with self._changed:
            while True:
                self._refill()
                if self._open or self._rate <= 0 or self._tokens > 0:
                    break
                self._changed.wait(min(-self._tokens / self._rate + 0.0005, 60.0))
            if self._rate > 0:
                self._tokens -= length

    def _refill(self) -> None:
        now = self._clock()
        if self._rate > 0:
            burst = max(self._rate * BURST_SECONDS, LEAST_BURST)
            self._tokens = min(self._tokens + (now - self._at) * self._rate, burst)
        else:
            self._tokens = 0.0
        self._at = now
