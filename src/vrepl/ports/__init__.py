"""What the engine needs of the world, as small Protocols by role.

`vsphere` and `movers` implement them for real; the tests' in-memory pair of sites implements them for property tests.
Implementations raise only the exceptions of `vrepl.errors`. All methods may be called from several threads.
"""

from __future__ import annotations

from vrepl.ports.ambient import (
    Clock,
    NewId,
)
from vrepl.ports.attachments import (
    AllocatedExtents,
    AttachedDisk,
    ControlDesk,
    DiskAttachments,
    DiskRequest,
)
from vrepl.ports.modes import (
    ModeChooser,
)
from vrepl.ports.movers import (
    AccessGuard,
    DataMovers,
    DigestFiles,
    DiskAddress,
    HotAddCleanup,
    SiteConnection,
    TransferOrder,
    TransferProgress,
    TransferResult,
    Transfers,
    Verifications,
    VerifyOrder,
    VerifyResult,
)
from vrepl.ports.records import (
    DigestLookup,
    TransferLog,
)
from vrepl.ports.sites import (
    ChangedBlocks,
    ChangeTracking,
    Inventory,
    KnownVm,
    Named,
    ReplicaMaking,
    RunningTasks,
    Site,
    Snapshots,
    SnapshottedSite,
    SourceSite,
    TargetSite,
    TrackedInventory,
)
from vrepl.ports.tickets import (
    NfcTicket,
    TicketRequest,
    TicketSource,
)

__all__ = [
    "AccessGuard",
    "AllocatedExtents",
    "AttachedDisk",
    "ChangeTracking",
    "ChangedBlocks",
    "Clock",
    "ControlDesk",
    "DataMovers",
    "DigestFiles",
    "DigestLookup",
    "DiskAddress",
    "DiskAttachments",
    "DiskRequest",
    "HotAddCleanup",
    "Inventory",
    "KnownVm",
    "ModeChooser",
    "Named",
    "NewId",
    "NfcTicket",
    "ReplicaMaking",
    "RunningTasks",
    "Site",
    "SiteConnection",
    "Snapshots",
    "SnapshottedSite",
    "SourceSite",
    "TargetSite",
    "TicketRequest",
    "TicketSource",
    "TrackedInventory",
    "TransferLog",
    "TransferOrder",
    "TransferProgress",
    "TransferResult",
    "Transfers",
    "Verifications",
    "VerifyOrder",
    "VerifyResult",
]
