"""Whether what a dead run noted of its disks is what the snapshot that it left at the source says."""

from __future__ import annotations

from dataclasses import replace

from vrepl.engine.context import Services
from vrepl.engine.marks import SourceMark, source_mark_of
from vrepl.model import VirtualMachine
from vrepl.ports import Inventory
from vrepl.repository.replica_folder import ReplicaFolder


def forget_contradicted_disks(
    services: Services, folder: ReplicaFolder, site: Inventory, vm: VirtualMachine
) -> list[str]:
    """The source snapshot of a run that was killed knows its change IDs: an intent with others is not believed."""
    intent = folder.intent()
    if intent is None or not intent.disks:
        return []
    for snapshot in vm.snapshots:
        if source_mark_of(snapshot) != SourceMark(services.repository.id, intent.disks_run_id):
            continue
        state = site.read_snapshot(snapshot.ref)
        there = {disk.key: disk.position for disk in state.disks}
        if all(there.get(disk.source_key) == disk.position for disk in intent.disks):
            continue
        folder.save_intent(replace(intent, disks=()))
        return [
            f"what run {intent.disks_run_id} noted of its disks is not what its source snapshot says: nothing that it "
            "moved counts"
        ]
    return []
