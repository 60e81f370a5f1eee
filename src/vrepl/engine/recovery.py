"""The start of every run: finish or undo what dead runs left of this VM, and touch nothing else.

Called with the replica's lock held: whichever run made these things is dead. The journal and the replica can be
recovered with the source dead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from vrepl.engine.access_identity import RELOCATE, dead_identities
from vrepl.engine.consolidation import consolidate
from vrepl.engine.context import Services
from vrepl.engine.dead_intent import forget_contradicted_disks
from vrepl.engine.knowledge import leaf_identity, restore_point_snapshots, settings_of
from vrepl.engine.marks import restore_point_snapshot_name, san_mark_of, source_mark_of
from vrepl.errors import DiskError, InterruptedRunError, NotFoundError, UsageError, VreplError
from vrepl.model import ReplicaRecord, Side, Snapshot, VirtualMachine, VmAtRest
from vrepl.ports import Inventory, KnownVm, SnapshottedSite
from vrepl.repository.agreement import require_agreement
from vrepl.repository.commit_record import (
    CommitRecord,
    is_header,
    named_restore_point,
    parse_commit_record,
    read_commit_record,
)
from vrepl.repository.intent import HotAddedDisks, Intent, PreparedAccess
from vrepl.repository.replica_folder import ReplicaFolder
from vrepl.repository.sightings import last_sighting


@dataclass(frozen=True, slots=True)
class Original:
    """The VM that is replicated, at a site that can be reached."""

    site: SnapshottedSite
    vm: KnownVm


@dataclass(slots=True)
class Seen:
    """What a recovery read last of the two VMs, once nothing ran on them; None where it changed them since."""

    original: VirtualMachine | None = None
    replica: VmAtRest | None = None


def recover(
    services: Services,
    folder: ReplicaFolder,
    target: SnapshottedSite,
    original: Original | None,
    seen: Seen | None = None,
) -> list[str]:
    """Returns what was found and done, in words. Without the original, what dead runs left there stays for later.

    `seen` is told what was read, so that who goes on at once need not read it again.
    """
    seen = seen or Seen()
    found = recover_journal(services, folder, target, original)
    if original is not None:
        found += recover_source(services, folder, original.site, original.vm, seen)
    found += recover_replica(services, target, folder, seen)
    if found:
        seen.original = seen.replica = None
    return found


def recover_source(
    services: Services, folder: ReplicaFolder, site: SnapshottedSite, vm: KnownVm, seen: Seen | None = None
) -> list[str]:
    """Remove what dead runs left of a VM that they replicated."""
    now = site.read_vm_at_rest(vm.ref)
    found = detach_leavings(services, site, now)
    if found:
        now = site.read_vm_at_rest(vm.ref)
    if seen is not None:
        seen.original = now
    found += end_access_of_the_dead(services, folder, site, now)
    found += forget_contradicted_disks(services, folder, site, now)
    removed = remove_source_snapshots(services, site, now)
    found += removed
    found += _consolidate(services, site, site.read_vm(vm.ref) if removed else now)
    return found


def recover_replica(
    services: Services, site: SnapshottedSite, folder: ReplicaFolder, seen: Seen | None = None
) -> list[str]:
    """A replica snapshot with a commit record is a sealed restore point, whatever the repository got to write."""
    record = folder.record
    if not record.target_instance_uuid:
        return []
    found = site.find_vm_at_rest(record.target_instance_uuid, last_sighting(folder.path))
    if found is None:
        return []
    replica = found.vm
    require_agreement(folder, replica, services.repository.id, settings_of(site))
    done = detach_leavings(services, site, replica)
    done += end_access_of_the_dead(services, folder, site, replica)
    if done:
        replica = site.read_vm(replica.ref)
    removed = remove_san_snapshots(services, site, replica)
    if removed:
        done += removed
        replica = site.read_vm(replica.ref)
    if seen is not None:
        seen.replica = replace(found, vm=replica)
    points = {point.id: point for point in folder.restore_points()}
    intent = folder.intent()
    if intent is not None and intent.restore_point_id in points:
        # Sealed and recorded; only the intent was kept, for the access that it held.
        folder.seal(points[intent.restore_point_id])
    for snapshot in replica.snapshots:
        if named_restore_point(snapshot.description) in points:
            continue
        commit = _commit_record(site, snapshot)
        if (
            commit is None
            and intent is not None
            and snapshot.name == restore_point_snapshot_name(intent.restore_point_id)
        ):
            # It was this repository's own unfinished run that gave it this name.
            remove_cut_seal(services, site, folder, replica, snapshot.ref)
            done.append(f"removed the snapshot {snapshot.name} of the replica: its record was cut")
        if (
            commit is None
            or commit.repository_id not in {services.repository.id, record.adopted_from}
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


def _commit_record(site: Inventory, snapshot: Snapshot) -> CommitRecord | None:
    """What a snapshot of a replica says of itself; of a long record its description says only where it stands."""
    if not is_header(snapshot.description):
        return parse_commit_record(snapshot.description)
    return read_commit_record(snapshot.description, site.read_snapshot(snapshot.ref).extra_config)


def remove_cut_seal(
    services: Services,
    site: SnapshottedSite,
    folder: ReplicaFolder,
    replica: VirtualMachine,
    snapshot_ref: str,
    *,
    even_when_stopped: bool = False,
) -> None:
    """Take away the snapshot of a seal whose record was cut: it is no restore point. What it holds goes into the leaf.

    The leaf is another file then than the one that the run noted, and the same bytes.
    """
    _note_leaves(folder, {})

    def remove() -> None:
        if site.remove_snapshot(replica.ref, snapshot_ref):
            site.consolidate(replica.ref)

    services.patiently(
        replica.name, "remove a snapshot whose record was cut", remove, even_when_stopped=even_when_stopped
    )
    _note_leaves(folder, {f"leaf:{disk.key}": leaf_identity(disk) for disk in site.read_vm(replica.ref).disks})


def _note_leaves(folder: ReplicaFolder, leaves: Mapping[str, str]) -> None:
    intent = folder.intent()
    if intent is not None:
        others = {key: text for key, text in intent.journal.notes.items() if not key.startswith("leaf:")}
        folder.save_intent(replace(intent, journal=replace(intent.journal, notes={**others, **leaves})))


def detach_leavings(services: Services, site: Inventory, vm: VirtualMachine) -> list[str]:
    """What a dead process that kept no journal (a killed `verify`) left of this VM on the proxy by HotAdd.

    VDDK detaches what its own dead clients left, and leaves what live ones, or other products, have.
    """
    if not services.modes.left_on_proxy(site.name, vm):
        return []
    count = 0

    def clean_up() -> None:
        nonlocal count
        count = services.movers.cleanup(site.name, vm.ref)

    services.patiently(vm.name, "clean up after HotAdd", clean_up)
    if not count:
        return []
    services.modes.detached(site.name, vm, count)
    return [f"detached disks of {vm.name} at {site.name} that a dead process left on the proxy by HotAdd"]


def end_access_of_the_dead(services: Services, folder: ReplicaFolder, site: Inventory, vm: VirtualMachine) -> list[str]:
    """End the access of a dead run of which no journal speaks: its identity follows from repository and VM.

    Whose the methods are that are disabled vSphere does not tell; ending an identity that holds none changes nothing.
    """
    if RELOCATE not in vm.disabled_methods or not site.is_vcenter:
        return []
    for identity in dead_identities(services.repository.id, folder.record.id, vm):
        with suppress(DiskError):  # it holds nothing: what is disabled is another's
            services.movers.end_access(site.name, vm.ref, identity)
    if RELOCATE in site.read_vm(vm.ref).disabled_methods:
        return []
    return [f"gave back the access to {vm.name} at {site.name} that a dead run held"]


def _consolidate(services: Services, site: SnapshottedSite, vm: VirtualMachine) -> list[str]:
    """A dead run's data mover may have had a disk open when the run's snapshot was removed."""
    if not vm.consolidation_needed:
        return []
    if consolidate(services, site, vm, wait_for_locks=True):
        return ["consolidated the source's disks, which a removed snapshot had left in need of it"]
    return ["the source needs disk consolidation, and a disk is still locked"]


def remove_source_snapshots(
    services: Services, site: SnapshottedSite, vm: VirtualMachine, *, even_when_stopped: bool = False
) -> list[str]:
    """Remove the source snapshots that runs of this repository left, youngest first."""
    removed = []
    for snapshot in reversed(vm.snapshots):
        mark = source_mark_of(snapshot)
        if mark is None or mark.repository_id != services.repository.id:
            continue
        services.patiently(
            vm.name,
            f"remove the snapshot {snapshot.name}",
            lambda ref=snapshot.ref: site.remove_snapshot(vm.ref, ref),  # type: ignore[misc]
            even_when_stopped=even_when_stopped,
        )
        removed.append(f"removed the snapshot of {vm.name} that run {mark.run_id} left")
    return removed


REMOVE_SAN_SNAPSHOT = "remove the replica's temporary snapshot"


def remove_san_snapshots(
    services: Services, site: SnapshottedSite, replica: VirtualMachine, *, even_when_stopped: bool = False
) -> list[str]:
    """Drop what writing over SAN put over the base: an empty leaf and a snapshot. What was written is in the base."""
    done: list[str] = []
    for snapshot in replica.snapshots:
        mark = san_mark_of(snapshot)
        if mark is None or mark.repository_id != services.repository.id:
            continue

        def remove(ref: str = snapshot.ref) -> None:
            if site.read_vm(replica.ref).current_snapshot_ref == ref:
                site.revert_to_snapshot(replica.ref, ref)
            if site.remove_snapshot(replica.ref, ref):
                site.consolidate(replica.ref)

        services.patiently(replica.name, REMOVE_SAN_SNAPSHOT, remove, even_when_stopped=even_when_stopped)
        done.append(f"removed the temporary snapshot that run {mark.run_id} left on the replica")
    return done


class Journalled(Protocol):
    """Keeps an intent with a journal: of a run, or of a failback."""

    @property
    def record(self) -> ReplicaRecord: ...

    def intent(self) -> Intent | None: ...

    def save_intent(self, intent: Intent) -> None: ...


def recover_journal(services: Services, folder: Journalled, target: Inventory, original: Original | None) -> list[str]:
    """Undo the PrepareForAccess and HotAdd that the journal of a dead run holds; only those, others may hold theirs.

    What it holds of a site that is not at hand stays in it.
    """
    intent = folder.intent()
    if intent is None:
        return []
    done = []
    journal = intent.journal
    by_side: dict[Side, Inventory] = {Side.TARGET: target}
    if original is not None:
        by_side[Side.SOURCE] = original.site
    by_name = {site.name: site for site in by_side.values()}
    hotadd_left: list[HotAddedDisks] = []
    access_left: list[PreparedAccess] = []
    who = original.vm.name if original else folder.record.source_name
    for entry in journal.hotadd_cleanup:
        site = by_side.get(entry.side)
        if site is None:
            hotadd_left.append(entry)
            continue
        name = _name(folder.record, site.name, entry.vm_ref, original)
        detached = 0

        def clean_up(site: Inventory = site, entry: HotAddedDisks = entry) -> None:
            nonlocal detached
            detached = services.movers.cleanup(site.name, entry.vm_ref, entry.proxy)

        try:
            undone = _undone(services, who, "clean up after HotAdd", site, entry.vm_ref, clean_up)
        except UsageError as error:
            done.append(
                f"run {intent.run_id} had disks of {name} on a proxy VM by HotAdd, and {error.message}: "
                "make sure that none is left there"
            )
            continue
        if undone and detached:
            with suppress(NotFoundError):
                services.modes.detached(site.name, site.read_vm(entry.vm_ref), detached)
            done.append(f"detached the disks of {name} that run {intent.run_id} left on the proxy by HotAdd")
    for access in journal.prepared_for_access:
        site = by_name.get(access.site)
        if site is None and original is None:
            access_left.append(access)
            continue
        name = _name(folder.record, access.site, access.vm_ref, original)

        def end(access: PreparedAccess = access) -> None:
            services.movers.end_access(access.site, access.vm_ref, access.identity)

        if _undone(services, who, "end access", site, access.vm_ref, end):
            done.append(f"gave back the access to {name} that run {intent.run_id} held")
    kept = replace(journal, prepared_for_access=tuple(access_left), hotadd_cleanup=tuple(hotadd_left))
    if kept != journal:
        folder.save_intent(replace(intent, journal=kept))
    return done


def _undone(
    services: Services, who: str, what: str, site: Inventory | None, vm_ref: str, action: Callable[[], None]
) -> bool:
    """Undo a journal's entry; False where its VM is gone, and what was done to it with it."""
    try:
        services.patiently(who, what, action)
    except InterruptedRunError:
        raise
    except VreplError:
        if site is None or _exists(site, vm_ref):
            raise
        return False
    return True


