"""Other machines for data movers, as far as one machine can be another: their own processes, nothing inherited."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.support.vddk_site import VddkSite
from vrepl.movers.launching import Launched, start_host
from vrepl.movers.settings import MoverSettings
from vrepl.stream.end import StreamEnd

Tamper = Callable[[StreamEnd], StreamEnd]


@dataclass
class HostHere:
    """`movers.launching.Launcher` for a proxy that is this machine under another name, without ssh."""

    machine: str
    address: str = "127.0.0.1"
    listens: bool = True
    ports: tuple[int, int] = (0, 0)
    bind: str = ""
    tamper: Tamper = lambda end: end

    def start(self, libdir: Path | None, *, pass_fds: Sequence[int] = (), stream: StreamEnd | None = None) -> Launched:
        assert not pass_fds
        command = [sys.executable, "-m", "vrepl.proxy.host"]
        return start_host(command, libdir, self.tamper(stream) if stream else None, who=f"proxy {self.machine}")


def settings_by_role(site: VddkSite, source: str | None, target: str | None) -> Callable[[str], MoverSettings]:
    """A site's settings, on one machine where it is read from (`prod`), on another where it is written to (`dr`)."""
    machines = {"prod": source, "dr": target}
    return lambda name: replace(site.settings(name), machine=machines[name])
