"""What the lab does to its clients when a setting says so, because real sites do it (docs/lab.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from tests.support import plain_api
from tests.support.plain_api import vm_named, wait
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

GRAIN = 65536
BLOCKS = 160
CAPACITY = BLOCKS * GRAIN
SPEC = LabSpec.of_vms(
    VmSpec("liar-01", disks=(DiskSpec(CAPACITY, content="empty"),), cbt=True),
    VmSpec("liar-02", disks=(DiskSpec(MIB, content="empty"),), cbt=True),
    VmSpec("late-01", disks=(DiskSpec(MIB, content="empty"),)),
)


@pytest.fixture(scope="module")
def vcenter(start_shared_lab: Callable[[LabSpec], Lab]) -> Lab:
    lab = start_shared_lab(SPEC)
    lab.set("nasty=off")  # each test says for itself what is not exact
    return lab


@pytest.fixture
def api(vcenter: Lab) -> Iterator[Any]:
    with plain_api.session(vcenter) as instance:
        yield instance


def snapshot(vm: Any, name: str, *, quiesce: bool = False) -> Any:
    return wait(vm.CreateSnapshot_Task(name=name, description="", memory=False, quiesce=quiesce))


def first_disk(holder: Any) -> Any:
    return next(d for d in holder.config.hardware.device if isinstance(d, vim.vm.device.VirtualDisk))


def said(vm: Any, at: Any, since: str) -> list[int]:
    """The blocks that change tracking calls changed, over all its pages."""
    blocks: list[int] = []
    offset = 0
    while offset < CAPACITY:
        reply = vm.QueryChangedDiskAreas(at, first_disk(vm).key, offset, since)
        for area in reply.changedArea:
            blocks += range(area.start // GRAIN, (area.start + area.length) // GRAIN)
        offset = reply.startOffset + reply.length
    return blocks


def test_change_tracking_misses_adds_and_answers_with_the_whole_disk(vcenter: Lab, api: Any) -> None:
    vm = vm_named(api, "liar-01")
    one = snapshot(vm, "one")
    since = str(first_disk(one).backing.changeId)
    touched = set(range(0, BLOCKS, 2))
    for block in touched:
        vcenter.write("prod", "liar-01", 0, block * GRAIN, b"x")
    two = snapshot(vm, "two")
    assert set(said(vm, two, since)) == touched

    vcenter.set("prod.cbt_miss=0.1")
    missed = touched - set(said(vm, two, since))
    assert 1 <= len(missed) <= 20  # of 80: a tenth, as it falls
    assert set(said(vm, two, since)) <= touched
    vcenter.set("prod.cbt_page=3")
    assert touched - set(said(vm, two, since)) == missed  # the same lie on every page and each time
    again = min(missed)
    for attempt in range(20):  # a block that changes once more gets another chance to be told
        vcenter.write("prod", "liar-01", 0, again * GRAIN, b"y")
        later = snapshot(vm, f"later {attempt}")
        told = again in said(vm, later, since)
        wait(later.RemoveSnapshot_Task(removeChildren=False))
        if told:
            break
    assert told

    vcenter.set("prod.cbt_page=2000", "prod.cbt_miss=0", "prod.cbt_false=0.2")
    found = set(said(vm, two, since))
    assert touched < found
    assert 4 <= len(found - touched) <= 32  # of 80: a fifth

    vcenter.set("prod.cbt_whole_disk=on")
    for change in (since, "*"):
        (area,) = vm.QueryChangedDiskAreas(two, first_disk(vm).key, 0, change).changedArea
        assert (area.start, area.length) == (0, CAPACITY)
    vcenter.set("prod.cbt_whole_disk=off", "prod.cbt_false=0")
    assert set(said(vm, two, since)) == touched
    wait(vm.RemoveAllSnapshots_Task())


def keys_of(fault: Any) -> list[str]:
    return [m.key for m in fault.faultMessage] + [a.value for m in fault.faultMessage for a in m.arg]


def test_a_fault_is_wrapped_and_its_cause_is_in_the_keys(vcenter: Lab, api: Any) -> None:
    vm = vm_named(api, "liar-01")
    vcenter.set("prod.quiesce=fail")
    with pytest.raises(vim.fault.GenericVmConfigFault) as caught:
        snapshot(vm, "never", quiesce=True)
    assert "msg.snapshot.vigor.take.error" in keys_of(caught.value)
    assert "msg.snapshot.error-QUIESCINGERROR" in keys_of(caught.value)
    vcenter.set("prod.wrapped_faults=off")
    with pytest.raises(vim.fault.ApplicationQuiesceFault):
        snapshot(vm, "never", quiesce=True)
    vcenter.set("prod.wrapped_faults=on", "prod.quiesce=ok")
    assert vm.snapshot is None


def test_without_tools_the_flag_to_quiesce_is_ignored(vcenter: Lab, api: Any) -> None:
    vm = vm_named(api, "liar-01")
    vcenter.set_tools("prod", "liar-01", "notRunning")
    snapshot(vm, "crash-consistent", quiesce=True)
    assert not vm.snapshot.rootSnapshotList[0].quiesced
    vcenter.set("prod.quiesce_without_tools=refused")
    with pytest.raises(vim.fault.ToolsUnavailable):
        snapshot(vm, "never", quiesce=True)
    vcenter.set("prod.quiesce_without_tools=ignored")
    vcenter.set_tools("prod", "liar-01", "running")
    wait(vm.RemoveAllSnapshots_Task())


def disk_spec(vm: Any, unit: int) -> Any:
    controller = next(d.key for d in vm.config.hardware.device if isinstance(d, vim.vm.device.VirtualSCSIController))
    backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(diskMode="persistent", thinProvisioned=True)
    disk = vim.vm.device.VirtualDisk(
        key=-1, controllerKey=controller, unitNumber=unit, capacityInKB=1024, backing=backing
    )
    return vim.vm.device.VirtualDeviceSpec(operation="add", fileOperation="create", device=disk)


def change_ids(holder: Any) -> list[Any]:
    backings: list[Any] = [d.backing for d in holder.config.hardware.device if isinstance(d, vim.vm.device.VirtualDisk)]
    return [backing.changeId for backing in backings]


def test_tracking_is_a_property_of_each_disk(vcenter: Lab, api: Any) -> None:
    vm = vm_named(api, "liar-02")
    vcenter.set("prod.cbt_per_disk=on")
    wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[disk_spec(vm, 1)])))
    one = snapshot(vm, "one")
    assert [bool(change) for change in change_ids(one)] == [True, False]
    wait(vm.RemoveAllSnapshots_Task())
    wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True)))
    two = snapshot(vm, "two")
    assert all(change_ids(two))
    wait(vm.RemoveAllSnapshots_Task())
    off = vim.option.OptionValue(key="scsi0:0.ctkEnabled", value="FALSE")
    wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(extraConfig=[off])))
    three = snapshot(vm, "three")
    assert [bool(change) for change in change_ids(three)] == [False, True]
    wait(vm.RemoveAllSnapshots_Task())
    vcenter.set("prod.cbt_per_disk=off")


def test_enabling_tracking_on_a_running_vm_stuns_it_at_the_next_snapshot(vcenter: Lab, api: Any) -> None:
    vm = vm_named(api, "late-01")
    vcenter.set("prod.cbt_stun_ms=50")
    wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True)))
    with pytest.raises(vim.fault.GenericVmConfigFault):
        snapshot(vm, "stunned", quiesce=True)
    snapshot(vm, "after", quiesce=True)
    vcenter.set("prod.cbt_stun_ms=0")
    wait(vm.RemoveAllSnapshots_Task())


def test_a_description_is_cut_in_silence(vcenter: Lab, api: Any) -> None:
    vm = vm_named(api, "late-01")
    vcenter.set("prod.description_limit=7")
    wait(vm.CreateSnapshot_Task(name="cut", description="12345ä890", memory=False, quiesce=False))
    assert vm.snapshot.rootSnapshotList[0].description == "12345ä"
    vm.snapshot.rootSnapshotList[0].snapshot.RenameSnapshot(description="abcdefghijk")
    assert vm.snapshot.rootSnapshotList[0].description == "abcdefg"
    vcenter.set("prod.description_limit=0")
    wait(vm.RemoveAllSnapshots_Task())


def test_a_host_knows_no_newer_hardware_and_not_every_guest(vcenter: Lab, api: Any) -> None:
    vm = vm_named(api, "late-01")
    browser, hosts = vm.environmentBrowser, [host.name for host in vm.runtime.host.parent.host]
    vcenter.set(f"prod.hardware_max={hosts[0]}:17", "prod.unknown_guest_ids=debian12_64Guest")
    old = vm.runtime.host.parent.host[0]
    assert browser.QueryConfigOption(host=old).version == "vmx-17"
    assert browser.QueryConfigOption(key="vmx-19", host=old) is None
    known = {guest.id for guest in browser.QueryConfigOption(key="vmx-17", host=old).guestOSDescriptor}
    assert "debian11_64Guest" in known
    assert "debian12_64Guest" not in known
    by_version = {one.key: len(one.host) for one in browser.QueryConfigOptionDescriptor()}
    assert by_version["vmx-17"] == len(hosts)
    assert by_version["vmx-19"] == len(hosts) - 1

    def create(**spec: Any) -> Any:
        files = vim.vm.FileInfo(vmPathName="[prod-vmfs-01]")
        config = vim.vm.ConfigSpec(name="new-01", files=files, numCPUs=1, memoryMB=64, **spec)
        return vm.parent.CreateVM_Task(config, vm.resourcePool, old)

    with pytest.raises(vim.fault.VirtualHardwareVersionNotSupported):
        wait(create(version="vmx-19", guestId="debian11_64Guest"))
    with pytest.raises(vmodl.fault.InvalidArgument):
        wait(create(version="vmx-17", guestId="debian12_64Guest"))
    wait(wait(create(version="vmx-17", guestId="debian11_64Guest")).Destroy_Task())
    vcenter.set("prod.hardware_max=none", "prod.unknown_guest_ids=none")


def test_nasty_is_all_of_them_and_back(vcenter: Lab) -> None:
    before = vcenter.control("prod").get("/settings")
    vcenter.set("nasty=on")
    nasty = vcenter.control("prod").get("/settings")
    assert nasty["cbt_per_disk"]
    assert nasty["cbt_false"] == 0.05
    vcenter.set("nasty=off")
    assert vcenter.control("prod").get("/settings") == before
