"""Checks of one job: its VMs, change tracking, leftovers, privileges, room on the target, and one real read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from vrepl.checks.facts import CheckedSite, World
from vrepl.checks.guests import check_addresses, check_guest_scripts
from vrepl.checks.hotadd import check_hotadd
from vrepl.checks.luns import check_luns
from vrepl.checks.privileges import check_privileges
from vrepl.checks.result import CheckResult, Status
from vrepl.checks.streams import check_streams
from vrepl.config.references import near
from vrepl.errors import VreplError
from vrepl.model import DataEngine, Datastore, JobSettings, PowerState, ReplicaPlacement, TransportMode, VirtualMachine
from vrepl.model.selection import is_pattern
from vrepl.planner.datastores import datastore_of_disk, find_datastore
from vrepl.planner.placement import place_new_disk
from vrepl.planner.preflight import not_replicable_reason
from vrepl.planner.selection import choose
from vrepl.report import format as words

SOURCE_SNAPSHOT_PREFIX = "vrepl-source-"
"""As the engine names the snapshots that it takes of source VMs."""

LOW_SPACE = 0.05
"""Share of a target datastore below which deltas of restore points soon have no room."""


def check_job(world: World, job: JobSettings, source: CheckedSite, target: CheckedSite) -> Iterator[CheckResult]:
    try:
        sources, targets = source.list_vms(), target.list_vms()
    except VreplError as error:
        yield CheckResult.failed(f"job {job.name}", error)
        return
    by_name = {vm.name: vm for vm in sources}
    replicas = {vm.name: vm for vm in targets}
    vms = [by_name[name] for name in job.vms if name in by_name]
    if not job.lists_its_vms:
        try:
            chosen = choose(source.candidates(job.selection.tag_patterns), job.vms, job.selection)
        except VreplError as error:
            yield CheckResult.failed(f"selection of job {job.name}", error)
            return
        by_ref = {vm.ref: vm for vm in sources}
        vms = [by_ref[one.ref] for one in chosen.vms if one.ref in by_ref]
        yield check_selection(job, len(vms), chosen.idle)
    for vm in vms:
        yield check_vm(job, vm)
    for name in job.vms:
        if name not in by_name and not is_pattern(name):
            yield CheckResult(
                f"VM {name} (job {job.name})",
                Status.FAILED,
                f"site {job.source} has no such VM{near(name, by_name)}",
                f"vrepl vms {job.source}",
            )
    for vm in vms:
        yield check_cbt(vm)
        yield check_leftovers(vm)
        yield from check_disabled(vm)
    yield from check_forgotten(world, job, sources)
    yield check_privileges(
        f"privileges on {job.source} as source (job {job.name})",
        lambda: source.lacking_as_source(
            [vm.ref for vm in vms],
            [store.ref for store in stores_of(source, vms)],
            world.engine(job.proxy_at(job.source))[0],
        ),
    )
    yield from check_guest_scripts(job.name, world.loaded.config.jobs[job.name].guest, source, vms)
    yield check_privileges(
        f"privileges on {job.target} as target (job {job.name})",
        lambda: target.lacking_as_target(_with_failover_networks(job), world.engine(job.proxy_at(job.target))[0]),
    )
    if made := [replicas[name] for vm in vms if (name := job.replica_name_of(vm.name)) in replicas]:
        yield check_privileges(
            f"privileges for a failover (job {job.name})",
            lambda: target.lacking_for_failover([vm.ref for vm in made]),
            Status.WARNING,  # runs need none of them
        )
    yield from check_addresses(job, target, vms, replicas)
    new = [vm for vm in vms if job.replica_name_of(vm.name) not in replicas]
    yield from check_space(job, target, new)
    yield from check_luns(world, job, source, target, vms)
    yield from check_hotadd(world, job, (source, sources), (target, targets))
    yield from check_streams(world, job)
    yield check_read(world, job, job.source, job.source_modes, vms)
    ours = [vm for vm in replicas.values() if vm.extra_config]
    yield check_read(world, job, job.target, job.target_modes, ours)


def _with_failover_networks(job: JobSettings) -> ReplicaPlacement:
    """The networks of a failover must be there as well, on the day that nobody has time to look for them."""
    more = {f"{old} (failover)": new for old, new in job.failover.networks.items()}
    return replace(job.placement, networks={**job.placement.networks, **more})


def check_selection(job: JobSettings, count: int, idle: Sequence[str]) -> CheckResult:
    title = f"selection of job {job.name}"
    if not count and not job.allow_empty:
        return CheckResult(title, Status.FAILED, "it finds no VM", f"vrepl vms {job.source} --select ...")
    if idle:
        return CheckResult(title, Status.WARNING, f"{count} VMs; nothing matches {', '.join(idle)}")
    return CheckResult.ok(title, f"{count} VM{'s' if count != 1 else ''}")


def stores_of(site: CheckedSite, vms: Sequence[VirtualMachine]) -> list[Datastore]:
    """The datastores that hold disks of these VMs."""
    stores = site.datastores()
    found = [datastore_of_disk(disk, stores, datacenter=vm.datacenter) for vm in vms for disk in vm.disks]
    used = {store.ref for store in found if store is not None}
    return [store for store in stores if store.ref in used]


def check_vm(job: JobSettings, vm: VirtualMachine) -> CheckResult:
    title = f"VM {vm.name} (job {job.name})"
    reason = not_replicable_reason(vm)
    if reason is None:
        return CheckResult.ok(title, f"{len(vm.disks)} disk{'s' if len(vm.disks) != 1 else ''}")
    return CheckResult(
        title,
        Status.FAILED,
        f"cannot be replicated: {reason}",
        'take it out of the job, or set on_not_replicable = "skip-disk" if only a disk is in the way',
    )


def check_cbt(vm: VirtualMachine) -> CheckResult:
    """Without CBT a run still works: it reads everything and compares."""
    title = f"CBT of {vm.name}"
    if vm.cbt_enabled:
        return CheckResult.ok(title, "on")
    if not vm.cbt_supported:
        return CheckResult(
            title, Status.WARNING, "not available on this VM", "every run reads all that is allocated and compares"
        )
    if vm.snapshots:
        return CheckResult(
            title,
            Status.WARNING,
            f"off, and cannot be enabled while there are snapshots ({len(vm.snapshots)})",
            "remove the VM's snapshots; until then every run reads all that is allocated and compares",
        )
    return CheckResult.ok(title, "off; the next run enables it")


def left_by_runs(vm: VirtualMachine) -> list[str]:
    """Names of the snapshots that runs took of a source VM; those of a run that goes on are among them."""
    return [snapshot.name for snapshot in vm.snapshots if snapshot.name.startswith(SOURCE_SNAPSHOT_PREFIX)]


def check_leftovers(vm: VirtualMachine) -> CheckResult:
    title = f"snapshots of {vm.name}"
    ours = left_by_runs(vm)
    if ours:
        return CheckResult(
            title,
            Status.WARNING,
            f"a run left {', '.join(ours)}, or is going on",
            "the next run of the job removes what a dead run left",
        )
    if vm.consolidation_needed:
        return CheckResult(
            title, Status.WARNING, "its disks need consolidation", "vSphere Client: Snapshots > Consolidate"
        )
    return CheckResult.ok(title, "none of vrepl's left")


NEEDED = {
    "CreateSnapshot_Task": "no snapshot can be taken of it, so its runs fail",
    "ReconfigVM_Task": "change tracking cannot be switched on, so that its runs read all that is allocated and compare",
    "RelocateVM_Task": "somebody keeps it from being moved, as a backup or a replication does while it works at the VM",
}
"""Methods of a source VM that runs need, or that whoever works at it disables -> what it means that they are disabled.

