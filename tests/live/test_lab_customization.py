"""Guest customisation in the lab: refusals at once, the rest at the next power-on, with vSphere's events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from tests.support import plain_api
from tests.support.plain_api import vm_named, wait
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

DISK = (DiskSpec(MIB, content="random"),)
TWO = ("VM Network", "isolated")
SPEC = LabSpec.of_vms(
    VmSpec("linux-01", disks=DISK, power="poweredOff", networks=TWO),
    VmSpec("windows-01", disks=DISK, power="poweredOff", guest_id="windows2019srv_64Guest"),
)
C = vim.vm.customization


@pytest.fixture(scope="module")
def vcenter(start_shared_lab: Callable[[LabSpec], Lab]) -> Lab:
    lab = start_shared_lab(SPEC)
    lab.set("boot_ms=20")
    return lab


@pytest.fixture
def api(vcenter: Lab) -> Iterator[Any]:
    with plain_api.session(vcenter) as instance:
        yield instance
    vcenter.set("guests=none")


def fixed(address: str, v6: str | None = None) -> Any:
    settings = C.IPSettings(
        ip=C.FixedIp(ipAddress=address), subnetMask="255.255.255.0", gateway=["10.2.0.1"], dnsServerList=["10.2.0.9"]
    )
    if v6:
        settings.ipV6Spec = C.IPSettings.IpV6AddressSpec(
            ip=[C.FixedIpV6(ipAddress=v6, subnetMask=64)], gateway=["fd00:2::1"]
        )
    return C.AdapterMapping(adapter=settings)


def linux(*adapters: Any, name: str = "moved") -> Any:
    return C.Specification(
        identity=C.LinuxPrep(hostName=C.FixedName(name=name), domain="dr.example.com"),
        globalIPSettings=C.GlobalIPSettings(dnsServerList=["10.2.0.53"], dnsSuffixList=["dr.example.com"]),
        nicSettingMap=list(adapters),
        options=C.LinuxOptions(),
    )


def windows(*adapters: Any) -> Any:
    return C.Specification(
        identity=C.Sysprep(
            guiUnattended=C.GuiUnattended(timeZone=85, autoLogon=False, autoLogonCount=0),
            userData=C.UserData(fullName="x", orgName="x", computerName=C.FixedName(name="MOVED"), productId=""),
            identification=C.Identification(joinWorkgroup="WORKGROUP"),
        ),
        globalIPSettings=C.GlobalIPSettings(),
        nicSettingMap=list(adapters),
        options=C.WinOptions(changeSID=False, deleteAccounts=False, reboot="reboot"),
    )


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def events(api: Any, vm: Any) -> list[str]:
    of_vm = vim.event.EventFilterSpec(
        entity=vim.event.EventFilterSpec.ByEntity(entity=vm, recursion=vim.event.EventFilterSpec.RecursionOption.self)
    )
    found = api.content.eventManager.QueryEvents(of_vm)
    ordered = sorted(found, key=lambda event: int(event.key))
    return [type(event).__name__.rpartition(".")[2] for event in ordered if "Customization" in type(event).__name__]


def boot(vm: Any) -> None:
    wait(vm.PowerOnVM_Task())
    until(lambda: vm.guest.toolsRunningStatus == "guestToolsRunning")


def test_what_cannot_be_customised_is_refused_at_once(api: Any) -> None:
    vm, other = vm_named(api, "linux-01"), vm_named(api, "windows-01")
    one, two = fixed("10.2.0.5"), fixed("10.2.1.5")
    with pytest.raises(vim.fault.UncustomizableGuest):
        wait(vm.CustomizeVM_Task(windows(one, two)))
    with pytest.raises(vim.fault.UncustomizableGuest):
        wait(other.CustomizeVM_Task(linux(one)))
    with pytest.raises(vim.fault.NicSettingMismatch) as caught:
        wait(vm.CustomizeVM_Task(linux(one)))
    assert (caught.value.numberOfNicsInSpec, caught.value.numberOfNicsInVM) == (1, 2)
    no_mask = C.AdapterMapping(adapter=C.IPSettings(ip=C.FixedIp(ipAddress="10.2.0.5")))
    for spec in (linux(one, no_mask), linux(one, two, name="under_score"), linux(fixed("10.2.0.999"), two)):
        with pytest.raises(vmodl.fault.InvalidArgument):
            wait(vm.CustomizeVM_Task(spec))
    boot(vm)
    with pytest.raises(vim.fault.InvalidPowerState):
        wait(vm.CustomizeVM_Task(linux(one, two)))
    wait(vm.PowerOffVM_Task())
    with pytest.raises(vim.fault.UncustomizableGuest):
        vm.CheckCustomizationSpec(windows(one, two))
    assert events(api, vm) == []


def test_a_guest_is_customised_at_its_next_boot_and_so_are_its_clones(vcenter: Lab, api: Any) -> None:
    vm = vm_named(api, "linux-01")
    spec = linux(fixed("10.2.0.5", "fd00:2::5"), C.AdapterMapping(adapter=C.IPSettings(ip=C.DhcpIpGenerator())))
    wait(vm.CustomizeVM_Task(spec))
    assert vm.config.tools.pendingCustomization
    with pytest.raises(vim.fault.CustomizationPending):
        wait(vm.CustomizeVM_Task(spec))
    assert vm.guest.ipAddress is None
    boot(vm)
    assert events(api, vm) == ["CustomizationStartedEvent", "CustomizationSucceeded"]
    assert not vm.config.tools.pendingCustomization
    assert vm.guest.hostName == "moved"
    assert vm.guest.ipAddress == "10.2.0.5"
    first, second = vm.guest.net
    assert list(first.ipAddress) == ["10.2.0.5", "fd00:2::5"]
    assert [a.prefixLength for a in first.ipConfig.ipAddress] == [24, 64]
    assert second.ipAddress[0].startswith("10.")
    (stack,) = vm.guest.ipStack
    assert (stack.dnsConfig.hostName, stack.dnsConfig.domainName) == ("moved", "dr.example.com")
    assert list(stack.dnsConfig.ipAddress) == ["10.2.0.53"]
    assert [r.gateway.ipAddress for r in stack.ipRouteConfig.ipRoute] == ["10.2.0.1", "fd00:2::1"]
    wait(vm.PowerOffVM_Task())
    boot(vm)  # and it stays so, and happens once
    assert vm.guest.ipAddress == "10.2.0.5"
    assert len(events(api, vm)) == 2
    wait(vm.PowerOffVM_Task())

    again = vim.vm.CloneSpec(
        location=vim.vm.RelocateSpec(), powerOn=True, customization=linux(fixed("10.2.0.6"), fixed("10.2.1.6"))
    )
    clone = wait(vm.CloneVM_Task(vm.parent, "clone-01", again))
    until(lambda: clone.guest.ipAddress == "10.2.0.6")
    assert events(api, clone)[-1] == "CustomizationSucceeded"
    wait(clone.PowerOffVM_Task())
    wait(clone.Destroy_Task())
    wrong = vim.vm.CloneSpec(location=vim.vm.RelocateSpec(), customization=windows(fixed("10.2.0.7")))
    with pytest.raises(vim.fault.UncustomizableGuest):
        wait(vm.CloneVM_Task(vm.parent, "clone-02", wrong))
    assert "clone-02" not in [other.name for other in vm.parent.childEntity]


def test_windows_and_customisation_that_fails_or_never_ends(vcenter: Lab, api: Any) -> None:
    vm = vm_named(api, "windows-01")
    wait(vm.CustomizeVM_Task(windows(fixed("10.2.0.8"))))
    boot(vm)
    assert (vm.guest.hostName, vm.guest.ipAddress) == ("MOVED", "10.2.0.8")
    assert list(vm.guest.ipStack[0].dnsConfig.ipAddress) == ["10.2.0.9"]
    wait(vm.PowerOffVM_Task())
    vcenter.set("prod.guest=windows-01,customize=fail")
    wait(vm.CustomizeVM_Task(windows(fixed("10.2.0.9"))))
    boot(vm)
    assert events(api, vm)[-1] == "CustomizationUnknownFailure"
    assert vm.guest.ipAddress == "10.2.0.8"
    wait(vm.PowerOffVM_Task())
    vcenter.set("prod.guest=windows-01,customize=hang")
    wait(vm.CustomizeVM_Task(windows(fixed("10.2.0.10"))))
    wait(vm.PowerOnVM_Task())
    until(lambda: events(api, vm)[-1] == "CustomizationStartedEvent")
    time.sleep(0.2)
    assert events(api, vm)[-1] == "CustomizationStartedEvent"
    assert vm.guest.toolsRunningStatus != "guestToolsRunning"
    wait(vm.PowerOffVM_Task())


def test_tools_that_never_ran_are_not_known(vcenter: Lab, api: Any) -> None:
    vm = vm_named(api, "linux-01")
    files = vim.vm.FileInfo(vmPathName="[prod-vmfs-01]")
    config = vim.vm.ConfigSpec(name="fresh-01", files=files, numCPUs=1, memoryMB=64, guestId="debian11_64Guest")
    fresh = wait(vm.parent.CreateVM_Task(config, vm.resourcePool))
    vcenter.set("prod.customize_needs_tools=yes")
    with pytest.raises(vim.fault.UncustomizableGuest):
        wait(fresh.CustomizeVM_Task(linux()))
    vcenter.set("prod.customize_needs_tools=no")
    wait(fresh.CustomizeVM_Task(linux()))
    wait(fresh.Destroy_Task())


def test_a_revert_takes_back_what_was_given_and_what_was_set(vcenter: Lab, api: Any) -> None:
    vm = vm_named(api, "linux-01")
    before = wait(vm.CreateSnapshot_Task("before", "", memory=False, quiesce=False))
    boot(vm)
    had = vm.guest.ipAddress
    wait(vm.PowerOffVM_Task())
    wait(vm.CustomizeVM_Task(linux(fixed("10.2.0.77"), fixed("10.2.1.77"))))
    wait(before.RevertToSnapshot_Task())
    assert not vm.config.tools.pendingCustomization
    wait(vm.CustomizeVM_Task(linux(fixed("10.2.0.78"), fixed("10.2.1.78"))))
    boot(vm)
    assert vm.guest.ipAddress == "10.2.0.78"
    wait(vm.PowerOffVM_Task())
    wait(before.RevertToSnapshot_Task())
    boot(vm)
    assert vm.guest.ipAddress == had
    wait(vm.PowerOffVM_Task())
    wait(before.RemoveSnapshot_Task(removeChildren=False))
