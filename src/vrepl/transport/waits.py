"""What a transfer waited for, in seconds: the bottleneck is where most of its time went."""

from __future__ import annotations

import time


class Waits:
    """Seconds per stage: `source`, `network`, `target`; the `mover` took what no other stage did."""

    def __init__(self) -> None:
        self._seconds = {"source": 0.0, "network": 0.0, "target": 0.0}
        self._began = time.perf_counter()
        self._ended: float | None = None

    def start(self) -> None:
        self._began = time.perf_counter()

    def end(self) -> None:
        self._ended = time.perf_counter()

    def add(self, stage: str, seconds: float) -> None:
        if stage != "mover":
            self._seconds[stage] += seconds

    def move_share(self, share: float, giver: str, taker: str) -> None:
        """Of what was waited for `giver`, this share (0 to 1) was really spent in `taker`."""
        seconds = share * self._seconds[giver]
        self._seconds[giver] -= seconds
        self._seconds[taker] += seconds

    @property
    def elapsed(self) -> float:
        """Seconds since the start, or of the whole once it has ended."""
        return (self._ended or time.perf_counter()) - self._began

    def as_dict(self) -> dict[str, float]:
        mover = max(self.elapsed - sum(self._seconds.values()), 0.0)
        return {stage: round(seconds, 3) for stage, seconds in (*self._seconds.items(), ("mover", mover))}