A VM's disabledMethod also names what its state forbids, such as PowerOnVM_Task of one that runs (vSphere API
reference); these are none of that kind.
"""


def check_disabled(vm: VirtualMachine) -> Iterator[CheckResult]:
    disabled = [name for name in NEEDED if name in vm.disabled_methods]
    if disabled:
        yield CheckResult(
            f"methods of {vm.name}",
            Status.WARNING,
            f"{', '.join(disabled)} disabled in vSphere: {'; '.join(NEEDED[name] for name in disabled)}",
            "if a run, or another product's job, is at work, wait for its end; what a dead run of vrepl's disabled the "
            "next run enables; what another product left is enabled by that product, or by AuthorizationManager's "
            "EnableMethods in vCenter's MOB",
        )


def check_forgotten(world: World, job: JobSettings, sources: Sequence[VirtualMachine]) -> Iterator[CheckResult]:
    """Snapshots of vrepl's on VMs that no job has (any more); told once for a site, with the first of its jobs."""
    jobs = {name: table for name, table in world.loaded.config.jobs.items() if table.source == job.source}
    if next(iter(jobs)) != job.name:
        return
    in_a_job = {name for table in jobs.values() for name in table.vms}
    for vm in sources:
        ours = left_by_runs(vm)
        if ours and vm.name not in in_a_job:
            yield CheckResult(
                f"snapshots of {vm.name}",
                Status.WARNING,
                f"a run left {', '.join(ours)}, and no job has this VM",
                "the next run of the job that had it removes that; if that job is gone, or another "
                "repository's, remove it in the vSphere Client",
            )