def _exists(site: Inventory, vm_ref: str) -> bool:
    try:
        site.read_vm(vm_ref)
    except NotFoundError:
        return False
    return True


def _name(record: ReplicaRecord, site: str, vm_ref: str, original: Original | None) -> str:
    """How a note names a VM that a journal holds by its ref."""
    if original is not None and (site, vm_ref) == (original.site.name, original.vm.ref):
        return f"{original.vm.name} at {site}"
    return f"the replica {record.target_name or vm_ref} at {site}"


def note_that_disks_were_sealed(folder: ReplicaFolder) -> None:
    """No disk is one that vrepl made empty, or of a smaller one, any more, whatever becomes of the restore points."""
    record = folder.record
    if record.empty_disks or record.grown_disks:
        copies = {grown.path for grown in record.grown_disks.values()}
        loose = tuple(path for path in record.loose_files if path not in copies)
        folder.save_record(replace(record, empty_disks=(), grown_disks={}, loose_files=loose))


def forget_lost_restore_points(folder: ReplicaFolder, replica: VirtualMachine) -> None:
    """Drop restore points whose snapshots the replica no longer has.

    Only once a run has sealed: until then they are what says that the leaf's bytes are not sure.
    """
    note_that_disks_were_sealed(folder)
    present = restore_point_snapshots(replica)
    for point in folder.restore_points():
        if point.id not in present:
            folder.remove_restore_point(point.id)
