"""The composition root: from the configuration to sites, data movers, repository and engine."""

from __future__ import annotations

import datetime as dt
import logging
import os
import pwd
import secrets as randomness
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from vrepl.app.scripts import JobScripts
from vrepl.config import LoadedConfig
from vrepl.engine import Engine, EngineEvents, Services, SilentEvents
from vrepl.engine.context import Patience
from vrepl.errors import ConnectionFailedError, LibraryError, MoverError, UsageError, VreplError
from vrepl.model import Bandwidth, DataEngine, JobSettings, ReplicaRecord
from vrepl.planner.modes import THIS_MACHINE, ProxyFacts
from vrepl.ports import ModeChooser
from vrepl.proxy.chooser import RuleModeChooser
from vrepl.proxy.facts import Machine, ThisMachine, gather_facts
from vrepl.proxy.machine import FarMachine, Remembered
from vrepl.proxy.placement import ProxyPlacement
from vrepl.proxy.ssh import SshLauncher, SshMachine, host_of
from vrepl.repository.store import Repository
from vrepl.secrets import Secrets

if TYPE_CHECKING:
    from vrepl.movers.launching import Launcher
    from vrepl.movers.pool import VddkMovers
    from vrepl.movers.settings import MoverSettings
    from vrepl.vsphere.session import SiteSettings
    from vrepl.vsphere.site import VsphereSite

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True, slots=True)
class ProxyMachine:
    """The machine that a data mover runs on, as far as the configuration tells."""

    name: str
    libdir: Path
    sysroot: Path
    engine: DataEngine = DataEngine.VDDK
    engine_reason: str = ""
    """Why this one."""
    vddk_is_missed: bool = False
    """The configuration names a folder of VDDK, which holds none, so vrepl's own engine takes its place."""
    ssh: SshMachine | None = None
    """How it is reached; None: it is the machine that vrepl runs on, or a folder that stands for one."""
    address: str = ""
    listens: bool = False
    ports: tuple[int, int] = (0, 0)
    """Where movers of other machines connect to it, and whether they may."""

    @property
    def key(self) -> str:
        """Its name in the configuration; empty for this machine with [vddk]."""
        return "" if self.name == THIS_MACHINE else self.name


def proxy_machine(loaded: LoadedConfig, name: str | None) -> ProxyMachine:
    """The named proxy, or this machine with `[vddk]`."""
    vddk = loaded.config.vddk
    if name is None:
        engine, why = choose_engine(vddk.engine, "[vddk]", vddk.libdir)
        return ProxyMachine(
            THIS_MACHINE, vddk.libdir, Path("/"), engine, why, _missed(vddk.engine, engine, vddk.model_fields_set)
        )
    if name not in loaded.config.proxies:
        raise UsageError(f"no proxy {name} is configured", hint=f"{loaded.path}: [proxies.{name}]")
    table = loaded.config.proxies[name]
    libdir = table.libdir or vddk.libdir
    where = "[vddk]" if table.engine is None else f"[proxies.{name}]"
    wish = table.engine or vddk.engine
    ssh = None if table.ssh is None else SshMachine(name, table.ssh, table.ssh_config, table.python)
    engine, why = choose_engine(wish, where, libdir, ssh)
    named = (table if table.libdir else vddk).model_fields_set
    missed = _missed(wish, engine, named)
    if ssh is None:
        return ProxyMachine(name, libdir, table.sysroot, engine, why, missed)
    address = table.address or host_of(ssh.destination)
    return ProxyMachine(name, libdir, table.sysroot, engine, why, missed, ssh, address, table.listen, table.port_range)


def _missed(wish: str, engine: DataEngine, said: Collection[str]) -> bool:
    return wish == "auto" and engine is DataEngine.OWN and "libdir" in said


@cache
def machine_of(proxy: ProxyMachine) -> Machine:
    """What a proxy sees of itself; one behind ssh is asked each thing once."""
    if proxy.ssh is None:
        return ThisMachine(proxy.sysroot)
    return Remembered(FarMachine(proxy.ssh, proxy.sysroot))


@cache
def _vddk_there(ssh: SshMachine, libdir: Path) -> tuple[str | None, str]:
    told = FarMachine(ssh).facts(libdir=str(libdir), finder="vrepl.vddk.library:find_library")
    return told["library"], told["no_library"]


def choose_engine(wish: str, where: str, libdir: Path, ssh: SshMachine | None = None) -> tuple[DataEngine, str]:
    """Whose code opens disks, and why; VDDK is taken where it is installed, unless `wish` says otherwise.

    `ssh`: the machine that is meant. Raises ConnectionFailedError or MoverError where it cannot be asked.
    """
    from vrepl.vddk.library import find_library

    if wish != "auto":
        return DataEngine(wish), f'{where} engine = "{wish}"'
    if ssh is not None:
        library, _ = _vddk_there(ssh, libdir)
        if library is None:
            return DataEngine.OWN, f"no VDDK in {libdir} of proxy {ssh.name}"
        return DataEngine.VDDK, f"VDDK is installed on proxy {ssh.name}: {library}"
    try:
        return DataEngine.VDDK, f"VDDK is installed: {find_library(libdir)}"
    except LibraryError:
        return DataEngine.OWN, f"no VDDK in {libdir}"


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
    """Of reading these replicas back: at each site, the proxy of the first configured job that writes there.

    The sites' limits hold; those of jobs are for their transfers.
    """
    config = loaded.config
    machines: dict[str, ProxyMachine] = {}
    for record in replicas:
        job = config.jobs.get(record.job)
        if job is not None and job.target == record.target_site:
            machines.setdefault(record.target_site, proxy_machine(loaded, next(iter(job.proxy.target), None)))
    names = dict.fromkeys(record.target_site for record in replicas)
    limits = tuple(config.sites[name].bandwidth.bandwidth() for name in names if name in config.sites)
    return Route(tuple(machines.items()), proxy_machine(loaded, None), limits)


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
    from vrepl.proxy.certificates import StreamAuthority
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
        authority=StreamAuthority,
    )


def launcher_of(proxy: ProxyMachine) -> Launcher:
    from vrepl.movers.launching import LocalLauncher

    if proxy.ssh is None:
        return LocalLauncher()
    return SshLauncher(proxy.ssh, proxy.address, proxy.listens, proxy.ports)


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
