"""vSphere's faults and the transport's failures -> vrepl's errors: one table.

Fault names are those of the vSphere Web Services API reference. What the keys of a fault's messages say counts before
its type (see `fault_messages`); a fault that the table does not hold is looked up by its base types.
"""

from __future__ import annotations

import errno
import http.client
import re
import socket
import ssl
from dataclasses import dataclass
from typing import Any
from xml.parsers.expat import ExpatError

from vrepl.errors import (
    AuthenticationError,
    ConnectionFailedError,
    DiskLockedError,
    NoSpaceError,
    NotFoundError,
    PermissionDeniedError,
    TransientVsphereError,
    VreplError,
    VsphereError,
)
from vrepl.vsphere.api import kind_of, ref_of
from vrepl.vsphere.fault_messages import cause_of, keys_of


class OutcomeUnknownError(ConnectionFailedError):
    """The connection was lost after a request was sent that must not be sent twice: it may have been carried out."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a fault becomes; `hint` tells the operator what to do."""

    error: type[VreplError]
    hint: str | None = None


_BUSY = "another operation has it; vrepl tries again"
_QUIESCE = (
    "the guest could not be quiesced: look at VMware Tools and the guest's VSS writers or freeze scripts, "
    'or set quiesce = "prefer"'
)
_RESOURCES = "the target host or its resource pool has not enough of it: choose another, or free some"

RULES: dict[str, Rule] = {
    # who may
    "InvalidLogin": Rule(AuthenticationError, "check user and password of the site"),
    "PasswordExpired": Rule(AuthenticationError, "the password has expired: set a new one in vSphere"),
    "NotAuthenticated": Rule(TransientVsphereError, "the session has ended; vrepl logs in again"),
    "RestrictedVersion": Rule(
        VsphereError, "the free ESXi licence has no write access to the API: a paid licence or vCenter is needed"
    ),
    "NotEnoughLicenses": Rule(VsphereError, "the licence of this vSphere does not allow it"),
    # what passes by itself
    "TaskInProgress": Rule(TransientVsphereError, _BUSY),
    "ConcurrentAccess": Rule(TransientVsphereError, _BUSY),
    "HostCommunication": Rule(TransientVsphereError, "vCenter does not reach the ESXi host just now"),
    "HostNotConnected": Rule(TransientVsphereError, "the ESXi host is disconnected from vCenter"),
    "Timedout": Rule(TransientVsphereError, "vSphere did not finish it in its own time limit"),
    "SnapshotLocked": Rule(TransientVsphereError, _BUSY),
    "ResourceInUse": Rule(TransientVsphereError, _BUSY),
    "FailToLockFaultToleranceVMs": Rule(TransientVsphereError, _BUSY),
    "VAppTaskInProgress": Rule(TransientVsphereError, _BUSY),
    "FileLocked": Rule(
        DiskLockedError,
        "a disk of the VM is open: another backup or replication may run, or a proxy still has it attached",
    ),
    # room
    "NoDiskSpace": Rule(NoSpaceError, "free space on the datastore, or choose another one"),
    "InsufficientStorageSpace": Rule(NoSpaceError, "free space on the datastore, or choose another one"),
    "InsufficientResourcesFault": Rule(VsphereError, _RESOURCES),
    # what is gone or never was
    "ManagedObjectNotFound": Rule(NotFoundError, "it was removed meanwhile"),
    "NotFound": Rule(NotFoundError),
    "FileNotFound": Rule(VsphereError, "a file of the VM is missing on its datastore"),
    # snapshots
    "ApplicationQuiesceFault": Rule(VsphereError, _QUIESCE),
    "FilesystemQuiesceFault": Rule(VsphereError, _QUIESCE),
    "ToolsUnavailable": Rule(VsphereError, "VMware Tools do not run in the guest"),
    "TooManySnapshotLevels": Rule(VsphereError, "a chain holds 32 snapshots at most: remove old ones"),
    "SnapshotDisabled": Rule(VsphereError, "snapshots are disabled for this VM (snapshot.maxSnapshots)"),
    "MemorySnapshotOnIndependentDisk": Rule(VsphereError, "an independent disk cannot take part in a snapshot"),
    "SnapshotIncompatibleDeviceInVm": Rule(
        VsphereError, "a device of the VM (bus sharing, passthrough, raw disk) forbids snapshots"
    ),
    "SnapshotFault": Rule(VsphereError),
    # guest customisation
    "UncustomizableGuest": Rule(
        VsphereError, "vCenter customises guests whose VMware Tools it has seen run, of systems on VMware's list"
    ),
    "NicSettingMismatch": Rule(VsphereError, "the VM's network adapters changed meanwhile: run the job, or try again"),
    "CustomizationFault": Rule(VsphereError, "set the guest's addresses by hand"),
    # creating and changing VMs
    "DuplicateName": Rule(VsphereError, "the name is taken: rename the other VM or set another replica name"),
    "FileAlreadyExists": Rule(VsphereError, "files of that name lie on the datastore: remove or rename them"),
    "InvalidName": Rule(VsphereError, "vSphere does not accept the name"),
    "InaccessibleDatastore": Rule(VsphereError, "the host does not reach the datastore"),
    "InvalidDatastore": Rule(VsphereError, "the host does not have this datastore, or cannot write to it"),
    "VirtualHardwareVersionNotSupported": Rule(
        VsphereError, "the target host is older than the VM's hardware version: use a newer host"
    ),
    "MethodDisabled": Rule(
        VsphereError, "another product has disabled this method for the VM (see its disabledMethod in vSphere)"
    ),
    "InvalidPowerState": Rule(VsphereError, "the VM's power state forbids it"),
    "InvalidState": Rule(VsphereError, "the state of the object forbids it"),
    "InvalidDeviceSpec": Rule(VsphereError),
    "CannotAccessNetwork": Rule(VsphereError, "the target host does not have this network"),
    "VmConfigFault": Rule(VsphereError),
    "FileFault": Rule(VsphereError),
    "RequestCanceled": Rule(VsphereError, "somebody cancelled the task in vSphere"),
    "NotSupported": Rule(VsphereError, "this vSphere does not support it"),
    "MethodNotFound": Rule(VsphereError, "this vSphere is too old for it"),
    "InvalidRequest": Rule(VsphereError),
    "InvalidArgument": Rule(VsphereError),
    "SystemError": Rule(VsphereError, "vSphere's own log (vpxd.log, hostd.log) tells more"),
    "MethodFault": Rule(VsphereError),
}


