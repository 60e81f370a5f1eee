"""The composition root: from the configuration to sites, data movers, repository and engine."""

from __future__ import annotations

import datetime as dt
import secrets as randomness
import sys
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from vrepl.cli.state import State
from vrepl.config import LoadedConfig
from vrepl.engine.events import EngineEvents, SilentEvents
from vrepl.repository.store import Repository
from vrepl.secrets import Secrets

if TYPE_CHECKING:
    from vrepl.ports import Site
    from vrepl.vsphere.session import SiteSettings


def open_repository(loaded: LoadedConfig) -> Repository:
    """The configured repository; an empty one is made where there is none yet."""
    return Repository.open(loaded.config.repository.path, create=True)


class Sites:
    """The configured sites by name, each made at its first use and shared by everything in this process."""

    def __init__(self, loaded: LoadedConfig, secrets: Secrets | None = None) -> None:
        self._loaded = loaded
        self._secrets = secrets or Secrets()
        self._open: dict[str, Site] = {}
        self._lock = threading.Lock()

    def __call__(self, name: str) -> Site:
        from vrepl.vsphere.site import VsphereSite

        with self._lock:
            if name not in self._open:
                self._open[name] = VsphereSite(self.settings(name))
            return self._open[name]

    def settings(self, name: str) -> SiteSettings:
        """How to reach one site, its password resolved. Raises UsageError where that cannot be had."""
        from vrepl.vsphere.session import SiteSettings

        table = self._loaded.config.sites[name]
        return SiteSettings(
            name=name,
            server=table.server,
            port=table.port,
            user=table.user,
            password=self._secrets.resolve(table.password.reference()).get_secret_value(),
            nfc_port=table.nfc_port,
            ca_file=table.ca_file,
            thumbprint=table.thumbprint_sha256,
        )

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


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def new_id() -> str:
    return randomness.token_hex(3)


def events_for(state: State) -> AbstractContextManager[EngineEvents]:
    """What watches a run: nothing if quiet, bars on a terminal, log lines elsewhere."""
    if state.quiet:
        return nullcontext(SilentEvents())
    from vrepl.report.progress import LiveProgress, LogProgress

    return LiveProgress() if sys.stderr.isatty() else LogProgress()
