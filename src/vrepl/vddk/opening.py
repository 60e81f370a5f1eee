"""Opens one disk over one transport mode, and proves that a disk reached directly is the one that was asked for.

Modes are given to VDDK one at a time. Given several it falls back by itself, in silence; this way the mode that failed
is known, reported, and not tried again by the rest of the run.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from queue import SimpleQueue

from blake3 import blake3

from vrepl.errors import DiskError, DiskLockedError, NfcMemoryError, TransportModeError, VreplError
from vrepl.extents import SECTOR
from vrepl.model import TransportMode
from vrepl.ports import DiskAddress, SiteConnection
from vrepl.transport.buffers import MIB, Buffer
from vrepl.transport.disk import DiskReader
from vrepl.vddk import abi
from vrepl.vddk.api import DiskHandle
from vrepl.vddk.codes import DIRECT_MODES
from vrepl.vddk.disk import DIRECT_READERS, AsyncDisk, DirectDisk
from vrepl.vddk.handles import Connection
from vrepl.vddk.library import Library

SAMPLE = 4096
"""Bytes of one sample (fewer at the end of the disk)."""
SAMPLES = 16
"""Samples over the whole disk, beside the first sector and that at 1 MiB, where first partitions begin."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What tells one disk from another: bytes, VDDK's uuid, digests of samples by offset."""

    capacity: int
    uuid: str
    samples: tuple[tuple[int, str], ...]


