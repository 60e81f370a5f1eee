"""One table says what a fault means; these are its rows and the ways around it."""

from __future__ import annotations

import errno
import http.client
import socket
import ssl
from xml.parsers.expat import ExpatError

import pytest

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
from vrepl.vsphere import fault_messages, faults
from vrepl.vsphere.api import vim, vmodl


@pytest.mark.parametrize(
    ("fault", "error", "retryable"),
    [
        (vim.fault.InvalidLogin(), AuthenticationError, False),
        (vim.fault.PasswordExpired(), AuthenticationError, False),
        (vim.fault.NotAuthenticated(), TransientVsphereError, True),
        (vim.fault.TaskInProgress(), TransientVsphereError, True),
        (vim.fault.VAppTaskInProgress(), TransientVsphereError, True),
        (vim.fault.ConcurrentAccess(), TransientVsphereError, True),
        (vmodl.fault.HostCommunication(), TransientVsphereError, True),
        (vmodl.fault.HostNotReachable(), TransientVsphereError, True),
        (vim.fault.Timedout(), TransientVsphereError, True),
        (vim.fault.FileLocked(), DiskLockedError, True),
        (vim.fault.NoDiskSpace(), NoSpaceError, False),
        (vim.fault.InsufficientStorageSpace(), NoSpaceError, False),
        (vim.fault.InsufficientMemoryResourcesFault(), VsphereError, False),
        (vmodl.fault.ManagedObjectNotFound(), NotFoundError, False),
        (vim.fault.ApplicationQuiesceFault(), VsphereError, False),
        (vim.fault.TooManySnapshotLevels(), VsphereError, False),
        (vim.fault.InvalidPowerState(), VsphereError, False),
        (vim.fault.DuplicateName(), VsphereError, False),
        (vim.fault.MethodDisabled(), VsphereError, False),
        (vmodl.fault.SystemError(), VsphereError, False),
        (vim.fault.RestrictedVersion(), VsphereError, False),
    ],
    ids=lambda value: faults.fault_name(value) if isinstance(value, vmodl.MethodFault) else None,
)
def test_the_table(fault: Exception, error: type[VreplError], retryable: bool) -> None:
    made = faults.error_of(fault, doing="try it")
    assert type(made) is error
    assert made.retryable is retryable
    assert made.message.startswith(f"try it: {faults.fault_name(fault)}")


def test_a_quiesce_fault_keeps_its_name_for_the_engine() -> None:
    made = faults.error_of(vim.fault.FilesystemQuiesceFault(), doing="create snapshot")
    assert isinstance(made, VsphereError)
    assert made.fault == "FilesystemQuiesceFault"
    assert "prefer" in (made.hint or "")


def test_a_fault_that_the_table_does_not_hold_counts_as_its_base() -> None:
    """FileNotWritable is a FileFault, DatastoreNotWritableOnHost an InvalidDatastore."""
    assert faults.rule_for(vim.fault.FileNotWritable()) is faults.RULES["FileFault"]
    assert faults.rule_for(vim.fault.DatastoreNotWritableOnHost()) is faults.RULES["InvalidDatastore"]


def wrapped(*keys: str, **arguments: str) -> vim.fault.GenericVmConfigFault:
    """As vSphere wraps what its disk and snapshot libraries say: the type tells nothing, the keys do."""
    values = [vmodl.KeyAnyValue(key=key, value=value) for key, value in arguments.items()]
    messages = [vmodl.LocalizableMessage(key=key, message="An error occurred", arg=values) for key in keys]
    return vim.fault.GenericVmConfigFault(reason="An error occurred", faultMessage=messages)


