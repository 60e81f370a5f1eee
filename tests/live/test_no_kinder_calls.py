"""Calls that no sane client makes: each ends with a fault, and the simulated vCenter goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from tests.support import plain_api
from tests.support.plain_api import vm_named, wait
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

Device = vim.vm.device
Spec = vim.vm.ConfigSpec
SPEC = LabSpec.of_vms(
    VmSpec("on-01", disks=(DiskSpec(MIB, content="empty"),)),
    VmSpec("off-01", disks=(DiskSpec(MIB, content="empty"),), power="poweredOff", tools="notRunning"),
)


class Calls:
    """What the rows of the table are made of."""

    def __init__(self, api: Any) -> None:
        self.content = api.content
        self.on, self.off = vm_named(api, "on-01"), vm_named(api, "off-01")
        self.folder, self.datacenter = self.off.parent, self.off.parent.parent
        self.pool = self.on.resourcePool
        self.gone = wait(self.off.CreateSnapshot_Task(name="s", memory=False, quiesce=False))
        wait(self.gone.RemoveSnapshot_Task(False))

    def device(self, device: Any, operation: str = "add", file_operation: str | None = None) -> Any:
        change = Device.VirtualDeviceSpec(operation=operation, fileOperation=file_operation, device=device)
        return self.off.ReconfigVM_Task(Spec(deviceChange=[change]))

    def disk(self, file: str, **backing: Any) -> Any:
        made = Device.VirtualDisk.FlatVer2BackingInfo(fileName=file, diskMode="persistent", **backing)
        disk = Device.VirtualDisk(key=-1, controllerKey=1000, unitNumber=3, capacityInKB=1024, backing=made)
        return self.device(disk, file_operation="create")

    def clone(self, folder: Any, name: str, **spec: Any) -> Any:
        return self.off.CloneVM_Task(folder, name, vim.vm.CloneSpec(location=vim.vm.RelocateSpec(), **spec))

    def create(self, folder: Any, path: str | None) -> Any:
        files = vim.vm.FileInfo(vmPathName=path) if path is not None else None
        return folder.CreateVM_Task(Spec(name="odd", files=files), self.pool)


Call = Callable[[Calls], Any]
ODD: dict[str, Call] = {
    "a disk without a backing": lambda c: c.device(Device.VirtualDisk(key=-1, controllerKey=1000, unitNumber=3)),
    "a disk on no datastore": lambda c: c.disk("[none] x/y.vmdk"),
    "a disk in no folder": lambda c: c.disk("[prod-vmfs-01] none/y.vmdk"),
    "a disk outside of its datastore": lambda c: c.disk("[prod-vmfs-01] ../x.vmdk"),
    "a disk over a disk that is not there": lambda c: c.disk(
        "[prod-vmfs-01] off-01/y.vmdk",
        parent=Device.VirtualDisk.FlatVer2BackingInfo(fileName="[prod-vmfs-01] none.vmdk", diskMode="persistent"),
    ),
    "a sparse disk of VMware Workstation": lambda c: c.device(
        Device.VirtualDisk(
            key=-1,
            controllerKey=1000,
            unitNumber=3,
            capacityInKB=1024,
            backing=Device.VirtualDisk.SparseVer2BackingInfo(fileName="[prod-vmfs-01]", diskMode="persistent"),
        ),
        file_operation="create",
    ),
    "an adapter on no network": lambda c: c.device(
        Device.VirtualE1000(key=-1, backing=Device.VirtualEthernetCard.NetworkBackingInfo(deviceName="none"))
    ),
    "an adapter on no distributed switch": lambda c: c.device(
        Device.VirtualE1000(
            key=-1,
            backing=Device.VirtualEthernetCard.DistributedVirtualPortBackingInfo(
                port=vim.dvs.PortConnection(switchUuid="none", portgroupKey="none")
            ),
        )
    ),
    "a device that is not there": lambda c: c.device(Device.VirtualE1000(key=9999), "remove"),
    "a VM without files": lambda c: c.create(c.folder, None),
    "a VM on no datastore": lambda c: c.create(c.folder, "[none]"),
    "a VM outside of its datastore": lambda c: c.create(c.folder, "[prod-vmfs-01] ../../x/x.vmx"),
    "a VM in a folder of hosts": lambda c: c.create(c.datacenter.hostFolder, "[prod-vmfs-01]"),
    "a clone into a folder of hosts": lambda c: c.clone(c.datacenter.hostFolder, "odd"),
    "a clone with a taken name": lambda c: c.clone(c.folder, "on-01"),
    "a clone of a snapshot that is gone": lambda c: c.clone(c.folder, "odd", snapshot=c.gone),
    "a relocation of no disk": lambda c: c.off.RelocateVM_Task(
        vim.vm.RelocateSpec(disk=[vim.vm.RelocateSpec.DiskLocator(diskId=9, datastore=c.on.datastore[0])])
    ),
    "a promotion of no disk": lambda c: c.off.PromoteDisks_Task(True, [Device.VirtualDisk(key=77, capacityInKB=1)]),
    "a snapshot without a name": lambda c: c.off.CreateSnapshot_Task(name="", memory=False, quiesce=False),
    "back to no snapshot": lambda c: c.off.RevertToCurrentSnapshot_Task(),
    "removing a snapshot twice": lambda c: c.gone.RemoveSnapshot_Task(False),
    "back to a snapshot that is gone": lambda c: c.gone.RevertToSnapshot_Task(),
    "renaming a snapshot that is gone": lambda c: c.gone.RenameSnapshot(name="x"),
    "registering nothing": lambda c: c.folder.RegisterVM_Task("junk", None, False, c.pool),
    "registering what is not there": lambda c: c.folder.RegisterVM_Task("[prod-vmfs-01] n/n.vmx", None, False, c.pool),
    "registering without a pool": lambda c: c.folder.RegisterVM_Task("[prod-vmfs-01] n/n.vmx", None, False, None),
    "registering what is registered": lambda c: c.folder.RegisterVM_Task(
        "[prod-vmfs-01] off-01/off-01.vmx", "again", False, c.pool
    ),
    "changes of a running disk": lambda c: c.on.QueryChangedDiskAreas(None, 2000, 0, "*"),
    "changes of no disk": lambda c: c.off.QueryChangedDiskAreas(None, 1, 0, "*"),
    "deleting no path": lambda c: c.content.fileManager.DeleteDatastoreFile_Task("junk"),
    "deleting without a datacenter": lambda c: c.content.fileManager.DeleteDatastoreFile_Task("[prod-vmfs-01] x"),
    "deleting no disk": lambda c: c.content.virtualDiskManager.DeleteVirtualDisk_Task("junk"),
    "browsing no datastore": lambda c: c.on.datastore[0].browser.SearchDatastore_Task("[none] "),
    "unregistering a running VM": lambda c: c.on.UnregisterVM(),
    "destroying a running VM": lambda c: c.on.Destroy_Task(),
    "destroying a folder with a running VM": lambda c: c.folder.Destroy_Task(),
    "destroying a datastore in use": lambda c: c.on.datastore[0].Destroy_Task(),
    "a property that is not there": lambda c: c.content.propertyCollector.RetrieveContents(
        [
            vmodl.query.PropertyCollector.FilterSpec(
                objectSet=[vmodl.query.PropertyCollector.ObjectSpec(obj=c.on)],
                propSet=[vmodl.query.PropertyCollector.PropertySpec(type=vim.VirtualMachine, pathSet=["config.none"])],
            )
        ]
    ),
}


@pytest.fixture(scope="module")
def vcenter(start_shared_lab: Callable[[LabSpec], Lab]) -> Lab:
    return start_shared_lab(SPEC)


def test_odd_calls_end_with_faults_and_harm_nothing(vcenter: Lab) -> None:
    with plain_api.session(vcenter) as api:
        calls = Calls(api)
        before = {vm.name: [d.key for d in vm.config.hardware.device] for vm in (calls.on, calls.off)}
        taken, broken = [], []
        for name, call in ODD.items():
            try:
                answer = call(calls)
                if isinstance(answer, vim.Task):
                    answer = wait(answer)
                taken.append(f"{name}: {answer}")
            except vmodl.MethodFault as fault:
                if isinstance(fault, vmodl.fault.SystemError):
                    broken.append(f"{name}: {fault}")
        assert (taken, broken) == ([], [])
        assert before == {vm.name: [d.key for d in vm.config.hardware.device] for vm in (calls.on, calls.off)}
        wait(calls.off.PowerOnVM_Task())
    log = (vcenter.folder / "prod" / "sim.log").read_text()
    assert "goroutine" not in log, log[-3000:]
