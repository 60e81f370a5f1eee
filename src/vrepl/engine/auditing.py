"""Change tracking is audited: what it calls unchanged is read through a source snapshot and compared with the digests.

A change that was missed is missed for ever otherwise, for digests are made from what was read. Only grains with a sure
digest can accuse. One without is read and settled like a changed one, which gives it a digest; one that reads as zeros
now is told apart (a guest gave it back by TRIM) and settled too, without an alarm.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from vrepl.engine.comparing import compare_disk
from vrepl.engine.context import ReplicationContext, VerificationContext
from vrepl.engine.disk_move import DiskMove
from vrepl.engine.events import Note
from vrepl.extents import GRAIN, Extent, align, intersect, subtract, total, union
from vrepl.model import Disk, RestorePoint, SnapshotState, VirtualMachine
from vrepl.planner.audit import DiskAudit, after_part, after_whole, due_part, last_audited
from vrepl.planner.disks import regions_of, without_cbt
from vrepl.ports import DigestFiles
from vrepl.report.model import AuditReport
from vrepl.repository.audit_book import read_audit_book, write_audit_book
from vrepl.repository.digest_sets import open_lookup
from vrepl.repository.replica_folder import Doubt, ReplicaFolder

MANY = 256
"""Grains: beyond these it is not looked up for each when it was last read; every restore point counts as doubtful."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What reading a part of a disk told."""

    bytes_read: int
    missed: list[Extent]
    """Differs from its sure digest: change tracking missed it."""
    zeroed: list[Extent]
    """Reads as zeros now, and did not."""
    unknown: list[Extent]
    """Had no sure digest: not judged."""


def read_part(
    context: ReplicationContext,
    vm: VirtualMachine,
    snapshot: SnapshotState,
    disk: Disk,
    digests: DigestFiles,
    part: Sequence[Extent],
) -> Finding:
    """Read `part` (grain-aligned, normal) of a source disk and compare it with `digests`. Raises DiskError."""
    if not part:
        return Finding(0, [], [], [])
    lookup = open_lookup(digests, disk.capacity)
    try:
        unknown = intersect(list(lookup.unknown(part)), part)
    finally:
        lookup.close()
    source = VerificationContext(context.services, context.source, context.job.source_modes, context.gate)
    read = compare_disk(source, vm.name, vm, snapshot.ref, disk, digests, regions=tuple(part))
    zeroed = list(read.zeroed_extents)
    return Finding(read.bytes_read, subtract(read.bad_extents, zeroed), zeroed, unknown)


