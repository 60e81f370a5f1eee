"""Files of VMs: whose they are, where they go, and what stands on them (docs/lab.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from tests.support import plain_api
from tests.support.plain_api import disk_path, vm_named, wait
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

GRAIN = 65536
CAPACITY = MIB + 512


def off(name: str, **more: Any) -> VmSpec:
    disk = DiskSpec(CAPACITY, content="random")
    return VmSpec(name, disks=(disk,), power="poweredOff", tools="notRunning", **more)


SPEC = LabSpec.of_vms(
    off("plain-01"),
    off("again-01", cbt=True),
    off("base-01"),
    off("tree-01"),
    off("spread-01"),
    off("lost-01", cbt=True),
)


@pytest.fixture(scope="module")
def vcenter(start_shared_lab: Callable[[LabSpec], Lab]) -> Lab:
    lab = start_shared_lab(SPEC)
    lab.set("nasty=off")  # change tracking tells what changed, and only that
    return lab


@pytest.fixture
def api(vcenter: Lab) -> Iterator[Any]:
    with plain_api.session(vcenter) as instance:
        yield instance


def snapshot(vm: Any, name: str) -> Any:
    return wait(vm.CreateSnapshot_Task(name=name, description="", memory=False, quiesce=False))


def disks_of(config: Any) -> list[Any]:
    return [d for d in config.hardware.device if isinstance(d, vim.vm.device.VirtualDisk)]


def datastore(vm: Any, name: str) -> Any:
    (found,) = [one for one in vm.runtime.host.datastore if one.name == name]
    return found


def linked(vm: Any, of: Any, name: str, *, power_on: bool = False) -> Any:
    place = vim.vm.RelocateSpec(diskMoveType="createNewChildDiskBacking", pool=vm.resourcePool)
    return wait(vm.CloneVM_Task(vm.parent, name, vim.vm.CloneSpec(location=place, snapshot=of, powerOn=power_on)))


def content(vcenter: Lab, name: str, out: Path, index: int = 0, of: str | None = None) -> bytes:
    return vcenter.export("prod", name, index, out / "out.img", of).read_bytes()


def in_datastore(vcenter: Lab, path: str) -> Path:
    store, _, rest = path[1:].partition("] ")
    return vcenter.folder / "prod" / "datastores" / store / rest


def test_destroying_a_vm_takes_its_own_files_and_no_strangers(vcenter: Lab, api: Any) -> None:
    vm = vm_named(api, "plain-01")
    snapshot(vm, "s")
    folder = in_datastore(vcenter, vm.config.files.vmPathName).parent
    own = {path.name for path in folder.iterdir()}
    for name in ("failover.json", "stranger.vmdk", "stranger-flat.vmdk"):
        (folder / name).write_text("not that VM's")
    listed = {file.name.rpartition("/")[2] for file in vm.layoutEx.file}
    assert listed <= own  # and nothing of the lab's own bookkeeping
    assert {"plain-01.vmx", "plain-01.nvram", "plain-01.vmdk", "plain-01-000001.vmdk"} <= listed
    wait(vm.Destroy_Task())
    assert {path.name for path in folder.iterdir()} == {"failover.json", "stranger.vmdk", "stranger-flat.vmdk"}


def test_layout_ex_tells_chains_from_the_base_up_and_what_they_take(vcenter: Lab, api: Any) -> None:
    vm = vm_named(api, "tree-01")
    first, second = snapshot(vm, "one"), snapshot(vm, "two")
    vcenter.control("prod").put("/disk/write", b"x" * 512, vm="tree-01", index=0, offset=0)
    vm.RefreshStorageInfo()
    names = {file.key: file.name.rpartition("/")[2] for file in vm.layoutEx.file}
    kinds = {names[file.key]: file.type for file in vm.layoutEx.file}
    sizes = {names[file.key]: file.size for file in vm.layoutEx.file}
    chain = [[names[key] for key in unit.fileKey] for unit in vm.layoutEx.disk[0].chain]
    assert chain == [
        ["tree-01.vmdk", "tree-01-flat.vmdk"],
        ["tree-01-000001.vmdk", "tree-01-000001-flat.vmdk"],
        ["tree-01-000002.vmdk", "tree-01-000002-flat.vmdk"],
    ]
    assert kinds["tree-01.vmx"] == "config"
    assert kinds["tree-01-flat.vmdk"] == "diskExtent"
    assert sizes["tree-01-000002-flat.vmdk"] == GRAIN
    of = {layout.key: layout for layout in vm.layoutEx.snapshot}
    assert set(of) == {first, second}
    assert [len(of[one].disk[0].chain) for one in (first, second)] == [1, 2]
    assert all(names[of[one].dataKey].endswith(".vmsn") for one in (first, second))
    assert {ds.name for ds in vm.datastore} == {"prod-vmfs-01"}


def test_a_registered_vm_is_what_it_was(vcenter: Lab, api: Any, tmp_path: Path) -> None:
    vm = vm_named(api, "again-01")
    options = [vim.option.OptionValue(key="vrepl.source", value='a "b" \\ c')]
    wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(numCPUs=3, annotation="two\nlines", extraConfig=options)))
    one = snapshot(vm, "one")
    since = str(disks_of(one.config)[0].backing.changeId)
    vcenter.control("prod").put("/disk/write", b"y" * 512, vm="again-01", index=0, offset=GRAIN)
    snapshot(vm, "two")
    before = content(vcenter, "again-01", tmp_path), content(vcenter, "again-01", tmp_path, of="one")
    was, path, folder, pool = vm.config, vm.config.files.vmPathName, vm.parent, vm.resourcePool
    vm.UnregisterVM()
    text = in_datastore(vcenter, path).read_text()
    assert f'vc.uuid = "{was.instanceUuid}"' in text
    assert 'displayName = "again-01"' in text
    again = wait(folder.RegisterVM_Task(path=path, asTemplate=False, pool=pool))
    now = again.config
    for name in (
        "name",
        "uuid",
        "instanceUuid",
        "annotation",
        "version",
        "firmware",
        "guestId",
        "changeTrackingEnabled",
    ):
        assert getattr(now, name) == getattr(was, name), name
    assert now.hardware.numCPU == 3
    assert {o.key: o.value for o in now.extraConfig} == {o.key: o.value for o in was.extraConfig}
    assert [d.key for d in now.hardware.device] == [d.key for d in was.hardware.device]
    assert [d.backing.fileName for d in disks_of(now)] == [d.backing.fileName for d in disks_of(was)]
    root = again.snapshot.rootSnapshotList[0]
    assert [root.name, root.childSnapshotList[0].name] == ["one", "two"]
    assert again.snapshot.currentSnapshot == root.childSnapshotList[0].snapshot
    assert (content(vcenter, "again-01", tmp_path), content(vcenter, "again-01", tmp_path, of="one")) == before
    reply = again.QueryChangedDiskAreas(root.childSnapshotList[0].snapshot, disks_of(now)[0].key, 0, since)
    assert [(area.start, area.length) for area in reply.changedArea] == [(GRAIN, GRAIN)]
    wait(root.childSnapshotList[0].snapshot.RevertToSnapshot_Task())
    wait(again.RemoveAllSnapshots_Task())
    assert content(vcenter, "again-01", tmp_path) == before[0]
    with pytest.raises(vim.fault.DuplicateName):
        wait(folder.RegisterVM_Task(path=path, asTemplate=False, pool=pool))


def test_a_vm_whose_folder_was_moved_is_registered_from_there(vcenter: Lab, api: Any, tmp_path: Path) -> None:
    vm = vm_named(api, "again-01")
    before = content(vcenter, "again-01", tmp_path)
    folder, pool, datacenter = vm.parent, vm.resourcePool, vm.parent.parent
    vm.UnregisterVM()
    files = api.content.fileManager
    wait(files.MoveDatastoreFile_Task("[prod-vmfs-01] again-01", datacenter, "[prod-vmfs-02] moved"))
    again = wait(folder.RegisterVM_Task(path="[prod-vmfs-02] moved/again-01.vmx", asTemplate=False, pool=pool))
    assert again.name == "again-01"
    assert disk_path(again.config) == "[prod-vmfs-02] moved/again-01.vmdk"
    assert content(vcenter, "again-01", tmp_path) == before
    assert [ds.name for ds in again.datastore] == ["prod-vmfs-02"]


def test_a_new_disk_over_another_vms_disk_shows_it(vcenter: Lab, api: Any, tmp_path: Path) -> None:
    owner, user = vm_named(api, "base-01"), vm_named(api, "spread-01")
    parent = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName=disk_path(owner.config), diskMode="persistent")
    backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
        fileName="[prod-vmfs-01] spread-01/child.vmdk", diskMode="persistent", parent=parent
    )
    disk = vim.vm.device.VirtualDisk(key=-1, controllerKey=1000, unitNumber=3, backing=backing, capacityInKB=1)
    change = vim.vm.device.VirtualDeviceSpec(operation="add", fileOperation="create", device=disk)
    wait(user.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))
    made = disks_of(user.config)[1]
    assert made.capacityInBytes == CAPACITY
    assert made.backing.parent.fileName == disk_path(owner.config)
    shown = content(vcenter, "base-01", tmp_path)
    assert content(vcenter, "spread-01", tmp_path, index=1) == shown
    vcenter.control("prod").put("/disk/write", b"z" * 512, vm="spread-01", index=1, offset=0)
    assert content(vcenter, "base-01", tmp_path) == shown
    # Promoted, it stands alone.
    wait(user.PromoteDisks_Task(True, [made]))
    assert disks_of(user.config)[1].backing.parent is None
    wait(owner.Destroy_Task())
    assert content(vcenter, "spread-01", tmp_path, index=1) == b"z" * 512 + shown[512:]


def test_storage_vmotion_moves_every_datastore_and_makes_a_linked_clone_full(
    vcenter: Lab, api: Any, tmp_path: Path
) -> None:
    source = vm_named(api, "tree-01")
    clone = linked(source, source.snapshot.rootSnapshotList[0].snapshot, "clone-01")
    shown = content(vcenter, "clone-01", tmp_path)
    assert disks_of(clone.config)[0].backing.parent is not None
    second = vim.vm.device.VirtualDisk(
        key=-1,
        controllerKey=1000,
        unitNumber=4,
        capacityInKB=1024,
        backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName="[prod-nfs-01]", diskMode="persistent"),
    )
    change = vim.vm.device.VirtualDeviceSpec(operation="add", fileOperation="create", device=second)
    wait(clone.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))
    assert {ds.name for ds in clone.datastore} == {"prod-vmfs-01", "prod-nfs-01"}
    snapshot(clone, "mine")
    home = in_datastore(vcenter, clone.config.files.vmPathName).parent
    (home / "stranger").write_text("stays")
    wait(clone.RelocateVM_Task(vim.vm.RelocateSpec(datastore=datastore(clone, "prod-vmfs-02"))))
    backings = [disk.backing for disk in disks_of(clone.config)]
    chain = []
    for backing in backings:
        while backing is not None:
            chain.append(backing.fileName)
            backing = backing.parent
    assert len(chain) == 4  # each disk: the frozen link and the leaf; the source's links are left
    assert all(name.startswith("[prod-vmfs-02] clone-01/") for name in chain)
    assert {ds.name for ds in clone.datastore} == {"prod-vmfs-02"}
    assert {file.name.partition("]")[0] for file in clone.layoutEx.file} == {"[prod-vmfs-02"}
    assert content(vcenter, "clone-01", tmp_path) == shown
    assert [path.name for path in home.iterdir()] == ["stranger"]
    # One disk alone, by its locator.
    locator = vim.vm.RelocateSpec.DiskLocator(
        diskId=disks_of(clone.config)[1].key, datastore=datastore(clone, "prod-vmfs-01")
    )
    wait(clone.RelocateVM_Task(vim.vm.RelocateSpec(disk=[locator])))
    assert [d.backing.fileName.partition("]")[0] for d in disks_of(clone.config)] == ["[prod-vmfs-02", "[prod-vmfs-01"]
    wait(clone.RemoveAllSnapshots_Task())
    assert content(vcenter, "clone-01", tmp_path) == shown
    wait(clone.Destroy_Task())


def test_removing_the_snapshot_under_a_linked_clone_ruins_it(vcenter: Lab, api: Any, tmp_path: Path) -> None:
    vm = vm_named(api, "tree-01")
    root = vm.snapshot.rootSnapshotList[0]
    old, new = root.snapshot, root.childSnapshotList[0].snapshot
    on_old, on_new = linked(vm, old, "on-old"), linked(vm, new, "on-new")
    running = linked(vm, new, "running", power_on=True)
    shown = content(vcenter, "tree-01", tmp_path)
    wait(new.RemoveSnapshot_Task(False))
    assert vm.runtime.consolidationNeeded  # a clone that runs keeps its parents from being merged
    wait(running.PowerOffVM_Task())
    wait(vm.ConsolidateVMDisks_Task())
    for clone, ruined in ((on_new, True), (running, True), (on_old, False)):
        if ruined:
            with pytest.raises(vim.fault.GenericVmConfigFault, match="parent virtual disk has been modified"):
                wait(clone.PowerOnVM_Task())
        else:
            wait(clone.PowerOnVM_Task())
            wait(clone.PowerOffVM_Task())
    assert content(vcenter, "tree-01", tmp_path) == shown
    vcenter.set("clone_guard=on")
    try:
        before = content(vcenter, "on-old", tmp_path)
        wait(old.RemoveSnapshot_Task(False))
        wait(on_old.PowerOnVM_Task())
        assert content(vcenter, "on-old", tmp_path) == before
        wait(on_old.PowerOffVM_Task())
    finally:
        vcenter.set("clone_guard=off")


def test_power_loss_loses_what_was_tracked_and_only_power_on_tells(vcenter: Lab, api: Any) -> None:
    vm = vm_named(api, "lost-01")

    def areas(since: str) -> list[int]:
        reply = vm.QueryChangedDiskAreas(None, disks_of(vm.config)[0].key, 0, since)
        return [area.start for area in reply.changedArea]

    def write(offset: int) -> None:
        vcenter.control("prod").put("/disk/write", b"x" * 512, vm="lost-01", index=0, offset=offset)

    first = snapshot(vm, "one")
    since = str(disks_of(first.config)[0].backing.changeId)
    wait(vm.PowerOnVM_Task())
    write(0)
    second = snapshot(vm, "two")
    write(5 * GRAIN)
    wait(second.RemoveSnapshot_Task(False))
    wait(first.RemoveSnapshot_Task(False))
    vcenter.lose_power("prod", "lost-01")
    assert vm.runtime.powerState == "poweredOff"
    assert areas(since) == [0]  # the write after the last snapshot is not known, and no change ID says so
    assert vm.runtime.cleanPowerOff is False
    wait(vm.PowerOnVM_Task())
    assert vm.runtime.cleanPowerOff is None
    wait(vm.PowerOffVM_Task())
    assert vm.runtime.cleanPowerOff is True
    with pytest.raises(vim.fault.FileFault):
        areas(since)


def test_disks_of_no_vm_are_made_copied_grown_and_attached(vcenter: Lab, api: Any, tmp_path: Path) -> None:
    vm = vm_named(api, "spread-01")
    disks, datacenter = api.content.virtualDiskManager, vm.parent.parent
    path, copy = "[prod-vmfs-01] spread-01/free.vmdk", "[prod-vmfs-01] spread-01/copied.vmdk"
    spec = vim.VirtualDiskManager.FileBackedVirtualDiskSpec(capacityKb=1024, diskType="thin", adapterType="lsiLogic")
    wait(disks.CreateVirtualDisk_Task(path, datacenter, spec))
    wait(disks.CopyVirtualDisk_Task(disk_path(vm.config), datacenter, copy))
    wait(disks.ExtendVirtualDisk_Task(path, datacenter, 2048))
    changes = []
    for unit, name in ((8, path), (9, copy)):
        backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName=name, diskMode="persistent")
        disk = vim.vm.device.VirtualDisk(key=-unit, controllerKey=1000, unitNumber=unit, backing=backing)
        changes.append(vim.vm.device.VirtualDeviceSpec(operation="add", device=disk))
    wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=changes)))
    made, copied = disks_of(vm.config)[-2:]
    assert made.capacityInBytes == 2 * MIB
    assert copied.capacityInBytes == CAPACITY
    index = len(disks_of(vm.config)) - 1
    assert content(vcenter, "spread-01", tmp_path, index) == content(vcenter, "spread-01", tmp_path)


@pytest.mark.parametrize(
    "path",
    [
        "[prod-vmfs-01]",
        "[prod-vmfs-01] ",
        "[prod-vmfs-01] .",
        "[prod-vmfs-01] ../prod-vmfs-02",
        "[prod-vmfs-01] a/../..",
    ],
)
def test_no_file_operation_leaves_its_datastore_or_takes_all_of_it(vcenter: Lab, api: Any, path: str) -> None:
    vm = vm_named(api, "tree-01")
    files, disks, datacenter = api.content.fileManager, api.content.virtualDiskManager, vm.parent.parent
    there = sorted(str(one) for one in (vcenter.folder / "prod" / "datastores").rglob("*"))
    with pytest.raises(vim.fault.FileFault if ".." not in path else vim.fault.InvalidDatastorePath):
        wait(files.DeleteDatastoreFile_Task(path, datacenter))
    with pytest.raises((vim.fault.FileFault, vim.fault.InvalidDatastorePath)):
        wait(files.MoveDatastoreFile_Task(path, datacenter, "[prod-vmfs-02] all"))
    with pytest.raises((vim.fault.FileFault, vim.fault.InvalidDatastorePath, vmodl.fault.InvalidArgument)):
        wait(
            disks.CopyVirtualDisk_Task(disk_path(vm.config), datacenter, path + "/copy.vmdk" if ".." in path else path)
        )
    assert sorted(str(one) for one in (vcenter.folder / "prod" / "datastores").rglob("*")) == there


def test_a_vm_that_could_not_be_made_leaves_no_files(vcenter: Lab, api: Any) -> None:
    vm = vm_named(api, "tree-01")
    bad = vim.vm.device.VirtualDeviceSpec(
        operation="add",
        device=vim.vm.device.VirtualE1000(
            key=-1,
            backing=vim.vm.device.VirtualEthernetCard.DistributedVirtualPortBackingInfo(
                port=vim.dvs.PortConnection(switchUuid="none", portgroupKey="none")
            ),
        ),
    )
    spec = vim.vm.ConfigSpec(name="half-01", files=vim.vm.FileInfo(vmPathName="[prod-vmfs-01]"), deviceChange=[bad])
    with pytest.raises(vmodl.MethodFault):
        wait(vm.parent.CreateVM_Task(spec, vm.resourcePool))
    assert not (vcenter.folder / "prod" / "datastores" / "prod-vmfs-01" / "half-01").exists()
    with pytest.raises(vmodl.fault.NotSupported):
        wait(vm.parent.parent.hostFolder.CreateVM_Task(spec, vm.resourcePool))


FOREIGN = """.encoding = "UTF-8"
config.version = "8"
virtualHW.version = "19"
displayName = "foreign-01"
guestOS = "debian12-64"
annotation = "two|0Alines"
uuid.bios = "56 4d 00 11 22 33 44 55-66 77 88 99 aa bb cc dd"
memSize = "2048"
numvcpus = "2"
scsi0.present = "TRUE"
scsi0.virtualDev = "pvscsi"
scsi0:1.present = "TRUE"
scsi0:1.fileName = "disk.vmdk"
ethernet0.present = "TRUE"
ethernet0.networkName = "isolated"
vrepl.replica = "yes"
"""


def test_a_vmx_that_somebody_else_wrote_is_the_vm_that_it_describes(vcenter: Lab, api: Any, tmp_path: Path) -> None:
    vm = vm_named(api, "tree-01")
    datacenter = vm.parent.parent
    api.content.fileManager.MakeDirectory("[prod-vmfs-01] foreign", datacenter, False)
    copy = "[prod-vmfs-01] foreign/disk.vmdk"
    wait(api.content.virtualDiskManager.CopyVirtualDisk_Task(disk_path(vm.config), datacenter, copy))
    (in_datastore(vcenter, copy).parent / "foreign.vmx").write_text(FOREIGN)
    path = "[prod-vmfs-01] foreign/foreign.vmx"
    made = wait(vm.parent.RegisterVM_Task(path=path, asTemplate=False, pool=vm.resourcePool))
    config = made.config
    assert (made.name, config.annotation, config.version) == ("foreign-01", "two\nlines", "vmx-19")
    assert (config.hardware.numCPU, config.hardware.memoryMB, config.guestId) == (2, 2048, "debian12_64Guest")
    assert config.uuid == "564d0011-2233-4455-6677-8899aabbccdd"
    assert [(d.key, d.unitNumber, d.backing.fileName) for d in disks_of(config)] == [(2001, 1, copy)]
    assert [network.name for network in made.network] == ["isolated"]
    assert "vrepl.replica" in {option.key for option in config.extraConfig}
    assert content(vcenter, "foreign-01", tmp_path) == content(vcenter, "tree-01", tmp_path)
    wait(made.PowerOnVM_Task())
    wait(made.PowerOffVM_Task())
    # Without what the lab adds for itself, its own file is as good as another's.
    made.UnregisterVM()
    file = in_datastore(vcenter, path)
    lines = [line for line in file.read_text().splitlines() if not line.startswith("lab.state")]
    file.write_text("\n".join(lines))
    again = wait(vm.parent.RegisterVM_Task(path=path, asTemplate=False, pool=vm.resourcePool))
    assert (again.name, again.config.uuid, again.config.annotation) == ("foreign-01", config.uuid, "two\nlines")
    assert [d.backing.fileName for d in disks_of(again.config)] == [copy]
