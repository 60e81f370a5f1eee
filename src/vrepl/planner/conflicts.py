"""What a state of a replica forbids, in words that failover, failback and runs share, and what to type then. Pure."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from vrepl.model import PowerState, ReplicaState, VirtualMachine
from vrepl.model.failover import FailoverRecord


class ConflictKind(StrEnum):
    """Why a wish cannot be granted as things stand."""

    NO_RESTORE_POINT = "no-restore-point"
    SOURCE_RUNS = "source-runs"
    POWERED_ON_BY_HAND = "powered-on-by-hand"
    OTHER_TRANSITION = "other-transition"
    COMMITTED = "committed"
    NOT_FAILED_OVER = "not-failed-over"
    TEST_RUNS = "test-runs"
    REPLICA_GONE = "replica-gone"
    ORIGINAL_GONE = "original-gone"
    ORIGINAL_RUNS = "original-runs"
    ORIGINAL_EXISTS = "original-exists"
    DISKS_DIFFER = "disks-differ"
    NOT_HOME = "not-home"


@dataclass(frozen=True, slots=True)
class FailoverConflict:
    """Says what stands in the way, and what to type."""

    kind: ConflictKind
    message: str
    hint: str


def is_overdue(record: FailoverRecord, now: dt.datetime) -> bool:
    """Whether a failover has outlived its deadline. `now`: the target's clock, UTC-aware."""
    return record.state is ReplicaState.FAILED_OVER and record.deadline is not None and now >= record.deadline


def refuses_runs(record: FailoverRecord, vm: VirtualMachine) -> FailoverConflict | None:
    """Why no replication run may touch this replica now, and what to type; None: it may."""
    name = record.source_name
    match record.state:
        case ReplicaState.READY:
            return powered_on_by_hand(record) if vm.power is not PowerState.OFF else None
        case ReplicaState.COMMITTED:
            return FailoverConflict(
                ConflictKind.COMMITTED,
                f"the replica of {name} was committed: it is the VM now, and nothing replicates over it",
                f"take {name} out of the job; to replicate back: vrepl failover commit {name} --reprotect",
            )
        case _:
            return under_way(record)


def changed(record: FailoverRecord, **changes: Any) -> FailoverRecord:
    """The next record: of a higher epoch."""
    return replace(record, epoch=record.epoch + 1, **changes)


def powered_on_by_hand(record: FailoverRecord) -> FailoverConflict:
    name = record.source_name
    return FailoverConflict(
        ConflictKind.POWERED_ON_BY_HAND,
        f"somebody powered on the replica of {name} by hand",
        f"vrepl failover start {name} --adopt calls that its failover, vrepl failover undo {name} takes it back",
    )


_TO_FINISH = {
    ReplicaState.FAILING_OVER: "vrepl failover start {0} goes on with it, vrepl failover undo {0} takes it back",
    ReplicaState.UNDONE: "vrepl failover undo {0} goes on with it",
    ReplicaState.FAILING_BACK: "vrepl failback start {0} goes on with it, vrepl failback commit {0} ends it once it is "
    "home, vrepl failback undo {0} takes it back",
    ReplicaState.FAILED_OVER: "vrepl failover undo {0}, vrepl failback start {0} or vrepl failover commit {0}",
}
_IN_WORDS = {
    ReplicaState.FAILING_OVER: "a failover of {0} was begun and not finished",
    ReplicaState.UNDONE: "undoing the failover of {0} was begun and not finished",
    ReplicaState.FAILING_BACK: "{0} is failing back",
    ReplicaState.FAILED_OVER: "the replica of {0} is failed over",
}


def under_way(record: FailoverRecord) -> FailoverConflict:
    """Something else was begun, and how to end it."""
    return FailoverConflict(
        ConflictKind.OTHER_TRANSITION,
        _IN_WORDS[record.state].format(record.source_name),
        _TO_FINISH[record.state].format(record.source_name),
    )
