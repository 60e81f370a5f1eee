"""The start of every run: finish or undo what dead runs left of this VM, and touch nothing else.

Called with the replica's lock held: whichever run made these things is dead.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from vrepl.engine.consolidation import consolidate_source
from vrepl.engine.context import RunContext
from vrepl.engine.knowledge import restore_point_snapshots
from vrepl.engine.marks import san_mark_of, source_mark_of
from vrepl.errors import InterruptedRunError, NotFoundError, UsageError, VreplError
from vrepl.model import VirtualMachine
from vrepl.ports import Site
from vrepl.repository.commit_record import parse_commit_record
from vrepl.repository.intent import PreparedAccess, read_hotadd_entry
from vrepl.repository.replica import ReplicaFolder


def recover(context: RunContext, folder: ReplicaFolder, vm: VirtualMachine) -> list[str]:
    """Returns what was found and done, in words."""
    found = _end_access(context, folder, vm)
    found += detach_leavings(context, context.source, vm)
    context.source.settle_tasks(vm.ref)
    now = context.source.read_vm(vm.ref)
    removed = remove_source_snapshots(context, now)
    found += removed
    found += _consolidate(context, context.source.read_vm(vm.ref) if removed else now)
    found += _roll_forward(context, folder)
    return found


def detach_leavings(context: RunContext, site: Site, vm: VirtualMachine) -> list[str]:
    """What a dead process that kept no journal (a killed `verify`) left of this VM on the proxy by HotAdd.

    VDDK detaches what its own dead clients left, and leaves what live ones, or other products, have.
    """
    if not context.transports.left_on_proxy(site.name, vm):
        return []
    count = 0

    def clean_up() -> None:
        nonlocal count
        count = context.movers.cleanup(site.name, vm.ref)

    context.patiently(vm.name, "clean up after HotAdd", clean_up)
    if not count:
        return []
    context.transports.detached(site.name, vm, count)
    return [f"detached disks of {vm.name} at {site.name} that a dead process left on the proxy by HotAdd"]


def _consolidate(context: RunContext, vm: VirtualMachine) -> list[str]:
    """A dead run's data mover may have had a disk open when the run's snapshot was removed."""
    if not vm.consolidation_needed:
        return []
    if consolidate_source(context, vm, wait_for_locks=True):
        return ["consolidated the source's disks, which a removed snapshot had left in need of it"]
    return ["the source needs disk consolidation, and a disk is still locked"]


def remove_source_snapshots(context: RunContext, vm: VirtualMachine, *, even_when_stopped: bool = False) -> list[str]:
    """Remove the source snapshots that runs of this repository left, youngest first."""
    removed = []
    for snapshot in reversed(vm.snapshots):
        mark = source_mark_of(snapshot)
        if mark is None or mark.repository_id != context.repository.id:
            continue
        context.patiently(
            vm.name,
            f"remove the snapshot {snapshot.name}",
            lambda ref=snapshot.ref: context.source.remove_snapshot(vm.ref, ref),  # type: ignore[misc]
            even_when_stopped=even_when_stopped,
        )
        removed.append(f"removed the snapshot of {vm.name} that run {mark.run_id} left")
    return removed


REMOVE_SAN_SNAPSHOT = "remove the replica's temporary snapshot"


def remove_san_snapshots(context: RunContext, replica: VirtualMachine, *, even_when_stopped: bool = False) -> list[str]:
    """Drop what writing over SAN put over the base: an empty leaf and a snapshot. What was written is in the base."""
    done: list[str] = []
    for snapshot in replica.snapshots:
        mark = san_mark_of(snapshot)
        if mark is None or mark.repository_id != context.repository.id:
            continue

        def remove(ref: str = snapshot.ref) -> None:
            if context.target.read_vm(replica.ref).current_snapshot_ref == ref:
                context.target.revert_to_snapshot(replica.ref, ref)
            if context.target.remove_snapshot(replica.ref, ref):
                context.target.consolidate(replica.ref)

        context.patiently(replica.name, REMOVE_SAN_SNAPSHOT, remove, even_when_stopped=even_when_stopped)
        done.append(f"removed the temporary snapshot that run {mark.run_id} left on the replica")
    return done


def _end_access(context: RunContext, folder: ReplicaFolder, vm: VirtualMachine) -> list[str]:
    """Undo the PrepareForAccess and HotAdd that the journal of a dead run holds; only those, others may hold theirs."""
    intent = folder.intent()
    if intent is None:
        return []
    done = []
    journal = intent.journal
    sites = {"source": context.source.name, "target": context.target.name}
    for entry in journal.hotadd_cleanup:
        side, vm_ref, proxy = read_hotadd_entry(entry)
        site = sites.get(side, context.source.name)
        name = _name(context, folder, vm, site, vm_ref)
        detached = 0

        def clean_up(site: str = site, vm_ref: str = vm_ref, proxy: str | None = proxy) -> None:
            nonlocal detached
            detached = context.movers.cleanup(site, vm_ref, proxy)

        try:
            undone = _undone(context, vm, "clean up after HotAdd", site, vm_ref, clean_up)
        except UsageError as error:
            done.append(
                f"run {intent.run_id} had disks of {name} on a proxy VM by HotAdd, and {error.message}: "
                "see to it that none is left there"
            )
            continue
        if undone and detached:
            left_at = context.source if site == context.source.name else context.target
            with suppress(NotFoundError):
                context.transports.detached(site, left_at.read_vm(vm_ref), detached)
            done.append(f"detached the disks of {name} that run {intent.run_id} left on the proxy by HotAdd")
    for access in journal.prepared_for_access:
        name = _name(context, folder, vm, access.site, access.vm_ref)

        def end(access: PreparedAccess = access) -> None:
            context.movers.end_access(access.site, access.vm_ref, access.identity)

        if _undone(context, vm, "end access", access.site, access.vm_ref, end):
            done.append(f"gave back the access to {name} that run {intent.run_id} held")
    if journal.prepared_for_access or journal.hotadd_cleanup:
        folder.save_intent(replace(intent, journal=replace(journal, prepared_for_access=(), hotadd_cleanup=())))
    return done


def _undone(
    context: RunContext, vm: VirtualMachine, what: str, site_name: str, vm_ref: str, action: Callable[[], None]
) -> bool:
    """Undo a journal's entry; False where its VM is gone, and what was done to it with it."""
    try:
        context.patiently(vm.name, what, action)
    except InterruptedRunError:
        raise
    except VreplError:
        site = next((one for one in (context.source, context.target) if one.name == site_name), None)
        if site is None or _exists(site, vm_ref):
            raise
        return False
    return True


