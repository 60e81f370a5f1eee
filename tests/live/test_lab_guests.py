"""Guests of the lab: they boot, answer, shut down or do not; power is lost; networks lead nowhere (docs/lab.md)."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from tests.support import plain_api
from tests.support.plain_api import vm_named, wait
from vrepl_lab.errors import LabError
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

GRAIN = 65536
DISK = (DiskSpec(MIB, content="random"),)
SPEC = LabSpec.of_vms(
    VmSpec("guest-01", disks=DISK, power="poweredOff", networks=("VM Network", "isolated")),
    VmSpec("lone-01", disks=DISK, power="poweredOff", networks=("isolated",)),
    VmSpec("big-01", disks=DISK, power="poweredOff", memory_mib=1000),
    VmSpec("big-02", disks=DISK, power="poweredOff", memory_mib=1000),
    VmSpec("lost-01", disks=DISK, cbt=True),
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
    vcenter.set("guests=none", "host_memory_mib=none", "power_on_limit=0", "power_on_ms=0", "boot_ms=500")


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def running(vm: Any) -> bool:
    return bool(vm.guest.toolsRunningStatus == "guestToolsRunning")


def off(vm: Any) -> None:
    if vm.runtime.powerState != "poweredOff":
        wait(vm.PowerOffVM_Task())


def answers(address: str, port: int) -> bytes | None:
    try:
        with socket.create_connection((address, port), timeout=5) as connection:
            return connection.recv(100)
    except OSError:
        return None


def test_a_guest_boots_after_a_while_answers_its_ports_and_shuts_down(vcenter: Lab, api: Any) -> None:
    vm = vm_named(api, "guest-01")
    vcenter.set("prod.guest=guest-*,ports=8022+8443,boot_ms=300")
    wait(vm.PowerOnVM_Task())
    assert vm.runtime.bootTime is not None
    assert vm.guestHeartbeatStatus == "gray"
    assert not vm.guest.guestOperationsReady
    assert vm.guest.net == []
    until(lambda: running(vm))
    assert vm.guestHeartbeatStatus == "green"
    assert vm.guest.guestOperationsReady
    assert vm.guest.guestState == "running"
    first, second = vm.guest.net
    assert (first.network, second.network) == ("VM Network", "isolated")
    assert first.ipConfig.ipAddress[0].ipAddress == vm.guest.ipAddress
    assert vm.guest.ipStack[0].dnsConfig.hostName == "guest-01"
    address = vm.guest.ipAddress
    assert address.startswith("127.")
    until(lambda: answers(address, 8443))
    assert answers(address, 8022) == b"guest-01\r\n"
    vm.ShutdownGuest()
    until(lambda: vm.runtime.powerState == "poweredOff")
    assert answers(address, 8022) is None
    assert vm.guestHeartbeatStatus == "gray"
    assert vm.guest.ipAddress is None


def test_a_guest_that_does_not_boot_and_one_that_does_not_shut_down(vcenter: Lab, api: Any) -> None:
    vm = vm_named(api, "guest-01")
    vcenter.set("prod.guest=guest-01,boots=no,boot_ms=0")
    wait(vm.PowerOnVM_Task())
    time.sleep(0.3)
    assert not running(vm)
    with pytest.raises(vim.fault.ToolsUnavailable):
        vm.ShutdownGuest()
    off(vm)
    vcenter.set("prod.guest=guest-01,boots=yes,shutdown=hang,heartbeat=red")
    wait(vm.PowerOnVM_Task())
    until(lambda: running(vm))
    assert vm.guestHeartbeatStatus == "red"
    vm.ShutdownGuest()
    time.sleep(0.5)
    assert vm.runtime.powerState == "poweredOn"
    off(vm)


def test_what_is_on_a_switch_without_uplink_is_not_reached(vcenter: Lab, api: Any) -> None:
    vm = vm_named(api, "lone-01")
    vcenter.set("prod.guest=lone-01,ports=8022,boot_ms=0")
    for reachable in ("no", "yes"):
        vcenter.set(f"prod.isolated_reachable={reachable}")
        wait(vm.PowerOnVM_Task())
        until(lambda: running(vm))
        address = vm.guest.ipAddress
        if reachable == "yes":
            until(lambda: answers(address, 8022))  # noqa: B023
        else:
            assert answers(address, 8022) is None
        off(vm)
    vcenter.set("prod.isolated_reachable=no")


def test_switches_and_port_groups_belong_to_a_host(vcenter: Lab, api: Any) -> None:
    vm = vm_named(api, "guest-01")
    one, *others = vm.runtime.host.parent.host
    system = one.configManager.networkSystem
    uplinks = {v.name: list(v.pnic or []) for v in one.config.network.vswitch}
    assert uplinks["vSwitch0"]
    assert not uplinks["vSwitch-isolated"]
    system.AddVirtualSwitch("vrepl-test", vim.host.VirtualSwitch.Specification(numPorts=64))
    with pytest.raises(vim.fault.AlreadyExists):
        system.AddVirtualSwitch("vrepl-test", None)
    assert not {v.name: list(v.pnic or []) for v in system.networkInfo.vswitch}["vrepl-test"]

    def group(vswitch: str = "vrepl-test") -> Any:
        return vim.host.PortGroup.Specification(
            name="vrepl-net", vlanId=0, vswitchName=vswitch, policy=vim.host.NetworkPolicy()
        )

    with pytest.raises(vim.fault.NotFound):
        system.AddPortGroup(group("nothing"))
    system.AddPortGroup(group())
    with pytest.raises(vim.fault.AlreadyExists):
        system.AddPortGroup(group())
    (network,) = [n for n in one.network if n.name == "vrepl-net"]
    assert network.summary.accessible
    assert [h.name for h in network.host] == [one.name]
    for other in others:
        assert "vrepl-net" not in [n.name for n in other.network]
        other.configManager.networkSystem.AddVirtualSwitch("vrepl-test", None)
        other.configManager.networkSystem.AddPortGroup(group())
    assert len(network.host) == 1 + len(others)

    card = next(d for d in vm.config.hardware.device if isinstance(d, vim.vm.device.VirtualEthernetCard))
    before = card.backing
    card.backing = vim.vm.device.VirtualEthernetCard.NetworkBackingInfo(deviceName="vrepl-net", network=network)
    edit = vim.vm.device.VirtualDeviceSpec(operation="edit", device=card)
    wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[edit])))
    wait(vm.PowerOnVM_Task())
    until(lambda: running(vm))
    assert vm.guest.net[0].network == "vrepl-net"
    here = vm.runtime.host.configManager.networkSystem
    with pytest.raises(vim.fault.ResourceInUse):
        here.RemovePortGroup("vrepl-net")
    with pytest.raises(vim.fault.ResourceInUse):
        here.RemoveVirtualSwitch("vrepl-test")
    off(vm)
    card.backing = before
    wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[edit])))
    system.RemovePortGroup("vrepl-net")
    with pytest.raises(vim.fault.NotFound):
        system.RemovePortGroup("vrepl-net")
    for host in (one, *others):
        host.configManager.networkSystem.RemoveVirtualSwitch("vrepl-test")
        assert "vrepl-net" not in [n.name for n in host.network]
    datacenter = next(d for d in api.content.rootFolder.childEntity if d.name == "prod-dc")
    assert "vrepl-net" not in [n.name for n in datacenter.network]


def test_a_host_without_room_refuses_to_power_on(vcenter: Lab, api: Any) -> None:
    first, second = vm_named(api, "big-01"), vm_named(api, "big-02")
    used = sum(vm.config.hardware.memoryMB for vm in first.runtime.host.vm if vm.runtime.powerState == "poweredOn")
    vcenter.set(f"prod.host_memory_mib={used + 1500}")
    wait(first.PowerOnVM_Task())
    with pytest.raises(vim.fault.InsufficientResourcesFault):
        wait(second.PowerOnVM_Task())
    off(first)
    wait(second.PowerOnVM_Task())
    off(second)


def test_a_host_powers_on_no_more_than_so_many_at_once(vcenter: Lab, api: Any) -> None:
    vms = [vm_named(api, name) for name in ("big-01", "big-02", "guest-01")]
    vcenter.set("prod.power_on_limit=1", "prod.power_on_ms=50")
    for task in [vm.PowerOnVM_Task() for vm in vms]:
        wait(task)
    assert vcenter.status()["prod"]["power_ons"][vms[0].runtime.host.name] == 1
    for vm in vms:
        off(vm)
    vcenter.set("prod.power_on_limit=0")
    datacenter = next(d for d in api.content.rootFolder.childEntity if d.name == "prod-dc")
    for one in wait(datacenter.PowerOnMultiVM_Task(vms)).attempted:
        wait(one.task)
    for vm in vms:
        assert vm.runtime.powerState == "poweredOn"
        off(vm)


def first_disk(holder: Any) -> Any:
    return next(d for d in holder.config.hardware.device if isinstance(d, vim.vm.device.VirtualDisk))


def test_power_loss_drops_what_change_tracking_had_in_memory(vcenter: Lab, api: Any) -> None:
    vm = vm_named(api, "lost-01")

    def snapshot(name: str) -> Any:
        return wait(vm.CreateSnapshot_Task(name=name, description="", memory=False, quiesce=False))

    def changed(at: Any, since: str) -> list[int]:
        reply = vm.QueryChangedDiskAreas(at, first_disk(vm).key, 0, since)
        return [area.start // GRAIN for area in reply.changedArea]

    one = snapshot("one")
    since = first_disk(one).backing.changeId
    vcenter.write("prod", "lost-01", 0, 3 * GRAIN, b"before")
    vcenter.lose_power("prod", "lost-01")
    assert vm.runtime.powerState == "poweredOff"
    with pytest.raises(LabError, match="is off"):
        vcenter.lose_power("prod", "lost-01")
    two = snapshot("two")
    assert changed(two, since) == []  # a lie, and nothing tells so
    wait(vm.PowerOnVM_Task())
    three = snapshot("three")
    with pytest.raises(vim.fault.FileFault):
        changed(three, since)
    wait(vm.RemoveAllSnapshots_Task())


def test_removing_a_snapshot_under_a_linked_clone_corrupts_the_clone(vcenter: Lab, api: Any, tmp_path: Path) -> None:
    vm = vm_named(api, "big-01")
    for guard in ("on", "off"):
        vcenter.set(f"prod.clone_guard={guard}")
        held = wait(vm.CreateSnapshot_Task(name="base", description="", memory=False, quiesce=False))
        spec = vim.vm.CloneSpec(
            location=vim.vm.RelocateSpec(diskMoveType="createNewChildDiskBacking"), snapshot=held, powerOn=False
        )
        clone = wait(vm.CloneVM_Task(vm.parent, "clone-01", spec))
        before = vcenter.export("prod", "clone-01", 0, tmp_path / "a.img").read_bytes()
        vcenter.write("prod", "big-01", 0, 0, guard.encode() * 100)
        wait(held.RemoveSnapshot_Task(removeChildren=False))
        after = vcenter.export("prod", "clone-01", 0, tmp_path / "b.img").read_bytes()
        assert (after == before) == (guard == "on")
        wait(clone.Destroy_Task())
        wait(vm.ConsolidateVMDisks_Task())
