"""Machines of their own for proxies: each an ssh server on loopback with a home of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from vrepl_lab import processes
from vrepl_lab.errors import LabError
from vrepl_lab.folder import loopback_network
from vrepl_lab.processes import ProcessIdentity

FIRST_ADDRESS = 201
"""Last byte of the first machine's address; those of ESXi hosts are below (`spec.host_addresses`)."""
READY_S = 30.0


def ssh_config(lab: Path) -> Path:
    """With it, `ssh -F FILE NAME` reaches the machines of a lab."""
    return lab / "secrets" / "ssh_config"


def home_of(lab: Path, name: str) -> Path:
    """What is a machine's own: everything in it is lost with it."""
    return lab / "proxies" / name / "home"


def address_of(lab: Path, position: int) -> str:
    """Each machine has an address of its own, on loopback, beside those of the lab's ESXi hosts."""
    a, b = loopback_network(lab)
    return f"127.{a}.{b}.{FIRST_ADDRESS + position}"


def make_keys(lab: Path) -> None:
    """One key that logs in everywhere, one that all servers show."""
    try:
        import asyncssh
    except ImportError:
        raise LabError("machines for proxies take asyncssh", hint="pip install 'vrepl[machines]'") from None
    for name in ("id", "host"):
        key = asyncssh.generate_private_key("ssh-ed25519", comment=f"lab {name}")
        path = lab / "secrets" / f"ssh-{name}"
        path.touch(mode=0o600)
        path.write_bytes(key.export_private_key())
        path.with_name(f"ssh-{name}.pub").write_bytes(key.export_public_key())


def start(lab: Path, name: str, address: str, simulators: Sequence[ProcessIdentity], port: int = 0) -> int:
    """Start the server of one machine; its port (0: any). It ends with the lab's last simulator."""
    home = home_of(lab, name)
    home.mkdir(parents=True, exist_ok=True)
    ready = home.parent / "ssh-port"
    ready.unlink(missing_ok=True)
    secrets = lab / "secrets"
    command = [sys.executable, "-m", "vrepl_lab.sshd", "--home", str(home), "--listen", address]
    command += ["--port", str(port)]
    command += ["--host-key", str(secrets / "ssh-host"), "--authorized", str(secrets / "ssh-id.pub")]
    command += ["--ready", str(ready), "--simulators", json.dumps([asdict(simulator) for simulator in simulators])]
    child = processes.start(command, home.parent / "sshd.log", die_with_us=False)
    processes.wait_until(lambda: ready.exists() or child.poll() is not None, READY_S)
    if not ready.exists():
        said = (home.parent / "sshd.log").read_text(errors="replace")[-2000:]
        raise LabError(f"the ssh server of machine {name} does not serve:\n{said}")
    return int(ready.read_text())


def write_ssh_config(lab: Path, servers: Mapping[str, tuple[str, int]]) -> None:
    """Names of machines, and the address and port of each; strict about whom it meets."""
    secrets = lab / "secrets"
    host_key = (secrets / "ssh-host.pub").read_text().split()
    known = secrets / "ssh-known-hosts"
    known.write_text("".join(f"[{address}]:{port} {host_key[0]} {host_key[1]}\n" for address, port in servers.values()))
    blocks = [
        f"""Host {name}
  HostName {address}
  Port {port}
  User vrepl
  IdentityFile {secrets / "ssh-id"}
  IdentitiesOnly yes
  UserKnownHostsFile {known}
  StrictHostKeyChecking yes
"""
        for name, (address, port) in servers.items()
    ]
    ssh_config(lab).write_text("\n".join(blocks))


def processes_on(lab: Path, name: str) -> list[int]:
    """Those that run on this machine: its server, and what has its home."""
    home = home_of(lab, name)
    wanted = (f"HOME={home}".encode(), f"--home\0{home}\0".encode())
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                environment = (entry / "environ").read_bytes().split(b"\0")
                if wanted[0] in environment or wanted[1] in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def destroy(lab: Path, name: str) -> None:
    """The machine is gone, with all that it held: nothing there has a chance to say so."""
    while running := processes_on(lab, name):
        for pid in running:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        processes.wait_until(lambda: not processes_on(lab, name), 2.0)
    shutil.rmtree(home_of(lab, name), ignore_errors=True)
