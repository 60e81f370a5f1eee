"""What vSphere refuses to change, and what it tells of what changed (docs/lab.md)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from tests.support import plain_api
from tests.support.plain_api import vm_named, wait
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

SPEC = LabSpec.of_vms(
    VmSpec("on-01", disks=(DiskSpec(MIB, content="random"),)),
    VmSpec("off-01", disks=(DiskSpec(MIB, content="random"),), power="poweredOff", tools="notRunning"),
)


@pytest.fixture(scope="module")
def vcenter(start_shared_lab: Callable[[LabSpec], Lab]) -> Lab:
    return start_shared_lab(SPEC)


@pytest.fixture
def api(vcenter: Lab) -> Iterator[Any]:
    with plain_api.session(vcenter) as instance:
        yield instance


def reconfigure(vm: Any, **spec: Any) -> None:
    wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(**spec)))


def first_disk(vm: Any) -> Any:
    return next(d for d in vm.config.hardware.device if isinstance(d, vim.vm.device.VirtualDisk))


def new_disk(controller: int, unit: int = 4) -> Any:
    backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(diskMode="persistent", thinProvisioned=True)
    disk = vim.vm.device.VirtualDisk(
        key=-7, controllerKey=controller, unitNumber=unit, backing=backing, capacityInKB=1024
    )
    return vim.vm.device.VirtualDeviceSpec(operation="add", fileOperation="create", device=disk)


def test_a_stale_change_version_is_refused(api: Any) -> None:
    vm = vm_named(api, "off-01")
    seen = vm.config.changeVersion
    reconfigure(vm, annotation="first", changeVersion=seen)
    with pytest.raises(vim.fault.ConcurrentAccess):
        reconfigure(vm, annotation="second", changeVersion=seen)
    assert vm.config.annotation == "first"


def test_a_device_needs_a_controller_that_is_there(api: Any) -> None:
    vm = vm_named(api, "off-01")
    with pytest.raises(vim.fault.InvalidDeviceSpec) as caught:
        reconfigure(vm, deviceChange=[new_disk(1003)])
    assert "controllerKey" in str(caught.value.property)
    spec = vim.vm.ConfigSpec(
        name="no-controller", files=vim.vm.FileInfo(vmPathName="[prod-vmfs-01]"), deviceChange=[new_disk(1000)]
    )
    with pytest.raises(vim.fault.InvalidDeviceSpec):
        wait(vm.parent.CreateVM_Task(spec, vm.resourcePool))


def test_only_what_is_there_is_changed_or_removed(api: Any) -> None:
    vm = vm_named(api, "off-01")
    nobody = vim.vm.device.VirtualE1000(key=9999)
    scsi = next(d for d in vm.config.hardware.device if isinstance(d, vim.vm.device.VirtualSCSIController))
    for operation, device in (("remove", nobody), ("edit", nobody), ("remove", scsi)):
        with pytest.raises(vim.fault.InvalidDeviceSpec):
            reconfigure(vm, deviceChange=[vim.vm.device.VirtualDeviceSpec(operation=operation, device=device)])
    with pytest.raises(vim.fault.InvalidPowerState):
        vm_named(api, "on-01").UnregisterVM()


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ({"numCPUs": 2}, vim.fault.CpuHotPlugNotSupported),
        ({"memoryMB": 1024}, vim.fault.MemoryHotPlugNotSupported),
        ({"memoryMB": 256}, vim.fault.MemoryHotPlugNotSupported),
        ({"firmware": "bios"}, vim.fault.InvalidPowerState),
        ({"uuid": "564d0000-0000-0000-0000-000000000001"}, vim.fault.InvalidPowerState),
        ({"version": "vmx-20"}, vim.fault.InvalidPowerState),
        ({"guestId": "otherGuest64"}, vim.fault.InvalidPowerState),
        ({"cpuHotAddEnabled": True}, vim.fault.InvalidPowerState),
        ({"memoryHotAddEnabled": True}, vim.fault.InvalidPowerState),
        ({"bootOptions": vim.vm.BootOptions(efiSecureBootEnabled=True)}, vim.fault.InvalidPowerState),
    ],
)
def test_a_running_vm_keeps_its_hardware(api: Any, spec: dict[str, Any], fault: type[Exception]) -> None:
    vm = vm_named(api, "on-01")
    with pytest.raises(fault):
        reconfigure(vm, **spec)


def test_what_a_running_vm_may_change_and_what_hot_add_lets_it(api: Any) -> None:
    vm = vm_named(api, "on-01")
    reconfigure(vm, annotation="a", numCPUs=1, memoryMB=512, firmware="efi", uuid=vm.config.uuid)
    wait(vm.PowerOffVM_Task())
    reconfigure(vm, cpuHotAddEnabled=True, memoryHotAddEnabled=True)
    wait(vm.PowerOnVM_Task())
    reconfigure(vm, numCPUs=2, memoryMB=1024)
    with pytest.raises(vim.fault.CpuHotPlugNotSupported):
        reconfigure(vm, numCPUs=1)
    with pytest.raises(vim.fault.MemoryHotPlugNotSupported):
        reconfigure(vm, memoryMB=512)
    wait(vm.PowerOffVM_Task())
    reconfigure(vm, cpuHotAddEnabled=False, memoryHotAddEnabled=False, numCPUs=1, memoryMB=512)
    wait(vm.PowerOnVM_Task())


def test_a_disk_does_not_grow_under_a_snapshot(api: Any) -> None:
    for name, fault, text in (
        ("off-01", vim.fault.InvalidDeviceOperation, "Disks with parents cannot be expanded"),
        ("on-01", vim.fault.GenericVmConfigFault, "Hot-extend is currently supported only for"),
    ):
        vm = vm_named(api, name)
        wait(vm.CreateSnapshot_Task(name="s", description="", memory=False, quiesce=False))
        disk = first_disk(vm)
        disk.capacityInKB = 2048
        disk.capacityInBytes = 2 * MIB
        with pytest.raises(fault) as caught:
            reconfigure(vm, deviceChange=[vim.vm.device.VirtualDeviceSpec(operation="edit", device=disk)])
        assert text in "".join(str(part.message) for part in caught.value.faultMessage)
        wait(vm.RemoveAllSnapshots_Task())


def test_labels_are_vspheres_whatever_the_client_writes(api: Any) -> None:
    vm = vm_named(api, "off-01")
    labels = {d.deviceInfo.label for d in vm.config.hardware.device}
    assert labels >= {"Hard disk 1", "Network adapter 1", "CD/DVD drive 1", "SCSI controller 0", "IDE 0", "IDE 1"}
    network = next(d for d in vm.config.hardware.device if d.deviceInfo.label == "Network adapter 1").backing
    nic = vim.vm.device.VirtualVmxnet3(key=-1, backing=network, deviceInfo=vim.Description(label="mine", summary=""))
    scsi = vim.vm.device.ParaVirtualSCSIController(key=-2, busNumber=1, sharedBus="noSharing")
    add = [vim.vm.device.VirtualDeviceSpec(operation="add", device=device) for device in (nic, scsi)]
    reconfigure(vm, deviceChange=[*add, new_disk(-2, 0), new_disk(1000, 1)])
    new = {d.deviceInfo.label for d in vm.config.hardware.device} - labels
    assert new == {"Network adapter 2", "SCSI controller 1", "Hard disk 2", "Hard disk 3"}


def test_filters_on_leaves_are_told_when_a_whole_structure_changes(vcenter: Lab, api: Any) -> None:
    vm = vm_named(api, "on-01")
    paths = [
        "guest.ipAddress",
        "guest.toolsRunningStatus",
        "snapshot.currentSnapshot",
        "config.annotation",
        "layoutEx.timestamp",
    ]
    collector = api.content.propertyCollector.CreatePropertyCollector()
    spec = vmodl.query.PropertyCollector.FilterSpec(
        objectSet=[vmodl.query.PropertyCollector.ObjectSpec(obj=vm)],
        propSet=[vmodl.query.PropertyCollector.PropertySpec(type=vim.VirtualMachine, pathSet=paths)],
    )
    collector.CreateFilter(spec, partialUpdates=False)
    version = collector.WaitForUpdatesEx("").version

    def told(do: Callable[[], Any], wanted: str) -> Any:
        """The change of one leaf that follows an action."""
        nonlocal version
        worker = threading.Thread(target=do)
        worker.start()
        try:
            for _ in range(20):
                options = vmodl.query.PropertyCollector.WaitOptions(maxWaitSeconds=5)
                update = collector.WaitForUpdatesEx(version, options)
                if update is None:
                    break
                version = update.version
                for changes in update.filterSet:
                    for change in (c for o in changes.objectSet for c in o.changeSet):
                        if change.name == wanted:
                            return change
        finally:
            worker.join()
        pytest.fail(f"nothing was told of {wanted}")

    try:
        change = told(lambda: vcenter.set_tools("prod", "on-01", "notRunning"), "guest.toolsRunningStatus")
        assert change.val == "guestToolsNotRunning"
        change = told(lambda: vcenter.set_tools("prod", "on-01", "running"), "guest.ipAddress")
        assert change.val.startswith("10.")
        change = told(lambda: vm.CreateSnapshot_Task("s", "", False, False), "snapshot.currentSnapshot")
        assert isinstance(change.val, vim.vm.Snapshot)
        change = told(lambda: vm.RemoveAllSnapshots_Task(), "snapshot.currentSnapshot")
        assert change.val is None
        assert vm.snapshot is None
        assert told(lambda: vm.RefreshStorageInfo(), "layoutEx.timestamp").val is not None
    finally:
        collector.DestroyPropertyCollector()
