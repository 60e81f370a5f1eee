"""A head start for those whose power-ons come first."""

from __future__ import annotations

import threading
from collections.abc import Iterable

LONGEST = 2.0
"""Seconds: whoever is first may have to wait for a run that ends, or for a source that is lost."""


class HeadStart:
    """The first ones get as far as the target's own work before the others begin.

    Where all begin at once, their many small questions go by turns, and the first power-on comes as late as the last.
    """

    def __init__(self, first: Iterable[str]) -> None:
        """`first`: by any name that `gone` is told."""
        self._first = set(first)
        self._lock = threading.Lock()
        self._all_gone = threading.Event()

    def gone(self, one: str) -> None:
        """It has done what it had to ask, or has ended; again is fine."""
        with self._lock:
            self._first.discard(one)
            if not self._first:
                self._all_gone.set()

    def wait(self, one: str) -> None:
        """Those that are not among the first: for these, LONGEST seconds at the most."""
        with self._lock:
            goes = one in self._first or not self._first
        if not goes:
            self._all_gone.wait(LONGEST)
