"""VixError codes: which exception each one becomes, and what the operator can do. The one table.

Sources: names and numbers from VMware's own `vix.h` (the VIX_ERROR part, which VMware copies into vixDiskLib.h; in
open-vm-tools `lib/include/vix.h`); what to do from "Virtual Disk API Errors" and the error lists of the VDDK
programming guides 6.5 to 8.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from vrepl.errors import DiskError, DiskLockedError, NfcMemoryError, TransientDiskError, TransportModeError

CODE_MASK = 0xFFFF
NOT_SUPPORTED = 6
FILE_LOCKED = 15
DIRECT_MODES: Final = ("san", "hotadd")


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a code stands for."""

    kind: type[DiskError]
    hint: str | None = None


_PORT_902 = (
    "can this machine resolve the DNS name of every ESXi host of that cluster and reach its port 902? "
    "`vrepl check` tries each of them"
)

MEANINGS: Mapping[int, Meaning] = {
    1: Meaning(
        DiskError,
        "at open: the server's thumbprint may be wrong, or this is the base disk of a running VM without a snapshot",
    ),
    2: Meaning(NfcMemoryError, "too little memory for buffers: fewer disks at a time, or smaller NFC buffers"),
    3: Meaning(DiskError, "VDDK got an argument that it does not take"),
    4: Meaning(DiskError, "the disk file does not exist (was the VM moved or the snapshot removed meanwhile?)"),
    5: Meaning(TransientDiskError, "the VM or the disk is busy with another task"),
    NOT_SUPPORTED: Meaning(DiskError, "this VDDK or this datastore does not support the operation"),
    8: Meaning(DiskError, "the datastore is full"),
    11: Meaning(
        DiskError,
        "a write was refused: through a snapshot, or opened for reading, a disk cannot be written (FILE_READ_ONLY)",
    ),
    13: Meaning(
        DiskError,
        "no access to the disk file: does the user have the VirtualMachine.Provisioning privileges on this VM, and is "
        "its path right?",
    ),
    FILE_LOCKED: Meaning(
        DiskLockedError,
        "another client has the disk open (another backup, or a data mover that has just died): it is tried again",
    ),
    16: Meaning(DiskError, "vSphere's own inventory gave an error (VMDB): vpxd.log and hostd.log tell more"),
    26: Meaning(TransientDiskError, "the ESXi host is not connected to its vCenter just now"),
    34: Meaning(TransientDiskError, "the ESXi host of the VM is disconnected from its vCenter just now"),
    36: Meaning(TransientDiskError, "the connection to the host was lost"),
    3014: Meaning(
        DiskError,
        "the site's user lacks a privilege on this VM or its datastore (VirtualMachine.Provisioning.DiskRandomRead "
        "to read, .DiskRandomAccess to write?): `vrepl check` names what is missing",
    ),
    14007: Meaning(
        TransientDiskError, "no socket could be made: are there too many open files or connections on this machine?"
    ),
    14008: Meaning(TransientDiskError, f"a server name cannot be resolved: {_PORT_902}"),
    14009: Meaning(TransientDiskError, f"connection refused: {_PORT_902}"),
    14010: Meaning(TransientDiskError, f"the network connection failed: {_PORT_902}"),
    14011: Meaning(TransientDiskError, "the connection was lost in mid-transfer: it goes on from the last checkpoint"),
    14012: Meaning(
        DiskError, "VDDK's table of what it reads over NBD failed (NBD_HASHFILE_VOLUME): is its tmpDirectory writable?"
    ),
    14014: Meaning(TransientDiskError, "the ESXi host shuts down or restarts its services: it is tried again"),
    14015: Meaning(TransientDiskError, "the ESXi host is not available (in a restart?): it is tried again"),
    # "The host is not licensed for this feature" is also what VDDK says where the two privileges are missing that
    # PrepareForAccess and EndAccess need.
    16064: Meaning(
        DiskError,
        "either the licence of the host does not allow access to virtual disks (free ESXi has no VADP), or the site's "
        "user lacks Global.DisableMethods and Global.EnableMethods at the vCenter: `vrepl check` tells which",
    ),
    18000: Meaning(TransientDiskError, f"cannot connect to the host: {_PORT_902}"),
    26000: Meaning(DiskError, "synchronous and asynchronous calls were mixed on one handle: please report this"),
}

NFC_MEMORY_TEXT = "NFC error 5"
"""What VDDK logs (and some versions return as text) when an ESXi host is out of NFC memory."""


def is_nfc_memory(text: str) -> bool:
    """Whether an error text or a line of VDDK's log speaks of NFC memory."""
    lowered = text.lower()
    return NFC_MEMORY_TEXT.lower() in lowered or "failed to allocate the requested" in lowered


def error_of(
    code: int, action: str, text: str, *, mode: str | None = None, offset: int | None = None, nfc_memory: bool = False
) -> DiskError:
    """The exception for a VixError.

    `action` is what was tried, `text` VDDK's words for the code, `mode` the transport mode if the disk was open:
    whatever goes wrong in mid-copy over HotAdd or SAN is held against the mode, for the next one may do.
    """
    code &= CODE_MASK
    at = "" if offset is None else f" at offset {offset}"
    message = f"{action}{at}: {text} (VixError {code})"
    meaning = MEANINGS.get(code, Meaning(DiskError))
    if nfc_memory or is_nfc_memory(text):
        return NfcMemoryError(
            message, code=code, offset=offset,
            hint="the ESXi host is out of NFC memory: smaller buffers are tried; fewer disks at a time help",
        )  # fmt: skip
    if mode in DIRECT_MODES and not issubclass(meaning.kind, DiskLockedError):
        return TransportModeError(
            f"{message}, over {mode}",
            mode=str(mode),
            code=code,
            offset=offset,
            hint=meaning.hint or "the next mode is tried",
        )
    return meaning.kind(message, code=code, offset=offset, hint=meaning.hint)
