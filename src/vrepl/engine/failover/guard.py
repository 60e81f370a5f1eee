"""Keeps a replication run from a replica that somebody fails over meanwhile, from here or from another machine.

Locks are local files, and a control host that still lives knows nothing of a failover that was begun at the other site.
So a run reads the replica's state before it opens the leaf, before any revert, and before and after the seal; another
epoch than it began with ends it, and it touches nothing more.
"""

from __future__ import annotations

from typing import Protocol

from vrepl.engine.context import ReplicationContext
from vrepl.engine.failover.states import ReplicaStates
from vrepl.errors import NotReadyError
from vrepl.model import VirtualMachine
from vrepl.model.failover import FailoverRecord
from vrepl.planner.failover import refuses_runs
from vrepl.planner.knowledge import ReplicaKnowledge
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
    record = folder.record
    unknown = FailoverRecord(
        context.services.repository.id,
        record.source_site,
        record.source_instance_uuid,
        record.source_name,
        known.replica.instance_uuid,
    )
    return EpochGuard(ReplicaStates(context.target, context.run_id), known.replica, unknown)


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
