"""Small files on datastores, by HTTPS: `/folder/PATH?dcPath=DATACENTER&dsName=DATASTORE`.

vSphere Web Services SDK Programming Guide, "Datastore access using HTTP": GET and PUT on the server that the session is
logged in to, with the session's cookie. A user needs Datastore.FileManagement there.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from urllib.parse import quote, urlencode

from vrepl.errors import PermissionDeniedError, VsphereError
from vrepl.model import VirtualMachine
from vrepl.vsphere.session import Session

LARGEST = 1 << 20
"""Bytes. What vrepl keeps here is a few KiB; anything larger is not its own."""


class DatastoreFiles:
    """Reads and replaces files in the folder of a VM."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def read(self, vm: VirtualMachine, name: str) -> bytes | None:
        """None where there is no such file. Raises PermissionDeniedError, VsphereError."""
        target = _target(vm, name)
        status, content = self._session.exchange("GET", target, what=f"read {name} beside VM {vm.name}", limit=LARGEST)
        if status == 404:
            return None
        _check(status, vm, f"read {name}")
        return content

    def write(self, vm: VirtualMachine, name: str, content: bytes) -> None:
        """Raises PermissionDeniedError, VsphereError."""
        target = _target(vm, name)
        status, _ = self._session.exchange("PUT", target, content, what=f"write {name} beside VM {vm.name}")
        _check(status, vm, f"write {name}")


def _target(vm: VirtualMachine, name: str) -> str:
    datastore, _, path = vm.vm_path.partition("] ")
    folder = PurePosixPath(path).parent
    query = urlencode({"dcPath": vm.datacenter, "dsName": datastore.removeprefix("[")}, quote_via=quote)
    return f"/folder/{quote(str(folder / name))}?{query}"


def _check(status: int, vm: VirtualMachine, doing: str) -> None:
    if status in {401, 403}:
        raise PermissionDeniedError(
            f"VM {vm.name}: {doing} in its folder: refused (HTTP {status})",
            hint="the user needs Datastore.FileManagement on its datastore (see `vrepl check`)",
        )
    if status not in {200, 201, 204}:
        raise VsphereError(f"VM {vm.name}: {doing} in its folder: HTTP {status}", hint="is the datastore mounted?")
