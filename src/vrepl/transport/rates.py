"""One bandwidth limit, shared by all transfers of a run, while they come, go, and use more or less of it."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from vrepl.errors import VreplError
from vrepl.model import Bandwidth

REVIEW_SECONDS = 1.0
HEADROOM = 1.25
"""What a transfer that uses less than its share is offered of its last usage, so that it can grow."""
LEAST_SHARE = 0.05
"""Of an equal share: nobody is starved while its usage is measured."""


def tightest(limits: Iterable[Bandwidth], moment: dt.time) -> int | None:
    """Bytes/s that are within every one of the limits at a local time of day; None where none limits."""
    rates = [rate for rate in (limit.rate_at(moment) for limit in limits) if rate is not None]
    return min(rates, default=None)


def share(total: int, usages: Sequence[float | None]) -> list[int]:
    """Divide `total` bytes/s among transfers by what each used lately (bytes/s; None: it is new).

    Max-min fairness: nobody is offered much more than it can use, and what is left goes to the others in equal parts.
    The shares add up to `total`, or to a little more for the least shares.
    """
    if not usages:
        return []
    equal = total / len(usages)
    wanted = [total if usage is None else max(usage * HEADROOM, equal * LEAST_SHARE) for usage in usages]
    shares = [0.0] * len(usages)
    left, open_for = float(total), sorted(range(len(usages)), key=wanted.__getitem__)
    while open_for:
        part = left / len(open_for)
        first = open_for.pop(0)
        shares[first] = min(wanted[first], part) if open_for else left
        left -= shares[first]
    return [max(int(value), 1) for value in shares]


class Transfer:
    """One running transfer's part in a limit."""

    def __init__(self, set_rate: Callable[[int], None]) -> None:
        self._set_rate = set_rate
        self._given = -1
        self._moved = 0
        self._seen = 0
        self._seen_at: float | None = None

    def moved(self, total: int) -> None:
        """So many bytes have moved since the transfer began."""
        self._moved = total

    def usage(self, now: float) -> float | None:
        """Bytes/s since the last time this was asked; None the first time."""
        before, self._seen_at = self._seen_at, now
        used, self._seen = self._moved - self._seen, self._moved
        if before is None or now - before < REVIEW_SECONDS / 2:
            return None
        return used / (now - before)

    def give(self, rate: int) -> None:
        """Bytes/s, 0: no limit."""
        if rate != self._given:
            self._given = rate
            with suppress(VreplError):  # it has just ended
                self._set_rate(rate)


class SharedRate:
    """Hands out a limit that may change at any time (time windows, the operator)."""

    def __init__(self, limit: Callable[[], int | None], clock: Callable[[], float] = time.monotonic) -> None:
        """`limit`: bytes/s for all together at this moment, None for no limit; asked about once a second."""
        self._limit = limit
        self._clock = clock
        self._lock = threading.Lock()
        self._transfers: list[Transfer] = []
        self._changed = threading.Event()
        self._ended = False
        self._thread: threading.Thread | None = None

    @contextmanager
    def transfer(self, set_rate: Callable[[int], None]) -> Iterator[Transfer]:
        """Take part while the block runs; `set_rate` (bytes/s, 0: no limit) is called from several threads."""
        joined = Transfer(set_rate)
        with self._lock:
            self._transfers.append(joined)
            if self._thread is None and not self._ended:
                self._thread = threading.Thread(target=self._review_loop, name="bandwidth", daemon=True)
                self._thread.start()
        self.review(equally=True)
        try:
            yield joined
        finally:
            with self._lock:
                self._transfers.remove(joined)
            self.review(equally=True)

    def review(self, *, equally: bool = False) -> None:
        """Hand out anew: by usage, or `equally` after somebody came or went."""
        limit = self._limit()
        with self._lock:
            now = self._clock()
            usages = [transfer.usage(now) for transfer in self._transfers]
            if limit is None:
                given = [0] * len(usages)
            else:
                given = share(max(limit, 1), [None] * len(usages) if equally else usages)
            for transfer, rate in zip(self._transfers, given, strict=True):
                transfer.give(rate)

    def end(self) -> None:
        """No more reviews. Idempotent."""
        self._ended = True
        self._changed.set()
        if self._thread is not None:
            self._thread.join()

    def _review_loop(self) -> None:
        while not self._changed.wait(REVIEW_SECONDS):
            self.review()
