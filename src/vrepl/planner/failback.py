"""What comes next in a failback: decide, save, do, as in `planner.failover`. Pure.

The way home has two crossings: one while the replica still runs, which finds what differs, however long that takes; one
after its guest was shut down, of what it wrote meanwhile. So downtime follows the last delta. Until the commit the VM
at home has a snapshot of what it was; from the first crossing on that snapshot is the only thing which still says so.

Both never run at once: the VM at home is powered on only after the replica is off, and the replica, when the failback
is undone, only after the VM at home is off.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vrepl.model import PowerState, ReplicaState, Snapshot, VirtualMachine
from vrepl.model.failover import (
    CommitFailback,
    FailbackPhase,
    FailbackRecord,
    FailbackWish,
    FailoverRecord,
    StartFailback,
    UndoFailback,
)
from vrepl.planner.conflicts import ConflictKind, FailoverConflict, changed, under_way
from vrepl.planner.failover import Done, SeenReplica


@dataclass(frozen=True, slots=True)
class SeenFailback:
    """What both sites show now."""

    replica: SeenReplica
    original: VirtualMachine | None
    """The VM that bytes go into, or would; None where it is not there (any more, or yet)."""
    undo: Snapshot | None = None
    """Of this failback: what the original was before."""
    crossed: str = ""
    """ID of the crossing that ended last (`FailbackRecord.crossing_id`); "" where nobody knows."""
    sealed: bool = False
    """The restore point of the commit is there."""
    shut_down: bool = False
    """This process has seen the replica go off by its own doing, and not run since."""
    differs: str = ""
    """Why the disks of the two VMs do not fit one another, in words."""

    @property
    def replica_runs(self) -> bool:
        return self.replica.vm.power is not PowerState.OFF

    @property
    def original_runs(self) -> bool:
        return self.original is not None and self.original.power is not PowerState.OFF


# -- acts: each may be done again -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MakeOriginal:
    """A VM as the replica is, with empty disks."""


@dataclass(frozen=True, slots=True)
class SnapshotOriginal:
    """Take the snapshot that the original can be reverted to."""


@dataclass(frozen=True, slots=True)
class Cross:
    """Bring the original's disks to the replica's state of now."""

    first: bool = False
    """Nothing of this failback was written to the original yet: that is sure."""


@dataclass(frozen=True, slots=True)
class ShutDownReplica:
    """Its guest; `power_off`: one that does not do so in time is powered off."""

    power_off: bool


@dataclass(frozen=True, slots=True)
class PowerOnOriginal:
    pass


@dataclass(frozen=True, slots=True)
class PowerOffOriginal:
    pass


@dataclass(frozen=True, slots=True)
class RevertOriginal:
    """And remove the snapshot: what it was is what it is."""

    snapshot_ref: str


@dataclass(frozen=True, slots=True)
class DestroyOriginal:
    """Of a VM that this failback made."""


@dataclass(frozen=True, slots=True)
class PowerOnReplica:
    pass


@dataclass(frozen=True, slots=True)
class RemoveUndoSnapshot:
    snapshot_ref: str


@dataclass(frozen=True, slots=True)
class RemoveReplicaSnapshot:
    snapshot_ref: str


@dataclass(frozen=True, slots=True)
class ResetTracking:
    """Of the VM at home: every change ID that anybody has of it is void."""


@dataclass(frozen=True, slots=True)
class SealReplica:
    """Its state before the failback becomes a restore point."""


FailbackAct = (
    MakeOriginal
    | SnapshotOriginal
    | Cross
    | ShutDownReplica
    | PowerOnOriginal
    | PowerOffOriginal
    | RevertOriginal
    | DestroyOriginal
    | PowerOnReplica
    | RemoveUndoSnapshot
    | RemoveReplicaSnapshot
    | ResetTracking
    | SealReplica
)


@dataclass(frozen=True, slots=True)
class FailbackReady:
    """Save the record (where it is not None), then do the acts in their order, then look again."""

    save: FailoverRecord | None
    do: tuple[FailbackAct, ...] = ()


Answer = FailbackReady | Done | FailoverConflict


def advance_failback(record: FailoverRecord, seen: SeenFailback, wish: FailbackWish) -> Answer:
    """The next step towards the wish."""
    match wish:
        case StartFailback():
            return _start(record, seen, wish)
        case UndoFailback():
            return _undo(record, seen)
        case CommitFailback():
            return _commit(record, seen, wish)


# -- start ----------------------------------------------------------------------------------------------------------


def _start(record: FailoverRecord, seen: SeenFailback, wish: StartFailback) -> Answer:
    name = record.source_name
    match record.state:
        case ReplicaState.FAILED_OVER:
            return _claim(record, seen, wish)
        case ReplicaState.FAILING_BACK if record.failback is not None:
            return _carry_on(record, record.failback, seen, wish)
        case ReplicaState.READY:
            return FailoverConflict(
                ConflictKind.NOT_FAILED_OVER, f"{name} is not failed over: nothing of it runs at the target", ""
            )
        case ReplicaState.COMMITTED:
            return FailoverConflict(
                ConflictKind.COMMITTED,
                f"the failover of {name} was committed: its replica is a VM like any other now",
                f"vrepl failover commit {name} --reprotect makes the job that replicates it back",
            )
        case _:
            return under_way(record)


def _claim(record: FailoverRecord, seen: SeenFailback, wish: StartFailback) -> Answer:
    name = record.source_name
    if not record.adopted and not seen.replica.stands_on_base:
        return FailoverConflict(
            ConflictKind.NOT_FAILED_OVER,
            f"the replica of {name} does not stand on the base of its failover",
            f"vrepl failover start {name} finishes that",
        )
    if record.restore_point is None or record.restore_point not in seen.replica.restore_points:
        return FailoverConflict(
            ConflictKind.NO_RESTORE_POINT,
            f"the restore point {record.restore_point} that {name} was failed over to is gone",
            "without it nothing says which disk of the replica stands for which one of the original",
        )
    back = FailbackRecord(wish.id, wish.site, record.source_instance_uuid, found_off=not seen.replica_runs)
    if wish.place is not None:
        if seen.original is not None:
            return FailoverConflict(
                ConflictKind.ORIGINAL_EXISTS, f"a VM with the instanceUuid {wish.place.instance_uuid} exists", ""
            )
        back = replace(back, instance_uuid=wish.place.instance_uuid, made=True)
    elif seen.original is None:
        return _gone(record, wish.site)
    elif seen.original_runs:
        return _original_runs(record, wish.site)
    elif seen.differs:
        return FailoverConflict(
            ConflictKind.DISKS_DIFFER,
            f"{name} cannot go back into the original: {seen.differs}",
            f"vrepl failback start {name} --new brings it home as a new VM",
        )
    return FailbackReady(changed(record, state=ReplicaState.FAILING_BACK, failback=back, deadline=None))


def _carry_on(record: FailoverRecord, back: FailbackRecord, seen: SeenFailback, wish: StartFailback) -> Answer:
    if back.phase is FailbackPhase.UNDOING:
        return FailoverConflict(
            ConflictKind.OTHER_TRANSITION,
            f"undoing the failback of {record.source_name} was begun and not finished",
            f"vrepl failback undo {record.source_name} goes on with it",
        )
    if back.phase is FailbackPhase.COMMITTING:
        return _committing(record)
    if seen.original is None:
        if back.made and back.phase is FailbackPhase.PREPARING:
            return FailbackReady(None, (MakeOriginal(),))
        return _gone(record, back.site)
    if seen.original_runs and back.phase not in {FailbackPhase.STARTING, FailbackPhase.HOME}:
        return _original_runs(record, back.site)
    match back.phase:
        case FailbackPhase.PREPARING if seen.undo is None and not back.made:
            return FailbackReady(None, (SnapshotOriginal(),))
        case FailbackPhase.PREPARING:
            found_off = back.found_off or not seen.replica_runs
            ready = _to(record, back, phase=FailbackPhase.COMPARING, found_off=found_off)
            return replace(ready, do=(Cross(first=True),))
        case FailbackPhase.COMPARING if seen.crossed == back.crossing_id:
            return _to(record, back, phase=FailbackPhase.SHUTTING_DOWN)
        case FailbackPhase.COMPARING if not seen.replica_runs and not back.found_off:
            return _to(record, back, found_off=True)
        case FailbackPhase.COMPARING:
            return FailbackReady(None, (Cross(),))
        case FailbackPhase.SHUTTING_DOWN if seen.replica_runs:
            return FailbackReady(None, (ShutDownReplica(wish.power_off),))
        case FailbackPhase.SHUTTING_DOWN:
            # Where nobody saw it shut down, its change tracking does not count any more than the original's would.
            found_off = back.found_off or not seen.shut_down
            return _to(record, back, phase=FailbackPhase.CATCHING_UP, crossing=back.crossing + 1, found_off=found_off)
        case FailbackPhase.CATCHING_UP if seen.replica_runs:
            # Somebody powered it on again, or its host did: what it writes must come along.
            return _to(record, back, phase=FailbackPhase.SHUTTING_DOWN)
        case FailbackPhase.CATCHING_UP if seen.crossed != back.crossing_id:
            return FailbackReady(None, (Cross(),))
        case FailbackPhase.CATCHING_UP:
            return _to(record, back, phase=FailbackPhase.STARTING)
        case FailbackPhase.STARTING if seen.original_runs:
            return _to(record, back, phase=FailbackPhase.HOME)
        case FailbackPhase.STARTING if seen.replica_runs:
            return _to(record, back, phase=FailbackPhase.SHUTTING_DOWN)
        case _ if seen.original_runs:
            return Done(f"{record.source_name} runs at site {back.site}")
        case _ if seen.replica_runs:
            return _replica_runs(record)
        case _:
            return FailbackReady(None, (PowerOnOriginal(),))


# -- undo -----------------------------------------------------------------------------------------------------------


def _undo(record: FailoverRecord, seen: SeenFailback) -> Answer:
    back = record.failback
    if record.state is ReplicaState.FAILED_OVER:
        if not seen.replica_runs:
            return FailbackReady(None, (PowerOnReplica(),))
        return Done(f"{record.source_name} is not failing back: there is nothing to undo")
    if record.state is not ReplicaState.FAILING_BACK or back is None:
        return _not_failing_back(record)
    if back.phase is FailbackPhase.COMMITTING:
        return _committing(record)
    if back.phase is not FailbackPhase.UNDOING:
        return _to(record, back, phase=FailbackPhase.UNDOING)
    touched = back.made or seen.undo is not None
    if touched and seen.original_runs:
        return FailbackReady(None, (PowerOffOriginal(),))
    if back.made and seen.original is not None:
        return FailbackReady(None, (DestroyOriginal(),))
    if seen.undo is not None:
        return FailbackReady(None, (RevertOriginal(seen.undo.ref),))
    if not seen.replica_runs:
        return FailbackReady(None, (PowerOnReplica(),))
    return FailbackReady(changed(record, state=ReplicaState.FAILED_OVER, failback=None))


# -- commit ---------------------------------------------------------------------------------------------------------


def _commit(record: FailoverRecord, seen: SeenFailback, wish: CommitFailback) -> Answer:
    back, name = record.failback, record.source_name
    if record.state is ReplicaState.READY:
        return Done(f"{name} is not failing back: there is nothing to commit")
    if record.state is not ReplicaState.FAILING_BACK or back is None:
        return _not_failing_back(record)
    if back.phase is FailbackPhase.HOME:
        if seen.original is None:
            return _gone(record, back.site)
        if seen.replica_runs:
            return _replica_runs(record)
        return _to(record, back, phase=FailbackPhase.COMMITTING, point_id=wish.point_id, point_time=wish.point_time)
    if back.phase is not FailbackPhase.COMMITTING:
        return FailoverConflict(
            ConflictKind.NOT_HOME,
            f"{name} has not come home yet ({back.phase})",
            f"vrepl failback undo {name} finishes undoing it"
            if back.phase is FailbackPhase.UNDOING
            else f"vrepl failback start {name} goes on with it, vrepl failback undo {name} takes it back",
        )
    if seen.undo is not None:
        return FailbackReady(None, (RemoveUndoSnapshot(seen.undo.ref),))
    if seen.replica.strays:
        return FailbackReady(None, tuple(RemoveReplicaSnapshot(ref) for ref in seen.replica.strays))
    if seen.replica.base is not None:
        return FailbackReady(None, (RemoveReplicaSnapshot(seen.replica.base.ref),))
    if not seen.sealed:
        return FailbackReady(None, (ResetTracking(), SealReplica()))
    return FailbackReady(
        changed(
            record,
            state=ReplicaState.READY,
            failback=None,
            came_home_as=back.point_id,
            restore_point=None,
            base_change_ids=None,
            planned=False,
            adopted=False,
            keep_state=False,
        )
    )


# -- words that several share ---------------------------------------------------------------------------------------


def _to(record: FailoverRecord, back: FailbackRecord, **changes: Any) -> FailbackReady:
    return FailbackReady(changed(record, failback=replace(back, **changes)))


def _gone(record: FailoverRecord, site: str) -> FailoverConflict:
    return FailoverConflict(
        ConflictKind.ORIGINAL_GONE,
        f"the original of {record.source_name} is gone from site {site}",
        f"vrepl failback start {record.source_name} --new brings it home as a new VM",
    )


def _original_runs(record: FailoverRecord, site: str) -> FailoverConflict:
    return FailoverConflict(
        ConflictKind.ORIGINAL_RUNS,
        f"the original of {record.source_name} runs at site {site}: what is there now is going to be overwritten",
        "save what only it holds, shut it down, and run the command again",
    )


def _replica_runs(record: FailoverRecord) -> FailoverConflict:
    name = record.source_name
    return FailoverConflict(
        ConflictKind.POWERED_ON_BY_HAND,
        f"the replica of {name} runs again: somebody powered it on by hand",
        f"power it off to go on, or vrepl failback undo {name} to go back to it",
    )


def _committing(record: FailoverRecord) -> FailoverConflict:
    return FailoverConflict(
        ConflictKind.COMMITTED,
        f"committing the failback of {record.source_name} was begun and not finished",
        f"vrepl failback commit {record.source_name} goes on with it",
    )


def _not_failing_back(record: FailoverRecord) -> FailoverConflict:
    name = record.source_name
    if record.state in {ReplicaState.READY, ReplicaState.COMMITTED, ReplicaState.FAILED_OVER}:
        return FailoverConflict(
            ConflictKind.NOT_HOME, f"{name} is not failing back ({record.state})", f"vrepl failback start {name}"
        )
    return under_way(record)
