"""One crossing on the way home: finds what the original lacks, disk by disk, and moves it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from vrepl.engine.access import GuardedVm, access_window
from vrepl.engine.access_identity import access_identity
from vrepl.engine.changes import changed_extents
from vrepl.engine.comparing import compare_disk
from vrepl.engine.context import FailbackContext, VerificationContext
from vrepl.engine.crossing import Crossing
from vrepl.engine.deciding import every_grain_is_known
from vrepl.engine.disk_crossing import CrossingEnd, CrossingRoute
from vrepl.engine.disk_move import DiskMove, first_intent
from vrepl.engine.intent_keeper import IntentKeeper
from vrepl.engine.knowledge import failed_verification, unfinished_disks
from vrepl.engine.marks import SourceMark
from vrepl.engine.source_snapshot import temporary_snapshot
from vrepl.engine.vm_work import VmWork
from vrepl.errors import CbtError, VsphereError
from vrepl.extents import Extent
from vrepl.model import (
    Consistency,
    Disk,
    DiskPoint,
    Quiesce,
    RestorePoint,
    Side,
    SnapshotState,
    VirtualMachine,
)
from vrepl.model.failover import FailbackRecord, FailoverRecord
from vrepl.planner.homeward import (
    Ask,
    Homeward,
    HomewardWay,
    Read,
    both_sides,
    choose_way,
    decide_homeward,
    ran_since,
    read_whole,
)
from vrepl.ports import ChangedBlocks, DigestFiles
from vrepl.repository.failback import FailbackFolder
from vrepl.repository.intent import Intent
from vrepl.repository.replica_folder import ReplicaFolder
from vrepl.repository.transferlog import read_log

LOST = "lost"
"""Note in the journal of an intent: what earlier crossings wrote is known to nobody."""


@dataclass(frozen=True, slots=True)
class Ends:
    """The two VMs as they are before a crossing."""

    replica: VirtualMachine
    base: SnapshotState | None
    """The snapshot `failover-base`."""
    original: VirtualMachine
    before: SnapshotState | None
    """What the original was before the failback; None for a VM that the failback made."""


def home_disk(original: VirtualMachine, replica_disk: Disk, source_key: int, *, made: bool) -> Disk | None:
    """The disk at home that the replica's goes into. A VM that was made after the replica has them in its order."""
    if not made:
        return original.disk(source_key)
    return next((disk for disk in original.disks if disk.index == replica_disk.index), None)


def disks_differ(point: RestorePoint, replica: VirtualMachine, original: VirtualMachine) -> str:
    """Why the replica's disks do not fit into the original's, in words; "" if they do."""
    for disk in point.disks:
        ours, theirs = replica.disk(disk.target_key), original.disk(disk.source_key)
        if ours is None or theirs is None:
            return f"disk {disk.index} ({disk.label}) is gone from the {'replica' if ours is None else 'original'}"
        if ours.capacity != theirs.capacity:
            return f"{theirs.title} has {theirs.capacity} bytes, and {ours.capacity} at the replica"
    known = {disk.target_key for disk in point.disks}
    added = next((disk for disk in replica.disks if disk.key not in known), None)
    return f"{added.title} was added to the replica since" if added is not None else ""