def fault_name(fault: Any) -> str:
    """The bare name of a fault, such as `TaskInProgress`."""
    return kind_of(fault)


def rule_for(fault: Any) -> Rule:
    """The table's row for a fault, by its own type or else by the nearest base type that has one."""
    for base in type(fault).__mro__:
        rule = RULES.get(base.__name__.rpartition(".")[2])
        if rule is not None:
            return rule
    return RULES["MethodFault"]


def _text(fault: Any, message: str | None) -> str:
    """The most telling text that vSphere gave."""
    said = [message or "", str(getattr(fault, "msg", None) or "")]
    for part in getattr(fault, "faultMessage", None) or ():
        said.append(str(getattr(part, "message", None) or ""))
    reason = getattr(fault, "reason", None)
    said.append(reason if isinstance(reason, str) else "")
    distinct = list(dict.fromkeys(text.strip().rstrip(".") for text in said if text and text.strip()))
    name = fault_name(fault)
    if not distinct:
        # A text may be missing where the key is all that there is.
        distinct = list(dict.fromkeys(keys_of(fault)))
    return "; ".join([name, *[text for text in distinct if text != name]])


def error_of(fault: Any, *, doing: str, message: str | None = None) -> VreplError:
    """The error for a fault of a call or a task; `doing` says what was tried ("create snapshot x of web-01").

    `message` is the localised text that came with a task's fault, if any. A VsphereError's `fault` is the name of the
    cause, where the messages tell one, so that who asks for it need not know how it was wrapped.
    """
    name = fault_name(fault)
    bases = {base.__name__.rpartition(".")[2] for base in type(fault).__mro__}
    if "NoPermission" in bases and "NotAuthenticated" not in bases:
        return _permission_denied(fault, doing)
    cause = cause_of(fault)
    if cause is not None:
        name = cause
    rule = RULES[cause] if cause is not None else rule_for(fault)
    text = f"{doing}: {_text(fault, message)}"
    file = getattr(fault, "file", None)
    if isinstance(file, str) and file:
        text += f" ({file})"
    if issubclass(rule.error, VsphereError):
        return rule.error(text, fault=name, hint=rule.hint)
    return rule.error(text, hint=rule.hint)


