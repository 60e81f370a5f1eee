"""Whether an existing VM of the target may become the replica of a source VM (seeding). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vrepl.model import Disk, PowerState, VirtualMachine
from vrepl.planner.preflight import Conflict, ConflictKind, not_replicable_reason


@dataclass(frozen=True, slots=True)
class SeedRequest:
    """The VM of the target that shall become the replica, and what is known of it."""

    candidate: VirtualMachine
    same_site: bool
    """Source and target are one site, so that the candidate may be the source itself."""
    replica_of: str | None = None
    """Whose replica it is already, in words, if it is another VM's or another repository's."""


def seed_conflict(
    vm: VirtualMachine, disks: Sequence[Disk], request: SeedRequest, replica: VirtualMachine | None
) -> Conflict | None:
    """Why `request.candidate` cannot become the replica of `vm`, whose `disks` are replicated; None if it can.

    `replica`: the replica that `vm` has already, which is another VM.
    """
    candidate = request.candidate
    if request.same_site and candidate.instance_uuid == vm.instance_uuid:
        return Conflict(ConflictKind.SAME_VM, f"{candidate.name} is the source itself", "map another VM")
    if replica is not None:
        return _conflict(
            f"{vm.name} has the replica {replica.name} already",
            f"delete {replica.name} on the target first if {candidate.name} shall take its place",
        )
    if request.replica_of is not None:
        return _conflict(
            f"{candidate.name} is the replica of {request.replica_of}",
            "map another VM, or rebuild the repository that lost it: vrepl repository rebuild --adopt",
        )
    if candidate.power is not PowerState.OFF:
        return _conflict(f"{candidate.name} is {candidate.power} on the target", "power it off: a replica stays off")
    if candidate.snapshots:
        return _conflict(
            f"{candidate.name} has {len(candidate.snapshots)} snapshots",
            "remove them (keeping the current state): CBT cannot be enabled while a VM has any",
        )
    reason = not_replicable_reason(candidate)
    if reason is not None:
        return _conflict(f"{candidate.name} cannot be a replica: {reason}", "map a VM whose disks snapshots include")
    ours = [disk.capacity for disk in disks]
    theirs = [disk.capacity for disk in candidate.disks]
    if ours != theirs:
        return _conflict(
            f"the disks of {candidate.name} do not match: {vm.name} has {_sizes(ours)}, it has {_sizes(theirs)} bytes",
            "it needs the same disks in the same order, each of the same capacity",
        )
    return None


def _conflict(message: str, hint: str) -> Conflict:
    return Conflict(ConflictKind.SEED, message, hint)


def _sizes(capacities: Sequence[int]) -> str:
    return " + ".join(str(capacity) for capacity in capacities) or "none"
