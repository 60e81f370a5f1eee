"""Who hashes a buffer that has arrived: the pipeline's own thread, or one that helps when that is busy.

Where disks are fast, hashing takes as long as moving. A helper is woken only while the pipeline's thread is hashing
already and falls behind, and each takes the next buffer that waits: so a transfer that waits for its disks pays nothing
for it, and two share the work where the disks are faster than one processor hashes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

from vrepl.errors import MoverError
from vrepl.transport.slots import Slot

BEHIND = 2
"""Buffers that wait while one is being hashed. One is what the disks bring in meanwhile: a helper that is woken for it
takes a processor from the disks' own threads, and on two processors a copy without delays takes a tenth longer."""


class Hashing:
    """Buffers that wait to be hashed, first come first served. `arrived` and `take` from any thread."""

    def __init__(self, helpers: int, hashed: Callable[[Slot], None]) -> None:
        """`helpers` threads may help; they call `hashed` for what they took, with `error` set if they could not."""
        self._hashed = hashed
        self._waiting: deque[Slot] = deque()
        self._helped: set[Slot] = set()
        self._busy = False
        self._wake: SimpleQueue[bool] = SimpleQueue()
        """True: look whether something waits; False: one helper ends."""
        self._helpers = [
            threading.Thread(target=self._help, name=f"hasher-{number}", daemon=True) for number in range(helpers)
        ]

    def start(self) -> None:
        for helper in self._helpers:
            helper.start()

    def end(self) -> None:
        """Waits for the helpers."""
        for _ in self._helpers:
            self._wake.put(False)
        for helper in self._helpers:
            helper.join()

    def arrived(self, slot: Slot) -> None:
        """It wants hashing: by the owner, who calls `take` once for each that has arrived, or by a helper."""
        self._waiting.append(slot)
        if self._busy:
            self._wake_helper()

    @property
    def held(self) -> int:
        """Buffers that nobody has taken yet, and those that helpers are hashing."""
        return len(self._waiting) + len(self._helped)

    def take(self) -> Slot | None:
        """The next one, to be hashed by whoever asks; None where somebody else has taken it."""
        try:
            return self._waiting.popleft()  # atomic
        except IndexError:
            return None

    def hash(self, slot: Slot) -> None:
        """The owner's part."""
        self._busy = True
        self._wake_helper()
        try:
            slot.hash()
        finally:
            self._busy = False

    def _wake_helper(self) -> None:
        if self._helpers and len(self._waiting) >= BEHIND:
            self._wake.put(True)

    def _help(self) -> None:
        """A helper's thread."""
        while self._wake.get():
            while (slot := self.take()) is not None:
                self._helped.add(slot)
                try:
                    slot.hash()
                except Exception as error:  # a mistake in vrepl: whoever waits for the buffer must be told
                    slot.error = MoverError(f"{type(error).__name__}: {error}")
                self._helped.discard(slot)
                self._hashed(slot)
