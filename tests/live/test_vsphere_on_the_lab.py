"""The API fails in every way that the lab knows; what was asked for happens once all the same, or an error says why."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.support.site_access import settings_of
from vrepl.errors import CbtError, InterruptedRunError, PermissionDeniedError, VreplError, VsphereError
from vrepl.model import PowerState, ReplicaPlacement, ReplicaSpec, VirtualMachine
from vrepl.vsphere import collector
from vrepl.vsphere.privileges import Role
from vrepl.vsphere.retry import RetryPolicy
from vrepl.vsphere.site import VsphereSite
from vrepl_lab.lab import Lab

OpenSite = Callable[..., VsphereSite]


@pytest.fixture
def open_site(lab: Lab) -> Iterator[OpenSite]:
    with ExitStack() as stack:

        def make(name: str = "prod", **changes: object) -> VsphereSite:
            retry = RetryPolicy(attempts=8, first_wait=0.01, longest_wait=0.2)
            site = VsphereSite(settings_of(lab, name, **{"retry": retry, **changes}))
            stack.callback(site.close)
            return site

        stack.callback(lab.set, "faults=none")
        yield make


@pytest.fixture
def site(open_site: OpenSite) -> VsphereSite:
    return open_site()


def named(site: VsphereSite, vm: VirtualMachine, name: str) -> list[str]:
    return [one.ref for one in site.read_vm(vm.ref).snapshots if one.name == name]


def replica_of(vm: VirtualMachine, name: str) -> ReplicaSpec:
    placement = ReplicaPlacement(None, "prod-vmfs-02")
    return ReplicaSpec(name, placement, vm.hardware, vm.bios_uuid, vm.disks, False, True, {"vrepl.run": "1"})


@pytest.mark.parametrize(
    "fault",
    [
        "CreateSnapshot_Task:drop",
        "CreateSnapshot_Task:drop_reply",
        "CreateSnapshot_Task:http_503",
        "CreateSnapshot_Task:fault:ConcurrentAccess",
        "CreateSnapshot_Task:task_fault:TaskInProgress",
        "CreateSnapshot_Task:task_fault:FileLocked",
        "CreateSnapshot_Task:expire_session",
        "WaitForUpdatesEx:expire_session",
        "WaitForUpdatesEx:drop",
        "WaitForUpdatesEx:drop_reply",
        "RetrievePropertiesEx:expire_session@2",
    ],
)
def test_one_snapshot_comes_of_one_request(fault: str, lab: Lab, site: VsphereSite) -> None:
    (vm,) = site.find_vms(["app-01"])
    lab.set(f"prod.api_fault={fault}")
    made = site.create_snapshot(vm.ref, "vrepl-faulty", "", quiesce=False)
    lab.set("faults=none")
    assert named(site, vm, "vrepl-faulty") == [made.ref]
    site.remove_snapshot(vm.ref, made.ref)
    assert named(site, vm, "vrepl-faulty") == []


def test_a_snapshot_that_cannot_be_read_back_is_removed(lab: Lab, site: VsphereSite) -> None:
    (vm,) = site.find_vms(["app-01"])
    for failing_read in range(1, 9):
        lab.set("faults=none", f"prod.api_fault=RetrievePropertiesEx:fault:SystemError@{failing_read}")
        lab.reset_soap_calls("prod")
        with pytest.raises(VsphereError, match="SystemError"):
            site.create_snapshot(vm.ref, "vrepl-unread", "", quiesce=False)
        lab.set("faults=none")
        assert named(site, vm, "vrepl-unread") == []
        if lab.soap_calls("prod")["by_method"].get("CreateSnapshot_Task"):
            break
    else:
        pytest.fail("no read after the creation was met")


@pytest.mark.parametrize("fault", ["CreateVM_Task:drop_reply", "CreateVM_Task:task_fault:TaskInProgress"])
def test_one_replica_comes_of_one_request(fault: str, lab: Lab, site: VsphereSite) -> None:
    (vm,) = site.find_vms(["app-01"])
    lab.set(f"prod.api_fault={fault}")
    made = site.create_replica(replica_of(vm, "once-replica"))
    lab.set("faults=none")
    assert [one.ref for one in site.list_vms() if one.name == "once-replica"] == [made.ref]
    site.destroy_vm(made.ref)


def test_a_replica_that_cannot_be_read_back_is_removed(lab: Lab, site: VsphereSite) -> None:
    (vm,) = site.find_vms(["app-01"])
    before = {one.ref for one in site.list_vms()}
    for failing_read in range(1, 9):
        lab.set("faults=none", f"prod.api_fault=RetrievePropertiesEx:fault:SystemError@{failing_read}")
        lab.reset_soap_calls("prod")
        with pytest.raises(VsphereError, match="SystemError"):
            site.create_replica(replica_of(vm, "lost-replica"))
        lab.set("faults=none")
        assert {one.ref for one in site.list_vms()} == before
        if lab.soap_calls("prod")["by_method"].get("CreateVM_Task"):
            break
    else:
        pytest.fail("no read after the creation was met")


def test_a_fifth_of_all_calls_may_fail(lab: Lab, site: VsphereSite) -> None:
    lab.set("prod.api_fault=*:http_503@1x*,p=0.1,seed=3", "prod.api_fault=*:drop_reply@1x*,p=0.1,seed=4")
    for _ in range(3):
        (vm,) = site.find_vms(["app-01"])
        made = site.create_snapshot(vm.ref, "vrepl-shaky", "", quiesce=False)
        assert named(site, vm, "vrepl-shaky") == [made.ref]
        assert site.remove_snapshot(vm.ref, made.ref) is False
    lab.set("faults=none")
    assert named(site, vm, "vrepl-shaky") == []


def test_what_is_permanent_fails_at_once(lab: Lab, site: VsphereSite) -> None:
    (vm,) = site.find_vms(["app-01"])
    lab.set("prod.api_fault=CreateSnapshot_Task:task_fault:TooManySnapshotLevels")
    with pytest.raises(VsphereError) as caught:
        site.create_snapshot(vm.ref, "vrepl-33", "", quiesce=False)
    assert caught.value.fault == "TooManySnapshotLevels"
    assert "32" in (caught.value.hint or "")


def test_a_guest_that_cannot_be_quiesced_is_told_by_fault(lab: Lab, site: VsphereSite) -> None:
    (vm,) = site.find_vms(["web-01"])
    lab.set("prod.quiesce=fail")
    try:
        with pytest.raises(VsphereError) as caught:
            site.create_snapshot(vm.ref, "vrepl-q", "", quiesce=True)
    finally:
        lab.set("prod.quiesce=ok")
    assert "Quiesce" in (caught.value.fault or "")
    assert named(site, vm, "vrepl-q") == []


def test_a_file_fault_of_change_tracking_is_a_cbt_error(lab: Lab, site: VsphereSite) -> None:
    (vm,) = site.find_vms(["db-01"])
    site.enable_cbt(vm.ref)
    made = site.create_snapshot(vm.ref, "vrepl-cbt", "", quiesce=False)
    disk = made.disks[0]
    assert disk.change_id is not None
    lab.set("prod.api_fault=QueryChangedDiskAreas:fault:FileFault")
    try:
        with pytest.raises(CbtError, match="FileFault"):
            site.changed_areas(vm.ref, made.ref, disk.key, 0, disk.change_id)
        site.changed_areas(vm.ref, made.ref, disk.key, 0, disk.change_id)
    finally:
        site.remove_snapshot(vm.ref, made.ref)


# --- power


def test_power_goes_on_and_off_and_may_be_asked_for_twice(lab: Lab, site: VsphereSite) -> None:
    (vm,) = site.find_vms(["app-01"])
    lab.set("prod.api_fault=PowerOnVM_Task:drop_reply")
    site.power_on(vm.ref)
    site.power_on(vm.ref)
    assert site.guest_state(vm.ref).power is PowerState.ON
    site.power_off(vm.ref)
    site.power_off(vm.ref)
    assert site.guest_state(vm.ref).power is PowerState.OFF
    site.shut_down_guest(vm.ref, within=5)


def test_a_guest_shuts_down_through_its_tools_only(lab: Lab, site: VsphereSite) -> None:
    (vm,) = site.find_vms(["legacy-01"])
    try:
        lab.set_tools("prod", "legacy-01", "notRunning")
        with pytest.raises(VsphereError) as caught:
            site.shut_down_guest(vm.ref, within=5)
        assert caught.value.fault == "ToolsUnavailable"
        lab.set_tools("prod", "legacy-01", "running")
        assert site.guest_state(vm.ref).tools_running
        site.shut_down_guest(vm.ref, within=30)
        assert site.read_vm(vm.ref).power is PowerState.OFF
    finally:
        site.power_on(vm.ref)
        lab.set_tools("prod", "legacy-01", "running")


# --- waiting


def test_a_task_that_never_ends_meets_the_deadline(lab: Lab, open_site: OpenSite) -> None:
    site = open_site(task_timeout=0.3)
    (vm,) = site.find_vms(["app-01"])
    lab.set("prod.api_fault=CreateSnapshot_Task:task_hang")
    with pytest.raises(VsphereError, match="has not ended within") as caught:
        site.create_snapshot(vm.ref, "vrepl-hang", "", quiesce=False)
    assert caught.value.fault == "Timedout"


def test_closing_the_site_ends_every_wait(lab: Lab, site: VsphereSite) -> None:
    (vm,) = site.find_vms(["app-01"])
    lab.set("prod.api_fault=CreateSnapshot_Task:task_hang")
    met: list[BaseException] = []

    def wait() -> None:
        try:
            site.create_snapshot(vm.ref, "vrepl-hang", "", quiesce=False)
        except VreplError as error:
            met.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    while not site._tasks._collector._pending:
        time.sleep(0.01)
    site.close()
    thread.join(10)
    assert not thread.is_alive()
    assert isinstance(met[0], InterruptedRunError)


def test_one_question_serves_all_tasks(lab: Lab, site: VsphereSite) -> None:
    """Waiting costs updates, not polls: calls do not grow with the time that tasks take."""
    names = ["app-01", "db-01", "web-01", "legacy-01"]
    vms = site.find_vms(names)
    lab.set("prod.task_ms=700")
    lab.reset_soap_calls("prod")
    try:
        with ThreadPoolExecutor(len(vms)) as pool:
            made = list(pool.map(lambda vm: site.create_snapshot(vm.ref, "vrepl-many", "", quiesce=False), vms))
    finally:
        lab.set("prod.task_ms=0")
    calls = lab.soap_calls("prod")["by_method"]
    assert calls["CreateSnapshot_Task"] == len(vms)
    # Each task has at most three news (queued or running, progress, end), and a timely question brings several.
    assert calls["WaitForUpdatesEx"] <= 4 * len(vms)
    assert calls["CreateFilter"] == 1
    for vm, snapshot in zip(vms, made, strict=True):
        assert named(site, vm, "vrepl-many") == [snapshot.ref]
        site.remove_snapshot(vm.ref, snapshot.ref)


# --- reading


def test_a_listing_goes_through_all_pages(lab: Lab, site: VsphereSite, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = site.list_vms()
    monkeypatch.setattr(collector, "PAGE", 2)
    lab.reset_soap_calls("prod")
    assert site.list_vms() == whole
    calls = lab.soap_calls("prod")["by_method"]
    assert calls["RetrievePropertiesEx"] == 2
    assert calls["ContinueRetrievePropertiesEx"] >= (len(whole) - 1) // 2


def test_a_listing_survives_the_end_of_its_session(
    lab: Lab, site: VsphereSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Page tokens and views die with the login that made them."""
    whole = site.list_vms()
    monkeypatch.setattr(collector, "PAGE", 2)
    lab.set("prod.api_fault=ContinueRetrievePropertiesEx:expire_session@2")
    assert site.list_vms() == whole


