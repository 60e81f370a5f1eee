"""A test of a failover stands on a linked clone in a network that leads nowhere, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.site_access import settings_of
from vrepl.model import PowerState
from vrepl.vsphere.retry import RetryPolicy
from vrepl.vsphere.site import VsphereSite
from vrepl_lab.lab import Lab


@pytest.fixture
def site(lab: Lab) -> Iterator[VsphereSite]:
    retry = RetryPolicy(attempts=3, first_wait=0.01, longest_wait=0.2)
    with VsphereSite(settings_of(lab, "dr", retry=retry)) as site:
        yield site


def test_a_linked_clone_bears_its_own_marks_and_can_be_isolated(site: VsphereSite) -> None:
    vm = next(one for one in site.list_vms() if one.disks and not one.template)
    if vm.power is PowerState.ON:
        site.power_off(vm.ref)
    site.set_extra_config(vm.ref, {"vrepl.repository": "r", "vrepl.run": "x"})
    point = site.create_snapshot(vm.ref, "point", "", quiesce=False)
    network = "vrepl-test"
    assert site.add_isolated_network(vm.host, network)
    assert not site.add_isolated_network(vm.host, network), "it is there already"
    marks = {"vrepl.repository": "", "vrepl.run": "", "vrepl.test.of": vm.instance_uuid}
    clone = site.clone_linked(vm.ref, point.ref, f"{vm.name}-test", marks)
    try:
        assert clone.extra_config == {"vrepl.test.of": vm.instance_uuid}
        assert clone.instance_uuid != vm.instance_uuid
        assert [disk.capacity for disk in clone.disks] == [disk.capacity for disk in vm.disks]
        assert [disk.base_path for disk in clone.disks] == [disk.base_path for disk in point.disks]
        networks = {adapter.network: network for adapter in clone.hardware.network_adapters}
        site.connect_networks(clone.ref, networks)
        assert {one.network for one in site.read_vm(clone.ref).hardware.network_adapters} <= {network}
        assert site.connect_networks(clone.ref, networks) == [], "nothing is left to do"
        site.power_on(clone.ref)
        assert site.guest_state(clone.ref).power is PowerState.ON
        site.power_off(clone.ref)
    finally:
        site.destroy_vm(clone.ref)
        site.remove_isolated_network(vm.host, network)
        site.remove_isolated_network(vm.host, network)
        site.remove_snapshot(vm.ref, point.ref)
    assert [one.name for one in site.list_vms() if one.name == clone.name] == []
