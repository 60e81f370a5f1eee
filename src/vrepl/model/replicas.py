"""Replicas and their restore points."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from vrepl.model.machines import Disk, Hardware, TrackingPosition
from vrepl.model.transport import TransferKind


class Consistency(StrEnum):
    """What a restore point really is: `quiesced` by VMware Tools, `powered-off` (nothing ran), or `crash`."""

    QUIESCED = "quiesced"
    POWERED_OFF = "powered-off"
    CRASH = "crash"


class ReplicaState(StrEnum):
    READY = "ready"
    FAILING_OVER = "failing-over"
    FAILED_OVER = "failed-over"
    UNDONE = "undone"
    COMMITTED = "committed"
    FAILING_BACK = "failing-back"


DISCONNECTED = "disconnected"
"""In place of a network's name: the adapter stays, and is not connected."""


@dataclass(frozen=True, slots=True)
class ReplicaPlacement:
    """Where a job puts its replicas, by name; None means: the only or the obvious one."""

    host: str | None
    datastore: str
    """Of the VM's own files, and of disks that `disk_stores` does not name."""
    folder: str | None = None
    resource_pool: str | None = None
    networks: Mapping[str, str] = field(default_factory=dict)
    """Source network name -> target network name, or DISCONNECTED; an unmapped one keeps its name."""
    cluster: str | None = None
    """Hosts of this cluster only."""
    disk_stores: Mapping[int, str] = field(default_factory=dict)
    """Source device key -> datastore of that disk."""


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """Everything that is needed to create and register a replica with empty disks."""

    name: str
    placement: ReplicaPlacement
    hardware: Hardware
    bios_uuid: str
    disks: tuple[Disk, ...]
    """The source's disks; capacity, controller, unit number and thinness are followed."""
    keep_macs: bool
    thin: bool | None
    """None follows the source."""
    extra_config: Mapping[str, str]
    """`vrepl.*` keys that never change: source site, source instanceUuid, repository, run, format."""
    annotation: str = ""
    instance_uuid: str = ""
    """"": the site chooses one."""


@dataclass(frozen=True, slots=True)
class DiskPoint:
    """What a restore point knows of one disk."""

    source_key: int
    index: int
    label: str
    capacity: int
    source_disk_uuid: str
    source_base_path: str
    change_id: str | None
    """Change ID of the *source* snapshot that this restore point was copied from; None where CBT had none."""
    target_key: int
    kind: TransferKind
    bytes_moved: int

    @property
    def position(self) -> TrackingPosition:
        """Of the source disk's change tracking."""
        return TrackingPosition(self.change_id, self.source_disk_uuid, self.source_base_path, self.capacity)


@dataclass(frozen=True, slots=True)
class RestorePoint:
    """A sealed state of a replica. `id` sorts by time: `YYYYMMDDTHHMMSSZ-xxxxxx`."""

    id: str
    time: dt.datetime
    """When the source snapshot was taken (UTC)."""
    run_id: str
    job: str
    consistency: Consistency
    snapshot_name: str
    parent_id: str | None
    disks: tuple[DiskPoint, ...]

    def disk(self, source_key: int) -> DiskPoint | None:
        return next((disk for disk in self.disks if disk.source_key == source_key), None)


@dataclass(frozen=True, slots=True)
class GrownDisk:
    """A replica's disk that is a copy of a restore point's, made larger at the target since the source's had grown."""

    restore_point_id: str
    capacity: int
    """Bytes of that restore point's disk; the copy is zeros behind them."""
    path: str
    """The copy's file: tells it from whatever else may get its device key."""


@dataclass(frozen=True, slots=True)
class ReplicaRecord:
    """What the repository knows of one replica that never changes, or rarely.

    `id` names its folder: `<source site>-<source instanceUuid>`.
    """

    id: str
    source_site: str
    source_instance_uuid: str
    source_name: str
    target_site: str
    target_instance_uuid: str
    target_name: str
    job: str
    state: ReplicaState = ReplicaState.READY
    disk_keys: Mapping[int, int] = field(default_factory=dict)
    """Source device key -> replica device key."""
    empty_disks: tuple[int, ...] = ()
    """Source keys of disks that vrepl made empty and has sealed nothing of: what it did not write there is zeros."""
    grown_disks: Mapping[int, GrownDisk] = field(default_factory=dict)
    """Source key -> what stands for the disk, of which nothing is sealed yet."""
    loose_files: tuple[str, ...] = ()
    """Files of disks that vrepl has taken off the replica, or made and not attached yet: deleted, each one, once no VM
    and no snapshot refers to it."""
    nvram_read: dt.datetime | None = None
    """When the source's NVRAM file was last brought over (UTC)."""
    adopted_from: str | None = None
    """ID of the repository that made the replica, where a rebuild took it in from another one."""
