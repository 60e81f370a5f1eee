"""The custom attribute that shows a replica's state to people in vSphere's own client.

vSphere Web Services API reference: CustomFieldsManager.AddCustomFieldDef (privilege Global.ManageCustomFields; names
are unique, else DuplicateName) and SetField (Global.SetCustomField). A standalone ESXi host has no such manager.
"""

from __future__ import annotations

import threading
from typing import Any

from vrepl.errors import VsphereError
from vrepl.vsphere.api import vim
from vrepl.vsphere.session import Session

NAME = "vrepl state"


class StateAttribute:
    """Of the VMs of one site; the attribute is made when it is first needed."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._key: int | None = None
        self._lock = threading.Lock()

    def show(self, vm_ref: str, text: str) -> None:
        """Replaces what it says; nothing where the site is no vCenter. Raises VsphereError, PermissionDeniedError."""
        manager = self._session.content.customFieldsManager
        if manager is None:
            return
        with self._lock:
            if self._key is None:
                self._key = _find(manager)
            if self._key is None:
                self._key = _make(manager)
        manager.SetField(entity=self._session.object(vim.VirtualMachine, vm_ref), key=self._key, value=text)


def _find(manager: Any) -> int | None:
    return next((int(one.key) for one in manager.field or () if one.name == NAME), None)


def _make(manager: Any) -> int | None:
    try:
        return int(manager.AddCustomFieldDef(name=NAME, moType=vim.VirtualMachine).key)
    except VsphereError as error:
        if error.fault != "DuplicateName":  # another process was faster
            raise
        return _find(manager)
