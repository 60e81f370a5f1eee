"""What a replica's failover is: its state as it is kept beside the replica, and what an operator may wish for."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from vrepl.model.replicas import ReplicaPlacement, ReplicaState

FAILOVER_BASE = "failover-base"
"""Name of the snapshot that a failed over replica stands on: what comes after it was done at the target."""
KEPT_STATE = "vrepl-undone"
"""Name of the snapshot that keeps what ran at the target when a failover with a deadline is undone."""


class FailbackPhase(StrEnum):
    """How far a failback has come, under the state `failing-back`."""

    PREPARING = "preparing"
    """The VM at home is made ready: it is off, and what it was can be had back."""
    COMPARING = "comparing"
    """What differs crosses, while the replica still runs."""
    SHUTTING_DOWN = "shutting-down"
    """The replica's guest."""
    CATCHING_UP = "catching-up"
    """What the replica wrote meanwhile crosses."""
    STARTING = "starting"
    """The VM at home is powered on."""
    HOME = "home"
    """It runs there, and can still be undone."""
    UNDOING = "undoing"
    COMMITTING = "committing"


@dataclass(frozen=True, slots=True)
class FailbackRecord:
    """One way home."""

    id: str
    """Marks what this failback makes: snapshot, VM, intents."""
    site: str
    instance_uuid: str
    """Of the VM that bytes go into."""
    phase: FailbackPhase = FailbackPhase.PREPARING
    made: bool = False
    """The VM is one that this failback makes, because the original is gone or another place was wanted."""
    crossing: int = 1
    """Number of the crossing that is under way or was the last one."""
    found_off: bool = False
    """The replica went off without vrepl's doing: power may have been lost, and what its tracking held in memory."""
    point_id: str = ""
    """Of the restore point that the replica's state before failback becomes by the commit."""
    point_time: dt.datetime | None = None

    @property
    def crossing_id(self) -> str:
        """Tells one crossing's intent from another's."""
        return f"{self.id}-{self.crossing}"


@dataclass(frozen=True, slots=True)
class FailoverRecord:
    """One replica's state, as it is kept at the replica and in the repository; of two, the higher epoch counts.

    It says enough for a failover when the source site, the repository and the configuration are gone.
    """

    repository_id: str
    source_site: str
    source_instance_uuid: str
    source_name: str
    replica_instance_uuid: str
    epoch: int = 0
    """Grows with every change of the record; a run that sees another one than it began with ends at once."""
    state: ReplicaState = ReplicaState.READY
    restore_point: str | None = None
    """ID of the one that was failed over to."""
    base_change_ids: Mapping[int, str | None] | None = None
    """By the replica's disk key: change IDs of the snapshot `failover-base`; None until vrepl has seen it."""
    planned: bool = False
    """vrepl saw the source shut down cleanly after its last change had crossed: its change tracking counts."""
    adopted: bool = False
    """Somebody powered the replica on by hand, and an operator called that the failover."""
    keep_state: bool = False
    """What ran at the target is kept as the snapshot `vrepl-undone` when this failover is undone."""
    deadline: dt.datetime | None = None
    """By the target's clock: undone by the next run after it, unless committed."""
    networks: Mapping[str, str] = field(default_factory=dict)
    """Network of the replica -> network that it is connected to while it is failed over."""
    introducing: tuple[int, ...] | None = None
    """Before its failover the guest runs once without networks, so that vCenter knows of its VMware Tools, or is about
    to: device keys of the adapters that are connected again afterwards."""
    introduced: bool = False
    """It has done so in this failover."""
    failback: FailbackRecord | None = None
    came_home_as: str | None = None
    """ID of the restore point that the commit of the last failback made: for whoever commits once more."""


@dataclass(frozen=True, slots=True)
class Start:
    """Make the replica run."""

    restore_point: str | None = None
    """ID; None: the newest."""
    as_of: dt.datetime | None = None
    """Instead of an ID: the newest whose source snapshot was taken no later (UTC-aware)."""
    planned: bool = False
    source_is_down: bool = False
    """The operator says so, although the source seems to run or cannot be seen."""
    adopt: bool = False
    """A replica that somebody powered on by hand counts as failed over."""
    deadline: dt.datetime | None = None
    networks: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Undo:
    """Make it the replica that it was: what ran at the target is lost, or kept as a snapshot."""

    keep_state: bool = False


@dataclass(frozen=True, slots=True)
class Commit:
    """Make it the VM: its restore points are merged, its job replicates it no longer."""


Wish = Start | Undo | Commit


@dataclass(frozen=True, slots=True)
class ElsewherePlace:
    """Where a new VM is made, if a failback does not go into the original."""

    name: str
    instance_uuid: str
    """That it gets."""
    placement: ReplicaPlacement


@dataclass(frozen=True, slots=True)
class StartFailback:
    """Bring home what runs at the target."""

    id: str
    """For a failback that is new."""
    site: str
    place: ElsewherePlace | None = None
    """None: into the original."""
    power_off: bool = False
    """A guest at the target that does not shut down in time is powered off."""


@dataclass(frozen=True, slots=True)
class UndoFailback:
    """Let the replica run again, and the original be what it was."""


@dataclass(frozen=True, slots=True)
class CommitFailback:
    """It stays at home; the job goes on as before."""

    point_id: str
    point_time: dt.datetime


FailbackWish = StartFailback | UndoFailback | CommitFailback
