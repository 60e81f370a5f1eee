"""`vrepl check`: is everything in place for the jobs? Small functions over Protocols; nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import replace
from functools import cache

from vrepl.checks.facts import CheckedSite, World
from vrepl.checks.jobs import check_job
from vrepl.checks.result import CheckResult, Status
from vrepl.checks.sites import check_site
from vrepl.errors import VreplError
from vrepl.model import DataEngine, JobSettings
from vrepl.repository.check import Severity
from vrepl.repository.check import check as check_repository_files

MACHINE = "this machine"
"""The group of what no site is asked about."""


def run_checks(world: World, jobs: Sequence[str] = ()) -> Iterator[CheckResult]:
    """Every check, one result each, as they are done; of these jobs and their sites only, if any are named.

    Raises NotFoundError for a job that is not configured.
    """
    config = world.loaded.config
    chosen = world.loaded.jobs(jobs) if config.jobs else []
    yield from _grouped(MACHINE, _check_machine(world, chosen))
    logged_in: set[str] = set()
    answers = cache(lambda proxy: _answers(world, proxy))  # one that is silent is waited for once
    for name in [name for name in config.sites if not jobs or any(name in (job.source, job.target) for job in chosen)]:
        results = list(_grouped(f"site {name}", check_site(world, name, chosen)))
        yield from results
        if any(result.name == f"login to {name}" and result.status is Status.OK for result in results):
            logged_in.add(name)
    for job in chosen:
        yield from _grouped(f"job {job.name}", _check_job(world, job, logged_in, answers))


def _grouped(group: str, results: Iterable[CheckResult]) -> Iterator[CheckResult]:
    return (replace(result, group=group) for result in results)


def _check_machine(world: World, jobs: Sequence[JobSettings]) -> Iterator[CheckResult]:
    yield CheckResult.ok("configuration", str(world.loaded.path))
    yield from check_repository(world)
    tables = world.loaded.config.jobs
    for proxy in dict.fromkeys(name for job in jobs for name in tables[job.name].proxy.names) or (None,):
        yield check_vddk(world, proxy)


def _check_job(
    world: World, job: JobSettings, logged_in: Set[str], answers: Callable[[str], bool]
) -> Iterator[CheckResult]:
    if not {job.source, job.target} <= logged_in:
        yield CheckResult(f"job {job.name}", Status.SKIPPED, "its sites cannot be asked")
        return
    for proxy in (job.proxy_at(job.source), job.proxy_at(job.target)):
        if proxy is not None and not answers(proxy):
            yield CheckResult(f"job {job.name}", Status.SKIPPED, f"proxy {proxy} cannot be asked")
            return
    source: CheckedSite = world.site(job.source)
    yield from check_job(world, job, source, world.site(job.target))


def _answers(world: World, proxy: str) -> bool:
    try:
        world.engine(proxy)
    except VreplError:
        return False
    return True


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
    """The library is found, and loads in a data mover; or vrepl's own engine takes its place."""
    try:
        engine, reason = world.engine(proxy)
    except VreplError as error:
        return CheckResult.failed(f"proxy {proxy}", error)
    what = "VDDK library" if engine is DataEngine.VDDK else "data engine"
    title = what if proxy is None else f"{what} of proxy {proxy}"
    try:
        loaded = world.vddk(proxy).load()
        if world.vddk_is_missed(proxy):
            told = f"{reason}, where the configuration has it; {loaded} takes its place"
            return CheckResult(title, Status.WARNING, told, 'unpack VDDK there, or say [vddk] engine = "own"')
        return CheckResult.ok(title, loaded if engine is DataEngine.VDDK else f"{loaded}: {reason}")
    except VreplError as error:
        return CheckResult.failed(title, error)
