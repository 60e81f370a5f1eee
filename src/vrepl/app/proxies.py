"""The configured proxies: what is known of each by configuration, and what it says of itself when it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from vrepl.app.composition import mover_settings
from vrepl.app.machines import launcher_of, machine_of, proxy_machine, ssh_machine
from vrepl.app.sites import Sites
from vrepl.config import LoadedConfig
from vrepl.errors import UsageError, VreplError
from vrepl.movers.process import MoverProcess, Spawner
from vrepl.planner.modes import THIS_MACHINE
from vrepl.proxy.facts import find_proxy_vm
from vrepl.proxy.machine import FarMachine
from vrepl.proxy.ssh import SshMachine


@dataclass
class ProxyVerdict:
    """One proxy as `proxy check` found it."""

    name: str
    where: str
    """As ssh takes it, or THIS_MACHINE."""
    engine: str = ""
    vm: dict[str, str] = field(default_factory=dict)
    """Site -> name of the VM that the proxy is there."""
    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[tuple[str, str | None]] = field(default_factory=list)
    """(what, hint)."""


def ssh_of(loaded: LoadedConfig, name: str) -> SshMachine:
    """Raises NotFoundError, or UsageError for a proxy that is this machine."""
    ssh = ssh_machine(loaded, loaded.require_proxy(name))
    if ssh is None:
        raise UsageError(f"proxy {name} is this machine", hint=f'[proxies.{name}] ssh = "HOST" makes it another one')
    return ssh


def check_proxies(loaded: LoadedConfig, names: Sequence[str]) -> list[ProxyVerdict]:
    """Reach each, look at what is installed, start a data mover there, and ask which VM it is at its sites."""
    with Sites(loaded) as sites, ThreadPoolExecutor(max_workers=8, thread_name_prefix="proxies") as pool:
        return list(pool.map(lambda name: _check(loaded, sites, name), names))


def _check(loaded: LoadedConfig, sites: Sites, name: str) -> ProxyVerdict:
    table = loaded.config.proxies[name]
    verdict = ProxyVerdict(name, table.ssh or THIS_MACHINE)
    try:
        if table.ssh is not None:
            verdict.facts = FarMachine(ssh_of(loaded, name), table.sysroot).facts()
        _start_mover(loaded, name, verdict)
        for site in table.sites or tuple(loaded.config.sites):
            _look_at_site(loaded, sites, name, site, verdict)
    except VreplError as error:
        verdict.problems.append((error.message, error.hint))
    return verdict


def _start_mover(loaded: LoadedConfig, name: str, verdict: ProxyVerdict) -> None:
    machine = proxy_machine(loaded, name)
    verdict.engine = f"{machine.engine} ({machine.engine_reason})"
    spawner = Spawner()
    try:
        MoverProcess(mover_settings(loaded, machine), spawner, launcher=launcher_of(machine)).close()
    finally:
        spawner.end()


def _look_at_site(loaded: LoadedConfig, sites: Sites, name: str, site: str, verdict: ProxyVerdict) -> None:
    machine = machine_of(proxy_machine(loaded, name))
    vm, _ = find_proxy_vm(name, machine.product_uuid(), sites(site).list_vms())
    if vm is not None:
        verdict.vm[site] = vm.name
    port = loaded.config.sites[site].nfc_port
    closed = machine.closed_ports([host.name for host in sites(site).hosts() if host.connected], port)
    for host, why in closed.items():
        verdict.problems.append(
            (f"ESXi host {host} of site {site} cannot be reached from there: {why}", "nbd and nbdssl take that port")
        )
