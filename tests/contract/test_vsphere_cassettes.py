"""Each thing that is asked of vSphere, replayed from a cassette that was recorded from the lab (or plain govcsim).

A test of this module is a cassette of the same name. `python -m tests.record` records them anew.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import cassettes
from tests.support.cassettes import FOLDER, RECORD_VARIABLE, cassette
from vrepl.errors import AuthenticationError, CbtError, NotFoundError, VsphereError
from vrepl.model import PowerState, ReplicaPlacement, ReplicaSpec, Sighting, VirtualMachine, VmAtRest
from vrepl.model.addresses import AdapterAddresses, AddressPlan, GuestFamily
from vrepl.vsphere.privileges import Role
from vrepl.vsphere.session import SiteSettings
from vrepl.vsphere.site import VsphereSite

RECORDING = os.environ.get(RECORD_VARIABLE)
GRAIN = 64 * 1024
OpenSite = Callable[..., VsphereSite]


@pytest.fixture
def open_site(request: pytest.FixtureRequest) -> Iterator[OpenSite]:
    """Opens a site within the test's own cassette."""
    servers = json.loads(Path(RECORDING).read_text()) if RECORDING else None
    with ExitStack() as stack:
        stack.enter_context(cassette(request.node.name, record=servers is not None))

        def make(name: str, password: str | None = None) -> VsphereSite:
            made = iter(uuid.UUID(int=number) for number in range(0x5207 << 112, (0x5207 << 112) + 100))
            if servers is None:
                settings = SiteSettings(name, "127.0.0.1", "operator", password or "not in the cassette")
            else:
                server = servers["sites"][name]
                settings = SiteSettings(
                    name,
                    "127.0.0.1",
                    server["user"],
                    password or Path(server["password_file"]).read_text().strip(),
                    port=server["port"],
                    ca_file=Path(server["ca_file"]),
                )
            site = VsphereSite(settings, sleep=lambda seconds: None, new_uuid=lambda: str(next(made)))
            stack.callback(site.close)
            return site

        yield make


@pytest.fixture
def guest_writes() -> Callable[[str, int, int, int], None]:
    """A running guest of site prod writes (VM, disk index, offset, length); when replaying, it already has."""

    def write(vm: str, index: int, offset: int, length: int) -> None:
        if RECORDING:
            from vrepl_lab.lab import Lab

            lab = Lab.attach(Path(json.loads(Path(RECORDING).read_text())["lab"]))
            lab.write("prod", vm, index, offset, b"\xa5" * length)

    return write


def spec_like(vm: VirtualMachine, name: str, datastore: str, **networks: str) -> ReplicaSpec:
    return ReplicaSpec(
        name=name,
        placement=ReplicaPlacement(None, datastore, networks=networks),
        hardware=vm.hardware,
        bios_uuid=vm.bios_uuid,
        disks=vm.disks,
        keep_macs=False,
        thin=True,
        extra_config={"vrepl.run": "0001"},
        annotation="a replica",
    )


# --- the site


def test_login_and_about(open_site: OpenSite) -> None:
    site = open_site("prod")
    assert site.is_vcenter
    assert "vCenter" in site.product
    assert site.current_time().tzinfo is dt.UTC


def test_login_refused(open_site: OpenSite) -> None:
    with pytest.raises(AuthenticationError) as caught:
        open_site("prod", password="wrong").login()
    assert caught.value.exit_code == 12


# --- inventory


def test_list_vms(open_site: OpenSite) -> None:
    site = open_site("prod")
    site.login()
    before = site.soap_calls
    vms = {vm.name: vm for vm in site.list_vms()}
    assert site.soap_calls - before == 6, "two views made, read in one page each, and destroyed"
    assert set(vms) == {"web-01", "db-01", "app-01", "legacy-01", "vrepl-proxy"}
    assert vms["db-01"].power is PowerState.ON
    assert vms["app-01"].power is PowerState.OFF
    assert len(vms["db-01"].disks) == 2
    assert all(vm.host and vm.datacenter == "prod-dc" for vm in vms.values())
    assert vms["web-01"].hardware.network_adapters[0].network == "VM Network"
    assert [disk.mode for disk in vms["legacy-01"].disks].count("independent_persistent") == 1


