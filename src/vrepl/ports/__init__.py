"""What the engine needs of the world, as small Protocols by role.

`vsphere` and `movers` implement them for real; the tests' in-memory pair of sites implements them for property tests.
Implementations raise only the exceptions of `vrepl.errors`. All methods may be called from several threads.
"""

from __future__ import annotations

from vrepl.ports.ambient import (
    Clock,
    NewId,
)
from vrepl.ports.modes import (
    TransportAdvisor,
)
from vrepl.ports.movers import (
    DataMovers,
    DigestFiles,
    DiskAddress,
    SiteConnection,
    TransferOrder,
    TransferProgress,
    TransferResult,
    VerifyOrder,
    VerifyResult,
)
from vrepl.ports.records import (
    DigestLookup,
    TransferLog,
)
from vrepl.ports.sites import (
    Site,
)

__all__ = [
    "Clock",
    "DataMovers",
    "DigestFiles",
    "DigestLookup",
    "DiskAddress",
    "NewId",
    "Site",
    "SiteConnection",
    "TransferLog",
    "TransferOrder",
    "TransferProgress",
    "TransferResult",
    "TransportAdvisor",
    "VerifyOrder",
    "VerifyResult",
]
