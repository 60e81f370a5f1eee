"""How the changed bytes of one disk are found: by CBT, by comparing, or all of them; and why. Pure.

`decide_disk` is asked twice: by the plan, before a snapshot exists, and by the run, with the disks of the snapshot's
own configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vrepl.extents import GRAIN, Extent, align, clip, intersect, subtract, total, union
from vrepl.model import Disk, DiskPoint, TrackingPosition, TransferKind
from vrepl.planner.tracking import tracking_break


def issued_extents(planned: Sequence[Extent], allowed: int, capacity: int) -> list[Extent]:
    """What an attempt may have written: the grains of `planned` that begin below the byte offset `allowed`."""
    return align(intersect(planned, [Extent(0, allowed)]), GRAIN, capacity)


@dataclass(frozen=True, slots=True)
class UnfinishedDisk:
    """What an unsealed attempt left of one disk. Extents are normal lists, in bytes."""

    planned: Sequence[Extent]
    done: Sequence[Extent]
    """Settled and flushed, of `planned`."""
    allowed: int
    """Writes to `planned` were issued only below this byte offset."""
    position: TrackingPosition
    """Of the source disk in the snapshot that `done` was copied from."""
    dirty: Sequence[Extent]
    """What attempts before that one may have written since the last seal."""
    compare_with_target: bool = False
    """What the leaf held when that attempt's run began was not known: only what is `done` is sure."""
    settled: Sequence[Extent] = ()
    """By any attempt since the last seal, as the transfer log has it."""

    @property
    def remaining(self) -> list[Extent]:
        return subtract(self.planned, self.done)

    @property
    def maybe_written(self) -> list[Extent]:
        """Everything that may have been written to the leaf since the last seal, acknowledged or not."""
        return union(self.dirty, issued_extents(self.planned, self.allowed, self.position.capacity))


@dataclass(frozen=True, slots=True)
class DiskDecision:
    """How the changed bytes of one disk are found, and why."""

    kind: TransferKind
    reason: str
    since_change_id: str | None = None
    """Ask CBT what changed since this ID; None: do not ask."""
    carry: tuple[Extent, ...] = ()
    """What an unfinished attempt still owes; settled again whatever CBT says."""
    dirty: tuple[Extent, ...] = ()
    whole_disk: bool = False
    """The regions are the whole disk (its allocated blocks), not only `carry` and what CBT names."""
    compare_with_target: bool = False
    """No digest set speaks surely of the leaf's parent: the target's bytes are read and compared."""
    fresh: bool = False
    """The replica's disk was created empty and nothing was ever sealed: unwritten grains are zeros."""


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """What is known of the replica's disk, for which a way has to be decided."""

    point: DiskPoint | None = None
    """The disk in the restore point that is the leaf's parent."""
    unfinished: UnfinishedDisk | None = None
    digests_known: bool = False
    """A digest set names that restore point."""
    leaf_is_sealed_state: bool = True
    """False: the replica's chain is not what the repository thinks (a snapshot of it was removed by hand, or it was
    seeded from an existing VM), so nothing is sure."""
    doubtful: bool = False
    """Change tracking was caught missing changes of this disk since."""
    made_empty: bool = True
    """Without a `point`, the replica's disk is known to have been created empty."""
    lost_power: bool = False
    """The source VM is off and lost power: what was tracked in its host's memory is gone, and only its next power-on
    resets the tracking (Broadcom KB 432633)."""
    grown: bool = False
    """Without a `point`, the replica's disk is known to have been made of the leaf's parent's, and larger."""


def decide_disk(disk: Disk, facts: DiskFacts) -> DiskDecision:
    """How to bring the replica's disk to the source's state."""
    point, unfinished, digests_known = facts.point, facts.unfinished, facts.digests_known
    if facts.lost_power:
        disk = replace(disk, change_id=None)  # it goes on from nothing, an unfinished run's position neither
    dirty = tuple(clip(unfinished.maybe_written, disk.capacity)) if unfinished else ()
    unsure_since = unfinished is not None and unfinished.compare_with_target
    sure = facts.made_empty or (facts.grown and digests_known)
    if not facts.leaf_is_sealed_state or unsure_since or (point is None and not sure):
        return _decide_unknown(disk, unfinished, dirty)
    if point is None and facts.grown:
        return _decide_grown(disk, unfinished, dirty)
    if point is None:
        return _decide_first(disk, unfinished, dirty)
    broken = tracking_break(point.position, disk.position)
    distrust = broken.reason if broken else None
    if facts.lost_power:
        distrust = "the VM lost power, and with it what change tracking had in memory"
    if facts.doubtful and distrust is None:
        distrust = "change tracking missed changes of this disk"
    if distrust is None and unfinished is None:
        return DiskDecision(
            TransferKind.INCREMENTAL,
            "changed blocks since the last restore point",
            since_change_id=point.change_id,
        )
    if unfinished is not None and _same_tracking(disk, unfinished) and (distrust is None or digests_known):
        # What it planned was all that could differ from the restore point, however that was found.
        kind = TransferKind.INCREMENTAL if distrust is None else TransferKind.COMPARE
        return _resumed(kind, "an unfinished run", disk, unfinished, dirty, because=distrust)
    reason = distrust or "the unfinished run's change ID is of no use"
    if not digests_known:
        return DiskDecision(
            TransferKind.COMPARE,
            f"{reason}; no digests of the last restore point, so both sides are read",
            whole_disk=True,
            dirty=dirty,
            compare_with_target=True,
        )
    return DiskDecision(TransferKind.COMPARE, reason, whole_disk=True, dirty=dirty)


