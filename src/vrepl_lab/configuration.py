"""The vrepl.toml that a lab leaves for vrepl."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vrepl_lab.machines import address_of, ssh_config
from vrepl_lab.spec import ProxySpec


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
    proxies: Sequence[ProxySpec],
    jobs: Iterable[JobText],
    *,
    target_host: str,
    job_proxy: str | None = None,
    vddk: bool = True,
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
        engine = [] if vddk else ['engine = "own"']
        lines += ["[vddk]", *engine, f"libdir = {quoted(str(lab / 'proxies' / proxies[0].name / 'vddk'))}", ""]
    machines = [proxy.name for proxy in proxies if proxy.site is not None]
    for proxy in proxies:
        folder = lab / "proxies" / proxy.name
        lines += [
            f"[proxies.{proxy.name}]",
            *(far_lines(lab, proxy, address_of(lab, machines.index(proxy.name))) if proxy.site is not None else []),
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
            *([proxy_line(proxies, job_proxy)] if proxies else []),
            "",
        ]
    return "\n".join(lines)


def far_lines(lab: Path, proxy: ProxySpec, address: str) -> list[str]:
    """Of a proxy that is a machine of its own."""
    return [
        f"ssh = {quoted(proxy.name)}",
        f"ssh_config = {quoted(str(ssh_config(lab)))}",
        f"address = {quoted(address)}",
        f"listen = {quoted(address)}",
        f"sites = [{quoted(str(proxy.site))}]",
    ]


def proxy_line(proxies: Sequence[ProxySpec], job_proxy: str | None) -> str:
    """The job's: the machines of their own at both ends where there are any."""
    far = {site: [proxy.name for proxy in proxies if proxy.site == site] for site in ("prod", "dr")}
    if not any(far.values()):
        return f"proxy = {quoted(job_proxy or proxies[0].name)}"
    sides = {"source": far["prod"], "target": far["dr"]}
    return f"proxy = {{ {', '.join(f'{side} = {json.dumps(names)}' for side, names in sides.items() if names)} }}"
