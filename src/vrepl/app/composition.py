"""The composition root: from the configuration to sites, data movers, repository and engine."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from vrepl.app.machines import ProxyMachine, launcher_of, machine_of, proxy_machine
from vrepl.app.routes import Route, warn_of_missed_vddk
from vrepl.app.scripts import JobScripts
from vrepl.app.sites import Sites, new_id, now, open_repository, open_repository_to_write
from vrepl.config import LoadedConfig
from vrepl.engine.context import Patience, Services
from vrepl.engine.events import EngineEvents, SilentEvents
from vrepl.engine.run import Engine
from vrepl.model import DataEngine, JobSettings
from vrepl.planner.modes import ProxyFacts
from vrepl.ports import ModeChooser
from vrepl.proxy.chooser import RuleModeChooser
from vrepl.proxy.facts import gather_facts
from vrepl.proxy.placement import ProxyPlacement
from vrepl.secrets import Secrets

if TYPE_CHECKING:
    from vrepl.movers.pair import Authority
    from vrepl.movers.pool import VddkMovers
    from vrepl.movers.settings import MoverSettings


class Workshop:
    """Everything that plans, runs and verifications share: repository, sites, data movers."""

    def __init__(self, loaded: LoadedConfig, events: EngineEvents | None = None) -> None:
        self.loaded = loaded
        self.repository = open_repository_to_write(loaded)
        self.secrets = Secrets()
        self.sites = Sites(loaded, self.secrets)
        self.stopped = threading.Event()
        """Set once the operator asked to stop: no further job begins."""
        self._events = events or SilentEvents()
        self._movers: dict[Route, VddkMovers] = {}

    def engine(self, route: Route) -> Engine:
        """An engine for one run, whose data movers take this route."""
        return Engine(
            Services(
                repository=self.repository,
                movers=self._movers_on(route),
                modes=mode_chooser(self.loaded, route, self.sites),
                scripts=JobScripts(self.loaded, self.secrets),
                clock=now,
                new_id=new_id,
                events=self._events,
                patience=Patience(access=self.loaded.config.vddk.access_wait),
            ),
            self.sites,
        )

    def load_vddk(self, route: Route, job: JobSettings) -> None:
        """Load VDDK in the data movers of this route now, before a run makes anything. Raises LibraryError."""
        self._movers_on(route).warm_up(job.source, job.target)

    def _movers_on(self, route: Route) -> VddkMovers:
        if route not in self._movers:
            warn_of_missed_vddk(route)
            self._movers[route] = make_movers(self.loaded, route, self.sites)
        return self._movers[route]

    def log_in(self, *sites: str) -> None:
        """Log in now, while Ctrl-C still ends the process at once, instead of in the middle of a run."""
        for name in dict.fromkeys(sites):
            self.sites(name).login()

    def stop(self, engine: Engine, silent: Callable[[str], None]) -> None:
        """Ask a run to end soon, leaving the sites clean; `silent` is told of a site that does not answer any more."""

        def give_up(site: str) -> None:
            for movers in list(self._movers.values()):
                movers.give_up_on(site)
            silent(site)

        engine.stop()
        self.sites.hurry(give_up)

    def __enter__(self) -> Workshop:
        return self

    def __exit__(self, *_: object) -> None:
        for movers in self._movers.values():
            movers.close()
        self.sites.close()


def mover_settings(loaded: LoadedConfig, machine: ProxyMachine, readback: str = "sample") -> MoverSettings:
    from vrepl.movers.settings import MoverSettings

    vddk = loaded.config.vddk
    settings = MoverSettings(
        libdir=machine.libdir,
        buffer_units=vddk.nfc_buffer_kib // 64,
        buffer_count=vddk.nfc_buffer_count,
        machine=machine.name if machine.ssh is not None else None,
    )
    if machine.engine is DataEngine.VDDK:
        return settings
    return replace(settings, libdir=None, engine="vrepl.own_engine:start", readback=readback, sysroot=machine.sysroot)


def local_time_of_day() -> dt.time:
    """What a time window of the configuration is compared with."""
    return dt.datetime.now().time()


def make_movers(
    loaded: LoadedConfig, route: Route, sites: Sites, local_time: Callable[[], dt.time] = local_time_of_day
) -> VddkMovers:
    """Data movers with the VDDK of this route's machines, held to its limits as they are at each moment."""
    from vrepl.app.attachments import Attachments
    from vrepl.movers.launching import LocalLauncher
    from vrepl.movers.pool import VddkMovers
    from vrepl.transport.rates import tightest

    attachments = Attachments(
        sites,
        lambda name: machine_of(route.machine(name)).product_uuid(),
        lambda name: machine_of(proxy_machine(loaded, name or None)).product_uuid(),
        lambda: open_repository(loaded).id,
    )
    return VddkMovers(
        lambda name: sites(name).connection(),
        lambda name: mover_settings(loaded, route.machine(name), route.readback),
        settings_of_proxy=lambda name: mover_settings(loaded, proxy_machine(loaded, name or None), route.readback),
        proxies_of=lambda site: [machine.key for machine in route.machines_at(site)],
        bandwidth=lambda: tightest(route.limits, local_time()),
        tickets=lambda request: sites(request.site).nfc_ticket(request.vm_ref, request.path, writable=request.writable),
        attachments=attachments,
        launchers=lambda name: launcher_of(proxy_machine(loaded, name)) if name is not None else LocalLauncher(),
        authority=stream_authority,
    )


def stream_authority() -> Authority:
    """What signs certificates of streams between machines: only a run that has such streams loads what it takes."""
    from vrepl.proxy.certificates import StreamAuthority

    return StreamAuthority()


def mode_chooser(loaded: LoadedConfig, route: Route, sites: Sites) -> ModeChooser:
    """Transport modes by rule, over what this route's machines can reach."""

    def chooser(machine: ProxyMachine) -> RuleModeChooser:
        def facts(name: str) -> ProxyFacts:
            found = gather_facts(
                machine.name,
                machine_of(machine),
                sites(name),
                loaded.config.sites[name].nfc_port,
                engine=machine.engine,
                engine_reason=machine.engine_reason,
            )
            if found.vm is None:
                return found
            return replace(found, vm=replace(found.vm, replicated_by=job_that_names(loaded, name, found.vm.name)))

        return RuleModeChooser(facts=facts, datastores=lambda name: sites(name).datastores())

    machines = {machine.key: machine for machine in (*(machine for _, machine in route.machines), route.default)}
    return ProxyPlacement(
        {key: chooser(machine) for key, machine in machines.items()},
        lambda site: [machine.key for machine in route.machines_at(site)],
        {name: table.slots for name, table in loaded.config.proxies.items()},
        sites=tuple(dict.fromkeys(site for site, _ in route.machines)),
    )


def job_that_names(loaded: LoadedConfig, site: str, vm: str) -> str:
    """The first job whose `vms` hold this VM of the site; "" where none does, or selects it by other means."""
    return next(
        (
            name
            for name, job in loaded.config.jobs.items()
            if job.source == site and any(fnmatchcase(vm, pattern) for pattern in job.vms)
        ),
        "",
    )
