"""Who chooses transport modes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from vrepl.model import (
    Disk,
    Side,
    TransportMode,
    TransportPlan,
    VirtualMachine,
)


class ModeChooser(Protocol):
    """Chooses transport modes by rule and remembers what failed in this run."""

    def plan(
        self,
        side: Side,
        site: str,
        vm: VirtualMachine,
        disk: Disk,
        *,
        first_run: bool,
        allowed: Sequence[TransportMode],
        beside: str | None = None,
    ) -> TransportPlan:
        """`side`: a disk that is read goes by the rules of a source, wherever it is; `allowed`: modes in their order.

        `beside`: the proxy that has the other end of the disk's crossing (`TransportPlan.proxy`), which is taken before
        others that reach the disk no better: no stream between two is needed then.

        Raises DiskError (with a hint) if no mode is usable.
        """
        ...

    def failed(self, site: str, datastore: str, mode: TransportMode, reason: str) -> None:
        """This mode is not offered again for that datastore (`Disk.store`) in this run."""
        ...

    def proxy_failed(self, site: str, vm: VirtualMachine, proxy: str) -> None:
        """A mover of this proxy (`TransportPlan.proxy`) died or could not be started: others serve the VM, if any."""
        ...

    def left_on_proxy(self, site: str, vm: VirtualMachine) -> bool:
        """Whether files of this VM hung on the proxy's VM when this run began: somebody's HotAdd, live or dead."""
        ...

    def detached(self, site: str, vm: VirtualMachine, count: int) -> None:
        """They hang there no longer; `count` SCSI slots are free again."""
        ...
