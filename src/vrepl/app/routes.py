"""Which machine serves which site in a run, and how fast bytes may move between them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from vrepl.app.machines import ProxyMachine, proxy_machine
from vrepl.config import LoadedConfig
from vrepl.errors import ConnectionFailedError, MoverError, VreplError
from vrepl.model import Bandwidth, JobSettings, ReplicaRecord

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Route:
    """Which machine serves which site, and how fast bytes may move between them."""

    machines: tuple[tuple[str, ProxyMachine], ...]
    """By site name, several for one where it has several; any other site is served by this machine."""
    default: ProxyMachine
    limits: tuple[Bandwidth, ...] = ()
    """The tightest counts."""
    readback: str = "sample"
    """How much of what vrepl's own engine wrote is read back: `sample` or `all`."""

    def machine(self, site: str) -> ProxyMachine:
        """The first that serves it."""
        return self.machines_at(site)[0]

    def machines_at(self, site: str) -> tuple[ProxyMachine, ...]:
        return tuple(machine for name, machine in self.machines if name == site) or (self.default,)


def reachable_machines(loaded: LoadedConfig, names: Sequence[str]) -> list[ProxyMachine]:
    """The named proxies; this machine where none is named. One that cannot be had is left out, and told of.

    Raises what stands in the way where none is left.
    """
    if not names:
        return [proxy_machine(loaded, None)]
    found: list[ProxyMachine] = []
    failure: VreplError | None = None
    with ThreadPoolExecutor(max_workers=len(names), thread_name_prefix="proxies") as pool:
        for name, asked in [(name, pool.submit(proxy_machine, loaded, name)) for name in names]:
            try:
                found.append(asked.result())
            except (ConnectionFailedError, MoverError) as error:
                logger.warning("proxy %s is left out of this run: %s", name, error.message)
                failure = error
    if not found and failure is not None:
        raise failure
    return found


def warn_of_missed_vddk(route: Route) -> None:
    """Where VDDK was to be had, and another engine takes its place: so that nobody waits for HotAdd in vain."""
    for machine in dict.fromkeys(machine for _, machine in route.machines or (("", route.default),)):
        if machine.vddk_is_missed:
            said = '%s, where the configuration has it: vrepl\'s own engine takes its place (engine = "own" says so)'
            logger.warning(said, machine.engine_reason)


def route_of(loaded: LoadedConfig, job: JobSettings) -> Route:
    """Of a job's transfers."""
    sites = loaded.config.sites
    return Route(
        tuple(
            (site, machine)
            for site in dict.fromkeys((job.source, job.target))
            for machine in reachable_machines(loaded, job.proxies_at(site))
        ),
        proxy_machine(loaded, None),
        (job.bandwidth, *(sites[name].bandwidth.bandwidth() for name in (job.source, job.target) if name in sites)),
        job.readback,
    )


def verification_route(loaded: LoadedConfig, replicas: Sequence[ReplicaRecord]) -> Route:
    """Of reading these replicas back: at each site, the proxies of the first configured job that writes there.

    The sites' limits hold; those of jobs are for their transfers.
    """
    config = loaded.config
    proxies: dict[str, tuple[str, ...]] = {}
    for record in replicas:
        job = config.jobs.get(record.job)
        if job is not None and job.target == record.target_site:
            proxies.setdefault(record.target_site, job.proxy.target)
    names = dict.fromkeys(record.target_site for record in replicas)
    limits = tuple(config.sites[name].bandwidth.bandwidth() for name in names if name in config.sites)
    machines = [(site, machine) for site, names in proxies.items() for machine in reachable_machines(loaded, names)]
    return Route(tuple(machines), proxy_machine(loaded, None), limits)
