"""Failback commands over a world in memory, each as a new process would give it."""

from __future__ import annotations

from tests.support.world import World
from vrepl.engine.context import FailbackContext, FailoverContext
from vrepl.engine.failback.command import Failbacks, NewPlace
from vrepl.engine.failover.command import Failovers
from vrepl.engine.failover.replicas import FoundReplica, choose
from vrepl.engine.gate import Gate
from vrepl.model import TransferLimits
from vrepl.report.failover import FailoverVm


def commands(world: World) -> tuple[Failbacks, list[FoundReplica]]:
    """As a new process would: it knows nothing but what lies at the sites and in the repository."""
    services = world.engine().services
    failovers = Failovers(FailoverContext(services, world.target), services.repository)
    context = FailbackContext(services, world.target, world.source, Gate(TransferLimits(), services.check_stop))
    return Failbacks(failovers, lambda *_: context), choose(failovers.find(), ["web-01"])


def start(world: World, *, new: NewPlace | None = None, power_off: bool = False) -> FailoverVm:
    failbacks, replicas = commands(world)
    [vm] = failbacks.start(replicas, lambda _: new, power_off=power_off).vms
    return vm


def undo(world: World) -> FailoverVm:
    failbacks, replicas = commands(world)
    [vm] = failbacks.undo(replicas).vms
    return vm


def commit(world: World) -> FailoverVm:
    failbacks, replicas = commands(world)
    [vm] = failbacks.commit(replicas).vms
    return vm
