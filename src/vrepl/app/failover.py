"""Composition of failover commands: at a configured site, or at a server of which no configuration is left."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vrepl.app.probes import LocalProbe, process_has_ended, process_name
from vrepl.app.scripts import LocalCommands
from vrepl.app.sites import Sites, new_id, now, open_repository
from vrepl.config import LoadedConfig
from vrepl.config.load import sites_of
from vrepl.engine.context import FailoverContext, Surroundings
from vrepl.engine.events import EngineEvents
from vrepl.engine.failover.command import Failovers
from vrepl.engine.failover.plan_failover import PlanFailover
from vrepl.engine.failover.replicas import FoundReplica
from vrepl.engine.failover.settings import policy_for
from vrepl.errors import UsageError, VreplError
from vrepl.model import PowerState
from vrepl.model.addresses import FailoverPolicy
from vrepl.model.failover import FailoverRecord
from vrepl.model.plans import FailoverPlan
from vrepl.report.model import RunReport
from vrepl.repository.store import Repository
from vrepl.vsphere.session import SiteSettings
from vrepl.vsphere.site import VsphereSite

if TYPE_CHECKING:
    from vrepl.engine.failover.planned import PlannedFailover
    from vrepl.engine.failover.testing import FailoverTests

SOURCE_ANSWERS_WITHIN = 10.0
"""Seconds for each answer of a site that may be lost: an operator waits for the failover meanwhile."""


@dataclass(frozen=True, slots=True)
class Server:
    """A vCenter or ESXi host by its address, where no configuration is left."""

    address: str
    user: str
    password: str
    ca_file: Path | None = None
    thumbprint: str | None = None

    def settings(self) -> SiteSettings:
        host, _, port = self.address.partition(":")
        if port and not port.isdecimal():
            raise UsageError(f"--server {self.address}: expected HOST or HOST:PORT")
        return SiteSettings(
            name=host,
            server=host,
            user=self.user,
            password=self.password,
            port=int(port or 443),
            ca_file=self.ca_file,
            thumbprint=self.thumbprint,
            prompt=True,
        )


@contextmanager
def at_server(server: Server, events: EngineEvents, stop: threading.Event) -> Iterator[Failovers]:
    """Of a site that is known by nothing but its address: what lies at the replicas decides."""
    with VsphereSite(server.settings()) as site:
        site.login()
        yield Failovers(FailoverContext(surroundings(events, stop), site), None)


@contextmanager
def at_site(
    loaded: LoadedConfig,
    name: str | None,
    job: str | None,
    events: EngineEvents,
    stop: threading.Event,
    plan: str | None = None,
) -> Iterator[Failovers]:
    """Of a configured site: the one named, the target of the job or the plan, or the only one that is a target.

    Raises UsageError where that does not say which. The repository is used if it can be had.
    """
    with Sites(loaded, prompt=True) as sites, Sites(loaded, answers_within=SOURCE_ANSWERS_WITHIN) as sources:
        site = sites(target_site(loaded, name, job, plan))
        site.login()
        failovers = Failovers(FailoverContext(surroundings(events, stop), site), _repository(loaded))
        failovers.source_runs = SourceWatch(loaded, sources, events)
        failovers.policy_of = lambda replica: _policy_of(loaded, replica)
        failovers.plans = tuple(loaded.plans(site.name))
        yield failovers


def tests_at(failovers: Failovers) -> FailoverTests:
    """Tests at the same site, with the same repository."""
    from vrepl.engine.failover.testing import FailoverTests

    site = failovers.context.target
    assert isinstance(site, VsphereSite), "a configured site, or a server, plays every role"
    tests = FailoverTests(
        failovers.context.services,
        site,
        failovers.repository,
        LocalProbe(),
        process_name(),
        process_has_ended,
    )
    tests.addresses = failovers.readdressing
    return tests


@contextmanager
def planned(
    loaded: LoadedConfig, failovers: Failovers, events: EngineEvents, shutdown_seconds: float
) -> Iterator[PlannedFailover]:
    """A failover that begins at the source, which must live: only it moves disks, and loads what it takes."""
    from vrepl.app.composition import Workshop
    from vrepl.app.routes import route_of
    from vrepl.engine.failover.planned import PlannedFailover

    with Workshop(loaded, events) as workshop:

        def sync(job_name: str, vms: Sequence[str]) -> RunReport:
            job = loaded.job(job_name)
            workshop.log_in(job.source, job.target)
            return workshop.engine(route_of(loaded, job)).replicate(job, vms)

        yield PlannedFailover(failovers, workshop.sites, sync, shutdown_seconds)


def plan_walk(failovers: Failovers, plan: FailoverPlan, replicas: Mapping[str, FoundReplica]) -> PlanFailover:
    """A failover by a plan, from this machine."""
    watch = failovers.context.services.events.plan_moved
    return PlanFailover(failovers, plan, replicas, LocalProbe(), LocalCommands(), watch)


def target_site(loaded: LoadedConfig, name: str | None, job: str | None, plan: str | None = None) -> str:
    """Which site the replicas are at."""
    if name is not None:
        return loaded.require_site(name)
    if job is not None and job in loaded.config.jobs:
        return loaded.config.jobs[job].target
    for one in loaded.plans() if plan is not None else ():
        sites = sites_of(one, [loaded.job(name) for name in loaded.config.jobs])
        if one.name == plan and len(sites) == 1:
            return sites[0]
    targets = sorted({table.target for table in loaded.config.jobs.values()}) or sorted(loaded.config.sites)
    if len(targets) == 1:
        return targets[0]
    raise UsageError(f"which site are the replicas at? {', '.join(targets)}", hint="say --site SITE")


def surroundings(events: EngineEvents, stop: threading.Event) -> Surroundings:
    return Surroundings(clock=now, new_id=new_id, events=events, stop=stop)


class SourceWatch:
    """Tells whether a replica's source runs; None where its site is not configured or does not answer.

    A site that did not answer once is not asked again: it may be the one that is lost, and many VMs wait. So the first
    question is asked alone; where it was answered, the others go side by side.
    """

    def __init__(self, loaded: LoadedConfig, sites: Sites, events: EngineEvents) -> None:
        self._loaded = loaded
        self._sites = sites
        self._events = events
        self._lock = threading.Lock()
        self._first: dict[str, threading.Lock] = {}
        self._answers: dict[str, bool] = {}

    def __call__(self, record: FailoverRecord) -> bool | None:
        name = record.source_site
        if name not in self._loaded.config.sites:
            return None
        with self._lock:
            first = self._first.setdefault(name, threading.Lock())
        with first:
            if name not in self._answers:
                return self._ask(record)
        return self._ask(record) if self._answers[name] else None

    def _ask(self, record: FailoverRecord) -> bool | None:
        name = record.source_site
        try:
            vm = self._sites(name).find_vm_by_instance_uuid(record.source_instance_uuid)
        except VreplError as error:
            if self._answers.get(name, True):
                self._events.note("", f"whether VMs still run at site {name} is not known: {error.message}")
            self._answers[name] = False
            return None
        self._answers.setdefault(name, True)
        return vm is not None and vm.power is PowerState.ON


def _policy_of(loaded: LoadedConfig, replica: FoundReplica) -> FailoverPolicy | None:
    """What the configuration says: it may be newer than what the last run left beside the replica."""
    return policy_for(loaded.job(replica.job), replica.source_name) if replica.job in loaded.config.jobs else None


def _repository(loaded: LoadedConfig) -> Repository | None:
    try:
        return open_repository(loaded)
    except VreplError:
        return None