def check_space(job: JobSettings, target: CheckedSite, new: Sequence[VirtualMachine]) -> Iterator[CheckResult]:
    """Room for the replicas that are still to be made, at their disks' full size; else a look at what is left."""
    try:
        stores = target.datastores()
        home = find_datastore(job.placement.datastore, stores, site=job.target, host=job.placement.host)
        used = {home.ref: home}
        needed: dict[str, int] = {}
        for vm in new:
            for disk in vm.disks:
                store = place_new_disk(disk, job, home, stores, set(home.hosts), needed, job.target)
                used[store.ref] = store
                needed[store.ref] = needed.get(store.ref, 0) + disk.capacity
    except VreplError as error:
        yield CheckResult.failed(f"space on {job.placement.datastore} ({job.target})", error)
        return
    for ref, store in used.items():
        yield _room_on(store, job, needed.get(ref, 0))


def _room_on(store: Datastore, job: JobSettings, needed: int) -> CheckResult:
    title = f"space on {store.name} ({job.target})"
    if needed > store.free:
        return CheckResult(
            title,
            Status.FAILED,
            f"{words.size(store.free)} free; new replicas may grow to {words.size(needed)}",
            "free some, or name another target_datastore",
        )
    if store.capacity and store.free < store.capacity * LOW_SPACE:
        return CheckResult(
            title,
            Status.WARNING,
            f"{words.size(store.free)} free of {words.size(store.capacity)}",
            "restore points grow with what changes: free some, or keep fewer",
        )
    return CheckResult.ok(title, f"{words.size(store.free)} free")


NETWORK_MODES = (TransportMode.NBDSSL, TransportMode.NBD)
"""A check attaches no disk to a proxy VM, so it reads over the network only."""


def check_read(
    world: World, job: JobSettings, site: str, modes: Sequence[TransportMode], vms: Sequence[VirtualMachine]
) -> CheckResult:
    """One real sector through VDDK. A running VM's disk cannot be opened without a snapshot, which no check takes.

    Read where an ESXi host's port is open: a closed one is the ports' check to tell, and says nothing of VDDK.
    """
    reader = "VDDK" if world.engine(job.proxy_at(site))[0] is DataEngine.VDDK else "vrepl"
    title = f"{reader} reads from {site} (job {job.name})"
    usable = [mode for mode in modes if mode in NETWORK_MODES] or [TransportMode.NBDSSL]
    readable = [vm for vm in vms if vm.power is PowerState.OFF and not_replicable_reason(vm) is None]
    if not readable:
        return CheckResult(title, Status.SKIPPED, "no VM of the job's is powered off there")
    nfc_port = world.loaded.config.sites[site].nfc_port
    first_of = {vm.host: vm for vm in reversed(readable)}  # a silent host takes its time: each is asked once
    hosts = dict.fromkeys(vm.host for vm in readable)
    open_host = next((host for host in hosts if _reaches(world, job.proxy_at(site), host, nfc_port)), None)
    if open_host is None:
        closed = ", ".join(sorted(hosts))
        return CheckResult(title, Status.SKIPPED, f"port {nfc_port} of {closed} cannot be reached: see that")
    vm = first_of[open_host]
    try:
        mode = world.vddk(job.proxy_at(site)).read_sector(site, vm, usable)
    except VreplError as error:
        return CheckResult.failed(title, error)
    return CheckResult.ok(title, f"first sector of {vm.name} over {mode}")


def _reaches(world: World, proxy: str | None, host: str, port: int) -> bool:
    try:
        if proxy is not None and world.loaded.config.proxies[proxy].ssh is not None:
            return not world.closed_ports(proxy, [host], port)
        world.network.resolve(host)
        world.network.reach(host, port)
    except (OSError, VreplError):
        return False
    return True
