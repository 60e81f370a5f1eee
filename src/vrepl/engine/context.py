"""What a command has at hand: services, which every command has, and the sides that it really needs.

Only a replication has a source, a job and a run. A verification and a failover must work with the source dead.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from vrepl.engine.events import EngineEvents, SilentEvents
from vrepl.engine.gate import Gate
from vrepl.engine.target_datastores import TargetDatastores
from vrepl.errors import VreplError, stopped_on_request
from vrepl.model import DEFAULT_MODES, JobSettings, TransportMode
from vrepl.ports import (
    Clock,
    DataMovers,
    Inventory,
    ModeChooser,
    NewId,
    Site,
    SourceSite,
    TargetSite,
)
from vrepl.ports.failover import FailoverTarget
from vrepl.ports.guests import NoScripts, ScriptHost
from vrepl.repository.store import Repository

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the engine tries again what may pass: seconds before each further try."""

    waits: tuple[float, ...] = (1, 2, 5, 10, 20, 30)
    access: float = 600
    """Seconds that a VM is waited for which another product keeps from being moved, as VMware's sample waits."""
    access_pause: float = 10
    """Seconds between two tries of that."""


@dataclass(slots=True, kw_only=True)
class Surroundings:
    """What every command has, even one that has nothing but the replicas' site."""

    clock: Clock
    new_id: NewId
    events: EngineEvents = field(default_factory=SilentEvents)
    stop: threading.Event = field(default_factory=threading.Event)
    patience: Patience = field(default_factory=Patience)

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


@dataclass(slots=True, kw_only=True)
class Services(Surroundings):
    """What every command has that knows of replicas by a repository, and moves or reads their disks."""

    repository: Repository
    movers: DataMovers
    modes: ModeChooser
    scripts: ScriptHost = field(default_factory=NoScripts)


@dataclass(frozen=True, slots=True)
class ReplicationContext:
    """One run of one job."""

    services: Services
    source: SourceSite
    target: TargetSite
    job: JobSettings
    run_id: str
    gate: Gate
    """Which disk may be in transfer now, and which VM may have a snapshot open."""
    datastores: TargetDatastores


@dataclass(frozen=True, slots=True)
class VerificationContext:
    """Reading restore points back: the replicas' site alone."""

    services: Services
    target: Inventory
    modes: tuple[TransportMode, ...]
    """What may be used to read the replica's disks, in order."""
    gate: Gate


@dataclass(frozen=True, slots=True)
class FailoverContext:
    """Bringing replicas into service, at the site that is left."""

    services: Surroundings
    target: FailoverTarget


@dataclass(frozen=True, slots=True)
class FailbackContext:
    """Bringing home what ran at the replicas' site: both sites live again."""

    services: Services
    target: Site
    """The replicas' site, which is read."""
    home: Site
    """Where the originals are, which is written."""
    gate: Gate
    target_modes: tuple[TransportMode, ...] = DEFAULT_MODES
    home_modes: tuple[TransportMode, ...] = DEFAULT_MODES
    fallback: bool = True


def timestamped_id(moment: dt.datetime, unique: str) -> str:
    """`YYYYMMDDTHHMMSSZ-xxxxxx`: sorts by time, and two in one second still differ."""
    return f"{moment.astimezone(dt.UTC):%Y%m%dT%H%M%SZ}-{unique[:6]}"
