"""What one run of one job has at hand, passed to everything that works for it."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from vrepl.engine.events import EngineEvents
from vrepl.engine.gate import Gate
from vrepl.errors import VreplError, stopped_on_request
from vrepl.model import JobSettings
from vrepl.ports import Clock, DataMovers, NewId, Site, TransportAdvisor
from vrepl.repository.store import Repository

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the engine tries again what may pass: seconds before each further try."""

    waits: tuple[float, ...] = (1, 2, 5, 10, 20, 30)


@dataclass(frozen=True, slots=True)
class RunContext:
    repository: Repository
    source: Site
    target: Site
    movers: DataMovers
    transports: TransportAdvisor
    job: JobSettings
    run_id: str
    clock: Clock
    new_id: NewId
    events: EngineEvents
    stop: threading.Event
    gate: Gate
    """Which disk may be in transfer now, and which VM may have a snapshot open."""
    patience: Patience = Patience()

    def check_stop(self) -> None:
        """Raises InterruptedRunError once the operator asked to stop."""
        if self.stop.is_set():
            raise stopped_on_request()

    def wait(self, seconds: float) -> None:
        """Sleep, but wake and raise InterruptedRunError when asked to stop."""
        self.stop.wait(seconds)
        self.check_stop()

    def patiently(self, vm: str, what: str, action: Callable[[], Result], *, even_when_stopped: bool = False) -> Result:
        """Run `action`; what is retryable is tried again with growing waits, and said.

        `even_when_stopped` is for clean-up: it neither gives up nor raises because of a stop.
        """
        for seconds in self.patience.waits:
            try:
                return action()
            except VreplError as error:
                if not error.retryable:
                    raise
                self.events.note(vm, f"{what}: {error.message}; trying again in {seconds:g} s")
            if even_when_stopped:
                threading.Event().wait(seconds)
            else:
                self.wait(seconds)
        return action()


def timestamped_id(moment: dt.datetime, unique: str) -> str:
    """`YYYYMMDDTHHMMSSZ-xxxxxx`: sorts by time, and two in one second still differ."""
    return f"{moment.astimezone(dt.UTC):%Y%m%dT%H%M%SZ}-{unique[:6]}"
