"""What a data mover is started with: its engine, the engine's buffers, the pipeline's ring."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from vrepl.movers.engine import EngineSettings
from vrepl.movers.messages import RECORDS_ASKED, Initialise
from vrepl.transport.tuning import Tuning

THERE = Path("~/.local/state/vrepl")
"""The state folder on another machine: that of the user whom ssh logs in."""
SCATTERED_UNITS = 4
"""256 KiB: the NFC buffer size for many small calls. A call takes whole buffers, however few bytes it moves."""


@dataclass(frozen=True, slots=True)
class MoverSettings:
    """What is fixed when a mover starts: another value takes another mover."""

    libdir: Path | None
    """VDDK's folder; None for an engine that needs none."""
    buffer_units: int = 16
    """NFC buffer size in units of 64 KiB (vixDiskLib.nfcAio.Session.BufSizeIn64KB)."""
    buffer_count: int = 4
    """NFC buffers per disk (vixDiskLib.nfcAio.Session.BufCount)."""
    ring: int = 16
    """1 MiB buffers of the pipeline."""
    hashers: int = 1
    engine: str = "vrepl.vddk.engine:start"
    """What starts the disk engine, as `package.module:name`; the process loads no other."""
    open_lookup: str = "vrepl.repository.digest_sets:open_lookup"
    log_writer: str = "vrepl.repository.transferlog:TransferLogWriter"
    readback: str = "sample"
    sysroot: Path = Path("/")
    """Both as in `EngineSettings`."""
    machine: str | None = None
    """The proxy that it runs on; None: this machine."""

    def smaller(self) -> MoverSettings | None:
        """Half the NFC buffers, by size first; None when they cannot be smaller."""
        if self.buffer_units > 1:
            return replace(self, buffer_units=self.buffer_units // 2)
        if self.buffer_count > 1:
            return replace(self, buffer_count=self.buffer_count // 2)
        return None

    def scattered(self) -> MoverSettings:
        """The same memory in smaller and more buffers: more small calls in flight, and large ones as fast as before."""
        factor = max(self.buffer_units // SCATTERED_UNITS, 1)
        return replace(self, buffer_units=self.buffer_units // factor, buffer_count=self.buffer_count * factor)

    def initialise(self, state_folder: Path) -> Initialise:
        """What the mover is told first."""
        return Initialise(
            engine=self.engine,
            engine_settings=EngineSettings(
                self.libdir,
                state_folder if self.machine is None else THERE,
                self.buffer_units,
                self.buffer_count,
                self.readback,
                self.sysroot,
            ),
            tuning=Tuning(buffers=self.ring, hashers=self.hashers),
            open_lookup=self.open_lookup if self.machine is None else RECORDS_ASKED,
            log_writer=self.log_writer if self.machine is None else RECORDS_ASKED,
        )

    @property
    def nfc_mib(self) -> float:
        """MiB of NFC buffers that an open disk takes of its ESXi host."""
        return self.buffer_units * self.buffer_count / 16