def test_find_vms_in_the_order_asked_for(open_site: OpenSite) -> None:
    assert [vm.name for vm in open_site("prod").find_vms(["web-01", "app-01"])] == ["web-01", "app-01"]


def test_find_vms_names_all_that_are_missing(open_site: OpenSite) -> None:
    with pytest.raises(NotFoundError, match="web-02, nobody") as caught:
        open_site("prod").find_vms(["web-02", "app-01", "nobody"])
    assert "web-01" in (caught.value.hint or "")


def test_find_by_uuid(open_site: OpenSite) -> None:
    site = open_site("prod")
    (vm,) = site.find_vms(["app-01"])
    found = site.find_vm_by_instance_uuid(vm.instance_uuid)
    assert found is not None
    assert found.ref == vm.ref
    assert site.find_vm_by_instance_uuid("50000000-0000-0000-0000-000000000000") is None
    assert [one.ref for one in site.find_vms_by_bios_uuid(vm.bios_uuid)] == [vm.ref]


def test_read_vm_that_is_gone(open_site: OpenSite) -> None:
    with pytest.raises(NotFoundError, match="vm-99999"):
        open_site("prod").read_vm("vm-99999")


def test_datastores(open_site: OpenSite) -> None:
    found = {store.name: store for store in open_site("dr").datastores()}
    assert {store.kind for store in found.values()} == {"VMFS", "NFS"}
    assert all(store.luns[0].startswith("naa.") for store in found.values() if store.kind == "VMFS")
    assert all(store.free > 0 and len(store.hosts) == 2 for store in found.values())


def test_hosts(open_site: OpenSite) -> None:
    hosts = open_site("dr").hosts()
    assert len(hosts) == 2
    assert all(host.connected and host.version and host.datastores for host in hosts)


def test_privileges_are_held(open_site: OpenSite) -> None:
    site = open_site("prod")
    (vm,) = site.find_vms(["app-01"])
    assert site.missing_privileges(Role.SOURCE, vm_refs=[vm.ref]) == []


# --- snapshots and change tracking


def test_snapshot_of_a_tracked_vm(open_site: OpenSite, guest_writes: Callable[[str, int, int, int], None]) -> None:
    site = open_site("prod")
    (vm,) = site.find_vms(["db-01"])
    site.enable_cbt(vm.ref)
    assert site.read_vm(vm.ref).cbt_enabled
    first = site.create_snapshot(vm.ref, "vrepl-one", "the first", quiesce=True)
    assert (first.name, first.description, first.quiesced) == ("vrepl-one", "the first", True)
    assert all(disk.change_id for disk in first.disks)
    assert site.read_vm(vm.ref).disks[0].path != first.disks[0].path, "the VM goes on in a new link"
    assert site.remove_snapshot(vm.ref, first.ref) is False
    guest_writes("db-01", 0, 2 * GRAIN, 100)
    second = site.create_snapshot(vm.ref, "vrepl-two", "", quiesce=False)
    try:
        disk = first.disks[0]
        assert disk.change_id is not None
        page = site.changed_areas(vm.ref, second.ref, disk.key, 0, disk.change_id)
        assert page.start == 0
        assert page.length == disk.capacity
        assert [(area.offset, area.length) for area in page.areas] == [(2 * GRAIN, GRAIN)]
        with pytest.raises(CbtError, match="are unknown"):
            site.changed_areas(vm.ref, second.ref, disk.key, 0, "52 00 00 00 00 00 00 00-00 00 00 00 00 00 00 00/1")
        with pytest.raises(VsphereError, match="startOffset"):
            site.changed_areas(vm.ref, second.ref, disk.key, disk.capacity, disk.change_id)
    finally:
        site.remove_snapshot(vm.ref, second.ref)


