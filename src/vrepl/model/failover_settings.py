"""What a failover of one replica needs to know beyond the replica itself: it is kept beside it."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field

from vrepl.model.addresses import FailoverPolicy, GuestNetwork
from vrepl.model.plans import FailoverPlan


@dataclass(frozen=True, slots=True)
class FailoverSettings:
    """Written by runs, whenever it has changed. Fields may be added: an older document lacks them, and has defaults."""

    replica_instance_uuid: str
    """A file may have come along with a copy of another VM's folder."""
    source_name: str
    sequence: int = 0
    """Grows with every change; of two documents, the higher one counts."""
    policy: FailoverPolicy = field(default_factory=FailoverPolicy)
    """The job's, as far as it means this VM."""
    guest: GuestNetwork | None = None
    """What the source's guest reported last; None: it never did."""
    plans: tuple[FailoverPlan, ...] = ()
    """The failover plans that mean this VM, each whole: a copy beside any replica is enough to walk it."""
    plans_since: dt.datetime | None = None
    """When a run first wrote these plans, by its machine's clock; None: there never was one."""
