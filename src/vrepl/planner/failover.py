"""What comes next in a failover: decide, save, do. Pure.

`advance` looks at the saved record, at what the target shows, and at the wish, and answers what to save and then what
to do; the driver saves, does, looks and asks again, until it hears `Done` or a `Conflict`. Whatever is asked for again
after a crash goes on where the last saved record and the target say that it stands (etcd raft's `Ready` is the model:
persist before acting). No step has to be remembered: each leaves something to be seen, or may be done again.

How a failed over replica looks: the restore point's snapshot, under it the snapshot `failover-base`, under it the leaf
that the guest writes to. While there is no base, nothing is known of the leaf; with a base of this epoch's failover
and a current snapshot at or below it, the replica stands on its restore point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from vrepl.model import PowerState, ReplicaState, Snapshot, VirtualMachine
from vrepl.model.failover import Commit, FailoverRecord, Start, Undo, Wish
from vrepl.planner.conflicts import ConflictKind, FailoverConflict, changed, powered_on_by_hand, under_way


@dataclass(frozen=True, slots=True)
class SeenReplica:
    """What the target shows of a replica now."""

    vm: VirtualMachine
    restore_points: Mapping[str, str]
    """ID -> snapshot ref, oldest first; only those whose snapshot is there."""
    base: Snapshot | None = None
    """The snapshot `failover-base` that vrepl took of this replica, if there is one."""
    base_change_ids: Mapping[int, str | None] | None = None
    """Of that snapshot, by disk key; None without one, and where the record has them already."""
    kept_state: Snapshot | None = None
    """A snapshot `vrepl-undone` that hangs below the base: what ran is kept already."""
    strays: tuple[str, ...] = ()
    """Refs of snapshots that a run took as restore points when the replica was no longer its own: no such thing."""
    tests: tuple[str, ...] = ()
    """Names of test clones that stand on snapshots of this replica."""
    source_runs: bool | None = None
    """None: nobody can tell."""

    @property
    def stands_on_base(self) -> bool:
        """The leaf is below the base: it is the guest's."""
        return self.base is not None and is_below(self.vm, self.vm.current_snapshot_ref, self.base.ref)

    @property
    def newest(self) -> str | None:
        return next(reversed(tuple(self.restore_points)), None)


# -- acts: each may be done again -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StandOn:
    """Revert to the snapshot of a restore point, and take `failover-base` upon it."""

    restore_point: str
    snapshot_ref: str


@dataclass(frozen=True, slots=True)
class PrepareGuest:
    """Connect its networks as mapped, and have its addresses set at the next power-on."""

    networks: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class IntroduceGuest:
    """Let it run once without these adapters, so that vCenter knows of its VMware Tools, and shut it down."""

    adapters: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PowerOn:
    pass


@dataclass(frozen=True, slots=True)
class ShutDownGuest:
    """Ask the guest to shut down, and power off what has not done so in time."""


@dataclass(frozen=True, slots=True)
class PowerOff:
    pass


@dataclass(frozen=True, slots=True)
class KeepState:
    """Take the snapshot `vrepl-undone` of what ran."""


@dataclass(frozen=True, slots=True)
class RevertTo:
    snapshot_ref: str


@dataclass(frozen=True, slots=True)
class RemoveSnapshot:
    snapshot_ref: str


@dataclass(frozen=True, slots=True)
class MergeSnapshots:
    """Remove every snapshot: the VM is what its leaf is."""


Act = (
    StandOn
    | PrepareGuest
    | IntroduceGuest
    | PowerOn
    | ShutDownGuest
    | PowerOff
    | KeepState
    | RevertTo
    | RemoveSnapshot
    | MergeSnapshots
)


