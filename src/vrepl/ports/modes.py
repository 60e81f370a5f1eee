"""Who chooses transport modes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from vrepl.model import (
    Disk,
    TransportMode,
    TransportPlan,
    VirtualMachine,
)


class TransportAdvisor(Protocol):
    """Chooses transport modes by rule and remembers what failed in this run."""

    def plan(
        self, side: str, site: str, vm: VirtualMachine, disk: Disk, *, first_run: bool, allowed: Sequence[TransportMode]
    ) -> TransportPlan:
        """`side` is `source` or `target`; `allowed` are the job's modes in its order.

        Raises DiskError (with a hint) if no mode is usable.
        """
        ...

    def failed(self, site: str, datastore: str, mode: TransportMode, reason: str) -> None:
        """This mode is not offered again for that datastore (`Disk.store`) in this run."""
        ...

    def left_on_proxy(self, site: str, vm: VirtualMachine) -> bool:
        """Whether files of this VM hung on the proxy's VM when this run began: somebody's HotAdd, live or dead."""
        ...

    def detached(self, site: str, vm: VirtualMachine, count: int) -> None:
        """They hang there no longer; `count` SCSI slots are free again."""
        ...
