"""Files of disks that hang on no VM: of disks taken off the replica, and of copies that are not attached yet.

vSphere keeps the files of a disk that was taken off a VM, for the VM's snapshots may need them, and nothing says that
it deletes them with the last of these. So they are on record before anything is done that could leave them behind,
whatever they are, and each goes once nothing refers to it: a file that is in use may stand there, and stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from vrepl.engine.events import Note
from vrepl.errors import VreplError
from vrepl.ports import ReplicaMaking
from vrepl.repository.replica_folder import ReplicaFolder


def note_loose_files(folder: ReplicaFolder, paths: Iterable[str]) -> None:
    """Durable before it returns."""
    record = folder.record
    known = tuple(dict.fromkeys((*record.loose_files, *paths)))
    if known != record.loose_files:
        folder.save_record(replace(record, loose_files=known))


def remove_loose_files(folder: ReplicaFolder, target: ReplicaMaking, vm_ref: str, note: Note) -> None:
    """Delete what nothing refers to any more. What cannot be deleted now is said, and left for a later run.

    `vm_ref`: a VM of the files' datacenter, such as the replica.
    """
    record = folder.record
    if not record.loose_files:
        return
    try:
        gone = set(target.remove_unused_disks(vm_ref, record.loose_files))
    except VreplError as error:
        note(f"files that no restore point needs any more could not be removed: {error.message}")
        return
    if gone:
        folder.save_record(replace(record, loose_files=tuple(one for one in record.loose_files if one not in gone)))