def test_a_vm_is_found_where_it_was_seen_last(open_site: OpenSite) -> None:
    site = open_site("prod")
    vm, other = site.find_vms(["app-01", "web-01"])
    made = site.create_snapshot(vm.ref, "vrepl sighting", "of a replica", quiesce=False)
    try:
        site.find_vm_at_rest(vm.instance_uuid, None)  # what has ended just now is looked at once more
        before = site.soap_calls
        found = site.find_vm_at_rest(vm.instance_uuid, Sighting(vm.ref, made.ref))
        assert found == VmAtRest(site.read_vm(vm.ref), made)
        assert site.soap_calls - before == 2, "one for both, and one for the comparison"
        gone = site.find_vm_at_rest(vm.instance_uuid, Sighting(vm.ref, "snapshot-999999"))
        assert gone is not None
        assert (gone.vm, gone.snapshot) == (found.vm, None)
        for elsewhere in (Sighting(other.ref, made.ref), Sighting("vm-999999", made.ref), None):
            moved = site.find_vm_at_rest(vm.instance_uuid, elsewhere)
            assert moved is not None
            assert moved.vm == found.vm, "it is looked up by its instanceUuid"
    finally:
        site.remove_snapshot(vm.ref, made.ref)
    assert site.find_vm_at_rest("00000000-0000-0000-0000-000000000000", Sighting(vm.ref, made.ref)) is None


def test_snapshot_that_is_gone(open_site: OpenSite) -> None:
    site = open_site("prod")
    (vm,) = site.find_vms(["app-01"])
    made = site.create_snapshot(vm.ref, "vrepl-once", "", quiesce=False)
    assert site.remove_snapshot(vm.ref, made.ref) is False
    assert site.remove_snapshot(vm.ref, made.ref) is False, "removing it again is fine"
    with pytest.raises(NotFoundError):
        site.read_snapshot(made.ref)


def test_snapshot_name_is_never_used_twice(open_site: OpenSite) -> None:
    site = open_site("prod")
    (vm,) = site.find_vms(["app-01"])
    made = site.create_snapshot(vm.ref, "vrepl-only", "", quiesce=False)
    try:
        with pytest.raises(VsphereError) as caught:
            site.create_snapshot(vm.ref, "vrepl-only", "", quiesce=False)
        assert caught.value.fault == "DuplicateName"
    finally:
        site.remove_snapshot(vm.ref, made.ref)


def test_revert_and_consolidate(open_site: OpenSite) -> None:
    site = open_site("prod")
    (vm,) = site.find_vms(["app-01"])
    made = site.create_snapshot(vm.ref, "vrepl-back", "", quiesce=False)
    try:
        site.set_extra_config(vm.ref, {"vrepl.mark": "after"})
        assert site.read_vm(vm.ref).extra_config == {"vrepl.mark": "after"}
        site.revert_to_snapshot(vm.ref, made.ref)
        assert site.read_vm(vm.ref).extra_config == {}, "a revert brings old settings back"
        assert site.read_vm(vm.ref).current_snapshot_ref == made.ref
    finally:
        site.remove_snapshot(vm.ref, made.ref)
    site.wait_for_tasks(vm.ref)
    site.consolidate(vm.ref)


# --- replicas


def test_replica_from_birth_to_removal(open_site: OpenSite) -> None:
    site = open_site("prod")
    (vm,) = site.find_vms(["db-01"])
    replica = site.create_replica(spec_like(vm, "db-01-replica", "prod-vmfs-02", **{"VM Network": "isolated"}))
    assert replica.name == "db-01-replica"
    assert replica.power is PowerState.OFF
    assert replica.instance_uuid == "52070000-0000-0000-0000-000000000000"
    assert replica.bios_uuid == vm.bios_uuid
    assert replica.cbt_enabled
    assert replica.extra_config == {"vrepl.run": "0001"}
    assert [disk.capacity for disk in replica.disks] == [disk.capacity for disk in vm.disks]
    assert {disk.datastore for disk in replica.disks} == {"prod-vmfs-02"}
    assert replica.hardware.firmware == vm.hardware.firmware
    assert [adapter.network for adapter in replica.hardware.network_adapters] == ["isolated"]
    assert replica.hardware.network_adapters[0].mac != vm.hardware.network_adapters[0].mac
    site.destroy_vm(replica.ref)
    site.destroy_vm(replica.ref)
    with pytest.raises(NotFoundError):
        site.read_vm(replica.ref)


