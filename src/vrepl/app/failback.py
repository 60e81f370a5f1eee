"""Composition of failback commands: both sites configured, and data movers on the routes of the replicas' jobs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from vrepl.app.composition import Workshop
from vrepl.app.failover import surroundings, target_site
from vrepl.app.machines import proxy_machine
from vrepl.app.routes import Route, route_of
from vrepl.config import LoadedConfig
from vrepl.engine.context import FailbackContext, FailoverContext
from vrepl.engine.events import EngineEvents
from vrepl.engine.failback.command import Failbacks, NewPlace
from vrepl.engine.failover.command import Failovers
from vrepl.engine.failover.replicas import FoundReplica
from vrepl.engine.gate import Gate
from vrepl.engine.run import Engine
from vrepl.model import DEFAULT_MODES, JobSettings, ReplicaPlacement, TransferLimits


class WayHome:
    """Failbacks at a configured site, and how to stop them."""

    def __init__(self, workshop: Workshop, target: str, home: str | None, stop: threading.Event) -> None:
        """`home`: the site to come home to; None: where each VM was."""
        self._workshop = workshop
        self._target = target
        self._home = home
        self._stop = stop
        self._engines: dict[str | None, tuple[Engine, Gate]] = {}
        self._lock = threading.Lock()

    def context(self, replica: FoundReplica, on_its_way_to: str | None) -> FailbackContext:
        """By the job that replicated it last; one that is not configured any more leaves the defaults."""
        workshop = self._workshop
        job = self._job(replica)
        home = workshop.loaded.require_site(on_its_way_to or self._home or replica.never_failed_over.source_site)
        engine, gate = self._engine(job)
        return FailbackContext(
            services=replace(engine.services, stop=self._stop),
            target=workshop.sites(self._target),
            home=workshop.sites(home),
            gate=gate,
            target_modes=job.target_modes if job else DEFAULT_MODES,
            home_modes=job.source_modes if job else DEFAULT_MODES,
            fallback=job.fallback if job else True,
        )

    def new_place(
        self, replica: FoundReplica, datastore: str, host: str | None, name: str | None, networks: Mapping[str, str]
    ) -> NewPlace:
        """Where a new VM is made. Its networks are those that the job maps to the replica's, unless `networks` say."""
        job = self._job(replica)
        back = {theirs: ours for ours, theirs in job.placement.networks.items()} if job else {}
        return NewPlace(ReplicaPlacement(host=host, datastore=datastore, networks={**back, **networks}), name)

    def stop(self) -> None:
        """Soon, leaving the sites clean."""
        with self._lock:
            engines = [engine for engine, _ in self._engines.values()]
        for engine in engines:
            engine.stop()
        self._workshop.sites.hurry()

    def _job(self, replica: FoundReplica) -> JobSettings | None:
        loaded, name = self._workshop.loaded, replica.job
        return loaded.job(name) if name is not None and name in loaded.config.jobs else None

    def _engine(self, job: JobSettings | None) -> tuple[Engine, Gate]:
        """One for each job: its limits hold over all of its VMs."""
        loaded = self._workshop.loaded
        name = job.name if job else None
        with self._lock:
            if name not in self._engines:
                route = route_of(loaded, job) if job else Route((), proxy_machine(loaded, None))
                engine = self._workshop.engine(route)
                limits = job.limits if job else TransferLimits()
                stoppable = replace(engine.services, stop=self._stop)
                gate = Gate(limits, stoppable.check_stop, budgets=stoppable.repository.budgets())
                self._engines[name] = (engine, gate)
            return self._engines[name]


@contextmanager
def way_home(
    loaded: LoadedConfig,
    site: str | None,
    job: str | None,
    home: str | None,
    events: EngineEvents,
    stop: threading.Event,
    plan: str | None = None,
) -> Iterator[tuple[Failbacks, WayHome]]:
    """`site`: where the replicas are; `home`: where to, if not to where each VM was.

    Raises UsageError where the configuration does not say which site the replicas are at.
    """
    with Workshop(loaded, events) as workshop:
        target = target_site(loaded, site, job, plan)
        workshop.log_in(target)
        way = WayHome(workshop, target, home, stop)
        failovers = Failovers(FailoverContext(surroundings(events, stop), workshop.sites(target)), workshop.repository)
        failovers.plans = tuple(loaded.plans(target))
        yield Failbacks(failovers, way.context), way