def _decide_unknown(disk: Disk, unfinished: UnfinishedDisk | None, dirty: tuple[Extent, ...]) -> DiskDecision:
    """Nothing but what an unfinished comparison has settled is sure: the target's own bytes decide."""
    if unfinished is not None and unfinished.compare_with_target and _same_tracking(disk, unfinished):
        what = "a comparison of both sides"
        return replace(_resumed(TransferKind.COMPARE, what, disk, unfinished, dirty), compare_with_target=True)
    return DiskDecision(
        TransferKind.COMPARE,
        "what the replica's disk holds is not known, so both sides are read",
        whole_disk=True,
        dirty=dirty,
        compare_with_target=True,
    )


def _decide_first(disk: Disk, unfinished: UnfinishedDisk | None, dirty: tuple[Extent, ...]) -> DiskDecision:
    if unfinished is None:
        return DiskDecision(TransferKind.FULL, "first run", whole_disk=True, fresh=True)
    if _same_tracking(disk, unfinished):
        return replace(_resumed(TransferKind.FULL, "the first run", disk, unfinished, dirty), fresh=True)
    return DiskDecision(
        TransferKind.FULL,
        "starts the first run again: without CBT nothing says what changed since it was interrupted",
        whole_disk=True,
        dirty=dirty,
        fresh=True,
    )


def _decide_grown(disk: Disk, unfinished: UnfinishedDisk | None, dirty: tuple[Extent, ...]) -> DiskDecision:
    """The replica's disk holds what the last restore point's did, and zeros behind it."""
    made = "it was resized, and the replica's new disk is made of the last restore point's"
    if unfinished is not None and _same_tracking(disk, unfinished):
        return _resumed(TransferKind.COMPARE, "an unfinished run", disk, unfinished, dirty, because=made)
    return DiskDecision(TransferKind.COMPARE, made, whole_disk=True, dirty=dirty)


def _resumed(
    kind: TransferKind,
    what: str,
    disk: Disk,
    unfinished: UnfinishedDisk,
    dirty: tuple[Extent, ...],
    *,
    because: str | None = None,
) -> DiskDecision:
    """Goes on from where its tracking stood, with what it had left."""
    return DiskDecision(
        kind,
        f"resumes {what}, {_percent(unfinished)} % of which is done" + (f" ({because})" if because else ""),
        since_change_id=unfinished.position.change_id,
        carry=tuple(clip(unfinished.remaining, disk.capacity)),
        dirty=dirty,
    )


def _same_tracking(disk: Disk, unfinished: UnfinishedDisk) -> bool:
    """Whether CBT can say what changed since the unfinished attempt's snapshot."""
    return tracking_break(unfinished.position, disk.position) is None


def _percent(unfinished: UnfinishedDisk) -> int:
    planned = total(unfinished.planned)
    return 100 * (planned - total(unfinished.remaining)) // planned if planned else 0


def unplanned(facts: DiskFacts, owed: Sequence[Extent]) -> list[Extent]:
    """What a resumed attempt would leave out, of `owed`: all that may differ from the leaf's parent.

    Each attempt plans what the one before it had not settled and what changed since, so this is nothing, unless the
    intent was damaged in a way that its checksum does not tell.
    """
    left = facts.unfinished
    return [] if left is None else subtract(owed, union(left.planned, left.settled))


def regions_of(decision: DiskDecision, changed: Sequence[Extent], capacity: int) -> list[Extent]:
    """The grain-aligned extents that an attempt must settle: the whole disk, or what is owed and what changed."""
    if decision.whole_disk:
        return [Extent(0, capacity)]
    return align(union(decision.carry, changed), GRAIN, capacity)


def without_cbt(decision: DiskDecision, reason: str, *, digests_known: bool) -> DiskDecision:
    """What becomes of a decision when CBT gives no answer: the whole disk is gone through, and the reason said."""
    if decision.fresh:
        return DiskDecision(TransferKind.FULL, reason, whole_disk=True, dirty=decision.dirty, fresh=True)
    return DiskDecision(
        TransferKind.COMPARE,
        reason if digests_known else f"{reason}; no digests of the last restore point, so both sides are read",
        whole_disk=True,
        dirty=decision.dirty,
        compare_with_target=decision.compare_with_target or not digests_known,
    )