def test_a_guest_is_given_addresses(open_site: OpenSite) -> None:
    site = open_site("prod")
    (vm,) = site.find_vms(["db-01"])
    replica = site.create_replica(spec_like(vm, "db-01-moved", "prod-vmfs-02", **{"VM Network": "isolated"}))
    try:
        [card] = replica.hardware.network_adapters
        adapter = AdapterAddresses(card.key, "10.2.0.5/24", ("fd00:2::5/64",), ("10.2.0.1", "fd00:2::1"))
        plan = AddressPlan(GuestFamily.LINUX, "db-01", "example.com", (adapter,), ("10.2.0.53",), ("example.com",))
        with pytest.raises(VsphereError) as caught:
            site.check_addresses(replica.ref, replace(plan, adapters=(adapter, adapter)))
        assert caught.value.fault == "NicSettingMismatch"
        site.check_addresses(replica.ref, plan)
        assert site.give_addresses(replica.ref, plan) is True
        assert site.give_addresses(replica.ref, plan) is False, "what was given first waits"
        assert site.address_end(replica.ref, None) is None
        reported = site.reported_addresses(replica.ref)
        assert reported is None or not any(one.addresses for one in reported.adapters)
        site.set_connected(replica.ref, [card.key], False)
        site.set_connected(replica.ref, [card.key], False)
        assert [one.connected for one in site.read_vm(replica.ref).hardware.network_adapters] == [False]
    finally:
        site.destroy_vm(replica.ref)


def test_replica_is_reconciled(open_site: OpenSite) -> None:
    site = open_site("prod")
    web, app = site.find_vms(["web-01", "app-01"])
    spec = spec_like(app, "app-01-replica", "prod-vmfs-01")
    replica = site.create_replica(spec)
    try:
        assert site.reconcile_replica(replica, app.hardware, spec.placement, keep_macs=False) == []
        placement = ReplicaPlacement(None, "prod-vmfs-01", networks={"VM Network": "isolated"})
        said = site.reconcile_replica(replica, web.hardware, placement, keep_macs=False)
        assert "CPUs: 1 -> 2" in said
        assert any("network VM Network -> isolated" in line for line in said)
        after = site.read_vm(replica.ref)
        assert after.hardware.cpus == 2
        asked = site.soap_calls
        assert site.reconcile_replica(after, web.hardware, placement, keep_macs=False) == []
        assert site.soap_calls == asked, "nothing is asked about a replica that was seen to follow"
        assert site.reconcile_replica(replica, web.hardware, placement, keep_macs=False) == [], "read anew first"
    finally:
        site.destroy_vm(replica.ref)


def test_replica_disks_come_and_go(open_site: OpenSite) -> None:
    site = open_site("prod")
    (vm,) = site.find_vms(["db-01"])
    spec = spec_like(vm, "db-01-replica", "prod-vmfs-01")
    one_disk = ReplicaSpec(
        **{name: getattr(spec, name) for name in ReplicaSpec.__dataclass_fields__} | {"disks": vm.disks[:1]}
    )
    replica = site.create_replica(one_disk)
    try:
        assert len(replica.disks) == 1
        grown = site.add_replica_disk(replica.ref, spec, 1)
        assert [disk.unit_number for disk in grown.disks] == [0, 1]
        site.remove_replica_disk(replica.ref, grown.disks[1].key)
        site.remove_replica_disk(replica.ref, grown.disks[1].key)
        assert len(site.read_vm(replica.ref).disks) == 1
    finally:
        site.destroy_vm(replica.ref)


