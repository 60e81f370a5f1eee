"""What changed behind vrepl's back, on either side: each thing is named, and handled or refused with a hint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from tests.support import plain_api
from tests.support.plain_api import vm_named, wait
from tests.support.vrepl_runs import GRAIN, Runs, kinds, moved
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

SPEC = LabSpec.of_vms(
    VmSpec("web-01", disks=(DiskSpec(4 * MIB, content="random"), DiskSpec(2 * MIB, content="random"))),
    job_vms=["web-01"],
)


@pytest.fixture
def runs(start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> Runs:
    """After a first run."""
    made = Runs(start_lab(SPEC), tmp_path)
    made.set_in_job("retention = { last = 5 }")
    made.replicate()
    return made


@pytest.fixture
def prod(runs: Runs) -> Iterator[Any]:
    with plain_api.session(runs.lab) as instance:
        yield instance


@pytest.fixture
def dr(runs: Runs) -> Iterator[Any]:
    with plain_api.session(runs.lab, "dr") as instance:
        yield instance


def virtual_disks(vm: Any) -> list[Any]:
    return [one for one in vm.config.hardware.device if isinstance(one, vim.vm.device.VirtualDisk)]


def reconfigure(vm: Any, *changes: Any, **config: Any) -> None:
    wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=list(changes), **config)))


def change(device: Any, operation: str, file_operation: str | None = None) -> Any:
    return vim.vm.device.VirtualDeviceSpec(device=device, operation=operation, fileOperation=file_operation)


def new_disk(vm: Any, capacity: int) -> Any:
    like = virtual_disks(vm)[0]
    backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(diskMode="persistent", thinProvisioned=True, fileName="")
    return vim.vm.device.VirtualDisk(
        key=-1,
        controllerKey=like.controllerKey,
        unitNumber=max(disk.unitNumber for disk in virtual_disks(vm)) + 2,
        capacityInBytes=capacity,
        capacityInKB=capacity // 1024,
        backing=backing,
    )


def names_in(vm: Any) -> list[str]:
    def walk(tree: Any) -> list[str]:
        return [name for node in tree for name in (node.name, *walk(node.childSnapshotList))]

    return walk(vm.snapshot.rootSnapshotList) if vm.snapshot else []


def assert_replicated(runs: Runs, report: Any) -> None:
    for disk in report["disks"]:
        assert runs.restore_point(report["restore_point"], disk["index"]) == runs.source(disk["index"])


def noted(report: Any, text: str) -> bool:
    return any(text in note for note in report["notes"])


# -- at the source ----------------------------------------------------------------------------------------------------


def test_disk_added_and_removed(runs: Runs, prod: Any) -> None:
    vm = vm_named(prod, "web-01")
    reconfigure(vm, change(new_disk(vm, 3 * MIB), "add", "create"))
    runs.write(2, index=2)
    assert noted(runs.plan(), "was added")
    report = runs.replicate()
    assert kinds(report) == ["incremental", "incremental", "full"]
    assert_replicated(runs, report)
    first_disk = runs.source(0)
    reconfigure(vm, change(virtual_disks(vm)[1], "remove", "destroy"))
    assert noted(runs.plan(), "was removed from the source")
    after = runs.replicate()
    assert len(after["disks"]) == 2
    assert_replicated(runs, after)
    assert runs.restore_point(report["restore_point"], 0) == first_disk


@pytest.mark.parametrize("answer", ["refuse", "restart"])
def test_disk_resized(runs: Runs, prod: Any, answer: str) -> None:
    vm = vm_named(prod, "web-01")
    before = runs.source(1)
    [first] = runs.json("restore-points", "web-01")["restore_points"]
    disk = virtual_disks(vm)[1]
    disk.capacityInBytes, disk.capacityInKB = 3 * MIB, 3 * 1024
    reconfigure(vm, change(disk, "edit"))
    runs.set_in_job(f'on_resize = "{answer}"')
    if answer == "refuse":
        plan = runs.plan(code=1)
        assert "was resized" in plan["error"]
        assert "on_resize" in plan["hint"]
        refused = runs.replicate(code=1)
        assert "was resized" in refused["error"]
        assert names_in(vm) == []
        return
    runs.write(40, index=1)
    report = runs.replicate()
    assert (kinds(report), report["disks"][1]["bytes_moved"]) == (["incremental", "compare"], GRAIN)
    assert noted(report, "was resized")
    assert_replicated(runs, report)
    assert runs.restore_point(first["id"], 1) == before


def test_storage_vmotion_compares(runs: Runs, prod: Any) -> None:
    vm = vm_named(prod, "web-01")
    datastores = {one.name: one for one in vm.runtime.host.datastore}
    wait(vm.RelocateVM_Task(vim.vm.RelocateSpec(datastore=datastores["prod-vmfs-02"])))
    runs.write(7)
    plan = runs.plan()
    assert kinds(plan) == ["compare", "compare"]
    assert all("moved from" in disk["reason"] or "CBT was reset" in disk["reason"] for disk in plan["disks"])
    report = runs.replicate()
    assert (kinds(report), moved(report)) == (["compare", "compare"], GRAIN)
    assert_replicated(runs, report)


def test_vmotion_and_rename_change_nothing_of_what_moves(runs: Runs, prod: Any) -> None:
    vm = vm_named(prod, "web-01")
    other = next(host for host in vm.resourcePool.owner.host if host != vm.runtime.host)
    wait(vm.RelocateVM_Task(vim.vm.RelocateSpec(host=other)))
    wait(vm.Rename_Task("www-01"))
    runs.vm = "www-01"
    runs.set_in_job('vms = ["www-01"]')
    runs.write(7)
    assert noted(runs.plan(), "was renamed from web-01 to www-01")
    report = runs.replicate()
    assert (kinds(report), moved(report)) == (["incremental", "incremental"], GRAIN)
    assert report["replica"] == "web-01-replica"
    assert runs.restore_point(report["restore_point"], 0, "web-01-replica") == runs.source(0)


def test_cpu_memory_and_network_adapters_follow(runs: Runs, prod: Any, dr: Any) -> None:
    vm = vm_named(prod, "web-01")
    wait(vm.PowerOffVM_Task())
    nic = next(one for one in vm.config.hardware.device if isinstance(one, vim.vm.device.VirtualEthernetCard))
    added = vim.vm.device.VirtualE1000(
        key=-1,
        backing=vim.vm.device.VirtualEthernetCard.NetworkBackingInfo(deviceName="VM Network"),
        addressType="generated",
    )
    reconfigure(vm, change(added, "add"), numCPUs=3, memoryMB=768)
    report = runs.replicate()
    replica = vm_named(dr, "web-01-replica")
    assert (replica.config.hardware.numCPU, replica.config.hardware.memoryMB) == (3, 768)
    cards = [one for one in replica.config.hardware.device if isinstance(one, vim.vm.device.VirtualEthernetCard)]
    assert [type(card) for card in cards] == [type(nic), type(added)]
    assert kinds(report) == ["incremental", "incremental"]
    assert report["consistency"] == "powered-off"
    assert_replicated(runs, report)


def test_another_vm_with_the_name_does_not_get_the_replica(runs: Runs, prod: Any) -> None:
    vm = vm_named(prod, "web-01")
    [point] = runs.json("restore-points", "web-01")["restore_points"]
    sealed = runs.restore_point(point["id"])
    folder, pool = vm.parent, vm.resourcePool
    wait(vm.PowerOffVM_Task())
    wait(vm.Destroy_Task())
    config = vim.vm.ConfigSpec(
        name="web-01",
        guestId="otherGuest64",
        numCPUs=1,
        memoryMB=256,
        files=vim.vm.FileInfo(vmPathName="[prod-vmfs-01]"),
        deviceChange=[
            change(vim.vm.device.ParaVirtualSCSIController(key=1000, busNumber=0, sharedBus="noSharing"), "add"),
            change(
                vim.vm.device.VirtualDisk(
                    key=-2,
                    controllerKey=1000,
                    unitNumber=0,
                    capacityInKB=4096,
                    capacityInBytes=4 * MIB,
                    backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
                        diskMode="persistent", thinProvisioned=True, fileName=""
                    ),
                ),
                "add",
                "create",
            ),
        ],
    )
    wait(folder.CreateVM_Task(config=config, pool=pool))
    report = runs.replicate(code=1)
    assert "already has the replica of another VM named web-01-replica" in report["error"]
    assert "replica_name" in report["hint"]
    assert runs.restore_point(point["id"]) == sealed


def test_users_snapshots_come_and_go(runs: Runs, prod: Any) -> None:
    vm = vm_named(prod, "web-01")
    wait(vm.CreateSnapshot_Task(name="before the upgrade", description="", memory=False, quiesce=False))
    runs.write(4)
    report = runs.replicate()
    assert (kinds(report), moved(report)) == (["incremental", "incremental"], GRAIN)
    assert_replicated(runs, report)
    assert names_in(vm) == ["before the upgrade"]
    runs.write(5)
    wait(vm.RemoveAllSnapshots_Task())
    report = runs.replicate()
    assert moved(report) == GRAIN
    assert_replicated(runs, report)
    wait(vm.CreateSnapshot_Task(name="again", description="", memory=False, quiesce=False))
    before = runs.source(0)
    runs.write(6)
    runs.replicate()
    wait(vm.RevertToCurrentSnapshot_Task())
    assert runs.source(0) == before
    report = runs.replicate()
    assert report["disks"][0]["kind"] == "compare"
    assert_replicated(runs, report)
    assert names_in(vm) == ["again"]


def test_change_tracking_enabled_beside_a_snapshot_is_not_believed(runs: Runs, prod: Any) -> None:
    vm = vm_named(prod, "web-01")
    reconfigure(vm, changeTrackingEnabled=False)
    wait(vm.CreateSnapshot_Task(name="mine", description="", memory=False, quiesce=False))
    reconfigure(vm, changeTrackingEnabled=True)
    runs.write(4)
    report = runs.replicate()
    assert kinds(report) == ["compare", "compare"]
    assert noted(report, "CBT was enabled while the snapshot mine existed")
    assert_replicated(runs, report)
    runs.write(5)
    assert kinds(runs.replicate()) == ["compare", "compare"]


# -- at the target ----------------------------------------------------------------------------------------------------


def test_replica_powered_on_is_refused_and_then_reverted(runs: Runs, dr: Any) -> None:
    replica = vm_named(dr, "web-01-replica")
    wait(replica.PowerOnVM_Task())
    report = runs.replicate(code=3)
    assert (report["result"], "powered on" in report["error"]) == ("skipped", True)
    assert report["hint"]
    runs.lab.write_random("dr", "web-01-replica", 0, 0, GRAIN, "the replica ran")
    wait(replica.PowerOffVM_Task())
    runs.write(9)
    report = runs.replicate()
    assert noted(report, "is reverted to restore point"), "only a run can prove it: it reads what may have been written"
    assert (kinds(report), moved(report)) == (["incremental", "incremental"], GRAIN)
    assert_replicated(runs, report)


def test_replicas_snapshots_removed_by_hand(runs: Runs, dr: Any) -> None:
    runs.write(1)
    runs.replicate()
    runs.write(2)
    second = runs.replicate()["restore_point"]
    replica = vm_named(dr, "web-01-replica")
    oldest = replica.snapshot.rootSnapshotList[0]
    wait(oldest.snapshot.RemoveSnapshot_Task(removeChildren=False))
    runs.write(3)
    report = runs.replicate()
    assert noted(report, "gone from the replica")
    assert (kinds(report), moved(report)) == (["incremental", "incremental"], GRAIN)
    assert_replicated(runs, report)
    kept = [one["id"] for one in runs.json("restore-points", "web-01")["restore_points"]]
    assert kept[-2:] == [second, report["restore_point"]]
    assert len(kept) == 3
    wait(replica.RemoveAllSnapshots_Task())
    runs.write(4)
    assert kinds(runs.plan()) == ["compare", "compare"]
    report = runs.replicate()
    assert (kinds(report), moved(report)) == (["compare", "compare"], GRAIN)
    assert_replicated(runs, report)
    assert [one["id"] for one in runs.json("restore-points", "web-01")["restore_points"]] == [report["restore_point"]]


def test_replica_reverted_by_hand(runs: Runs, dr: Any) -> None:
    runs.write(1)
    runs.replicate()
    replica = vm_named(dr, "web-01-replica")
    wait(replica.snapshot.rootSnapshotList[0].snapshot.RevertToSnapshot_Task())
    runs.write(2)
    report = runs.replicate()
    assert noted(report, "is reverted to restore point")
    assert moved(report) == GRAIN
    assert_replicated(runs, report)


def test_replica_deleted(runs: Runs, dr: Any) -> None:
    wait(vm_named(dr, "web-01-replica").Destroy_Task())
    assert noted(runs.plan(), "is gone from the target")
    report = runs.replicate()
    assert kinds(report) == ["full", "full"]
    assert_replicated(runs, report)
    assert len(runs.json("restore-points", "web-01")["restore_points"]) == 1