def test_a_missing_privilege_is_named(lab: Lab, site: VsphereSite) -> None:
    (vm,) = site.find_vms(["app-01"])
    lab.set("prod.missing_privileges=VirtualMachine.State.CreateSnapshot")
    try:
        lacking = site.missing_privileges(Role.SOURCE, vm_refs=[vm.ref])
        assert [one.privilege for one in lacking] == ["VirtualMachine.State.CreateSnapshot"]
        assert lacking[0].entity == "VirtualMachine app-01"
        with pytest.raises(PermissionDeniedError) as caught:
            site.create_snapshot(vm.ref, "vrepl-no", "", quiesce=False)
        assert caught.value.privilege == "VirtualMachine.State.CreateSnapshot"
    finally:
        lab.set("prod.missing_privileges=none")


def test_a_running_vm_is_not_destroyed(site: VsphereSite) -> None:
    (vm,) = site.find_vms(["web-01"])
    assert vm.power is PowerState.ON
    with pytest.raises(VsphereError, match="powered on"):
        site.destroy_vm(vm.ref)


def test_a_file_beside_a_vm_is_written_read_and_replaced(site: VsphereSite) -> None:
    vm = site.find_vms(["web-01"])[0]
    assert site.read_vm_file(vm, "vrepl-failover-0.json") is None
    site.write_vm_file(vm, "vrepl-failover-0.json", b"first, and longer than the second")
    site.write_vm_file(vm, "vrepl-failover-0.json", b"second")
    assert site.read_vm_file(vm, "vrepl-failover-0.json") == b"second"


