"""Tickets for disks: NfcService, which VDDK uses and pyVmomi does not know.

The type and its methods are not in VMware's public description of the API; they were observed by others
(cloudbase/OpenVixDiskLib docs/nfc_auth.md, a vCenter 8.0.1; hystax/OpenVixDiskLib docs/nfc_auth.md, an ESXi 8.0.3).
"""

from __future__ import annotations

import hashlib
import ssl
from typing import Any

from pyVmomi import VmomiSupport

from vrepl.errors import DiskError, NotFoundError, VsphereError
from vrepl.ports import NfcTicket
from vrepl.vsphere import collector
from vrepl.vsphere.api import vim
from vrepl.vsphere.session import Session

NFC_PORT = 902
VCENTER_SERVICE = "nfcService"
HOST_SERVICES = ("ha-nfc-service", "ha-nfc")
"""On a host without a vCenter the first is what one 8.0.3 has; the second stands in VDDK."""

_SINCE = "vim.version.version1"


def _register() -> None:
    """Teach pyVmomi the type, once."""

    def parameter(name: str, kind: str) -> tuple[str, str, str, int, None]:
        return name, kind, _SINCE, 0, None

    def method(name: str, wsdl: str, *parameters: tuple[str, str, str, int, None]) -> tuple[Any, ...]:
        result = (VmomiSupport.F_SECRET, "vim.HostServiceTicket", "vim.HostServiceTicket")
        return name, wsdl, _SINCE, parameters, result, "System.View", None

    vm = parameter("vm", "vim.VirtualMachine")
    make: Any = VmomiSupport.CreateManagedType
    make(
        "vim.NfcService",
        "NfcService",
        "vmodl.ManagedObject",
        _SINCE,
        None,
        [
            method("getVmFiles", "NfcGetVmFiles", vm),
            method(
                "randomAccessOpen",
                "NfcRandomAccessOpenDisk",
                vm,
                parameter("diskDeviceKey", "int"),
                parameter("hostForAccess", "vim.HostSystem"),
            ),
        ],
    )


_register()


def ticket(session: Session, vm_ref: str, path: str, *, writable: bool) -> NfcTicket:
    """For one connection to the host of the VM; to write, for the disk with this file alone.

    Raises DiskError where the VM has no such disk, and VreplErrors of the call.
    """
    vm = session.object(vim.VirtualMachine, vm_ref)
    if not writable:
        answer = _ask(session, lambda service: service.NfcGetVmFiles(vm=vm))
    else:
        key, host = _disk_and_host(session, vm, path)
        answer = _ask(
            session,
            lambda service: service.NfcRandomAccessOpenDisk(vm=vm, diskDeviceKey=key, hostForAccess=host),
        )
    settings = session.settings
    return NfcTicket(
        host=str(answer.host or settings.server),
        # A port that the site's settings name is a gateway's; else it is the host's own.
        port=settings.nfc_port if settings.nfc_port != NFC_PORT else int(answer.port or NFC_PORT),
        sha1_thumbprint=_thumbprint(answer),
        service=str(answer.service),
        session_id=str(answer.sessionId),
    )


def _ask(session: Session, call: Any) -> Any:
    names = (VCENTER_SERVICE,) if session.is_vcenter else HOST_SERVICES
    for last, name in ((name == names[-1], name) for name in names):
        try:
            return call(session.object(vim.NfcService, name))
        except (NotFoundError, VsphereError) as error:
            gone = isinstance(error, NotFoundError) or error.fault == "ManagedObjectNotFound"
            if last or not gone:
                raise
    raise AssertionError("the last name was asked")


def _disk_and_host(session: Session, vm: Any, path: str) -> tuple[int, Any]:
    found = collector.these(session, [vm], {vim.VirtualMachine: ["config.hardware.device", "runtime.host"]})
    if not found:
        raise NotFoundError(f"VM {vm._moId} is gone")
    for device in found[0].get("config.hardware.device", ()):
        backing = getattr(device, "backing", None)
        while backing is not None:
            if getattr(backing, "fileName", None) == path:
                return int(device.key), found[0].get("runtime.host")
            backing = getattr(backing, "parent", None)
    raise DiskError(f"{path} is no disk of VM {vm._moId}", code=13, hint="was the disk moved, or a snapshot taken?")


def _thumbprint(answer: Any) -> str:
    """Of the certificate that the host will show; newer versions give the certificate itself."""
    certificate = getattr(answer, "sslCertificate", None)
    if certificate:
        der = ssl.PEM_cert_to_DER_cert(str(certificate))
        return hashlib.sha1(der, usedforsecurity=False).hexdigest()
    if not answer.sslThumbprint:
        raise VsphereError("the ticket does not say which certificate its host shows, so it cannot be trusted")
    return str(answer.sslThumbprint)