@dataclass(slots=True)
class RunAudit:
    """The part of a run's disks that is audited in it."""

    context: ReplicationContext
    folder: ReplicaFolder
    points: Sequence[RestorePoint]
    """Oldest first; the last is the leaf's parent."""
    note: Note
    report: AuditReport | None = None
    _parts: dict[int, list[Extent]] = field(default_factory=dict)
    _whole: set[int] = field(default_factory=set)

    def judge(self, move: DiskMove) -> DiskMove:
        """Read what is due of the move's disk, before anything is written; returns how the disk is moved now."""
        period = self.context.job.audit
        if period is None:
            return move
        key, capacity = move.key, move.read_disk.capacity
        if move.decision.whole_disk:
            self._whole.add(key)
            return move
        if move.parent_digests.base is None or move.decision.carry or move.decision.since_change_id is None:
            return move
        book, damaged = read_audit_book(self.folder.path)
        if damaged is not None:
            self.note(f"{damaged.message}; the audit begins anew")
        audit = book.disks.get(key)
        if audit is None or audit.capacity != capacity:
            audit = DiskAudit(capacity, self.points[0].time if self.points else self.context.services.clock())
        due = due_part(audit, period, self.context.services.clock())
        if not due:
            return move
        part = align(subtract(due, move.regions), GRAIN, capacity)
        found = read_part(self.context, move.read_vm, move.read_snapshot, move.read_disk, move.parent_digests, part)
        self._parts[key] = due
        report = self.report = self.report or AuditReport()
        report.bytes_read += found.bytes_read
        report.bytes_recorded += total(found.unknown)
        report.bytes_zeroed += total(found.zeroed)
        if found.missed:
            return self._alarm(move, audit, part, found)
        settled = union(found.unknown, found.zeroed)
        if settled:
            regions = union(move.regions, align(settled, GRAIN, capacity))
            return replace(move, regions=regions)
        return move

    def _doubt(self, move: DiskMove, audit: DiskAudit, missed: Sequence[Extent]) -> list[str]:
        now = self.context.services.clock()
        return doubt(self.folder, self.points, move.key, move.read_disk, audit, missed, now)

    def _alarm(self, move: DiskMove, audit: DiskAudit, part: Sequence[Extent], found: Finding) -> DiskMove:
        disk = move.read_disk
        assert self.report is not None
        doubtful = set(self._doubt(move, audit, found.missed))
        # Who lied once is not believed elsewhere: what else was missed decides which restore points are doubtful.
        # A comparison does not tell, for it writes what was missed beside what change tracking did tell.
        rest = align(subtract([Extent(0, disk.capacity)], union(move.regions, part)), GRAIN, disk.capacity)
        more = read_part(self.context, move.read_vm, move.read_snapshot, disk, move.parent_digests, rest)
        self.report.bytes_read += more.bytes_read
        self.report.bytes_zeroed += total(more.zeroed)
        self.report.bytes_recorded += total(more.unknown)
        if more.missed:
            doubtful |= set(self._doubt(move, audit, more.missed))
        missed = union(found.missed, more.missed)
        self.report.bytes_missed += total(missed)
        names = [point.id for point in self.points if point.id in doubtful]
        self.report.doubtful += [name for name in names if name not in self.report.doubtful]
        reason = "the audit found changes that change tracking had missed"
        self.note(
            f"{disk.title}: {reason} ({total(missed)} bytes, the first at {missed[0].offset}): the whole "
            f"disk is compared, and these restore points are doubtful: {', '.join(names) or 'none'}"
        )
        last = self.points[-1]
        digests = self.folder.digest_files(move.key, last.id)
        lookup = open_lookup(digests, disk.capacity)
        try:
            known = next(lookup.unknown(), None) is None
        finally:
            lookup.close()
        decision = without_cbt(move.decision, reason, digests_known=known)
        self._parts.pop(move.key, None)
        self._whole.add(move.key)
        return replace(
            move,
            decision=decision,
            regions=regions_of(decision, [], disk.capacity),
            parent_digests=digests if known else DigestFiles(base=None),
        )

    def settle(self, moves: Sequence[DiskMove], restore_point_id: str) -> None:
        """Note what was audited, once the run has sealed."""
        period = self.context.job.audit
        if period is None:
            return
        book, _ = read_audit_book(self.folder.path)
        now = self.context.services.clock()
        disks = dict(book.disks)
        for move in moves:
            key, capacity = move.key, move.read_disk.capacity
            before = disks.get(key)
            if before is not None and before.capacity != capacity:
                before = None
            if key in self._whole:
                disks[key] = after_whole(capacity, before, now, restore_point_id)
            elif key in self._parts:
                start = before or DiskAudit(capacity, self.points[0].time if self.points else now)
                disks[key] = after_part(start, self._parts[key], period, now, restore_point_id)
        if disks != dict(book.disks):
            write_audit_book(self.folder.path, replace(book, disks=disks))


def doubt(
    folder: ReplicaFolder,
    points: Sequence[RestorePoint],
    key: int,
    disk: Disk,
    audit: DiskAudit | None,
    missed: Sequence[Extent],
    now: dt.datetime,
) -> list[str]:
    """Mark every restore point doubtful since the missed grains were last read or audited; returns their IDs."""
    order = [point.id for point in points]
    bounds = [last_audited(audit, missed, order), _last_read(folder, order, key, disk, missed)]
    certain = max((order.index(bound) for bound in bounds if bound is not None), default=-1)
    reason = f"change tracking missed changes of {disk.title}, as an audit found"
    for name in order[certain + 1 :]:
        folder.mark_doubtful(name, Doubt(now, reason, (key,)))
    return order[certain + 1 :]


def _last_read(
    folder: ReplicaFolder, order: Sequence[str], key: int, disk: Disk, missed: Sequence[Extent]
) -> str | None:
    """The restore point at which all of `missed` was read: before it, the digests differ. None: that is not known."""
    grains = [grain for extent in missed for grain in range(extent.offset // GRAIN, -(-extent.end // GRAIN))]
    if len(grains) > MANY:
        return None
    newest: dict[int, bytes | None] = {}
    since: dict[int, tuple[str, bool]] = {}
    for name in reversed(order):
        lookup = open_lookup(folder.digest_files(key, name), disk.capacity)
        try:
            for grain in [grain for grain in grains if grain not in since or since[grain][1]]:
                digest = lookup.digest_of(grain)
                if grain not in newest:
                    newest[grain] = digest
                same = digest is not None and digest == newest[grain]
                since[grain] = (name, True) if same else (since.get(grain, (name, True))[0], False)
        finally:
            lookup.close()
    # Where no older set says otherwise, it may have been read long before, or never.
    if not since or any(going_on for _, going_on in since.values()):
        return None
    return min((name for name, _ in since.values()), key=list(order).index)
