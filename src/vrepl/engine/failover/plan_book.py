"""The failover plans that a command knows: those of the configuration, or the copies that lie beside the replicas."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from vrepl.engine.failover.replicas import FoundReplica, by_name
from vrepl.engine.failover.settings import ReplicaSettings
from vrepl.errors import NotFoundError, VreplError
from vrepl.model.failover_settings import FailoverSettings
from vrepl.model.plans import FailoverPlan
from vrepl.planner.plans import left_alone, plan_of_all, plans_that_count, resolved, without_commands

SIDE_BY_SIDE = 16


@dataclass(frozen=True, slots=True)
class PlanBook:
    """Plans over the replicas of one site, patterns resolved."""

    plans: tuple[FailoverPlan, ...]
    known: tuple[str, ...]
    """Names of all replicas at the site, as plans call them."""
    from_replicas: bool = False
    """Nobody of this machine has written them: what commands they hold is run only where that is asked for."""

    def named(self, name: str) -> FailoverPlan:
        """Raises NotFoundError."""
        for plan in self.plans:
            if plan.name == name:
                return plan
        names = [plan.name for plan in self.plans]
        near = difflib.get_close_matches(name, names, n=1)
        where = "beside the replicas" if self.from_replicas else "in the configuration"
        raise NotFoundError(
            f"there is no failover plan {name} {where}" + (f"; did you mean {near[0]}?" if near else ""),
            hint=f"plans there: {', '.join(names) or 'none'}",
        )

    def of_all(self) -> FailoverPlan:
        """One plan of every replica of the site."""
        return plan_of_all(self.plans, self.known)

    def warning(self, chosen: Collection[str]) -> list[str]:
        """Of VMs that belong to a plan and are failed over without the rest of it."""
        told = []
        for plan in self.plans:
            left = left_alone(plan, frozenset(chosen))
            if left:
                mine = [name for name in plan.names if name not in left]
                belongs = "belongs" if len(mine) == 1 else "belong"
                told.append(
                    f"{_some(mine)} {belongs} to failover plan {plan.name}, which is not started: no order is held, no "
                    f"gate asked, and {_some(left)} left out; vrepl failover start --plan {plan.name} does it all"
                )
        return told


def plan_book(
    configured: Sequence[FailoverPlan],
    found: Sequence[FoundReplica],
    settings: ReplicaSettings,
    asked: Sequence[FoundReplica] | None = None,
) -> PlanBook:
    """`configured`: those of the configuration, which count where it has any. `found`: all replicas at the site.

    `asked`: beside which of them copies are looked for; None: all.
    """
    known = tuple(by_name(found))
    if configured:
        return PlanBook(tuple(resolved(plan, known) for plan in configured), known)
    plans = plans_that_count(_kept(settings, found if asked is None else asked))
    return PlanBook(tuple(resolved(plan, known) for plan in plans), known, from_replicas=True)


def runnable(book: PlanBook, plan: FailoverPlan, scripts: bool | None) -> tuple[FailoverPlan, list[str]]:
    """The plan as this machine may run it, and what is to be said of that.

    `scripts`: whether it may run a plan's commands; None: those of its own configuration.
    """
    allowed = not book.from_replicas if scripts is None else scripts
    if allowed or not plan.commands:
        return plan, []
    names = ", ".join(dict.fromkeys(command[0] for command in plan.commands))
    why = "the plan lies at the replicas, and" if book.from_replicas else "with --no-scripts"
    return without_commands(plan), [f"{why} its commands are not run ({names}); --scripts runs them on this machine"]


def _kept(settings: ReplicaSettings, replicas: Sequence[FoundReplica]) -> list[FailoverSettings]:
    """One that cannot be read says nothing: a copy beside another replica is enough."""

    def read(replica: FoundReplica) -> FailoverSettings | None:
        try:
            return settings.read(replica.vm)
        except VreplError:
            return None

    with ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="plans") as pool:
        return [one for one in pool.map(read, replicas) if one is not None]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