def sample_offsets(capacity: int) -> list[int]:
    """Sector-aligned offsets, ascending: the start, 1 MiB, and evenly spread up to the disk's end."""
    last = max(capacity - SAMPLE, 0)
    spread = {last * step // (SAMPLES - 1) // SECTOR * SECTOR for step in range(SAMPLES)}
    return sorted(spread | {0, min(MIB, last // SECTOR * SECTOR)})


def evidence_of(disk: DiskReader, capacity: int, uuid: str) -> Evidence:
    """Reads the samples. Raises DiskError."""
    buffer = Buffer(SAMPLE)
    samples = []
    for offset in sample_offsets(capacity):
        length = min(SAMPLE, capacity - offset)
        answers: SimpleQueue[VreplError | None] = SimpleQueue()
        disk.submit_read(offset, buffer, 0, length, answers.put)
        error = answers.get()
        if error is not None:
            raise error
        samples.append((offset, blake3(buffer.view[:length]).hexdigest(length=16)))
    return Evidence(capacity, uuid, tuple(samples))


def difference(direct: Evidence, network: Evidence) -> str | None:
    """How the disk that a direct mode reached differs from the one that NBD reached; None if it does not.

    An empty uuid (a descriptor may lack one) says nothing, neither for nor against: see `is_told_apart`.
    """
    if direct.capacity != network.capacity:
        return f"it has {direct.capacity} bytes instead of {network.capacity}"
    if direct.uuid and network.uuid and direct.uuid != network.uuid:
        return f"its uuid is {direct.uuid} instead of {network.uuid}"
    for (offset, ours), (_, theirs) in zip(direct.samples, network.samples, strict=True):
        if ours != theirs:
            return f"its bytes at offset {offset} differ"
    return None


def is_told_apart(direct: Evidence, network: Evidence, *, writable: bool) -> bool:
    """Whether evidence without a difference proves that both are one disk.

    Before a write only the disk's uuid does: a clone has the same bytes, and empty disks are all alike. To read, bytes
    that are not everywhere the same will do: a wrong disk would have to be a copy of the right one.
    """
    if direct.uuid and network.uuid:
        return True
    return not writable and len({digest for _, digest in direct.samples}) > 1


def open_disk(
    library: Library, address: DiskAddress, site: SiteConnection, *, writable: bool
) -> AsyncDisk | DirectDisk:
    """Open over the first mode of `address`; a disk that is not `writable` refuses to be written.

    The calling thread owns the disk. Raises TransportModeError if HotAdd or SAN fails, or reaches another disk than NBD
    does, and if a network mode fails while `address` names others; else DiskError, or what VDDK's loss of memory or
    connection means.
    """
    mode = address.modes[0]
    side = "target" if writable else "source"

    def against_the_mode(error: DiskError, what: str) -> DiskError:
        return TransportModeError(f"{what}, over {mode}", mode=str(mode), code=error.code, hint=error.hint, side=side)

    if mode not in DIRECT_MODES:
        try:
            return _open_network(library, address, site, str(mode), writable=writable)
        except (DiskLockedError, NfcMemoryError):
            raise
        except DiskError as error:
            if len(address.modes) > 1:
                raise against_the_mode(error, error.message) from error
            raise
    expected: Evidence | None = None
    if writable or mode is TransportMode.HOTADD:
        try:
            expected = _ask_network(library, address, site)
        except (DiskLockedError, NfcMemoryError):
            raise
        except DiskError as error:
            if writable:
                raise against_the_mode(
                    error, f"before the first write the disk must be compared with what NBD reads, which fails: {error}"
                ) from error
    try:
        disk = DirectDisk(
            _handle_opener(library, address, site, str(mode), writable=writable),
            1 if writable else DIRECT_READERS,
            side=side,
        )
    except DiskLockedError:
        raise
    except DiskError as error:
        raise against_the_mode(error, error.message) from error
    if disk.mode not in DIRECT_MODES:
        disk.close()  # VDDK fell back to NBD all the same: its asynchronous calls are real there, from this thread
        return _open_network(library, address, site, disk.mode, writable=writable)
    try:
        if expected is not None:
            evidence_of_it = evidence_of(disk, disk.capacity, disk.uuid)
            wrong = difference(evidence_of_it, expected)
            if wrong is not None:
                raise TransportModeError(
                    f"{mode} reached another disk than {address.path}: {wrong}; nothing was written to it",
                    mode=str(mode), side=side,
                    hint="does another VM have the proxy's BIOS uuid, or two LUNs the same name?",
                )  # fmt: skip
            if not is_told_apart(evidence_of_it, expected, writable=writable):
                raise TransportModeError(
                    f"VDDK tells no uuid of {address.path}, so that over {mode} it cannot be told from other disks",
                    mode=str(mode), side=side,
                    hint="its descriptor file may lack ddb.uuid: vmkfstools -J setuuid gives it one",
                )  # fmt: skip
    except BaseException:
        with suppress(DiskError):
            disk.close()
        raise
    return disk


def _ask_network(library: Library, address: DiskAddress, site: SiteConnection) -> Evidence:
    """The same disk as NBD shows it; opened for reading, and closed again. Raises DiskError."""
    disk = _open_network(
        library, replace(address, modes=(TransportMode.NBDSSL,)), site, TransportMode.NBDSSL.value, writable=False
    )
    try:
        return evidence_of(disk, disk.capacity, disk.uuid)
    finally:
        with suppress(DiskError):
            disk.close()


def _open_network(
    library: Library, address: DiskAddress, site: SiteConnection, mode: str, *, writable: bool
) -> AsyncDisk:
    opener = _handle_opener(library, address, site, mode, writable=writable)
    handle, close = opener()
    try:
        return AsyncDisk(handle, close=close)
    except BaseException:
        with suppress(DiskError):
            handle.close()
        close()
        raise


def _handle_opener(
    library: Library, address: DiskAddress, site: SiteConnection, mode: str, *, writable: bool
) -> Callable[[], tuple[DiskHandle, Callable[[], None]]]:
    # Over HotAdd, writes want the host's cache out of the way, and aligned buffers, which all of ours are (VDDK
    # Programming Guide, "Virtual Disk Transport Methods", best practices for HotAdd).
    flags = abi.OPEN_UNBUFFERED if writable and mode == TransportMode.HOTADD else 0

    def open_handle() -> tuple[DiskHandle, Callable[[], None]]:
        connection = Connection(library, site, address.vm_ref, address.snapshot_ref, mode, read_only=not writable)
        try:
            return connection.open(address.path, read_only=not writable, flags=flags), connection.close
        except BaseException:
            connection.close()
            raise

    return open_handle
