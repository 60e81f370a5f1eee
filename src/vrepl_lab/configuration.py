"""The vrepl.toml that a lab leaves for vrepl."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SiteAccess:
    name: str
    server: str
    port: int
    user: str
    nfc_port: int


@dataclass(frozen=True, slots=True)
class JobText:
    name: str
    vms: Sequence[str]


HEADER = """\
# Configuration of a lab: two simulated vCenters. Made by `vrepl lab up`; made anew by the next one.
"""


def quoted(text: str) -> str:
    """A TOML basic string: JSON's escapes are a subset of TOML's."""
    return json.dumps(text)


def configuration(
    lab: Path,
    sites: Iterable[SiteAccess],
    proxies: Sequence[str],
    jobs: Iterable[JobText],
    *,
    target_host: str,
    job_proxy: str | None = None,
) -> str:
    lines = [HEADER]
    for site in sites:
        lines += [
            f"[sites.{site.name}]",
            f"server = {quoted(site.server)}",
            f"port = {site.port}",
            f"user = {quoted(site.user)}",
            f"password = {{ file = {quoted(str(lab / 'secrets' / f'{site.name}-password'))} }}",
            f"ca_file = {quoted(str(lab / 'ca.pem'))}",
            f"nfc_port = {site.nfc_port}",
            "",
        ]
    lines += ["[repository]", f"path = {quoted(str(lab / 'repository'))}", ""]
    if proxies:
        lines += ["[vddk]", f"libdir = {quoted(str(lab / 'proxies' / proxies[0] / 'vddk'))}", ""]
    for proxy in proxies:
        folder = lab / "proxies" / proxy
        lines += [
            f"[proxies.{proxy}]",
            f"libdir = {quoted(str(folder / 'vddk'))}",
            f"sysroot = {quoted(str(folder / 'sysroot'))}",
            "",
        ]
    for job in jobs:
        lines += [
            f"[jobs.{job.name}]",
            'source = "prod"',
            'target = "dr"',
            f"vms = {json.dumps(list(job.vms))}",
            f"target_host = {quoted(target_host)}",
            'target_datastore = "dr-vmfs-01"',
            'networks = { "VM Network" = "VM Network" }',
            "retention = { last = 7 }",
            *([f"proxy = {quoted(job_proxy or proxies[0])}"] if proxies else []),
            "",
        ]
    return "\n".join(lines)