def _permission_denied(fault: Any, doing: str) -> PermissionDeniedError:
    privilege = getattr(fault, "privilegeId", None) or None
    entity = getattr(fault, "object", None)
    where = f"{kind_of(entity)} {ref_of(entity)}" if entity is not None else "the object"
    if privilege is None:
        needed = [
            str(one) for item in getattr(fault, "missingPrivileges", None) or () for one in item.privilegeIds or ()
        ]
        privilege = needed[0] if needed else None
    what = f"privilege {privilege} on {where} is missing" if privilege else f"permission on {where} is missing"
    return PermissionDeniedError(
        f"{doing}: {what}",
        privilege=privilege,
        hint=f"give the site's user the privilege {privilege} ({where})" if privilege else "see `vrepl check`",
    )


_BAD_STATUS = re.compile(r"^(\d{3})\b")
_SICK = frozenset({429, 502, 503, 504})


def transport_error(cause: BaseException, *, server: str, port: int, doing: str) -> VreplError:
    """The error for a failure below the API: name, TCP, TLS (not certificates), HTTP, or a reply that is no SOAP."""
    place = f"{server}:{port}"
    if isinstance(cause, socket.gaierror):
        return ConnectionFailedError(
            f"{place}: the name cannot be resolved ({cause.strerror or cause})",
            hint="check the server name in the configuration, and DNS",
        )
    if isinstance(cause, ConnectionRefusedError):
        return ConnectionFailedError(
            f"{place}: connection refused", hint="is it the right port, and does the service run there?"
        )
    if isinstance(cause, TimeoutError):
        return ConnectionFailedError(
            f"{place}: no answer in time ({doing})", hint="is the server up, is a firewall between?"
        )
    if isinstance(cause, ssl.SSLError):
        reason = getattr(cause, "reason", None) or str(cause)
        return ConnectionFailedError(
            f"{place}: TLS failed ({reason})", hint="is this really the HTTPS port of a vCenter or an ESXi host?"
        )
    if isinstance(cause, OSError) and cause.errno in {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN}:
        return ConnectionFailedError(f"{place}: unreachable ({cause.strerror})", hint="check network and routing")
    if isinstance(cause, ConnectionError | http.client.RemoteDisconnected | http.client.IncompleteRead):
        return ConnectionFailedError(f"{place}: connection lost ({doing})", hint="network, or a restart of the server")
    if isinstance(cause, http.client.HTTPException):
        status = _BAD_STATUS.match(str(cause))
        if status and int(status[1]) in _SICK:
            return ConnectionFailedError(f"{place}: HTTP {cause} ({doing})", hint="the server is busy or starting")
        if status:
            return not_a_vcenter(place, f"HTTP {cause}")
        return ConnectionFailedError(
            f"{place}: broken HTTP reply ({type(cause).__name__})", hint="is it an HTTPS port?"
        )
    if isinstance(cause, ExpatError):
        return ConnectionFailedError(
            f"{place}: the reply is not whole, or no SOAP ({doing})", hint="is this a vCenter or an ESXi host?"
        )
    return ConnectionFailedError(f"{place}: {cause or type(cause).__name__} ({doing})")


def not_a_vcenter(place: str, seen: str) -> VsphereError:
    """The server answers, but not as a vSphere API does."""
    return VsphereError(
        f"{place} is neither a vCenter Server nor an ESXi host ({seen})", hint="check server and port of the site"
    )


def may_have_happened(cause: BaseException) -> bool:
    """After this failure of a request, may the server have carried it out all the same?"""
    if isinstance(cause, ConnectionRefusedError | socket.gaierror | ssl.SSLCertVerificationError):
        return False
    return isinstance(cause, OSError | http.client.HTTPException | ExpatError)