@pytest.mark.parametrize(
    ("fault", "error", "name"),
    [
        (wrapped("msg.fileio.lock"), DiskLockedError, None),
        (wrapped("msg.snapshot.vigor.take.error", "msg.fileio.lock", "msg.disk.noBackEnd"), DiskLockedError, None),
        (wrapped("msg.snapshot.vigor.take.error", reason="msg.snapshot.error-DISKLOCKED"), DiskLockedError, None),
        (wrapped("msg.snapshot.error-QUIESCINGERROR"), VsphereError, "ApplicationQuiesceFault"),
        (wrapped("msg.snapshot.vigor.take.error", x="msg.snapshot.error-QUIESCINGERROR"), VsphereError,
         "ApplicationQuiesceFault"),
        (wrapped("msg.snapshot.vigor.take.error", x="msg.snapshot.error-MAXSNAPSHOTS"), VsphereError,
         "TooManySnapshotLevels"),
        (wrapped("msg.fileio.noSpc"), NoSpaceError, None),
        (wrapped("msg.snapshot.vigor.take.error"), VsphereError, "GenericVmConfigFault"),
    ],
)  # fmt: skip
def test_a_wrapped_fault_is_classified_by_its_message_keys(
    fault: Exception, error: type[VreplError], name: str | None
) -> None:
    """Locks and quiesce failures come as GenericVmConfigFault; by type alone neither was recognised."""
    made = faults.error_of(fault, doing="create snapshot x")
    assert type(made) is error
    assert made.message.startswith("create snapshot x: GenericVmConfigFault; ")
    assert made.retryable is (error is DiskLockedError)
    if isinstance(made, VsphereError):
        assert made.fault == name


def test_the_cause_of_a_cause_is_seen() -> None:
    outer = vmodl.fault.SystemError(reason="x", faultCause=vmodl.LocalizedMethodFault(fault=wrapped("msg.fileio.lock")))
    assert type(faults.error_of(outer, doing="try it")) is DiskLockedError


def test_a_key_is_told_where_there_is_no_text() -> None:
    message = vmodl.LocalizableMessage(key="msg.vmx.unknown")
    made = faults.error_of(vim.fault.GenericVmConfigFault(faultMessage=[message]), doing="try it")
    assert made.message == "try it: GenericVmConfigFault; msg.vmx.unknown"


def test_every_cause_has_a_row() -> None:
    assert [cause for cause in fault_messages.CAUSES.values() if cause not in faults.RULES] == []
    assert [key for key in fault_messages.CAUSES if key != key.lower()] == []


def test_every_row_names_a_real_fault() -> None:
    for name in faults.RULES:
        if name != "MethodFault":
            found = [getattr(space, name, None) for space in (vim.fault, vmodl.fault)]
            assert any(found), name


def test_a_missing_privilege_is_named_with_its_object() -> None:
    vm = vim.VirtualMachine("vm-12")
    fault = vim.fault.NoPermission(object=vm, privilegeId="VirtualMachine.State.CreateSnapshot")
    made = faults.error_of(fault, doing="create snapshot x")
    assert isinstance(made, PermissionDeniedError)
    assert made.privilege == "VirtualMachine.State.CreateSnapshot"
    assert "VirtualMachine vm-12" in made.message
    assert "VirtualMachine.State.CreateSnapshot" in (made.hint or "")


def test_the_file_and_the_localised_text_are_told() -> None:
    fault = vim.fault.FileLocked(file="[ds] a/a.vmdk")
    made = faults.error_of(fault, doing="create snapshot", message="Unable to access file since it is locked.")
    assert "[ds] a/a.vmdk" in made.message
    assert "Unable to access file since it is locked" in made.message


@pytest.mark.parametrize(
    ("cause", "said", "retryable"),
    [
        (socket.gaierror(-2, "Name or service not known"), "cannot be resolved", True),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "connection refused", True),
        (TimeoutError("timed out"), "no answer in time", True),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "unreachable", True),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "connection lost", True),
        (http.client.RemoteDisconnected("closed"), "connection lost", True),
        (http.client.HTTPException("503 Service Unavailable"), "HTTP 503", True),
        (http.client.HTTPException("404 Not Found"), "neither a vCenter", False),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"), "TLS failed", True),
        (ExpatError("no element found"), "not whole", True),
    ],
)
def test_the_transport(cause: Exception, said: str, retryable: bool) -> None:
    made = faults.transport_error(cause, server="vc", port=443, doing="ask")
    assert said in made.message
    assert "vc:443" in made.message
    assert made.retryable is retryable
    assert isinstance(made, ConnectionFailedError) is retryable


@pytest.mark.parametrize(
    ("cause", "maybe"),
    [
        (ConnectionRefusedError(), False),
        (socket.gaierror(), False),
        (ssl.SSLCertVerificationError(), False),
        (ConnectionResetError(), True),
        (http.client.RemoteDisconnected(""), True),
        (http.client.HTTPException("503 Service Unavailable"), True),
        (ExpatError(), True),
        (TimeoutError(), True),
    ],
)
def test_what_may_have_happened_all_the_same(cause: Exception, maybe: bool) -> None:
    assert faults.may_have_happened(cause) is maybe
