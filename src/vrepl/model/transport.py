"""How bytes of a disk are found and moved."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class TransportMode(StrEnum):
    """VDDK's own names."""

    SAN = "san"
    HOTADD = "hotadd"
    NBDSSL = "nbdssl"
    NBD = "nbd"


class DataEngine(StrEnum):
    """Whose code opens disks: VMware's VDDK, or vrepl's own."""

    VDDK = "vddk"
    OWN = "own"


ATTACHED_MARK = "vrepl.attached."
"""Prefix of the extraConfig keys of a proxy's VM that say what hangs there because of vrepl; then a controller's key, a
dash, and the unit."""


class Side(StrEnum):
    """Of a transfer: the disk that is read, or the one that is written."""

    SOURCE = "source"
    TARGET = "target"


class TransferKind(StrEnum):
    """How a disk's bytes are found: all that is allocated; what CBT says; or all, by comparing digests."""

    FULL = "full"
    INCREMENTAL = "incremental"
    COMPARE = "compare"


DEFAULT_MODES = (TransportMode.SAN, TransportMode.HOTADD, TransportMode.NBDSSL)
"""What is tried, in this order, where a job says nothing. `nbd` is not among them: data would cross unencrypted."""


@dataclass(frozen=True, slots=True)
class ModeChoice:
    """A transport mode for one side of one disk, and why it is (or is not) taken."""

    mode: TransportMode
    reason: str
    at_once: int | None = None
    """How many disks can be reached this way at once: the proxy VM's free SCSI slots; None: no such limit."""


@dataclass(frozen=True, slots=True)
class TransportPlan:
    """Modes to try in order for one side of one disk, and those that were ruled out, each with its reason."""

    usable: tuple[ModeChoice, ...]
    ruled_out: tuple[ModeChoice, ...] = ()
    engine: DataEngine = DataEngine.VDDK
    proxy: str | None = None
    """The configured proxy that was chosen; "" is this machine, None: there is no choice."""

    @property
    def modes(self) -> tuple[TransportMode, ...]:
        return tuple(choice.mode for choice in self.usable)