def test_a_state_is_shown_in_an_attribute_that_is_made_once(lab: Lab, open_site: OpenSite) -> None:
    for text in ("failed-over, epoch 1", "ready, epoch 2"):
        with open_site() as site:  # as a command each
            vm = site.find_vms(["web-01"])[0]
            site.show_state(vm.ref, text)
            [shown] = [one for one in site.candidates() if one.name == "web-01"]
            assert shown.attributes["vrepl state"] == text
    lab.set("prod.missing_privileges=Global.SetCustomField")
    try:
        with open_site() as site, pytest.raises(PermissionDeniedError):
            site.show_state(vm.ref, "failed-over, epoch 3")
    finally:
        lab.set("prod.missing_privileges=none")


def test_waiting_for_a_vms_tasks_ends_once_what_was_given_up_is_there(lab: Lab, site: VsphereSite) -> None:
    """A snapshot whose time had passed comes all the same, and whoever waits sees it, or nobody would remove it."""
    (vm,) = site.find_vms(["app-01"])
    lab.set("prod.snapshot_ms=1500")
    try:
        with pytest.raises(VsphereError, match="has not ended within"):
            site.create_snapshot(vm.ref, "late", "", quiesce=False, within=0.2)
        assert not named(site, vm, "late")
        site.wait_for_tasks(vm.ref)
        (ref,) = named(site, vm, "late")
    finally:
        lab.set("prod.snapshot_ms=0")
    site.remove_snapshot(vm.ref, ref)
    site.wait_for_tasks(vm.ref)  # nothing runs: at once
