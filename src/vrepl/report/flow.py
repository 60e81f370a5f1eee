"""Where a run stands: which VM is in which step, and how far its bytes are, of those that will move."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from vrepl.ports import TransferProgress
from vrepl.report import format as words

Disk = tuple[str, int]


@dataclass(slots=True)
class Transfer:
    """A disk's; times by the clock of the Flow."""

    kind: str
    started: float
    told: float
    progress: TransferProgress = field(default_factory=TransferProgress)


@dataclass(frozen=True, slots=True)
class Figures:
    """Bytes that will move (an upper bound until the allocated blocks are known), those settled, and seconds so far."""

    planned: int
    settled: int
    seconds: float

    @property
    def left(self) -> float | None:
        """Seconds that the rest takes at the rate so far; None while there is none."""
        if not self.settled or self.seconds <= 0:
            return None
        return max(0, self.planned - self.settled) * self.seconds / self.settled

    def __str__(self) -> str:
        share = f" ({100 * self.settled // self.planned} %)" if self.planned else ""
        return f"{words.size(self.settled)} of {words.size(self.planned)}{share}{self._pace()}"

    def beside_a_bar(self) -> str:
        """Without what a bar shows, and a unit that is said twice: 80 columns are not many."""
        settled, planned = words.size(self.settled), words.size(self.planned)
        if settled.partition(" ")[2] == planned.partition(" ")[2]:
            settled = settled.partition(" ")[0]
        return f"{settled} of {planned}{self._pace()}"

    def _pace(self) -> str:
        text = ""
        if self.settled and self.seconds > 0:
            text += f", {words.rate(self.settled, self.seconds)}"
        if self.left is not None and self.settled < self.planned:
            text += f", {words.duration(self.left)} left"
        return text


class Flow:
    """Thread-safe. `clock`: seconds, monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._lock = threading.Lock()
        self._steps: dict[str, str] = {}
        self._transfers: dict[Disk, Transfer] = {}
        self._done = (0, 0)
        """Planned and settled of disks of VMs that have finished."""
        self._first: float | None = None

    def step(self, vm: str, step: str) -> bool:
        """Whether this is the VM's first."""
        with self._lock:
            new = vm not in self._steps
            self._steps[vm] = step
            return new

    def disk_started(self, vm: str, index: int, kind: str) -> None:
        now = self.clock()
        with self._lock:
            self._transfers[vm, index] = Transfer(kind, now, now)
            self._first = now if self._first is None else self._first

    def disk_progress(self, vm: str, index: int, progress: TransferProgress, every: float = 0.0) -> Figures | None:
        """The disk's figures, if it has none told for `every` seconds."""
        now = self.clock()
        with self._lock:
            transfer = self._transfers.get((vm, index))
            if transfer is None:
                return None
            transfer.progress = progress
            if now - transfer.told < every:
                return None
            transfer.told = now
            return Figures(progress.planned, progress.settled, now - transfer.started)

    def finished(self, vm: str) -> None:
        with self._lock:
            self._steps.pop(vm, None)
            for key in [key for key in self._transfers if key[0] == vm]:
                progress = self._transfers.pop(key).progress
                self._done = (self._done[0] + progress.planned, self._done[1] + progress.settled)

    def total(self) -> Figures:
        """Of all disks that were begun, the finished ones included."""
        now = self.clock()
        with self._lock:
            planned, settled = self._done
            for transfer in self._transfers.values():
                planned += transfer.progress.planned
                settled += transfer.progress.settled
            return Figures(planned, settled, 0.0 if self._first is None else now - self._first)

    def lines(self) -> list[str]:
        """Everything that goes on, for who asks."""
        now = self.clock()
        with self._lock:
            steps, transfers = dict(self._steps), dict(self._transfers)
        said = []
        for vm, step in steps.items():
            said.append(f"{vm}: {step}")
            for (name, index), transfer in transfers.items():
                if name == vm:
                    figures = Figures(transfer.progress.planned, transfer.progress.settled, now - transfer.started)
                    said.append(f"{vm} disk {index} {transfer.kind}: {figures}")
        total = self.total()
        if total.planned:
            said.append(f"in all: {total}")
        return said or ["nothing moves at the moment"]
