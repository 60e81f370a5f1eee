"""Whether the movers of a job's two sides can be joined, where they run on different machines."""

from __future__ import annotations

from collections.abc import Iterator

from vrepl.checks.facts import World
from vrepl.checks.result import CheckResult
from vrepl.errors import VreplError
from vrepl.model import JobSettings
from vrepl.planner.modes import THIS_MACHINE, called


def check_streams(world: World, job: JobSettings) -> Iterator[CheckResult]:
    """Each source's proxy with the first target's, and the first with each: every machine is asked, not every pair."""
    sources = job.proxies_at(job.source) or (None,)
    targets = job.proxies_at(job.target) or (None,)
    pairs = [(source, targets[0]) for source in sources] + [(sources[0], target) for target in targets[1:]]
    for source, target in pairs:
        if source == target:
            continue
        title = f"stream from {called(source or THIS_MACHINE)} to {called(target or THIS_MACHINE)} (job {job.name})"
        try:
            where = world.stream(source, target)
        except VreplError as error:
            yield CheckResult.failed(title, error)
            continue
        if where is not None:
            yield CheckResult.ok(title, f"open: {where}")
