"""Disks attached to the lab's proxy VM by its vCenter, and taken off: slots, marks, lost replies, snapshots."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from pyVmomi import vim
from pyVmomi.SoapAdapter import SoapStubAdapter

from tests.support import plain_api, proxy_vm
from tests.support.plain_api import vm_named, wait
from tests.support.site_access import pinned_settings_of
from vrepl.app.attachments import Attachments
from vrepl.app.probes import process_name
from vrepl.errors import DiskError, DiskLockedError, VsphereError
from vrepl.ports import DiskRequest
from vrepl.proxy.facts import product_uuid
from vrepl.vsphere.attachments import Mark
from vrepl.vsphere.site import VsphereSite
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, PROXY_VM, DiskSpec, LabSpec, VmSpec

pytestmark = pytest.mark.slow

MANY, RUNNING = "many-01", "running-01"


@pytest.fixture(scope="module")
def lab(start_shared_lab: Callable[[LabSpec], Lab]) -> Lab:
    disk = DiskSpec(MIB, content="random", fill=0.5)
    return start_shared_lab(
        LabSpec.of_vms(
            VmSpec(MANY, disks=[disk] * 15, power="poweredOff", tools="notRunning"), VmSpec(RUNNING, disks=[disk])
        )
    )


@dataclass
class Proxy:
    """The proxy VM of `prod`, and the VMs whose disks it gets."""

    lab: Lab
    site: VsphereSite
    ref: str
    many: Any
    running: Any

    def request(self, index: int = 0, *, writable: bool = True, vm: Any = None) -> DiskRequest:
        vm = vm or self.many
        return DiskRequest("prod", vm._moId, None, str(proxy_vm.disks_of(vm)[index].backing.fileName), writable)

    def attach(self, request: DiskRequest) -> Any:
        return self.site.proxy_disks.attach(self.ref, request, Mark("r", "p", request.vm_ref, request.path))

    def shown(self, path: str) -> Any:
        with plain_api.session(self.lab) as api:
            [disk] = [one for one in proxy_vm.disks_of(vm_named(api, PROXY_VM)) if one.backing.fileName == path]
            return disk


@pytest.fixture
def proxy(lab: Lab) -> Iterator[Proxy]:
    lab.set("faults=none", "lock_linger_s=0")
    with (
        VsphereSite(pinned_settings_of(lab, "prod"), sleep=lambda seconds: None) as site,
        plain_api.session(lab) as api,
    ):
        bios = vm_named(api, PROXY_VM).config.uuid
        ref = site.proxy_disks.find_proxy([bios])
        assert ref == vm_named(api, PROXY_VM)._moId
        yield Proxy(lab, site, ref, vm_named(api, MANY), vm_named(api, RUNNING))
        lab.set("faults=none")
        for hanging in site.proxy_disks.hanging(ref):
            site.proxy_disks.detach(hanging.disk)
    proxy_vm.assert_bare(lab)


@pytest.mark.parametrize(("writable", "mode"), [(True, "persistent"), (False, "independent_nonpersistent")])
def test_a_disk_comes_with_its_mark_and_goes_with_it(proxy: Proxy, writable: bool, mode: str) -> None:
    request = proxy.request(writable=writable)
    disk = proxy.attach(request)
    shown = proxy.shown(request.path)
    assert shown.backing.diskMode == mode
    assert (disk.unit, disk.uuid, disk.capacity) == (shown.unitNumber, shown.backing.uuid, MIB)
    assert len(proxy_vm.marks(proxy.lab, "prod")) == 1
    [hanging] = proxy.site.proxy_disks.hanging(proxy.ref)
    assert hanging.disk == disk
    proxy.site.proxy_disks.detach(disk)
    proxy_vm.assert_bare(proxy.lab)
    proxy.site.proxy_disks.detach(disk)  # nothing is left to do


class Died(BaseException):
    """No Exception: nothing may catch it and go on."""


class Dying:
    """A process that dies at its N-th call of the API from now on, before the call takes effect or after."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int, *, after: bool) -> None:
        self.calls = 0
        real: Any = SoapStubAdapter.InvokeMethod

        def invoke(*arguments: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                return real(*arguments)
            self.calls += 1
            if self.calls > number or (self.calls == number and not after):
                raise Died
            answer = real(*arguments)
            if self.calls == number:
                raise Died
            return answer

        monkeypatch.setattr(SoapStubAdapter, "InvokeMethod", invoke)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("doing", ["attach", "detach"])
def test_whoever_dies_at_any_call_leaves_nothing_that_the_next_does_not_take_off(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, doing: str, after: bool
) -> None:
    """All calls in turn, until one more would be one too many."""
    machine = product_uuid(proxy_vm.sysroot(proxy.lab))
    ended = process_name().rpartition("/")[0] + "/1"
    request = proxy.request()

    def of(process: str) -> Attachments:
        return Attachments(
            lambda name: proxy.site, lambda name: machine, lambda name: machine, lambda: "r", process=lambda: process
        )

    died = 0
    for number in range(1, 20):
        disk = of(ended).desk(lambda: True).attach(request) if doing == "detach" else None
        with monkeypatch.context() as patched:
            dying = Dying(patched, number, after=after)
            try:
                if disk is None:
                    of(ended).desk(lambda: True).attach(request)
                else:
                    of(ended).desk(lambda: True).detach(disk)
            except Died:
                died += 1
        until_idle(proxy)
        of(process_name()).clean_up("prod", request.vm_ref, None)
        assert proxy_vm.hanging(proxy.lab, "prod") == []
        assert proxy_vm.marks(proxy.lab, "prod") == []
        if dying.calls < number:
            break
    assert died >= 3, "a look, a reconfiguration and another look at the least"


def until_idle(proxy: Proxy) -> None:
    """Tasks that the dead one had begun have ended."""
    proxy.site.wait_for_tasks(proxy.ref)


def test_what_hangs_there_already_is_not_attached_again(proxy: Proxy) -> None:
    proxy.attach(proxy.request())
    with pytest.raises(DiskError, match="hangs on the proxy already"):
        proxy.attach(proxy.request())


def test_a_disk_that_is_open_elsewhere_is_locked(proxy: Proxy) -> None:
    for writable in (True, False):
        with pytest.raises(DiskLockedError):
            proxy.attach(proxy.request(vm=proxy.running, writable=writable))


def test_a_disk_that_is_none_of_the_vms_is_refused(proxy: Proxy) -> None:
    request = proxy.request(vm=proxy.running)
    with pytest.raises(DiskError, match="is no disk of"):
        proxy.attach(DiskRequest("prod", proxy.many._moId, None, request.path, False))


def test_slots_are_counted_and_the_last_one_is_taken(proxy: Proxy) -> None:
    units = {proxy.attach(proxy.request(index)).unit for index in range(14)}
    assert units == set(range(1, 16)) - {7}, "the proxy's own disk is unit 0, the controller is 7"
    with pytest.raises(DiskError, match="no free SCSI slot"):
        proxy.attach(proxy.request(14))


@pytest.mark.parametrize("fault", ["ReconfigVM_Task:drop_reply", "ReconfigVM_Task:task_fault:ConcurrentAccess"])
def test_a_reply_that_is_lost_attaches_and_detaches_once(proxy: Proxy, fault: str) -> None:
    request = proxy.request()
    proxy.lab.set(f"prod.api_fault={fault}")
    disk = proxy.attach(request)
    assert proxy_vm.hanging(proxy.lab, "prod") == [request.path]
    assert len(proxy_vm.marks(proxy.lab, "prod")) == 1
    proxy.lab.set("faults=none", f"prod.api_fault={fault}")
    proxy.site.proxy_disks.detach(disk)
    proxy_vm.assert_bare(proxy.lab)


def test_a_slot_that_another_client_takes_meanwhile_is_not_fought_for(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the proxy's VM and its reconfiguration somebody attaches another disk to the same slot."""
    disks = proxy.site.proxy_disks
    real, taken = disks._read, [1, 2]

    def read_and_lose_the_slot(vm: Any) -> Any:
        seen = real(vm)
        if taken:
            backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
                fileName=proxy.request(taken[0]).path, diskMode="independent_nonpersistent"
            )
            disk = vim.vm.device.VirtualDisk(key=-1, controllerKey=1000, unitNumber=taken.pop(0), backing=backing)
            change = vim.vm.device.VirtualDeviceSpec(operation="add", device=disk)
            proxy_vm.reconfigure(proxy.lab, "prod", vim.vm.ConfigSpec(deviceChange=[change]))
        return seen

    monkeypatch.setattr(disks, "_read", read_and_lose_the_slot)
    assert proxy.attach(proxy.request()).unit == 3
    monkeypatch.undo()
    assert len(proxy_vm.hanging(proxy.lab, "prod")) == 3
    for hanging in disks.hanging(proxy.ref):
        disks.detach(hanging.disk)
    assert len(proxy_vm.hanging(proxy.lab, "prod")) == 2, "what has no mark stays"
    proxy_vm.pull(proxy.lab, "prod")


def test_a_snapshot_of_the_proxy_that_took_the_disk_along_is_told(proxy: Proxy) -> None:
    """Where a snapshot goes that took another VM's disk along, no document says: it is for a person to look at."""
    disk = proxy.attach(proxy.request())
    with plain_api.session(proxy.lab) as api:
        vm = vm_named(api, PROXY_VM)
        snapshot = wait(vm.CreateSnapshot_Task(name="mine", memory=False, quiesce=False))
        with pytest.raises(DiskError, match="got a snapshot") as caught:
            proxy.site.proxy_disks.detach(disk)
        assert "remove the proxy's snapshots" in str(caught.value.hint)
        assert len(proxy_vm.marks(proxy.lab, "prod")) == 1
        with pytest.raises(DiskError, match="has a snapshot"):
            proxy.attach(proxy.request(1))
        wait(snapshot.RemoveSnapshot_Task(removeChildren=False))
        [taken] = [one for one in proxy_vm.disks_of(vm) if one.key == disk.device_key]
        change = vim.vm.device.VirtualDeviceSpec(operation="remove", device=taken)
        wait(vm.ReconfigVM_Task(spec=vim.vm.ConfigSpec(deviceChange=[change])))
    proxy.site.proxy_disks.detach(disk)


def test_a_proxy_that_nobody_is_and_two_that_are_one_are_refused(proxy: Proxy) -> None:
    with pytest.raises(DiskError, match="0 VMs"):
        proxy.site.proxy_disks.find_proxy(["00000000-0000-0000-0000-000000000001"])
    with plain_api.session(proxy.lab) as api:
        vm = vm_named(api, MANY)
        before = vm.config.uuid
        wait(vm.ReconfigVM_Task(spec=vim.vm.ConfigSpec(uuid=vm_named(api, PROXY_VM).config.uuid)))
        try:
            with pytest.raises(DiskError, match="2 VMs"):
                proxy.site.proxy_disks.find_proxy([vm_named(api, PROXY_VM).config.uuid])
        finally:
            wait(vm.ReconfigVM_Task(spec=vim.vm.ConfigSpec(uuid=before)))


def test_a_privilege_that_is_missing_is_named(proxy: Proxy) -> None:
    proxy.lab.set("prod.missing_privileges=VirtualMachine.Config.AddExistingDisk")
    try:
        with pytest.raises(Exception, match="AddExistingDisk"):
            proxy.attach(proxy.request())
    finally:
        proxy.lab.set("prod.missing_privileges=none")


def test_a_disk_whose_uuid_is_another_than_it_was_is_not_used(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    disks = proxy.site.proxy_disks
    real = disks._backing
    monkeypatch.setattr(
        disks, "_backing", lambda request: type(real(request))("6000C29-other", real(request).capacity, None)
    )
    with pytest.raises(VsphereError, match="has uuid 6000C29-other"):
        proxy.attach(proxy.request())
