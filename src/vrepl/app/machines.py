"""The machines that run data movers, by configuration: which engine each has, and how it is reached."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from vrepl.config import LoadedConfig
from vrepl.errors import LibraryError, UsageError
from vrepl.model import DataEngine
from vrepl.planner.modes import THIS_MACHINE
from vrepl.proxy.facts import Machine, ThisMachine
from vrepl.proxy.machine import FarMachine, RememberedMachine
from vrepl.proxy.ssh import SshLauncher, SshMachine, host_of

if TYPE_CHECKING:
    from vrepl.movers.launching import Launcher


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
    bind: str = ""
    """Where movers of other machines connect to it, whether they may, and which of its addresses is listened on."""

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
    ssh = ssh_machine(loaded, name)
    engine, why = choose_engine(wish, where, libdir, ssh)
    named = (table if table.libdir else vddk).model_fields_set
    missed = _missed(wish, engine, named)
    if ssh is None:
        return ProxyMachine(name, libdir, table.sysroot, engine, why, missed)
    address = table.address or host_of(ssh.destination)
    listens, bind = table.listening
    return ProxyMachine(name, libdir, table.sysroot, engine, why, missed, ssh, address, listens, table.port_range, bind)


def ssh_machine(loaded: LoadedConfig, name: str) -> SshMachine | None:
    """How a configured proxy is reached; None: it is this machine."""
    table = loaded.config.proxies[name]
    return None if table.ssh is None else SshMachine(name, table.ssh, table.ssh_config, table.python)


def _missed(wish: str, engine: DataEngine, said: Collection[str]) -> bool:
    return wish == "auto" and engine is DataEngine.OWN and "libdir" in said


@cache
def machine_of(proxy: ProxyMachine) -> Machine:
    """What a proxy sees of itself; one behind ssh is asked each thing once."""
    if proxy.ssh is None:
        return ThisMachine(proxy.sysroot)
    return RememberedMachine(FarMachine(proxy.ssh, proxy.sysroot))


@cache
def _vddk_there(ssh: SshMachine, libdir: Path) -> str | None:
    found: str | None = FarMachine(ssh).facts(libdir=str(libdir), finder="vrepl.vddk.library:find_library")["library"]
    return found


def choose_engine(wish: str, where: str, libdir: Path, ssh: SshMachine | None = None) -> tuple[DataEngine, str]:
    """Whose code opens disks, and why; VDDK is taken where it is installed, unless `wish` says otherwise.

    `ssh`: the machine that is meant. Raises ConnectionFailedError or MoverError where it cannot be asked.
    """
    from vrepl.vddk.library import find_library

    if wish != "auto":
        return DataEngine(wish), f'{where} engine = "{wish}"'
    if ssh is not None:
        library = _vddk_there(ssh, libdir)
        if library is None:
            return DataEngine.OWN, f"no VDDK in {libdir} of proxy {ssh.name}"
        return DataEngine.VDDK, f"VDDK is installed on proxy {ssh.name}: {library}"
    try:
        return DataEngine.VDDK, f"VDDK is installed: {find_library(libdir)}"
    except LibraryError:
        return DataEngine.OWN, f"no VDDK in {libdir}"


def launcher_of(proxy: ProxyMachine) -> Launcher:
    from vrepl.movers.launching import LocalLauncher

    if proxy.ssh is None:
        return LocalLauncher()
    return SshLauncher(proxy.ssh, proxy.address, proxy.listens, proxy.ports, proxy.bind)