def _exists(site: Site, vm_ref: str) -> bool:
    try:
        site.read_vm(vm_ref)
    except NotFoundError:
        return False
    return True


def _name(context: RunContext, folder: ReplicaFolder, vm: VirtualMachine, site: str, vm_ref: str) -> str:
    """How a note names a VM that a journal holds by its ref."""
    if (site, vm_ref) == (context.source.name, vm.ref):
        return f"{vm.name} at {site}"
    return f"the replica {folder.record.target_name or vm_ref} at {site}"


def _roll_forward(context: RunContext, folder: ReplicaFolder) -> list[str]:
    """A replica snapshot with a commit record is a sealed restore point, whatever the repository got to write."""
    record = folder.record
    if not record.target_instance_uuid:
        return []
    replica = context.target.find_vm_by_instance_uuid(record.target_instance_uuid)
    if replica is None:
        return []
    context.target.settle_tasks(replica.ref)
    done = detach_leavings(context, context.target, replica)
    done += remove_san_snapshots(context, context.target.read_vm(replica.ref))
    replica = context.target.read_vm(replica.ref)
    points = {point.id: point for point in folder.restore_points()}
    intent = folder.intent()
    if intent is not None and intent.restore_point_id in points:
        # Sealed and recorded; only the intent was kept, for the access that it held.
        folder.seal(points[intent.restore_point_id])
    for snapshot in replica.snapshots:
        commit = parse_commit_record(snapshot.description)
        if (
            commit is None
            or commit.repository_id != context.repository.id
            or commit.source_instance_uuid != record.source_instance_uuid
            or commit.restore_point.id in points
        ):
            continue
        note_that_disks_were_sealed(folder)
        if intent is not None and intent.restore_point_id == commit.restore_point.id:
            folder.seal(commit.restore_point)
        else:
            folder.add_restore_point(commit.restore_point)
        done.append(f"recorded restore point {commit.restore_point.id}, which a dead run had sealed")
    return done


def note_that_disks_were_sealed(folder: ReplicaFolder) -> None:
    """No disk is one that vrepl made empty any more, whatever becomes of the restore points."""
    if folder.record.empty_disks:
        folder.save_record(replace(folder.record, empty_disks=()))


def forget_lost_restore_points(folder: ReplicaFolder, replica: VirtualMachine) -> None:
    """Drop restore points whose snapshots the replica no longer has.

    Only once a run has sealed: until then they are what says that the leaf's bytes are not sure.
    """
    note_that_disks_were_sealed(folder)
    present = restore_point_snapshots(replica)
    for point in folder.restore_points():
        if point.id not in present:
            folder.remove_restore_point(point.id)
