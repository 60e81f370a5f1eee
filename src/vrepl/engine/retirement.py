"""Taking a replica out of service for good: its VM with all restore points, and what the repository knows of it.

The VM goes first: a process that dies in between leaves a record without a VM, and the same command completes it.
"""

from __future__ import annotations

import uuid

from vrepl.engine.context import Services
from vrepl.engine.failover.standing import names_of, standing_clones
from vrepl.engine.failover.states import ReplicaStates
from vrepl.engine.recovery import Original, recover
from vrepl.errors import NotFoundError, NotReadyError
from vrepl.model import PowerState, ReplicaRecord, ReplicaState, VirtualMachine
from vrepl.ports import SourceSite, TargetSite
from vrepl.repository.commit_record import MARK_KEYS, read_mark
from vrepl.repository.replica_folder import ReplicaFolder


def retire(
    services: Services, folder: ReplicaFolder, target: TargetSite, source: SourceSite | None, *, keep_vm: bool
) -> list[str]:
    """Returns what was done, in words. `keep_vm`: the VM stays, with its snapshots, unknown to vrepl.

    `source`: to remove what an unfinished run left there; None where that site is gone for good. Raises LockedError
    if a run holds the replica, NotReadyError if it is in use, NotFoundError if the VM lacks this repository's mark.
    """
    record = folder.record
    done: list[str] = []
    with folder.lock():
        vm = target.find_vm_by_instance_uuid(record.target_instance_uuid) if record.target_instance_uuid else None
        if vm is not None:
            _refuse_others(services.repository.id, record, vm, unmarked=keep_vm)
            _refuse_in_use(target, record, vm)
        if folder.intent() is not None:
            done += _clean_up(services, folder, target, source)
        if vm is None:
            done.append(f"the replica's VM was gone from {target.name} already")
        elif keep_vm:
            target.set_extra_config(vm.ref, dict.fromkeys(MARK_KEYS, ""))
            done.append(f"{vm.name} stays on {target.name}, with its snapshots; it is no replica of vrepl's any more")
        else:
            target.destroy_vm(vm.ref, with_files=folder.record.loose_files)
            done.append(f"destroyed {vm.name} on {target.name}, with {len(vm.snapshots)} snapshots")
        services.repository.remove_replica(record.source_site, record.source_instance_uuid)
    done.append(f"the repository has forgotten the replica of {record.source_name}")
    return done


def _refuse_others(repository_id: str, record: ReplicaRecord, vm: VirtualMachine, *, unmarked: bool) -> None:
    """`unmarked`: one without any mark is fine; nothing of it is going to be touched."""
    mark = read_mark(vm.extra_config)
    ours = {repository_id, record.adopted_from}
    if mark is None and unmarked:
        return
    if (
        mark is None
        or mark.repository_id not in ours
        or (mark.source_site, mark.source_instance_uuid) != (record.source_site, record.source_instance_uuid)
    ):
        raise NotFoundError(
            f"{vm.name} does not bear this repository's mark of the replica of {record.source_name}: it is left alone",
            hint="is it another repository's? If it is only the mark that was lost: remove the VM by hand, then again",
        )


def _refuse_in_use(target: TargetSite, record: ReplicaRecord, vm: VirtualMachine) -> None:
    saved = ReplicaStates(target, writer=uuid.uuid4().hex).read(vm)
    state = record.state if saved is None else saved.state
    if state is not ReplicaState.READY:
        raise NotReadyError(
            f"{vm.name} is {state.value}: a replica in use is not removed",
            hint="`vrepl failover undo` or `commit` first",
        )
    clones = standing_clones(target, vm)
    if clones:
        raise NotReadyError(
            f"the test {', '.join(names_of(clones))} stands on restore points of {vm.name}",
            hint=f"vrepl failover test stop {record.source_name}",
        )
    if vm.power is not PowerState.OFF:
        raise NotReadyError(
            f"{vm.name} is powered on: a replica in use is not removed", hint="power it off if nobody needs it"
        )


def _clean_up(services: Services, folder: ReplicaFolder, target: TargetSite, source: SourceSite | None) -> list[str]:
    """What a dead run left at the source would be found by nobody once the repository has forgotten it."""
    original = None
    if source is not None:
        vm = source.find_vm_by_instance_uuid(folder.record.source_instance_uuid)
        original = None if vm is None else Original(source, vm)
    return recover(services, folder, target, original)