@pytest.mark.parametrize(
    ("placement", "said", "hint"),
    [
        (ReplicaPlacement(None, "dr-vmfs-1"), "datastore dr-vmfs-1", "dr-vmfs-01"),
        (ReplicaPlacement("esx-77", "dr-vmfs-01"), "host esx-77", "127."),
        (ReplicaPlacement(None, "dr-vmfs-01", resource_pool="gold"), "no resource pool gold", "root pool"),
        (ReplicaPlacement(None, "dr-vmfs-01", networks={"VM Network": "isolatd"}), "network isolatd", "isolated"),
    ],
    ids=["datastore", "host", "pool", "network"],
)
def test_place_not_found(placement: ReplicaPlacement, said: str, hint: str, open_site: OpenSite) -> None:
    site = open_site("dr")
    (proxy,) = site.find_vms(["vrepl-proxy"])
    spec = spec_like(proxy, "x-replica", "dr-vmfs-01")
    wrong = ReplicaSpec(
        **{name: getattr(spec, name) for name in ReplicaSpec.__dataclass_fields__} | {"placement": placement}
    )
    with pytest.raises(NotFoundError, match=said) as caught:
        site.create_replica(wrong)
    assert hint in (caught.value.hint or "")


def test_a_vm_that_runs_is_not_destroyed(open_site: OpenSite) -> None:
    site = open_site("prod")
    (vm,) = site.find_vms(["web-01"])
    with pytest.raises(VsphereError, match="powered on"):
        site.destroy_vm(vm.ref)


# --- where change tracking does not exist


def test_plain_govcsim_has_no_change_tracking(open_site: OpenSite) -> None:
    """vrepl falls back: snapshots carry no change ID, and asking is a CbtError that says why."""
    site = open_site("plain")
    vm = site.list_vms()[0]
    site.enable_cbt(vm.ref)
    made = site.create_snapshot(vm.ref, "vrepl-plain", "", quiesce=True)
    assert [disk.change_id for disk in made.disks] == [None]
    with pytest.raises(CbtError, match="no change tracking") as caught:
        site.changed_areas(vm.ref, made.ref, made.disks[0].key, 0, "52 00/1")
    assert "compares" in (caught.value.hint or "")
    assert site.remove_snapshot(vm.ref, made.ref) is False


# --- the cassettes themselves

SECRETS = (
    re.compile(r"vmware_soap_session", re.IGNORECASE),
    re.compile(r"set-cookie|^\s*cookie:", re.IGNORECASE | re.MULTILINE),
    re.compile(r"<(?:\w+:)?password\b[^>]*>(?!SCRUBBED<)"),
    re.compile(r"<LoginResponse[^>]*><returnval><key>(?!SCRUBBED-SESSION<)"),
    re.compile(r"<(?:\w+:)?sessionId\b[^>]*>(?!SCRUBBED-SESSION<)"),
    re.compile(r"<(?:\w+:)?(?:clone)?[tT]icket\b[^>]*>(?!X<)"),
    re.compile(r"BEGIN [A-Z ]*PRIVATE KEY"),
    re.compile(r"[\s\"'>](?:/tmp|/work|/root|/home|/Users)/"),
)


def test_no_cassette_holds_a_secret() -> None:
    tapes = sorted(FOLDER.glob("*.yaml"))
    assert len(tapes) > 10
    for tape in tapes:
        text = tape.read_text()
        for pattern in SECRETS:
            assert not (found := pattern.search(text)), f"{tape.name}: {found[0] if found else ''}"


@pytest.mark.parametrize(
    "secret",
    [
        "<LoginResponse xmlns='urn:vim25'><returnval><key>2f1b</key>",
        '<password xsi:type="xsd:string">hunter2</password>',
        '<sessionId xsi:type="xsd:string">2f1b</sessionId>',
        "<url>file:/tmp/vrepl-lab/ds</url> /tmp/vrepl-lab/ds",
    ],
)
def test_scrubbing_and_the_leak_test_agree(secret: str) -> None:
    """The leak test finds what is not scrubbed, and nothing once it is."""
    assert any(pattern.search(secret) for pattern in SECRETS)
    assert not any(pattern.search(cassettes.scrub(secret)) for pattern in SECRETS)


def test_every_cassette_has_its_test(request: pytest.FixtureRequest) -> None:
    names = {item.name for item in request.session.items if "test_vsphere_cassettes" in item.nodeid}
    if "test_no_cassette_holds_a_secret" not in names:
        pytest.skip("only some of the tests were selected")
    stray = [tape.stem for tape in FOLDER.glob("*.yaml") if tape.stem not in names]
    assert stray == []
