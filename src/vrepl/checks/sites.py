"""Checks of one site: secret, name, port, TLS, login, clock, and every ESXi host's name and NFC port."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vrepl.checks.facts import CheckedSite, World
from vrepl.checks.result import CheckResult, Status
from vrepl.errors import VreplError
from vrepl.model import JobSettings

CLOCK_TOLERANCE = 60.0
"""Seconds that a site's clock may be off: restore points bear this machine's time, certificates and logs the site's."""


def check_site(world: World, name: str, jobs: Sequence[JobSettings] = ()) -> Iterator[CheckResult]:
    """In the order in which one needs the other; what can no longer be asked is left out.

    `jobs`: whose movers have to reach the site's hosts.
    """
    table = world.loaded.config.sites[name]
    reference = table.password.reference()
    try:
        site = world.site(name)
    except VreplError as error:
        yield CheckResult.failed(f"secret of {name}", error)
        return
    yield CheckResult.ok(f"secret of {name}", f"from {reference.kind}")
    yield (address := check_name(world, table.server, name))
    if address.status is Status.FAILED:
        return
    yield (port := check_port(world, table.server, table.port, name))
    if port.status is Status.FAILED:
        return
    try:
        connection = site.connection()
    except VreplError as error:
        yield CheckResult.failed(f"TLS of {name}", error)
        return
    trusted = "pinned thumbprint" if table.thumbprint_sha256 else str(table.ca_file or "system CAs")
    yield CheckResult.ok(f"TLS of {name}", f"verified by {trusted}")
    try:
        site.login()
        product = site.product
    except VreplError as error:
        yield CheckResult.failed(f"login to {name}", error)
        return
    yield CheckResult.ok(f"login to {name}", f"{connection.user} on {product}")
    yield check_clock(world, site, name)
    yield from check_hosts(world, site, name, jobs)


def check_name(world: World, host: str, site: str) -> CheckResult:
    title = f"DNS of {host} ({site})"
    try:
        return CheckResult.ok(title, world.network.resolve(host))
    except OSError as error:
        return CheckResult(
            title,
            Status.FAILED,
            f"{host} has no address: {error.strerror or error}",
            "VDDK connects to ESXi hosts by the names that vSphere knows: make this machine resolve them",
        )


def check_port(world: World, host: str, port: int, site: str) -> CheckResult:
    title = f"port {port} of {host} ({site})"
    try:
        world.network.reach(host, port)
    except OSError as error:
        return CheckResult(
            title,
            Status.FAILED,
            f"{host}:{port} cannot be reached: {error.strerror or error}",
            f"open TCP {port} from this machine to {host} in every firewall between",
        )
    return CheckResult.ok(title, "open")


def check_clock(world: World, site: CheckedSite, name: str) -> CheckResult:
    title = f"clock of {name}"
    before = world.clock()
    try:
        there = site.current_time()
    except VreplError as error:
        return CheckResult.failed(title, error)
    middle = before + (world.clock() - before) / 2
    off = (there - middle).total_seconds()
    if abs(off) > CLOCK_TOLERANCE:
        return CheckResult(
            title,
            Status.FAILED,
            f"{abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} this machine's",
            "let both follow the same NTP servers",
        )
    return CheckResult.ok(title, f"within {abs(off):.0f} s")


def check_hosts(world: World, site: CheckedSite, name: str, jobs: Sequence[JobSettings] = ()) -> Iterator[CheckResult]:
    """DNS and the NFC port of every connected ESXi host, one line each, from where movers reach them.

    That is this machine, unless proxies of their own serve the site in all jobs.
    """
    nfc_port = world.loaded.config.sites[name].nfc_port
    try:
        hosts = site.hosts()
    except VreplError as error:
        yield CheckResult.failed(f"ESXi hosts of {name}", error)
        return
    for host in hosts:
        if not host.connected:
            yield CheckResult(
                f"ESXi host {host.name} ({name})",
                Status.WARNING,
                "not connected to its vCenter",
                "its VMs cannot be read",
            )
    connected = [host.name for host in hosts if host.connected]
    for proxy in far_proxies(world, name, jobs):
        if proxy is not None:
            yield from _check_from(world, proxy, connected, nfc_port, name)
            continue
        for host_name in connected:
            yield (address := check_name(world, host_name, name))
            if address.status is not Status.FAILED:
                yield check_port(world, host_name, nfc_port, name)


def far_proxies(world: World, site: str, jobs: Sequence[JobSettings]) -> list[str | None]:
    """The machines that serve a site in these jobs: proxies behind ssh by name, None for this one."""
    tables = world.loaded.config.proxies
    found: dict[str | None, None] = {}
    for job in jobs:
        if site in (job.source, job.target):
            names = job.proxies_at(site)
            found |= dict.fromkeys(name if tables[name].ssh is not None else None for name in names) or {None: None}
    return list(found) or [None]


def _check_from(world: World, proxy: str, hosts: Sequence[str], port: int, site: str) -> Iterator[CheckResult]:
    """The same, asked at a proxy: what this machine reaches says nothing of it."""
    try:
        closed = world.closed_ports(proxy, hosts, port)
    except VreplError as error:
        yield CheckResult.failed(f"ESXi hosts of {site} from proxy {proxy}", error)
        return
    for host in hosts:
        title = f"port {port} of {host} from proxy {proxy} ({site})"
        if host in closed:
            yield CheckResult(
                title,
                Status.FAILED,
                f"it cannot be reached from there: {closed[host]}",
                f"make proxy {proxy} resolve the name, and open TCP {port} from it to {host} in every firewall between",
            )
        else:
            yield CheckResult.ok(title, "open")
