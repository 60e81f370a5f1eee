"""`vrepl lab up --esx`: a standalone ESXi host in a vCenter's place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from tests.support import plain_api
from tests.support.plain_api import vm_named, wait
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec, standalone

DISK = (DiskSpec(MIB, content="random"),)


@pytest.fixture(scope="module")
def esxi(start_shared_lab: Callable[[LabSpec], Lab]) -> Lab:
    return start_shared_lab(standalone(LabSpec.of_vms(VmSpec("web-01", disks=DISK, cbt=True)), "prod"))


@pytest.fixture
def api(esxi: Lab) -> Iterator[Any]:
    with plain_api.session(esxi) as instance:
        yield instance


def test_it_says_what_it_is_and_the_other_site_is_a_vcenter(esxi: Lab, api: Any) -> None:
    assert api.content.about.apiType == "HostAgent"
    (datacenter,) = api.content.rootFolder.childEntity
    assert datacenter.name == "ha-datacenter"
    (compute,) = datacenter.hostFolder.childEntity
    assert isinstance(compute, vim.ComputeResource)
    assert not isinstance(compute, vim.ClusterComputeResource)
    assert [host.name for host in compute.host] == list(esxi.sites["prod"].hosts)
    assert {"VM Network", "isolated"} <= {network.name for network in datacenter.network}
    assert api.content.customFieldsManager is None
    with plain_api.session(esxi, "dr") as other:
        assert other.content.about.apiType == "VirtualCenter"


def test_what_needs_a_vcenter_is_refused(api: Any) -> None:
    vm = vm_named(api, "web-01")
    spec = vim.vm.CloneSpec(location=vim.vm.RelocateSpec())
    with pytest.raises(vmodl.fault.NotSupported):
        vm.CloneVM_Task(vm.parent, "clone-01", spec)
    with pytest.raises(vmodl.fault.NotSupported):
        vm.RelocateVM_Task(vim.vm.RelocateSpec())
    with pytest.raises(vmodl.fault.NotSupported):
        vm.parent.CreateFolder("web")


def test_snapshots_and_new_vms_work_as_ever(esxi: Lab, api: Any) -> None:
    vm = vm_named(api, "web-01")
    made = wait(vm.CreateSnapshot_Task(name="one", description="", memory=False, quiesce=True))
    disk: Any = next(d for d in made.config.hardware.device if isinstance(d, vim.vm.device.VirtualDisk))
    assert disk.backing.changeId
    wait(made.RemoveSnapshot_Task(removeChildren=False))
    config = vim.vm.ConfigSpec(
        name="new-01", files=vim.vm.FileInfo(vmPathName="[prod-vmfs-02]"), numCPUs=1, memoryMB=64
    )
    new = wait(vm.parent.CreateVM_Task(config, vm.resourcePool))
    wait(new.PowerOnVM_Task())
    wait(new.PowerOffVM_Task())
    wait(new.Destroy_Task())
