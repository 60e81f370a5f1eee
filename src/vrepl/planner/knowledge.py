"""What the repository and the target say of one VM's replica, and what follows of it for each disk. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from vrepl.extents import Extent
from vrepl.model import Disk, DiskPoint, GrownDisk, ReplicaRecord, RestorePoint, VirtualMachine
from vrepl.planner.disks import DiskFacts, UnfinishedDisk
from vrepl.planner.seeding import SeedRequest


class NameTaken(StrEnum):
    """What has the name that the replica would get."""

    VM = "a VM"
    TEMPLATE = "a template"
    OTHER_REPLICA = "the replica of another VM"
    UNKNOWN_REPLICA = "a replica of it, of which this repository knows nothing,"


@dataclass(frozen=True, slots=True)
class ReplicaKnowledge:
    """What the repository and the target say of one VM's replica."""

    record: ReplicaRecord | None = None
    replica: VirtualMachine | None = None
    restore_points: tuple[RestorePoint, ...] = ()
    """Oldest first; only those whose snapshot the replica still has."""
    lost_restore_points: tuple[RestorePoint, ...] = ()
    """In the repository, but their snapshots are gone from the replica."""
    unfinished: tuple[tuple[int, UnfinishedDisk], ...] = ()
    """By source disk key."""
    digests_known: frozenset[int] = frozenset()
    """Source disk keys whose digest set names the last restore point."""
    name_taken_by: NameTaken | None = None
    """What kind of VM already has the replica's name on the target, if it is not the replica."""
    seed: SeedRequest | None = None
    """The operator asked for an existing VM of the target to become the replica, and it is not yet."""
    leftover: VirtualMachine | None = None
    """A VM of the replica's name that a dead run registered for this source and never sealed anything on."""
    touched: str | None = None
    """How the replica's leaf was changed by hand, if it was."""
    suspects: tuple[tuple[int, tuple[Extent, ...]], ...] = ()
    """By source disk key: where the replica's change tracking hints that its leaf was written by something else."""
    doubtful_disks: frozenset[int] = frozenset()
    """Source disk keys of which the last restore point may hold something else than the source had."""
    verification_failed: bool = False
    """The last restore point was read back and did not hold what it should: its digests say nothing of the leaf."""

    @property
    def last(self) -> RestorePoint | None:
        return self.restore_points[-1] if self.restore_points else None

    def made_for_another_size(self, disk: Disk) -> bool:
        """Whether the replica's disk for this source disk has another capacity."""
        key = self.record.disk_keys.get(disk.key) if self.record else None
        made = self.replica.disk(key) if self.replica and key is not None else None
        return made is not None and made.capacity != disk.capacity

    @property
    def leaf_is_sealed_state(self) -> bool:
        """The leaf's parent is the newest restore point that the repository knows, and only vrepl wrote to the leaf."""
        if self.replica is None or self.record is None:
            return True
        if self.touched and self.last is None:
            return False
        if not self.lost_restore_points or not self.restore_points:
            return not self.lost_restore_points
        # By time, as they are ordered everywhere: of two in one second the IDs say nothing.
        lost, kept = self.lost_restore_points[-1], self.restore_points[-1]
        return (lost.time, lost.id) < (kept.time, kept.id)


@dataclass(frozen=True, slots=True)
class ReplicaDisk:
    """The replica's disk for one disk of the source, as it is when the transfer begins."""

    key: int | None
    """Device key; None where it is not known, or the disk is still to be made."""
    newly_made: bool = False
    """Made by this very run, empty."""
    empty: bool = False
    """vrepl made it empty, and has sealed nothing of it."""
    grown: GrownDisk | None = None
    """vrepl made it of a smaller one, and has sealed nothing of it."""
    newly_grown: bool = False
    """By this very run: no attempt was ever made on it."""


NEW_DISK = ReplicaDisk(None, newly_made=True)


def expected_disk(known: ReplicaKnowledge, source_key: int, *, revert: bool) -> ReplicaDisk:
    """What a run will find, or make, at the target for this source disk. `revert`: it reverts the replica first."""
    if known.replica is None:
        return NEW_DISK
    if known.seed is not None or known.record is None:
        return ReplicaDisk(None)
    if revert and known.last is not None:
        point = known.last.disk(source_key)
        return ReplicaDisk(point.target_key) if point is not None else NEW_DISK
    key = known.record.disk_keys.get(source_key)
    if key is None or known.replica.disk(key) is None:
        return NEW_DISK
    return ReplicaDisk(
        key, empty=source_key in known.record.empty_disks, grown=grown_disk(known.record, known.replica, source_key)
    )


def grown_disk(record: ReplicaRecord, replica: VirtualMachine, source_key: int) -> GrownDisk | None:
    """What the replica's disk for this one is a larger copy of, while nothing of it is sealed; None if it is none."""
    grown = record.grown_disks.get(source_key)
    disk = replica.disk(record.disk_keys.get(source_key, -1))
    return grown if grown is not None and disk is not None and disk.base_path == grown.path else None


def grown_from(point: RestorePoint, disk: DiskPoint) -> ReplicaDisk:
    """What a run will make for a source disk that has grown since that restore point."""
    return ReplicaDisk(None, grown=GrownDisk(point.id, disk.capacity, ""), newly_grown=True)


def disk_facts(
    known: ReplicaKnowledge, source_key: int, at_target: ReplicaDisk, *, reverted: bool, lost_power: bool = False
) -> DiskFacts:
    """What `decide_disk` goes by. `reverted`: the replica is, or will be, back at its last restore point.

    `lost_power`: of the source VM.
    """
    point = known.last.disk(source_key) if known.last and not at_target.newly_made else None
    grown = at_target.grown
    if point is not None and (at_target.empty or grown is not None or point.target_key != at_target.key):
        point = None  # it speaks of a disk that another one stands in the place of since
    described = point is not None or (
        grown is not None and known.last is not None and known.last.id == grown.restore_point_id
    )
    unsettled = reverted or at_target.newly_made or at_target.newly_grown
    sure = known.seed is None and not known.verification_failed and (reverted or known.leaf_is_sealed_state)
    return DiskFacts(
        point=point,
        unfinished=None if unsettled else dict(known.unfinished).get(source_key),
        digests_known=described and source_key in known.digests_known,
        doubtful=source_key in known.doubtful_disks,
        leaf_is_sealed_state=at_target.newly_made or sure,
        made_empty=at_target.newly_made or (known.seed is None and at_target.empty),
        grown=grown is not None,
        lost_power=lost_power,
    )
