"""`vrepl check`: is everything in place for the jobs? Small functions over Protocols; nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator

from vrepl.checks.facts import CheckedSite, World
from vrepl.checks.jobs import check_job
from vrepl.checks.result import CheckResult, Status
from vrepl.checks.sites import check_site
from vrepl.errors import VreplError
from vrepl.repository.check import Severity
from vrepl.repository.check import check as check_repository_files


def run_checks(world: World) -> Iterator[CheckResult]:
    """Every check, one result each, as they are done."""
    config = world.loaded.config
    yield CheckResult.ok("configuration", str(world.loaded.path))
    yield from check_repository(world)
    for proxy in dict.fromkeys(name for job in config.jobs.values() for name in job.proxy.names) or (None,):
        yield check_vddk(world, proxy)
    logged_in: set[str] = set()
    for name in config.sites:
        results = list(check_site(world, name))
        yield from results
        if any(result.name == f"login to {name}" and result.status is Status.OK for result in results):
            logged_in.add(name)
    for job in world.loaded.jobs() if config.jobs else ():
        if not {job.source, job.target} <= logged_in:
            yield CheckResult(f"job {job.name}", Status.SKIPPED, "its sites cannot be asked")
            continue
        source: CheckedSite = world.site(job.source)
        yield from check_job(world, job, source, world.site(job.target))


def check_repository(world: World) -> Iterator[CheckResult]:
    title = f"repository {world.loaded.config.repository.path}"
    try:
        repository = world.repository()
        repository.check_writable()
        findings = check_repository_files(repository)
    except VreplError as error:
        yield CheckResult.failed(title, error)
        return
    errors = [finding for finding in findings if finding.severity is Severity.ERROR]
    warnings = [finding for finding in findings if finding.severity is Severity.WARNING]
    for severe, status in ((errors, Status.FAILED), (warnings, Status.WARNING)):
        for finding in severe:
            yield CheckResult(title, status, f"{finding.path}: {finding.message}", finding.hint or None)
    if not errors and not warnings:
        yield CheckResult.ok(title, f"sound, {len(repository.replicas())} replicas")


def check_vddk(world: World, proxy: str | None) -> CheckResult:
    """The library is found, and loads in a data mover."""
    title = "VDDK library" if proxy is None else f"VDDK library of proxy {proxy}"
    try:
        return CheckResult.ok(title, world.vddk(proxy).load())
    except VreplError as error:
        return CheckResult.failed(title, error)
