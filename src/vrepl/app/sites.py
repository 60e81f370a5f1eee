"""What every command is made of: the configured sites, the repository, the clock, IDs.

No more than that is loaded here: a failover should not wait until a replication's engine is.
"""

from __future__ import annotations

import datetime as dt
import os
import pwd
import secrets as randomness
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from vrepl.config import LoadedConfig
from vrepl.errors import UsageError
from vrepl.repository.store import Repository
from vrepl.secrets import Secrets

if TYPE_CHECKING:
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

    def __init__(
        self,
        loaded: LoadedConfig,
        secrets: Secrets | None = None,
        *,
        answers_within: float = 0.0,
        prompt: bool = False,
    ) -> None:
        """`answers_within`: seconds, tried twice, for sites that may be lost; 0: with all the patience of a run.

        `prompt`: as `SiteSettings`.
        """
        self._loaded = loaded
        self._secrets = secrets or Secrets()
        self._answers_within = answers_within
        self._prompt = prompt
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
            prompt=self._prompt,
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


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def new_id() -> str:
    """Six hexadecimal digits."""
    return randomness.token_hex(3)
