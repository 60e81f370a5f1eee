"""Files of a disk are never destroyed while the VM has snapshots."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vrepl.vsphere.api import vim
from vrepl.vsphere.replica import Replicas


def disk(*, parent: bool) -> Any:
    backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName="[ds] r/r_1.vmdk", diskMode="persistent")
    if parent:
        backing.parent = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName="[ds] r/r.vmdk", diskMode="persistent")
    return vim.vm.device.VirtualDisk(key=2001, backing=backing)


@pytest.mark.parametrize(
    ("snapshots", "parent", "destroyed"),
    [((), False, True), (("snapshot-1",), True, False), (("snapshot-1",), False, False), ((), True, False)],
    ids=["alone", "in a chain", "added after the snapshot", "a clone's parent"],
)
def test_files_are_destroyed_only_without_snapshots(
    monkeypatch: pytest.MonkeyPatch, snapshots: tuple[str, ...], parent: bool, destroyed: bool
) -> None:
    """A disk of one link may be named by a snapshot of another branch: after a revert it shows no parent."""
    asked: list[Any] = []
    inventory = SimpleNamespace(read_vm=lambda ref: SimpleNamespace(name="r", snapshots=snapshots))
    replicas = Replicas(None, None, inventory, None, new_uuid=str)  # type: ignore[arg-type]
    monkeypatch.setattr(replicas, "_devices", lambda ref: [disk(parent=parent)])
    monkeypatch.setattr(replicas, "_reconfigure", lambda ref, config, what: asked.append(config))
    replicas.remove_disk("vm-1", 2001)
    replicas.remove_disk("vm-1", 2999)
    ((change,),) = [config.deviceChange for config in asked]
    assert (change.operation, change.fileOperation) == ("remove", "destroy" if destroyed else None)
