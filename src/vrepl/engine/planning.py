"""Facts gathered and one VM planned: the same for a plan that is shown and for one that is carried out."""

from __future__ import annotations

from vrepl.engine.context import ReplicationContext
from vrepl.engine.knowledge import TargetNames, gather, seed_request
from vrepl.model import VirtualMachine, VmAtRest
from vrepl.planner.knowledge import ReplicaKnowledge
from vrepl.planner.vm import VmPlan, plan_vm
from vrepl.repository.replica_folder import ReplicaFolder


def look_and_plan(
    context: ReplicationContext,
    folder: ReplicaFolder | None,
    vm: VirtualMachine,
    names: TargetNames,
    map_to: str | None,
    replica: VmAtRest | None = None,
) -> tuple[VmPlan, ReplicaKnowledge]:
    """Only reads. `vm`: as its site shows it now; `map_to`: name of the target's VM that shall become its replica.

    `replica`: as recovery has just read it; None: it is looked up.
    """
    repository, job = context.services.repository, context.job
    request = seed_request(repository, vm, context.source, context.target, map_to) if map_to else None
    known = gather(folder, vm, job.replica_name_of(vm.name), repository.id, context.target, names, request, replica)
    return plan_vm(vm, job, known), known
