"""Whether a proxy sees the LUNs behind the datastores of a job, where the job lets it use SAN."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vrepl.checks.facts import CheckedSite, World
from vrepl.checks.result import CheckResult, Status
from vrepl.errors import VreplError
from vrepl.model import JobSettings, TransportMode, VirtualMachine


def check_luns(
    world: World, job: JobSettings, source: CheckedSite, target: CheckedSite, vms: Sequence[VirtualMachine]
) -> Iterator[CheckResult]:
    """One result per side. A proxy that sees no LUN of a site at all is none for SAN, and that is fine.

    One that sees some of them was meant for SAN: each LUN that it misses is named, for without it the runs are slow.
    """
    used = {disk.store for vm in vms for disk in vm.disks}
    for name, site, modes, datastores in (
        (job.source, source, job.source_modes, used),
        (job.target, target, job.target_modes, {job.placement.datastore}),
    ):
        if TransportMode.SAN in modes:
            yield _check_side(world, job, name, site, modes, datastores)


def _check_side(
    world: World,
    job: JobSettings,
    name: str,
    site: CheckedSite,
    modes: Sequence[TransportMode],
    datastores: set[str],
) -> CheckResult:
    its_proxy = job.proxy_at(name)
    proxy = f"proxy {its_proxy}" if its_proxy else "this machine"
    title = f"LUNs of {name} (job {job.name})"
    try:
        stores = site.datastores()
    except VreplError as error:
        return CheckResult.failed(title, error)
    seen = world.visible_luns(its_proxy)
    wanted = [
        store
        for store in stores
        if datastores & {store.ref, store.name, f"{store.datacenter}/{store.name}"} and store.luns
    ]
    missing = {store.name: sorted(set(store.luns) - seen) for store in wanted if set(store.luns) - seen}
    only_san = set(modes) == {TransportMode.SAN}
    if not missing:
        return CheckResult.ok(title, f"{proxy} sees all of them" if wanted else "no datastore of the job lies on LUNs")
    if not only_san and not any(set(store.luns) & seen for store in stores):
        return CheckResult.ok(title, f"{proxy} sees none of them: other modes than san are used")
    return CheckResult(
        title,
        Status.FAILED if only_san else Status.WARNING,
        "; ".join(f"{proxy} does not see {', '.join(luns)} behind {store}" for store, luns in missing.items()),
        "map and zone each LUN to the proxy and rescan its bus: /dev/disk/by-id must show it as wwn-0x…",
    )
