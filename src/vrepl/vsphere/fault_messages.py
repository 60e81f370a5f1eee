"""What a fault really is, by the keys of its messages: vSphere wraps disk and snapshot errors.

The type is then a general one (GenericVmConfigFault, InvalidVmConfig, GenericDrsFault, …) and the cause stands in
`faultMessage[].key`, or as the value of one of a message's arguments: vm-operator shows a GenericVmConfigFault whose
message `msg.snapshot.vigor.revert.error` has the argument `msg.snapshot.error-NOTREVERTABLE`.

Sources of the keys: `msg.fileio.*` open-vm-tools `lib/file/fileIO.c`; `msg.fileio.lock` as what vSphere answers for a
locked disk: vmware/vic `pkg/vsphere/disk/vmdk.go`; `msg.snapshot.error-*` Broadcom KB articles on failed snapshots and
vmware-tanzu/vm-operator; the names after `error-` are those of `vix.h` (VIX_E_SNAPSHOT_*). Texts come in the session's
language, keys do not, so nothing here goes by a text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

CAUSES: Mapping[str, str] = {
    # a file that another client has open
    "msg.fileio.lock": "FileLocked",
    "msg.snapshot.error-disklocked": "FileLocked",
    "msg.snapshot.error-locked": "SnapshotLocked",
    # room
    "msg.fileio.nospc": "NoDiskSpace",
    "msg.fileio.dquot": "NoDiskSpace",
    "msg.snapshot.error-min_free_space": "NoDiskSpace",
    # quiescing
    "msg.snapshot.error-quiescingerror": "ApplicationQuiesceFault",
    "msg.snapshot.error-quiesceerror": "ApplicationQuiesceFault",
    # what a chain of snapshots allows
    "msg.snapshot.error-maxsnapshots": "TooManySnapshotLevels",
    "msg.snapshot.error-hierarchy_toodeep": "TooManySnapshotLevels",
    "msg.snapshot.error-independentdisk": "SnapshotIncompatibleDeviceInVm",
    "msg.snapshot.error-memory_on_independent_disk": "MemorySnapshotOnIndependentDisk",
    # what is gone
    "msg.fileio.notfound": "FileNotFound",
    "msg.snapshot.error-notfound": "NotFound",
}
"""A message key in lower case -> the fault that says the same by its type. `msg.snapshot.vigor.take.error` and
`msg.disk.noBackEnd` are only wrappers ("an error occurred while taking a snapshot"): the cause stands beside them."""


def keys_of(fault: Any) -> Iterator[str]:
    """Keys of the fault's messages, and arguments that look like keys; then those of the faults that caused it."""
    for _ in range(10):
        if fault is None:
            return
        for message in getattr(fault, "faultMessage", None) or ():
            key = getattr(message, "key", None)
            if isinstance(key, str) and key:
                yield key
            for argument in getattr(message, "arg", None) or ():
                value = getattr(argument, "value", None)
                if isinstance(value, str) and value.startswith("msg."):
                    yield value
        cause = getattr(fault, "faultCause", None)
        fault = getattr(cause, "fault", None) or cause


def cause_of(fault: Any) -> str | None:
    """The name of the fault that the messages stand for; None where no key is one that is known."""
    for key in keys_of(fault):
        cause = CAUSES.get(key.lower())
        if cause is not None:
            return cause
    return None
