"""What a host's NFC service says went wrong: which exception it becomes, and what the operator can do.

The codes are VixErrors (cloudbase/OpenVixDiskLib docs/nfc_auth.md: 0x0b is FILE_READ_ONLY; names by VMware's vix.h).
The words tell more than the code where one stands for several things (vatesfr/xen-orchestra vectura, its page on
host requirements and limits).
"""

from __future__ import annotations

import re
from typing import Final

from vrepl.errors import DiskError, DiskLockedError, NfcMemoryError, TransientDiskError
from vrepl.nfc.frames import FrameError, Refusal

CONNECTION_LOST: Final = 14011
OUT_OF_RANGE: Final = 16000
READ_ONLY: Final = 11
_LOST_HINT = "it goes on from the last checkpoint; can the network and the ESXi host be relied on?"
_PORT_HINT = (
    "can this machine resolve the DNS name of every ESXi host of that cluster and reach its port 902? "
    "`vrepl check` tries each of them"
)

_WORDS: Final = (
    (
        re.compile(r"multiwriter mode", re.I),
        DiskError,
        "this is the disk of a running VM: it is read through a snapshot",
    ),
    (
        re.compile(r"failed to lock|locked", re.I),
        DiskLockedError,
        "another client has the disk open: it is tried again",
    ),
    (
        re.compile(r"permission check failed", re.I),
        DiskError,
        "the ticket does not cover this file: is it the disk of another VM, or of a running VM without a snapshot?",
    ),
    (
        re.compile(r"failed to allocate|out of memory|NFC error 5", re.I),
        NfcMemoryError,
        "the ESXi host is out of NFC memory: smaller buffers are tried; fewer disks at a time help",
    ),
)
_CODES: Final[dict[int, tuple[type[DiskError], str]]] = {
    2: (
        NfcMemoryError,
        "too little memory for buffers at the ESXi host: fewer disks at a time, or smaller NFC buffers",
    ),
    4: (DiskError, "the disk file does not exist (was the VM moved or the snapshot removed meanwhile?)"),
    5: (TransientDiskError, "the VM or the disk is busy with another task"),
    8: (DiskError, "the datastore is full"),
    READ_ONLY: (DiskError, "the disk can only be opened for reading in this way"),
    13: (DiskError, "no access to the disk file: has the user the VirtualMachine.Provisioning privileges on this VM?"),
    15: (DiskLockedError, "another client has the disk open: it is tried again"),
    16: (DiskError, "a disk cannot be written through a snapshot"),
    3014: (
        DiskError,
        "the site's user lacks a privilege on this VM or its datastore (VirtualMachine.Provisioning.DiskRandomRead to "
        "read, .DiskRandomAccess to write?): `vrepl check` names what is missing",
    ),
    14007: (TransientDiskError, _LOST_HINT),
    14008: (TransientDiskError, f"a host's name cannot be resolved: {_PORT_HINT}"),
    14009: (TransientDiskError, f"connection refused: {_PORT_HINT}"),
    14010: (TransientDiskError, f"the network connection failed: {_PORT_HINT}"),
    CONNECTION_LOST: (TransientDiskError, _LOST_HINT),
    14014: (TransientDiskError, "the ESXi host is shutting down or restarting"),
    14015: (TransientDiskError, "the ESXi host is not available"),
    18000: (TransientDiskError, f"cannot connect to the host: {_PORT_HINT}"),
}


def refused(action: str, refusal: Refusal, *, offset: int | None = None) -> DiskError:
    """The exception for an error record. `action` is what was tried."""
    at = "" if offset is None else f" at offset {offset}"
    code = refusal.code & 0xFFFF
    words = refusal.text.strip()
    message = f"{action}{at}: the ESXi host answers error {code}" + (f": {words}" if words else "")
    for pattern, kind, hint in _WORDS:
        if pattern.search(words):
            return kind(message, code=code, offset=offset, hint=hint)
    meaning, advice = _CODES.get(code, (DiskError, ""))
    return meaning(message, code=code, offset=offset, hint=advice or "the host's /var/log/hostd.log says more")


def nonsense(host: str, error: FrameError) -> TransientDiskError:
    """What came is no NFC, or NFC as nobody knows it."""
    return TransientDiskError(
        f"what {host} answers is not NFC as vrepl knows it: {error}",
        code=14010,
        hint="is a gateway between that changes bytes? If it stays, please report it with the host's build; "
        'where VDDK is installed, [vddk] engine = "vddk" does without this',
    )


def lost(host: str, what: str) -> TransientDiskError:
    return TransientDiskError(f"the connection to {host} {what}", code=CONNECTION_LOST, hint=_LOST_HINT)
