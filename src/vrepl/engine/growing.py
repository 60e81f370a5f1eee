"""A replica's disk for a source disk that has grown: the last restore point's, copied at the target and made larger.

No disk with snapshots can be extended (vSphere Virtual Machine Administration, "You cannot extend a virtual disk if
the virtual machine has snapshots"), so that a disk of its own takes the old one's place, and older restore points keep
that. Copied whole at the target, it leaves only what differs to cross. In this order, so that death at any step is
followed by a run that does it again:

    the copy's file is put on record as loose, and made          (dead here: nothing refers to it, and it is deleted)
    the old disk's files are put on record as loose, the copy as what stands for the source's disk
    the old disk is taken off, the copy attached                 (dead in between: a disk is missing, so the replica is
                                                                  reverted to its last restore point, old disk included)
"""

from __future__ import annotations

from dataclasses import replace

from vrepl.engine.context import ReplicationContext
from vrepl.engine.knowledge import restore_point_snapshots
from vrepl.engine.loose_files import note_loose_files
from vrepl.errors import NotFoundError, VsphereError
from vrepl.model import Disk, DiskPoint, GrownDisk, ReplicaSpec, RestorePoint, VirtualMachine
from vrepl.repository.replica_folder import ReplicaFolder

CANNOT_COPY = frozenset(
    {"NotSupported", "NotImplemented", "InvalidDatastore", "InvalidDatastorePath", "MethodDisabled"}
)
"""Faults of a site that does not copy disks, or not these."""


def copy_grown(
    context: ReplicationContext,
    folder: ReplicaFolder,
    replica: VirtualMachine,
    point: RestorePoint,
    disk_point: DiskPoint,
    disk: Disk,
) -> GrownDisk | None:
    """Copy a restore point's disk and make it as large as the source's `disk`; None where the target cannot.

    Raises NotFoundError where the restore point lacks the disk, and VsphereError, such as for want of room.
    """
    sealed = context.target.read_snapshot(restore_point_snapshots(replica)[point.id]).disk(disk_point.target_key)
    if sealed is None:
        raise NotFoundError(f"{disk_point.label} is missing from restore point {point.id} of {replica.name}")
    home = sealed.base_path.rpartition("/")[0]
    # Its end is no six digits: that is what the files of snapshots are called.
    grown = GrownDisk(point.id, disk_point.capacity, f"{home}/vrepl-{context.run_id}-{disk.key}.vmdk")
    note_loose_files(folder, [grown.path])
    thin = disk.thin if context.job.thin is None else context.job.thin
    try:
        context.target.copy_disk(replica.ref, sealed.path, grown.path, disk, thin=thin)
    except VsphereError as error:
        if error.fault not in CANNOT_COPY:
            raise
        return None
    return grown


def put_in_place(
    context: ReplicationContext,
    folder: ReplicaFolder,
    replica: VirtualMachine,
    spec: ReplicaSpec,
    disk: Disk,
    grown: GrownDisk,
) -> VirtualMachine:
    """Take the old disk off, and attach the copy in its place; the replica as it is then."""
    target = context.target
    old_key = folder.record.disk_keys.get(disk.key)
    if old_key is not None:
        note_loose_files(folder, target.disk_files(replica.ref, old_key))
    record = folder.record
    others = tuple(key for key in record.empty_disks if key != disk.key)
    folder.save_record(replace(record, empty_disks=others, grown_disks={**record.grown_disks, disk.key: grown}))
    if old_key is not None:
        target.remove_replica_disk(replica.ref, old_key)
    folder.forget_disk(disk.key)
    return target.attach_replica_disk(replica.ref, spec, disk.index, grown.path)
