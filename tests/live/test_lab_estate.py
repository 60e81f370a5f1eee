"""What a lab's vCenter holds beside VMs: tags over REST, custom attributes, folders, pools, vApps, networks, a twin."""

from __future__ import annotations

import base64
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from pyVmomi import vim

from tests.support import plain_api
from tests.support.plain_api import vm_named, wait
from vrepl_lab.lab import USER, Lab
from vrepl_lab.spec import LabSpec, VmSpec, estate_spec

SESSION = "vmware-api-session-id"
NETWORKS = ("dv-net-01", "nsx-segment-01", "VM Network")


def spec() -> LabSpec:
    estate = estate_spec(300)
    prod = estate.prod
    return replace(
        estate,
        prod=replace(
            prod,
            vms=(VmSpec("net-01", networks=NETWORKS), VmSpec("vm-0001"), *prod.vms),
            twin=True,
            twin_vms=("vm-0299",),
        ),
    )


@pytest.fixture(scope="module")
def vcenter(start_shared_lab: Callable[[LabSpec], Lab]) -> Lab:
    return start_shared_lab(spec())


@pytest.fixture
def api(vcenter: Lab) -> Iterator[Any]:
    with plain_api.session(vcenter) as instance:
        yield instance


class Rest:
    """A client of a few lines, which shares no code with vrepl."""

    def __init__(self, lab: Lab, session: str = "/rest/com/vmware/cis/session") -> None:
        self.base = f"https://127.0.0.1:{lab.sites['prod'].port}"
        self.context = ssl.create_default_context(cafile=str(lab.folder / "ca.pem"))
        self.headers = {"Content-Type": "application/json"}
        login = base64.b64encode(f"{USER}:{lab.password('prod')}".encode()).decode()
        self.headers[SESSION] = self.value(self.call("POST", session, Authorization=f"Basic {login}"))

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, self.headers | headers, method=method)
        with urllib.request.urlopen(request, context=self.context, timeout=30) as reply:
            content = reply.read()
        return json.loads(content) if content else None

    @staticmethod
    def value(reply: Any) -> Any:
        return reply["value"] if isinstance(reply, dict) and "value" in reply else reply


def test_tags_are_read_over_rest_and_over_api(vcenter: Lab, api: Any) -> None:
    names = {vm.name: vm._moId for vm in vms(api) if vm.parent.name != "vm"}
    expected = {names[f"vm-{n:04}"] for n in range(1, 301) if n % 4 == 0}
    tagging = "/rest/com/vmware/cis/tagging"
    client = Rest(vcenter)
    tags = [
        client.value(client.call("GET", f"{tagging}/tag/id:{tag}"))
        for tag in client.call("GET", f"{tagging}/tag")["value"]
    ]
    categories = {
        one["id"]: one
        for one in (
            client.value(client.call("GET", f"{tagging}/category/id:{category}"))
            for category in client.call("GET", f"{tagging}/category")["value"]
        )
    }
    assert {one["name"]: one["cardinality"] for one in categories.values()} == {
        "Backup": "MULTIPLE",
        "Environment": "SINGLE",
    }
    (gold,) = [tag for tag in tags if tag["name"] == "Gold" and categories[tag["category_id"]]["name"] == "Backup"]
    vcenter.reset_soap_calls("prod")
    found = client.value(
        client.call(
            "POST",
            f"{tagging}/tag-association?~action=list-attached-objects-on-tags",
            {"tag_ids": [gold["id"]]},
        )
    )
    assert {one["id"] for one in found[0]["object_ids"]} == expected
    counted = vcenter.soap_calls("prod")["by_method"]
    assert counted == {"REST POST tag-association?list-attached-objects-on-tags": 1}

    newer = Rest(vcenter, "/api/session")
    assert gold["id"] in newer.call("GET", "/api/cis/tagging/tag")
    assert newer.call("GET", f"/api/cis/tagging/tag/{gold['id']}")["name"] == "Gold"
    place = f"/api/cis/tagging/tag-association/{gold['id']}"
    one = {"object_id": {"id": names["vm-0001"], "type": "VirtualMachine"}}
    newer.call("POST", f"{place}?action=attach", one)
    attached = newer.call("POST", f"{place}?action=list-attached-objects")
    assert {vm["id"] for vm in attached} == expected | {names["vm-0001"]}
    newer.call("POST", f"{place}?action=detach", one)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        Rest(vcenter).call("GET", f"{tagging}/tag", **{SESSION: "wrong"})
    with pytest.raises(urllib.error.HTTPError, match="404"):
        newer.call("GET", "/api/vcenter/vm")


