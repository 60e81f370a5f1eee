"""The nouns of vrepl as frozen values, one file per group.

Sizes are bytes, times are UTC-aware datetimes, refs are MoRef values ("vm-12").

Nothing here does I/O or imports anything heavy: data movers use it too.
"""

from __future__ import annotations

from vrepl.model.jobs import (
    Bandwidth,
    BandwidthWindow,
    Carry,
    EnableCbt,
    JobSettings,
    OnNotReplicable,
    OnResize,
    Quiesce,
    RetentionPolicy,
    TransferLimits,
)
from vrepl.model.machines import (
    Allocation,
    ChangedAreas,
    Controller,
    Datastore,
    Disk,
    GuestState,
    Hardware,
    NetworkAdapter,
    PowerState,
    Resources,
    Snapshot,
    SnapshotState,
    TrackingPosition,
    VirtualMachine,
)
from vrepl.model.replicas import (
    DISCONNECTED,
    Consistency,
    DiskPoint,
    GrownDisk,
    ReplicaPlacement,
    ReplicaRecord,
    ReplicaSpec,
    ReplicaState,
    RestorePoint,
)
from vrepl.model.transport import (
    ATTACHED_MARK,
    DEFAULT_MODES,
    DataEngine,
    ModeChoice,
    Side,
    TransferKind,
    TransportMode,
    TransportPlan,
)

__all__ = [
    "ATTACHED_MARK",
    "DEFAULT_MODES",
    "DISCONNECTED",
    "Allocation",
    "Bandwidth",
    "BandwidthWindow",
    "Carry",
    "ChangedAreas",
    "Consistency",
    "Controller",
    "DataEngine",
    "Datastore",
    "Disk",
    "DiskPoint",
    "EnableCbt",
    "GrownDisk",
    "GuestState",
    "Hardware",
    "JobSettings",
    "ModeChoice",
    "NetworkAdapter",
    "OnNotReplicable",
    "OnResize",
    "PowerState",
    "Quiesce",
    "ReplicaPlacement",
    "ReplicaRecord",
    "ReplicaSpec",
    "ReplicaState",
    "Resources",
    "RestorePoint",
    "RetentionPolicy",
    "Side",
    "Snapshot",
    "SnapshotState",
    "TrackingPosition",
    "TransferKind",
    "TransferLimits",
    "TransportMode",
    "TransportPlan",
    "VirtualMachine",
]
