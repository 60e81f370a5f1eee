"""pyVmomi's type namespaces, typed as Any.

pyVmomi makes its classes at run time and its stub files leave every constructor untyped, so a checker cannot say
anything useful about them; what leaves this package is typed by `vrepl.model`.
"""

from __future__ import annotations

from typing import Any

import pyVmomi

_namespaces: Any = pyVmomi
vim: Any = _namespaces.vim
vmodl: Any = _namespaces.vmodl

ManagedObject = Any
"""A reference to an object of vSphere; reading a property of it is a call, so nothing here does."""


def ref_of(managed_object: ManagedObject) -> str:
    """The MoRef value, such as `vm-12`."""
    return str(managed_object._moId)


def kind_of(value: Any) -> str:
    """The bare type name of a managed or data object, such as `VirtualPCNet32`."""
    return type(value).__name__.rpartition(".")[2]
