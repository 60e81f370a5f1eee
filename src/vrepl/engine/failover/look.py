"""What the target shows of a replica, for the planner: restore points, the base that a failover stands on, tests."""

from __future__ import annotations

from collections.abc import Sequence

from vrepl.engine.knowledge import restore_point_snapshots
from vrepl.engine.marks import failover_mark_of
from vrepl.model import Snapshot, VirtualMachine
from vrepl.model.failover import FAILOVER_BASE, KEPT_STATE
from vrepl.planner.failover import SeenReplica, is_below
from vrepl.ports.failover import FailoverTarget


def look(
    target: FailoverTarget,
    replica_ref: str,
    *,
    tests: Sequence[str] = (),
    source_runs: bool | None = None,
    change_ids: bool = True,
) -> SeenReplica:
    """One read of the replica, and one of its base if it has one and its `change_ids` are wanted.

    Raises NotFoundError where the replica is gone.
    """
    vm = target.read_vm(replica_ref)
    base = next((one for one in vm.snapshots if failover_mark_of(one, FAILOVER_BASE) is not None), None)
    strays = stray_seals(vm, base) if base is not None else ()
    kept = [one for one in vm.snapshots if failover_mark_of(one, KEPT_STATE) is not None]
    return SeenReplica(
        vm=vm,
        restore_points={key: ref for key, ref in restore_point_snapshots(vm).items() if ref not in strays},
        base=base,
        base_change_ids=base_change_ids(target, base.ref) if base is not None and change_ids else None,
        kept_state=next((one for one in kept if base is not None and one.parent_ref == base.ref), None),
        strays=strays,
        tests=tuple(tests),
        source_runs=source_runs,
    )


def base_change_ids(target: FailoverTarget, snapshot_ref: str) -> dict[int, str | None]:
    """By the replica's disk key."""
    return {disk.key: disk.change_id for disk in target.read_snapshot(snapshot_ref).disks}


def free_name(vm: VirtualMachine, name: str) -> str:
    """`name`, or with the first number behind it that no snapshot of the VM has yet."""
    taken = {one.name for one in vm.snapshots}
    number = 2
    free = name
    while free in taken:
        free, number = f"{name} {number}", number + 1
    return free


def stray_seals(vm: VirtualMachine, base: Snapshot) -> tuple[str, ...]:
    """Refs of restore points that a run sealed when the replica was no longer its own: in between, or below the base.

    Between a run's last look at the state and its seal a failover may begin elsewhere. What the run then sealed is the
    restore point that was failed over to, or what the guest has made of it, under the name of something newer.
    """
    mark = failover_mark_of(base, FAILOVER_BASE)
    parents = {one.ref: one.parent_ref for one in vm.snapshots}
    between: list[str] = []
    ref = base.parent_ref
    while ref is not None and mark is not None and mark.stands_on and ref != mark.stands_on:
        between.append(ref)
        ref = parents.get(ref)
    if ref is None:
        between = []
    sealed = set(restore_point_snapshots(vm).values())
    below = [one.ref for one in vm.snapshots if one.ref != base.ref and is_below(vm, one.ref, base.ref)]
    return tuple(ref for ref in (*between, *below) if ref in sealed)