@dataclass(slots=True)
class Homecoming:
    """The crossings of one VM's failback. The replica's lock is held."""

    context: FailbackContext
    folder: ReplicaFolder
    store: FailbackFolder
    work: VmWork
    bytes_moved: int = field(default=0, init=False)

    def cross(self, record: FailoverRecord, point: RestorePoint, ends: Ends, *, first: bool) -> None:
        """`point`: the restore point that was failed over to; `first`: nothing was written at home yet, surely.

        Once it returns the crossing is marked as ended: the original's disks are what the replica's were in between.
        """
        context, work, services = self.context, self.work, self.context.services
        back = record.failback
        assert back is not None, "a crossing belongs to a failback"
        keeper = self._begin(back, point, first=first)
        guarded = (
            GuardedVm(Side.TARGET, context.target, ends.replica, self._identity(ends.replica)),
            GuardedVm(Side.SOURCE, context.home, ends.original, self._identity(ends.original)),
        )
        mark = SourceMark(services.repository.id, back.crossing_id)
        with (
            access_window(services, keeper, work.vm, guarded, work.note),
            temporary_snapshot(
                services, context.target, ends.replica, mark, Quiesce.NEVER, work.note, _needs_consolidation(work),
                quiesce=False,
            ) as state,
        ):  # fmt: skip
            work.enter("find what differs")
            moves = [self._move(record, back, point, disk, ends, state, keeper) for disk in point.disks]
            keeper.change(lambda intent: replace(intent, disks=tuple(first_intent(move) for move in moves)))
            work.enter("transfer")
            crossing = Crossing(self._route(keeper), moves, work.vm, work.note)
            crossing.run()
            work.enter("remove the replica's snapshot")
        self.bytes_moved += sum(crossing.bytes_moved(move.key) for move in moves)
        keeper.change(lambda intent: replace(intent, restore_point_id=back.crossing_id))

    def ended(self) -> str:
        """ID of the crossing that ended last, and after which none was begun."""
        intent = self.store.intent()
        return intent.restore_point_id if intent is not None else ""

    def keep_digests(self, point: RestorePoint, home: RestorePoint) -> None:
        """What crossed was the replica as it was shut down: digests of the restore point `home`, which will be that.

        With them the job's next run reads the original alone. Before the restore point is made: cut off after that,
        nobody would make them any more.
        """
        intent = self.store.intent()
        believed = not failed_verification(self.folder, point)
        for disk in intent.disks if intent is not None else ():
            if home.disk(disk.source_key) is not None:
                parent = point.id if believed else None
                self.folder.seal_crossing(
                    replace(disk, parent_restore_point_id=parent), self.store.transfer_log(disk.source_key), home.id
                )

    def _begin(self, back: FailbackRecord, point: RestorePoint, *, first: bool) -> IntentKeeper:
        """What earlier crossings of this failback say of the disks stays until this one knows better."""
        before = self.store.intent()
        if first or (before is not None and not before.run_id.startswith(f"{back.id}-")):
            self.store.clear()
            before = None
        intent = Intent(back.crossing_id, "", point.job, disks=before.disks if before else ())
        lost = not first and (before is None or LOST in before.journal.notes)
        if lost:
            intent = replace(intent, journal=replace(intent.journal, notes={LOST: "repository"}))
        keeper = IntentKeeper(self.store, intent)
        keeper.change(lambda intent: intent)
        return keeper

    def _identity(self, vm: VirtualMachine) -> str:
        """A run's: whoever holds the lock may end it."""
        return access_identity(self.context.services.repository.id, self.folder.record.id, vm)

    def _route(self, keeper: IntentKeeper) -> CrossingRoute:
        context = self.context
        return CrossingRoute(
            services=context.services,
            gate=context.gate,
            logs=self.store,
            keeper=keeper,
            read=CrossingEnd(Side.TARGET, context.target, context.target_modes),
            written=CrossingEnd(Side.SOURCE, context.home, context.home_modes),
            fallback=context.fallback,
        )

    # -- one disk -----------------------------------------------------------------------------------------------------

    def _move(
        self,
        record: FailoverRecord,
        back: FailbackRecord,
        point: RestorePoint,
        disk: DiskPoint,
        ends: Ends,
        state: SnapshotState,
        keeper: IntentKeeper,
    ) -> DiskMove:
        read = state.disk(disk.target_key)
        written = home_disk(ends.original, read, disk.source_key, made=back.made) if read is not None else None
        if read is None or written is None:
            raise VsphereError(
                f"disk {disk.index} ({disk.label}) is gone from the {'replica' if read is None else 'VM at home'}",
                hint=f"vrepl failback undo {self.work.vm}, then vrepl failback start {self.work.vm} --new",
            )
        digests = self._digests(point, disk)
        facts = self._facts(record, back, disk, ends, read, keeper, digests_known=digests.known)
        finder = _Finder(self, ends, disk, read, state, digests)
        planned = record.planned and point.consistency is Consistency.POWERED_OFF
        way, ours, theirs = finder.find(choose_way(facts), facts, powered_off_then=planned)
        decision, regions = decide_homeward(way, ours, theirs, read.capacity)
        self.work.note(f"{read.title}: {way.reason}")
        attempts = read_log(self.store.transfer_log(disk.source_key)).last
        return DiskMove(
            key=disk.source_key,
            read_vm=ends.replica,
            read_snapshot=state,
            read_disk=read,
            written_vm=ends.original,
            written_disk=written,
            decision=decision,
            regions=regions,
            parent_restore_point_id=point.id,
            parent_digests=digests if way.uses_digests else DigestFiles(None, fresh=way.fresh),
            first_attempt=attempts.number + 1 if attempts else 1,
        )

    def _digests(self, point: RestorePoint, disk: DiskPoint) -> DigestFiles:
        """Of the restore point that was failed over to; of none, where any grain's is not known or not believed."""
        if failed_verification(self.folder, point):
            return DigestFiles(None)
        files = self.folder.digest_files(disk.source_key, point.id)
        return files if files.known and every_grain_is_known(files, disk.capacity) else DigestFiles(None)

    def _facts(
        self,
        record: FailoverRecord,
        back: FailbackRecord,
        disk: DiskPoint,
        ends: Ends,
        read: Disk,
        keeper: IntentKeeper,
        *,
        digests_known: bool,
    ) -> Homeward:
        intent = keeper.intent
        left = unfinished_disks(self.store, intent).get(disk.source_key)
        at_base = ends.base.disk(disk.target_key) if ends.base is not None else None
        base = at_base.position if at_base is not None and not back.found_off else None
        if base is not None:
            base = replace(base, change_id=(record.base_change_ids or {}).get(disk.target_key))
        before = ends.before.disk(disk.source_key) if ends.before is not None else None
        return Homeward(
            now=read.position,
            base=base,
            original_then=disk.position,
            original_now=before.position if before is not None else replace(disk.position, change_id=None),
            shut_down_cleanly=record.planned,
            digests_known=digests_known,
            unfinished=None if back.found_off else left,
            begun=left is not None or LOST in intent.journal.notes,
            made=back.made,
        )


