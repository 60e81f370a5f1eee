"""Disks that somebody has open: what vSphere refuses then, the lab refuses too (docs/lab.md)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from tests.support import plain_api
from tests.support.plain_api import disk_path, vm_named, wait
from tests.support.vddk_processes import Client
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec


def off(name: str) -> VmSpec:
    return VmSpec(name, disks=(DiskSpec(MIB, content="random"),), power="poweredOff", tools="notRunning")


SPEC = LabSpec.of_vms(
    VmSpec("on-01", disks=(DiskSpec(MIB, content="random"),)),
    VmSpec("on-02", disks=(DiskSpec(MIB, content="random"),)),
    off("off-01"),
    off("off-02"),
)


@pytest.fixture(scope="module")
def vcenter(start_shared_lab: Callable[[LabSpec], Lab]) -> Lab:
    lab = start_shared_lab(SPEC)
    lab.set("lock_linger_s=0")
    return lab


@pytest.fixture
def api(vcenter: Lab) -> Iterator[Any]:
    with plain_api.session(vcenter) as instance:
        yield instance


def attach(vm: Any, path: str, *, mode: str = "persistent", unit: int = 5) -> Any:
    """Adds an existing disk, as AddExistingDisk of any client does."""
    controller = next(d for d in vm.config.hardware.device if isinstance(d, vim.vm.device.VirtualSCSIController))
    backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName=path, diskMode=mode)
    disk = vim.vm.device.VirtualDisk(key=-1, controllerKey=controller.key, unitNumber=unit, backing=backing)
    change = vim.vm.device.VirtualDeviceSpec(operation="add", device=disk)
    return vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change]))


def detach(vm: Any, path: str) -> None:
    """Takes the disk off, its files stay."""
    disks: list[Any] = [d for d in vm.config.hardware.device if isinstance(d, vim.vm.device.VirtualDisk)]
    (disk,) = [d for d in disks if d.backing.fileName == path]
    change = vim.vm.device.VirtualDeviceSpec(operation="remove", device=disk)
    wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))


def keys(fault: Any) -> list[str]:
    return [part.key for part in fault.faultMessage]


def test_a_disk_is_open_in_one_running_vm_only(api: Any) -> None:
    first, second, owner = vm_named(api, "on-01"), vm_named(api, "on-02"), vm_named(api, "off-01")
    path = disk_path(owner.config)
    wait(attach(first, path))
    try:
        for refused in (attach(second, path), owner.PowerOnVM_Task()):
            with pytest.raises(vim.fault.GenericVmConfigFault) as caught:
                wait(refused)
            assert set(keys(caught.value)) >= {"msg.fileio.lock", "msg.disk.noBackEnd"}
        # Whoever only reads it needs it unwritten as well.
        with pytest.raises(vim.fault.GenericVmConfigFault):
            wait(attach(second, path, mode="independent_nonpersistent"))
        with pytest.raises(vim.fault.GenericVmConfigFault):
            wait(owner.CreateSnapshot_Task(name="no", description="", memory=False, quiesce=False))
    finally:
        detach(first, path)
    wait(owner.PowerOnVM_Task())
    wait(owner.PowerOffVM_Task())


def test_a_snapshots_disk_may_hang_on_several_vms_that_read_it(api: Any) -> None:
    first, second, owner = vm_named(api, "on-01"), vm_named(api, "on-02"), vm_named(api, "off-01")
    path = disk_path(owner.config)
    snapshot = wait(owner.CreateSnapshot_Task(name="s", description="", memory=False, quiesce=False))
    wait(attach(first, path, mode="independent_nonpersistent"))
    wait(attach(second, path, mode="independent_nonpersistent"))
    wait(owner.PowerOnVM_Task())  # it writes its leaf
    wait(owner.PowerOffVM_Task())
    wait(snapshot.RemoveSnapshot_Task(False))
    assert owner.runtime.consolidationNeeded  # what others read is not merged
    for vm in (first, second):
        detach(vm, path)
    wait(owner.ConsolidateVMDisks_Task())
    assert not owner.runtime.consolidationNeeded
    assert disk_path(owner.config) == path


def test_what_a_mover_writes_is_not_opened_copied_or_removed(vcenter: Lab, api: Any, tmp_path: Path) -> None:
    vm, other = vm_named(api, "off-02"), vm_named(api, "on-01")
    path = disk_path(vm.config)
    files, disks = api.content.fileManager, api.content.virtualDiskManager
    datacenter = vm.parent.parent
    clone = vim.vm.CloneSpec(location=vim.vm.RelocateSpec(pool=other.resourcePool))
    with Client(vcenter, tmp_path).holding(vm, write=True):
        for refused in (
            vm.CloneVM_Task(vm.parent, "copy-01", clone),
            vm.Destroy_Task(),
            disks.DeleteVirtualDisk_Task(path, datacenter),
            disks.CopyVirtualDisk_Task(path, datacenter, path.replace("off-02.vmdk", "copy.vmdk")),
            disks.MoveVirtualDisk_Task(path, datacenter, path.replace("off-02.vmdk", "moved.vmdk")),
            files.DeleteDatastoreFile_Task(path.replace(".vmdk", "-flat.vmdk"), datacenter),
            files.DeleteDatastoreFile_Task(path.rpartition("/")[0], datacenter),
            files.MoveDatastoreFile_Task(path.rpartition("/")[0], datacenter, "[prod-vmfs-01] elsewhere"),
        ):
            with pytest.raises(vim.fault.FileLocked):
                wait(refused)
        for refused in (vm.PowerOnVM_Task(), attach(other, path)):
            with pytest.raises(vim.fault.GenericVmConfigFault) as caught:
                wait(refused)
            assert "msg.fileio.lock" in keys(caught.value)
    time.sleep(0.1)
    wait(vm.CloneVM_Task(vm.parent, "copy-01", clone))
    copied = vcenter.export("prod", "copy-01", 0, tmp_path / "copy.img").read_bytes()
    assert copied == vcenter.export("prod", "off-02", 0, tmp_path / "off.img").read_bytes()


def test_a_mover_does_not_get_a_disk_that_another_vm_runs_with(vcenter: Lab, api: Any, tmp_path: Path) -> None:
    vm, owner = vm_named(api, "on-02"), vm_named(api, "off-01")
    path = disk_path(owner.config)
    client = Client(vcenter, tmp_path)
    wait(attach(vm, path))
    try:
        assert client.run("opened(read_only=False); answer('opened')", owner) == ["error", 15]
        assert client.run("opened(); answer('opened')", owner) == ["error", 15]
    finally:
        detach(vm, path)
    assert client.run("opened(read_only=False).close(); answer('opened')", owner) == "opened"
