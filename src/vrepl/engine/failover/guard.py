"""Keeps a replication run from a replica that somebody fails over meanwhile, from here or from another machine.

Locks are local files, and a control host that still lives knows nothing of a failover that was begun at the other site.
So a run reads the replica's state before it opens the leaf, before any revert, and before and after the seal; another
epoch than it began with ends it, and it touches nothing more.
"""

from __future__ import annotations

from typing import Protocol

from vrepl.engine.context import ReplicationContext
from vrepl.engine.failover.driver import FailoverDriver
from vrepl.engine.failover.states import ReplicaStates
from vrepl.engine.failover.summary import show_state
from vrepl.engine.marks import failover_mark_of
from vrepl.engine.vm_work import VmWork
from vrepl.errors import NotReadyError
from vrepl.model import VirtualMachine
from vrepl.model.failover import FAILOVER_BASE, KEPT_STATE, FailoverRecord, Undo
from vrepl.planner.conflicts import is_overdue, refuses_runs
from vrepl.planner.knowledge import ReplicaKnowledge
from vrepl.repository.failover import save_failover
from vrepl.repository.replica_folder import ReplicaFolder


class Ready(Protocol):
    """Whether the replica is still the run's to write to."""

    def check(self) -> None:
        """Raises NotReadyError once it is not."""
        ...


class NothingToGuard:
    """Of a replica that is still to be made."""

    def check(self) -> None:
        """Nobody can fail over what does not exist."""


def replica_ready(context: ReplicationContext, folder: ReplicaFolder, known: ReplicaKnowledge) -> Ready:
    """Raises NotReadyError where the replica's state forbids a run."""
    if known.replica is None or known.seed is not None:
        return NothingToGuard()
    unknown = _never_failed_over(context, folder, known.replica)
    return EpochGuard(ReplicaStates(context.target, context.run_id), known.replica, unknown)


def undo_overdue(
    context: ReplicationContext, folder: ReplicaFolder, replica: VirtualMachine | None, work: VmWork
) -> bool:
    """Take a failover back whose deadline has passed, by the target's clock; whether there was one.

    Its control host may be dead since: the next run of the job does what it was asked to. What ran is kept.
    """
    if replica is None or not any(failover_mark_of(one, FAILOVER_BASE) for one in replica.snapshots):
        return False
    services, target = context.services, context.target
    states = ReplicaStates(target, context.run_id)
    record = states.read(replica)
    if record is None or not is_overdue(record, target.current_time()):
        return False
    work.enter("undo the failover")
    work.note(f"the failover to {record.restore_point} was to end by {record.deadline:%Y-%m-%d %H:%M %Z}: it is undone")
    driver = FailoverDriver(
        target=target,
        states=states,
        mirror=lambda saved: save_failover(folder, saved),
        work=work,
        patiently=lambda what, action: services.patiently(work.vm, what, action),
    )
    undone, _ = driver.go(replica.ref, record, Undo(keep_state=True))
    show_state(target, replica.ref, undone, work)
    work.note(f"what ran at the target until then is kept as its snapshot {KEPT_STATE}")
    return True


def _never_failed_over(context: ReplicationContext, folder: ReplicaFolder, replica: VirtualMachine) -> FailoverRecord:
    record = folder.record
    return FailoverRecord(
        context.services.repository.id,
        record.source_site,
        record.source_instance_uuid,
        record.source_name,
        replica.instance_uuid,
    )


class EpochGuard:
    """One run's view of one replica's state."""

    def __init__(self, states: ReplicaStates, replica: VirtualMachine, unknown: FailoverRecord) -> None:
        """Reads the state. Raises NotReadyError where no run may touch the replica.

        `unknown`: the record of a replica that was never failed over.
        """
        self._states = states
        self._replica = replica
        self.record = states.read(replica) or unknown
        conflict = refuses_runs(self.record, replica)
        if conflict is not None:
            raise NotReadyError(conflict.message, hint=conflict.hint or None)

    def check(self) -> None:
        """Raises NotReadyError once the state has been changed since."""
        if self._states.changed_since(self._replica, self.record.epoch):
            raise NotReadyError(
                f"the replica of {self.record.source_name} was failed over meanwhile: this run touches it no more",
                hint="look with `vrepl replicas`; what this run had sent is sent again once the replica is ready",
            )