@dataclass(frozen=True, slots=True)
class _Finder:
    """Finds what changed on both sides of one disk, as its way says."""

    home: Homecoming
    ends: Ends
    disk: DiskPoint
    read: Disk
    state: SnapshotState
    digests: DigestFiles

    def find(
        self, way: HomewardWay, facts: Homeward, *, powered_off_then: bool
    ) -> tuple[HomewardWay, list[Extent], list[Extent]]:
        """The way that was taken in the end, and what changed at the replica and at the original."""
        context, ends = self.home.context, self.ends
        theirs: list[Extent] = []
        try:
            if isinstance(way.original, Ask):
                assert ends.before is not None, "a VM that was made has no tracking to ask"
                theirs = self._asked(context.home, ends.original, ends.before, self.disk.source_key, way.original.since)
                if ran_since(theirs, powered_off_then=powered_off_then):
                    reason = "the original was powered on since the failover, and nobody saw it shut down"
                    return self.find(read_whole(facts, reason), facts, powered_off_then=False)
            ours: list[Extent] = []
            if isinstance(way.replica, Ask):
                ours = self._asked(context.target, ends.replica, self.state, self.read.key, way.replica.since)
        except CbtError as error:
            reason = f"change tracking gave no answer ({error.message})"
            instead = both_sides(reason) if facts.begun or facts.made else read_whole(facts, reason)
            return self.find(instead, facts, powered_off_then=False)
        if isinstance(way.original, Read):
            assert ends.before is not None, "a VM that was made holds nothing to compare"
            before = ends.before.disk(self.disk.source_key)
            assert before is not None, "it was looked at"
            theirs = self._differing(Side.SOURCE, ends.original, ends.before, before)
        if isinstance(way.replica, Read):
            ours = self._differing(Side.TARGET, ends.replica, self.state, self.read)
        return way, ours, theirs

    def _asked(
        self, site: ChangedBlocks, vm: VirtualMachine, state: SnapshotState, key: int, since: str
    ) -> list[Extent]:
        return changed_extents(
            lambda start: site.changed_areas(vm.ref, state.ref, key, start, since), self.read.capacity
        )

    def _differing(self, side: Side, vm: VirtualMachine, state: SnapshotState, disk: Disk) -> list[Extent]:
        """Reads a disk at its own site, and tells where it is not the restore point any more."""
        context = self.home.context
        site, modes = (
            (context.home, context.home_modes) if side is Side.SOURCE else (context.target, context.target_modes)
        )
        reading = VerificationContext(context.services, site, modes, context.gate)
        result = compare_disk(reading, self.home.work.vm, vm, state.ref, disk, self.digests)
        return list(result.bad_extents)


def _needs_consolidation(work: VmWork) -> Callable[[bool], None]:
    def told(needed: bool) -> None:
        if needed:
            work.note("the replica needs disk consolidation")

    return told
