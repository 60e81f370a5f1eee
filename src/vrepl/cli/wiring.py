"""The composition root: from the configuration to sites, data movers, repository and engine."""

from __future__ import annotations

import datetime as dt
import secrets as randomness
import sys
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vrepl.cli.state import State
from vrepl.config import LoadedConfig
from vrepl.engine import Engine, EngineEvents, SilentEvents
from vrepl.proxy.facts import gather_facts
from vrepl.repository.store import Repository
from vrepl.secrets import Secrets
from vrepl.transport.advisor import RuleAdvisor

if TYPE_CHECKING:
    from vrepl.vddk.movers import VddkMovers
    from vrepl.vddk.process import MoverSettings
    from vrepl.vsphere.session import SiteSettings
    from vrepl.vsphere.site import VsphereSite


def open_repository(loaded: LoadedConfig) -> Repository:
    """The configured repository; an empty one is made where there is none yet."""
    return Repository.open(loaded.config.repository.path, create=True)


class Sites:
    """The configured sites by name, each made at its first use and shared by everything in this process."""

    def __init__(self, loaded: LoadedConfig, secrets: Secrets | None = None) -> None:
        self._loaded = loaded
        self._secrets = secrets or Secrets()
        self._open: dict[str, VsphereSite] = {}
        self._lock = threading.Lock()

    def __call__(self, name: str) -> VsphereSite:
        """Raises NotFoundError for a site that is not configured, UsageError where its password cannot be had."""
        from vrepl.vsphere.site import VsphereSite

        with self._lock:
            if name not in self._open:
                self._open[name] = VsphereSite(self.settings(name))
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
            ca_file=table.ca_file,
            thumbprint=table.thumbprint_sha256,
            task_timeout=60.0 * table.task_timeout_minutes,
        )

    def hurry(self) -> None:
        """The operator asked to stop: nobody waits for a task of vSphere any longer than clean-up needs."""
        with self._lock:
            sites = list(self._open.values())
        for site in sites:
            site.hurry()

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


@dataclass(frozen=True, slots=True)
class ProxyPlace:
    """The machine that a job's data movers run on, as far as the configuration tells."""

    name: str
    libdir: Path
    sysroot: Path


def proxy_place(loaded: LoadedConfig, name: str | None) -> ProxyPlace:
    """The named proxy, or this machine with `[vddk]`."""
    vddk = loaded.config.vddk
    if name is None:
        return ProxyPlace("this machine", vddk.libdir, Path("/"))
    table = loaded.config.proxies[name]
    return ProxyPlace(name, table.libdir or vddk.libdir, table.sysroot)


class Workshop:
    """Everything that plans, runs and verifications share: repository, sites, data movers."""

    def __init__(self, loaded: LoadedConfig, events: EngineEvents | None = None) -> None:
        self.loaded = loaded
        self.repository = open_repository(loaded)
        self.sites = Sites(loaded)
        self.stopped = threading.Event()
        """Set once the operator asked to stop: no further job begins."""
        self._events = events or SilentEvents()
        self._movers: dict[ProxyPlace, VddkMovers] = {}

    def engine(self, proxy: str | None) -> Engine:
        """An engine for one run, whose data movers stand at this proxy; None: this machine."""
        place = proxy_place(self.loaded, proxy)
        return Engine(
            repository=self.repository,
            sites=self.sites,
            movers=self._movers_at(place),
            transports=make_advisor(self.loaded, place, self.sites),
            clock=now,
            new_id=new_id,
            events=self._events,
        )

    def load_vddk(self, proxy: str | None, site: str) -> None:
        """Load VDDK in a data mover at this proxy now, before a run makes anything. Raises LibraryError."""
        self._movers_at(proxy_place(self.loaded, proxy)).warm_up(site)

    def proxy_for(self, jobs: Sequence[str]) -> str | None:
        """The proxy of the first of these jobs that names one; None: this machine."""
        tables = self.loaded.config.jobs
        return next((tables[name].proxy for name in jobs if name in tables and tables[name].proxy), None)

    def _movers_at(self, place: ProxyPlace) -> VddkMovers:
        if place not in self._movers:
            self._movers[place] = make_movers(self.loaded, place, self.sites)
        return self._movers[place]

    def log_in(self, *sites: str) -> None:
        """Log in now, while Ctrl-C still ends the process at once, instead of in the middle of a run."""
        for name in dict.fromkeys(sites):
            self.sites(name).login()

    def __enter__(self) -> Workshop:
        return self

    def __exit__(self, *_: object) -> None:
        for movers in self._movers.values():
            movers.close()
        self.sites.close()


def mover_settings(loaded: LoadedConfig, place: ProxyPlace) -> MoverSettings:
    from vrepl.vddk.process import MoverSettings

    vddk = loaded.config.vddk
    return MoverSettings(
        libdir=place.libdir,
        buffer_units=vddk.nfc_buffer_kib // 64,
        buffer_count=vddk.nfc_buffer_count,
    )


def make_movers(loaded: LoadedConfig, place: ProxyPlace, sites: Sites) -> VddkMovers:
    """Data movers with the VDDK of this proxy, for all sites."""
    from vrepl.vddk.movers import VddkMovers

    settings = mover_settings(loaded, place)
    return VddkMovers(lambda name: sites(name).connection(), lambda _site: settings)


def make_advisor(loaded: LoadedConfig, place: ProxyPlace, sites: Sites) -> RuleAdvisor:
    """Transport modes by rule, over what this proxy can reach."""
    return RuleAdvisor(
        facts=lambda name: gather_facts(place.name, place.sysroot, sites(name), loaded.config.sites[name].nfc_port),
        datastores=lambda name: sites(name).datastores(),
    )


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def new_id() -> str:
    """Six hexadecimal digits."""
    return randomness.token_hex(3)


def events_for(state: State) -> AbstractContextManager[EngineEvents]:
    """What watches a run: nothing if quiet, bars on a terminal, log lines elsewhere."""
    if state.quiet:
        return nullcontext(SilentEvents())
    from vrepl.report.progress import LiveProgress, LogProgress

    return LiveProgress() if sys.stderr.isatty() else LogProgress()