@dataclass(frozen=True, slots=True)
class Ready:
    """Save the record (where it is not None), then do the acts in their order, then look again."""

    save: FailoverRecord | None
    do: tuple[Act, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing is left to do."""

    message: str = ""


def advance(record: FailoverRecord, seen: SeenReplica, wish: Wish) -> Ready | Done | FailoverConflict:
    """The next step towards the wish."""
    match wish:
        case Start():
            return _start(record, seen, wish)
        case Undo():
            return _undo(record, seen, wish)
        case Commit():
            return _commit(record, seen)


# -- start ----------------------------------------------------------------------------------------------------------


def _start(record: FailoverRecord, seen: SeenReplica, wish: Start) -> Ready | Done | FailoverConflict:
    runs = seen.vm.power is PowerState.ON
    match record.state:
        case ReplicaState.READY:
            return _claim(record, seen, wish)
        case ReplicaState.FAILING_OVER if wish.restore_point not in {None, record.restore_point}:
            return FailoverConflict(
                ConflictKind.OTHER_TRANSITION,
                f"{record.source_name} is failing over to restore point {record.restore_point} already",
                f"vrepl failover undo {record.source_name} first",
            )
        case ReplicaState.FAILING_OVER if wish.networks and dict(wish.networks) != dict(record.networks) and not runs:
            return Ready(changed(record, networks=dict(wish.networks)))  # those of the first try may not be there
        case ReplicaState.FAILING_OVER:
            return _carry_on(record, seen)
        case ReplicaState.FAILED_OVER if runs and not seen.strays:
            return Done(f"{record.source_name} is failed over to restore point {record.restore_point}")
        case ReplicaState.FAILED_OVER if record.adopted:
            return Ready(None, (PowerOn(),))
        case ReplicaState.FAILED_OVER:
            return _carry_on(record, seen)
        case ReplicaState.COMMITTED:
            return FailoverConflict(
                ConflictKind.COMMITTED, f"{record.source_name} was committed: it is no replica any more", ""
            )
        case _:
            return under_way(record)


def _claim(record: FailoverRecord, seen: SeenReplica, wish: Start) -> Ready | FailoverConflict:
    """From here on every run that still goes on somewhere sees another epoch, and ends."""
    if seen.source_runs and not (wish.source_is_down or wish.planned):
        return FailoverConflict(
            ConflictKind.SOURCE_RUNS,
            f"{record.source_name} still runs at site {record.source_site}: both would answer to one name",
            "shut it down (vrepl failover start --planned does that), or say --source-is-down",
        )
    claimed = changed(
        record,
        state=ReplicaState.FAILING_OVER,
        planned=wish.planned,
        deadline=wish.deadline,
        keep_state=wish.deadline is not None,
        networks=dict(wish.networks) or record.networks,
        base_change_ids=None,
        adopted=False,
        introducing=None,
        introduced=False,
        came_home_as=None,
    )
    if seen.vm.power is not PowerState.OFF:
        if not wish.adopt:
            return powered_on_by_hand(record)
        return Ready(replace(claimed, state=ReplicaState.FAILED_OVER, adopted=True, restore_point=seen.newest))
    point = wish.restore_point or seen.newest
    if point is None:
        return FailoverConflict(
            ConflictKind.NO_RESTORE_POINT,
            f"{record.source_name} has no restore point: there is nothing to fail over to",
            "vrepl replicate makes one, as long as the source lives",
        )
    if point not in seen.restore_points:
        return FailoverConflict(
            ConflictKind.NO_RESTORE_POINT,
            f"{record.source_name} has no restore point {point}",
            f"there are: {', '.join(seen.restore_points) or 'none'}",
        )
    return Ready(replace(claimed, restore_point=point))


def _carry_on(record: FailoverRecord, seen: SeenReplica) -> Ready | Done | FailoverConflict:
    assert record.restore_point is not None, "a claim names its restore point"
    if seen.strays:
        return Ready(None, tuple(RemoveSnapshot(ref) for ref in seen.strays))
    if record.introducing is not None and seen.stands_on_base:
        return Ready(None, (IntroduceGuest(record.introducing),))
    if seen.vm.power is PowerState.ON and seen.stands_on_base:
        return Ready(changed(record, state=ReplicaState.FAILED_OVER))
    if not seen.stands_on_base:
        if seen.vm.power is not PowerState.OFF:
            return powered_on_by_hand(record)
        snapshot_ref = seen.restore_points.get(record.restore_point)
        if snapshot_ref is None:
            return FailoverConflict(
                ConflictKind.NO_RESTORE_POINT,
                f"restore point {record.restore_point} of {record.source_name} is gone",
                f"vrepl failover undo {record.source_name}, then start from another one",
            )
        stale = (RemoveSnapshot(seen.base.ref),) if seen.base is not None else ()
        return Ready(None, (*stale, StandOn(record.restore_point, snapshot_ref)))
    boot = (PrepareGuest(record.networks), PowerOn())
    if record.base_change_ids is None:
        return Ready(changed(record, base_change_ids=dict(seen.base_change_ids or {})), boot)
    return Ready(None, boot)


def needs_introduction(record: FailoverRecord, adapters: tuple[int, ...]) -> FailoverRecord:
    """vCenter does not know of the guest's Tools; once in a failover that can be changed."""
    return changed(record, introducing=adapters)


def was_introduced(record: FailoverRecord) -> FailoverRecord:
    return changed(record, introducing=None, introduced=True)


# -- undo -----------------------------------------------------------------------------------------------------------


def _undo(record: FailoverRecord, seen: SeenReplica, wish: Undo) -> Ready | Done | FailoverConflict:
    match record.state:
        case ReplicaState.READY if seen.vm.power is PowerState.OFF and seen.base is None:
            return Done(f"{record.source_name} is not failed over: there is nothing to undo")
        case ReplicaState.COMMITTED:
            return FailoverConflict(
                ConflictKind.COMMITTED,
                f"the failover of {record.source_name} was committed and cannot be undone",
                f"vrepl failover commit {record.source_name} --reprotect makes the job that replicates it back",
            )
        case ReplicaState.FAILING_BACK:
            return under_way(record)
        case ReplicaState.UNDONE:
            return _bring_back(record, seen)
        case _:
            return Ready(
                changed(
                    record,
                    state=ReplicaState.UNDONE,
                    keep_state=wish.keep_state or record.keep_state,
                    deadline=None,
                )
            )


def _bring_back(record: FailoverRecord, seen: SeenReplica) -> Ready | Done | FailoverConflict:
    newest = seen.newest
    if newest is None:
        return FailoverConflict(
            ConflictKind.NO_RESTORE_POINT,
            f"{record.source_name} has no restore point left to go back to",
            "vrepl replicas remove, and replicate it anew",
        )
    keeps = record.keep_state and seen.kept_state is None and seen.stands_on_base
    if seen.vm.power is not PowerState.OFF:
        return Ready(None, (ShutDownGuest() if keeps else PowerOff(),))
    if seen.base is None and record.base_change_ids is None:
        # Cut off before there was a base, or adopted: nothing says what the leaf holds. A base makes it be seen.
        return Ready(None, (StandOn(newest, seen.restore_points[newest]),))
    if record.base_change_ids is None:
        return Ready(changed(record, base_change_ids=dict(seen.base_change_ids or {})))
    if keeps:
        return Ready(None, (KeepState(),))
    if seen.stands_on_base:
        return Ready(None, (RevertTo(seen.restore_points[newest]),))
    if seen.strays:
        return Ready(None, tuple(RemoveSnapshot(ref) for ref in seen.strays))
    if seen.base is not None:
        return Ready(None, (RemoveSnapshot(seen.base.ref),))
    return Ready(
        changed(
            record,
            state=ReplicaState.READY,
            restore_point=None,
            base_change_ids=None,
            planned=False,
            adopted=False,
            keep_state=False,
            introducing=None,
            introduced=False,
        )
    )


# -- commit ---------------------------------------------------------------------------------------------------------


def _commit(record: FailoverRecord, seen: SeenReplica) -> Ready | Done | FailoverConflict:
    name = record.source_name
    if seen.tests and record.state in {ReplicaState.FAILED_OVER, ReplicaState.COMMITTED}:
        return FailoverConflict(
            ConflictKind.TEST_RUNS,
            f"the test {', '.join(seen.tests)} stands on a restore point of {name}, which a commit merges away",
            f"vrepl failover test stop {name}",
        )
    match record.state:
        case ReplicaState.FAILED_OVER:
            return Ready(changed(record, state=ReplicaState.COMMITTED, deadline=None))
        case ReplicaState.COMMITTED if seen.vm.snapshots:
            return Ready(None, (MergeSnapshots(),))
        case ReplicaState.COMMITTED:
            return Done(f"{name} is committed: its replica is the VM now")
        case ReplicaState.READY:
            return FailoverConflict(
                ConflictKind.NOT_FAILED_OVER, f"{name} is not failed over", f"vrepl failover start {name}"
            )
        case _:
            return under_way(record)


def is_below(vm: VirtualMachine, snapshot_ref: str | None, ancestor_ref: str) -> bool:
    """Whether a snapshot of the VM is this ancestor or hangs below it."""
    parents = {snapshot.ref: snapshot.parent_ref for snapshot in vm.snapshots}
    while snapshot_ref is not None:
        if snapshot_ref == ancestor_ref:
            return True
        snapshot_ref = parents.get(snapshot_ref)
    return False