def test_rest_fails_as_the_rules_say(vcenter: Lab) -> None:
    vcenter.set("prod.api_fault=REST:http_503@1x1")
    with pytest.raises(urllib.error.HTTPError, match="503"):
        Rest(vcenter)
    vcenter.set("faults=none")
    assert Rest(vcenter).headers[SESSION]


def vms(api: Any) -> list[Any]:
    view = api.content.viewManager.CreateContainerView(api.content.rootFolder, [vim.VirtualMachine], True)
    found = list(view.view)
    view.Destroy()
    return found


def test_folders_pools_vapps_and_custom_attributes(api: Any) -> None:
    first = [vm for vm in vms(api) if vm.name == "vm-0001"]
    assert {vm.parent.name for vm in first} == {"vm", "front"}  # one name, two folders, two VMs
    assert len({vm.config.instanceUuid for vm in first}) == len({vm.config.files.vmPathName for vm in first}) == 2
    (vm,) = [vm for vm in first if vm.parent.name == "front"]
    assert vm.parent.parent.name == "web"
    assert (vm.resourcePool.name, vm.resourcePool.parent.name) == ("small", "rest")
    (field,) = [f for f in api.content.customFieldsManager.field if f.name == "Owner"]
    assert [v.value for v in vm.customValue if v.key == field.key] == ["Grace"]
    assert vm_named(api, "vm-0004").resourcePool.name == "gold"
    tenth = vm_named(api, "vm-0010")
    assert tenth.parentVApp.name == "shop"
    assert vm.parentVApp is None


def cards(vm: Any) -> list[Any]:
    found = [d for d in vm.config.hardware.device if isinstance(d, vim.vm.device.VirtualEthernetCard)]
    return sorted(found, key=lambda card: int(card.key))


def test_networks_distributed_and_opaque(api: Any) -> None:
    vm = vm_named(api, "net-01")
    kinds = [type(card.backing).__name__.rpartition(".")[2] for card in cards(vm)]
    assert kinds == ["DistributedVirtualPortBackingInfo", "OpaqueNetworkBackingInfo", "NetworkBackingInfo"]
    assert {network.name for network in vm.network} == set(NETWORKS)
    assert [nic.network for nic in vm.guest.net][0::2] == ["dv-net-01", "VM Network"]
    opaque: Any
    (opaque,) = [network for network in vm.network if isinstance(network, vim.OpaqueNetwork)]
    assert opaque.summary.opaqueNetworkId == cards(vm)[1].backing.opaqueNetworkId

    card = cards(vm)[2]
    edit = vim.vm.device.VirtualDeviceSpec(operation="edit", device=card)
    card.backing = vim.vm.device.VirtualEthernetCard.NetworkBackingInfo(deviceName=opaque.name, network=opaque)
    with pytest.raises(vim.fault.InvalidDeviceBacking):
        wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[edit])))
    card.backing = vim.vm.device.VirtualEthernetCard.OpaqueNetworkBackingInfo(
        opaqueNetworkId="nothing", opaqueNetworkType="nsx.LogicalSwitch"
    )
    with pytest.raises(vim.fault.InvalidDeviceBacking):
        wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[edit])))
    card.backing.opaqueNetworkId = opaque.summary.opaqueNetworkId
    wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[edit])))
    assert cards(vm)[2].backing.opaqueNetworkId == opaque.summary.opaqueNetworkId


def test_two_datacenters_have_datastores_and_vms_of_equal_names(vcenter: Lab, api: Any) -> None:
    first, second = sorted(
        (d for d in api.content.rootFolder.childEntity if isinstance(d, vim.Datacenter)), key=lambda d: str(d.name)
    )
    stores = {d.name: {s.name: s for s in d.datastore} for d in (first, second)}
    mine, twin = (stores[d.name]["prod-vmfs-01"] for d in (first, second))
    assert mine._moId != twin._moId
    assert (mine.summary.type, twin.summary.type) == ("VMFS", "NFS")
    assert twin.summary.freeSpace <= 1 << 30 < mine.summary.freeSpace
    assert len([vm for vm in vms(api) if vm.name == "vm-0299"]) == 2
    vcenter.set_tools("prod", "vm-0299", "running")  # the lab's own commands mean the first one
    assert set(vcenter.sites["prod"].hosts) == {h.name for h in first.hostFolder.childEntity[0].host}
