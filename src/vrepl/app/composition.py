"""The composition root: from the configuration to sites, data movers, repository and engine."""

from __future__ import annotations

import datetime as dt
import os
import pwd
import secrets as randomness
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from vrepl.app.machines import ProxyMachine, launcher_of, machine_of, proxy_machine
from vrepl.app.routes import Route, warn_of_missed_vddk
from vrepl.app.scripts import JobScripts
from vrepl.config import LoadedConfig
from vrepl.engine import Engine, EngineEvents, Services, SilentEvents
from vrepl.engine.context import Patience
from vrepl.errors import UsageError
from vrepl.model import DataEngine, JobSettings
from vrepl.planner.modes import ProxyFacts
from vrepl.ports import ModeChooser
from vrepl.proxy.chooser import RuleModeChooser
from vrepl.proxy.facts import gather_facts
from vrepl.proxy.placement import ProxyPlacement
from vrepl.repository.store import Repository
from vrepl.secrets import Secrets

if TYPE_CHECKING:
    from vrepl.movers.pair import Authority
    from vrepl.movers.pool import VddkMovers
    from vrepl.movers.settings import MoverSettings
    from vrepl.vsphere.session import SiteSettings
    from vrepl.vsphere.site import VsphereSite


def open_repository(loaded: LoadedConfig) -> Repository:
    """The configured repository; an empty one is made where there is none yet."""
    return Repository.open(loaded.config.repository.path, create=True)


def open_repository_to_write(loaded: LoadedConfig) -> Repository:
    """The same, for what leaves files there. Raises UsageError where root would leave them to another user."""
    path = loaded.config.repository.path
    with suppress(FileNotFoundError):
        owner = path.stat().st_uid
        if os.geteuid() == 0 and owner != 0:
            try:
                name = pwd.getpwuid(owner).pw_name
            except KeyError:
                name = f"#{owner}"
            raise UsageError(
                f"the repository {path} belongs to user {name}, and this is root: what root leaves there, {name} could "
                "not use",
                hint=f"sudo -u {name} vrepl …",
            )
    return open_repository(loaded)


class Sites:
    """The configured sites by name, each made at its first use and shared by everything in this process."""

    def __init__(self, loaded: LoadedConfig, secrets: Secrets | None = None, *, answers_within: float = 0.0) -> None:
        """`answers_within`: seconds, tried twice, for sites that may be lost; 0: with all the patience of a run."""
        self._loaded = loaded
        self._secrets = secrets or Secrets()
        self._answers_within = answers_within
        self._open: dict[str, VsphereSite] = {}
        self._lock = threading.Lock()

    def __call__(self, name: str) -> VsphereSite:
        """Raises NotFoundError for a site that is not configured, UsageError where its password cannot be had."""
        from vrepl.vsphere.retry import RetryPolicy
        from vrepl.vsphere.site import VsphereSite

        with self._lock:
            if name not in self._open:
                settings = self.settings(name)
                if self._answers_within:
                    settings = replace(settings, timeout=self._answers_within, retry=RetryPolicy(attempts=2))
                self._open[name] = VsphereSite(settings)
            return self._open[name]

    def settings(self, name: str) -> SiteSettings:
        """How to reach one site, its password resolved."""
        from vrepl.vsphere.session import SiteSettings

        table = self._loaded.config.sites[self._loaded.require_site(name)]
        return SiteSettings(
            name=name,
            server=table.server,
            port=table.port,
            user=table.user,
            password=self._secrets.resolve(table.password.reference()).get_secret_value(),
            nfc_port=table.nfc_port,
            nfc_compression=table.nfc_compression,
            ca_file=table.ca_file,
            thumbprint=table.thumbprint_sha256,
            task_timeout=60.0 * table.task_timeout_minutes,
        )

    def hurry(self, silent: Callable[[str], None] = lambda site: None) -> None:
        """The operator asked to stop: nobody waits for a task of vSphere any longer than clean-up needs.

        `silent` is told, from another thread, of a site that no longer answers, and was given up.
        """
        with self._lock:
            sites = list(self._open.values())
        for site in sites:
            site.hurry()

            def watch(site: VsphereSite = site) -> None:
                if site.give_up_if_silent():
                    silent(site.name)

            threading.Thread(target=watch, name=f"watch-{site.name}", daemon=True).start()

    def close(self) -> None:
        """Log out everywhere."""
        with self._lock:
            sites, self._open = list(self._open.values()), {}
        for site in sites:
            site.close()

    def __enter__(self) -> Sites:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def new_id() -> str:
    """Six hexadecimal digits."""
    return randomness.token_hex(3)
