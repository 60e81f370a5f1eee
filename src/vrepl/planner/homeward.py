"""How it is found out what must cross on the way home, disk by disk. Pure.

The original can differ from the replica only where one of the two was written since the restore point that was failed
over to. Of the replica its change tracking since the snapshot `failover-base` tells. Of the original it counts only
where vrepl saw it shut down cleanly: tracking in memory is lost with power, and the host notices that only at the next
power-on (Broadcom KB 432633; not read, the rule is the safe one either way). Otherwise each disk is read whole at its
own site, and compared with the digests of that restore point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vrepl.extents import GRAIN, Extent, align, clip, union
from vrepl.model import TrackingPosition, TransferKind
from vrepl.planner.disks import DiskDecision, UnfinishedDisk
from vrepl.planner.tracking import tracking_break


@dataclass(frozen=True, slots=True)
class Ask:
    """Change tracking tells what was written since this change ID."""

    since: str


@dataclass(frozen=True, slots=True)
class Read:
    """The whole disk is read at its own site, and compared with digests."""


@dataclass(frozen=True, slots=True)
class Homeward:
    """What is known of one disk before it crosses."""

    now: TrackingPosition
    """Of the replica's disk, in the snapshot that is going to be read."""
    base: TrackingPosition | None
    """In the snapshot `failover-base`; None: what was written since is not known."""
    original_then: TrackingPosition
    """Of the original's disk, in the restore point that was failed over to."""
    original_now: TrackingPosition
    """In the snapshot of what it was before the failback."""
    shut_down_cleanly: bool
    """vrepl saw the original shut down, after its last change had crossed: a planned failover."""
    digests_known: bool
    """Of every grain of that restore point."""
    unfinished: UnfinishedDisk | None = None
    """What an earlier crossing of this failback left."""
    begun: bool = False
    """An earlier crossing may have written, whether or not anything is left that says what."""
    made: bool = False
    """The disk at home was made empty by this failback."""


@dataclass(frozen=True, slots=True)
class HomewardWay:
    """How to find the regions of one disk, and why so."""

    kind: TransferKind
    reason: str
    replica: Ask | Read | None = None
    """How its changes are found; None: not asked."""
    original: Ask | Read | None = None
    carry: tuple[Extent, ...] = ()
    dirty: tuple[Extent, ...] = ()
    whole_disk: bool = False
    compare_with_target: bool = False
    fresh: bool = False

    @property
    def uses_digests(self) -> bool:
        """Whether digests of the restore point say what the original holds where it did not change."""
        return not (self.compare_with_target or self.fresh)


def choose_way(disk: Homeward) -> HomewardWay:
    """How what must cross is found."""
    unfinished = disk.unfinished
    if unfinished is not None and tracking_break(unfinished.position, disk.now) is None:
        remaining = tuple(clip(unfinished.remaining, disk.now.capacity))
        since = unfinished.position.change_id
        assert since is not None, "tracking goes on only from a change ID"
        return HomewardWay(
            TransferKind.COMPARE,
            "goes on from an unfinished crossing" if remaining else "what the replica wrote since the last crossing",
            replica=Ask(since),
            carry=remaining,
            # Of a crossing that ended, nothing is still on its way.
            dirty=tuple(clip(unfinished.maybe_written, disk.now.capacity)) if remaining else (),
            compare_with_target=True,
        )
    if disk.begun:
        return both_sides("what an earlier crossing wrote is not known")
    if disk.made:
        return HomewardWay(TransferKind.FULL, "the VM at home is new", whole_disk=True, fresh=True)
    if not disk.shut_down_cleanly:
        return read_whole(disk, "nobody saw the original shut down cleanly, so its change tracking does not count")
    reasons = []
    replica: Ask | Read = Read()
    if disk.base is None or disk.base.change_id is None:
        reasons.append("of the replica, nothing says where its tracking stood at the failover")
    elif (broken := tracking_break(disk.base, disk.now, what="the failover")) is not None:
        reasons.append(f"of the replica, {broken.reason}")
    else:
        replica = Ask(disk.base.change_id)
    original: Ask | Read = Read()
    gone = tracking_break(disk.original_then, disk.original_now, what="the restore point that was failed over to")
    if gone is not None:
        reasons.append(f"of the original, {gone.reason}")
    elif disk.original_then.change_id is not None:
        original = Ask(disk.original_then.change_id)
    if not reasons:
        return HomewardWay(
            TransferKind.INCREMENTAL, "what either side wrote since the restore point", replica, original
        )
    if not disk.digests_known:
        return both_sides("; ".join(reasons))
    return HomewardWay(TransferKind.COMPARE, "; ".join(reasons), replica, original)


def read_whole(disk: Homeward, reason: str) -> HomewardWay:
    """Neither side's tracking is asked."""
    if not disk.digests_known:
        return both_sides(f"{reason}, and not every digest of the restore point is known")
    return HomewardWay(TransferKind.COMPARE, reason, Read(), Read())


def both_sides(reason: str) -> HomewardWay:
    """The two disks are compared with one another, byte by byte."""
    return HomewardWay(
        TransferKind.COMPARE, f"{reason}: both disks are read", whole_disk=True, compare_with_target=True
    )


def ran_since(original_changed: Sequence[Extent], *, powered_off_then: bool) -> bool:
    """Whether the original ran after the last sync of a planned failover, which nobody saw end.

    `powered_off_then`: it was off when the restore point was taken, so that nothing can have changed since.
    """
    return powered_off_then and bool(original_changed)


def decide_homeward(
    way: HomewardWay, replica_changed: Sequence[Extent], original_changed: Sequence[Extent], capacity: int
) -> tuple[DiskDecision, list[Extent]]:
    """The decision for the crossing, and the regions that it must settle.

    Where the original differs from the restore point, the digests of that say nothing of it: those grains are written
    whatever they say.
    """
    differs = align(original_changed, GRAIN, capacity)
    regions = align(union(union(way.carry, replica_changed), differs), GRAIN, capacity)
    decision = DiskDecision(
        way.kind,
        way.reason,
        carry=way.carry,
        dirty=tuple(union(way.dirty, differs)),
        whole_disk=way.whole_disk,
        compare_with_target=way.compare_with_target,
        fresh=way.fresh,
    )
    return decision, [Extent(0, capacity)] if way.whole_disk else regions
