"""A plain pyVmomi client of the lab, which shares no code with vrepl."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyVim.connect import Disconnect, SmartConnect
from pyVmomi import vim

from vrepl_lab.lab import USER, Lab


@contextmanager
def session(lab: Lab, site: str = "prod") -> Iterator[Any]:
    context = ssl.create_default_context(cafile=str(lab.folder / "ca.pem"))
    instance = SmartConnect(
        host="127.0.0.1", port=lab.sites[site].port, user=USER, pwd=lab.password(site), sslContext=context
    )
    try:
        yield instance
    finally:
        Disconnect(instance)


def vm_named(instance: Any, name: str) -> Any:
    view = instance.content.viewManager.CreateContainerView(instance.content.rootFolder, [vim.VirtualMachine], True)
    (found,) = [vm for vm in view.view if vm.name == name]
    view.Destroy()
    return found


def wait(task: Any) -> Any:
    """The task's result; raises its fault."""
    deadline = time.monotonic() + 60
    while task.info.state not in ("success", "error"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if task.info.state == "error":
        raise task.info.error
    return task.info.result


def disk_path(config: Any) -> str:
    """Datastore path of the first disk of a VM's or a snapshot's configuration."""
    disks: list[Any] = [d for d in config.hardware.device if isinstance(d, vim.vm.device.VirtualDisk)]
    return str(disks[0].backing.fileName)
