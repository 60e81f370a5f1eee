"""Whether a job's proxies can reach disks by HotAdd, where it lets them: the proxy VM, its slots and privileges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vrepl.checks.facts import CheckedSite, World
from vrepl.checks.privileges import lacking_words
from vrepl.checks.result import CheckResult, Status
from vrepl.errors import VreplError
from vrepl.model import DataEngine, JobSettings, TransportMode, VirtualMachine
from vrepl.planner.modes import own_hotadd_obstacle


def check_hotadd(
    world: World,
    job: JobSettings,
    source: tuple[CheckedSite, Sequence[VirtualMachine]],
    target: tuple[CheckedSite, Sequence[VirtualMachine]],
) -> Iterator[CheckResult]:
    """One result per side and proxy, `source` and `target` with all their VMs.

    A proxy that is no VM of a site is fine.
    """
    for name, (site, vms), modes in (
        (job.source, source, job.source_modes),
        (job.target, target, job.target_modes),
    ):
        if TransportMode.HOTADD in modes:
            proxies = job.proxies_at(name) or (None,)
            for proxy in proxies:
                which = "" if len(proxies) == 1 else f" from proxy {proxy}"
                title = f"HotAdd at {name}{which} (job {job.name})"
                try:
                    yield _check_side(world, proxy, title, site, vms, only=set(modes) == {TransportMode.HOTADD})
                except VreplError as error:
                    yield CheckResult.failed(title, error)


def _check_side(
    world: World, proxy: str | None, title: str, site: CheckedSite, vms: Sequence[VirtualMachine], *, only: bool
) -> CheckResult:
    """A warning where runs take another mode instead; a failure where the job lists no other."""
    wrong = Status.FAILED if only else Status.WARNING
    machine, why_none = world.proxy_vm(proxy, vms)
    if machine is None:
        if only:
            return CheckResult(title, Status.FAILED, why_none, "hotadd is the only mode that the job lists there")
        return CheckResult.ok(title, f"{why_none}: other modes are used")
    engine, _ = world.engine(proxy)
    if engine is DataEngine.OWN:
        obstacle = own_hotadd_obstacle(machine)
        if obstacle is not None:
            return CheckResult(title, wrong, obstacle)
        closed = world.devices(proxy)
        if closed is not None:
            return CheckResult(title, wrong, closed, "run vrepl as root, or as a member of the group disk")
    try:
        lacking = site.lacking_as_hotadd_proxy(machine.ref, engine)
    except VreplError as error:
        return CheckResult.failed(title, error)
    if lacking:
        return CheckResult(title, wrong, *lacking_words(lacking))
    if machine.free_scsi_slots < 1:
        return CheckResult(
            title, wrong, f"the proxy VM {machine.name} has no free SCSI slot", "give it another SCSI controller"
        )
    whose = " (vrepl's own engine)" if engine is DataEngine.OWN else ""
    text = f"the proxy is VM {machine.name}, {machine.free_scsi_slots} SCSI slots free{whose}"
    if machine.attached_by_vrepl:
        text += (
            f"; {machine.attached_by_vrepl} of vrepl's disks hang on it: of a run that goes on, or of a dead one "
            "(the next run detaches them)"
        )
    return CheckResult.ok(title, text)
