"""A look at one disk: that it opens, what it is, and some of its sectors. For checks and for the wrong-disk proof."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from queue import SimpleQueue

from blake3 import blake3

from vrepl.errors import DiskError, VreplError
from vrepl.extents import SECTOR
from vrepl.movers.engine import DiskEngine
from vrepl.movers.messages import Json
from vrepl.ports import DiskAddress, SiteConnection
from vrepl.transport.buffers import Buffer

SAMPLE = 4096
"""Bytes that are read at each offset (fewer at the end of the disk)."""


def probe_disk(engine: DiskEngine, address: DiskAddress, site: SiteConnection, offsets: Sequence[int]) -> Json:
    """`{"mode", "capacity", "uuid", "samples": {offset: hex digest}}`; opens for reading only. Raises DiskError."""
    disk = engine.open(address, site, writable=False)
    try:
        samples: dict[str, str] = {}
        buffer = Buffer(SAMPLE)
        for offset in offsets:
            start = min(offset, disk.capacity - SECTOR) // SECTOR * SECTOR
            length = min(SAMPLE, disk.capacity - start)
            answers: SimpleQueue[VreplError | None] = SimpleQueue()
            disk.submit_read(start, buffer, 0, length, answers.put)
            error = answers.get()
            if error is not None:
                raise error
            samples[str(offset)] = blake3(buffer.view[:length]).hexdigest(length=16)
        return {"mode": disk.mode, "capacity": disk.capacity, "uuid": disk.uuid, "samples": samples}
    finally:
        with suppress(DiskError):
            disk.close()
