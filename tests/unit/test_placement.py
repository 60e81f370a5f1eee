"""Where a replica goes is settled before anything is made: its name, its host, its hardware, its networks."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from vrepl.errors import NotFoundError, NotReplicableError, UsageError, VreplError
from vrepl.model import Hardware, NetworkAdapter, ReplicaPlacement
from vrepl.vsphere import collector
from vrepl.vsphere.api import ref_of, vim
from vrepl.vsphere.collector import Found
from vrepl.vsphere.hardware import adapter_backing
from vrepl.vsphere.hosts import HostOffer, in_order, obstacle
from vrepl.vsphere.placement import NewReplica, Places

HARDWARE = Hardware(
    version=19, guest_id="debian12_64Guest", firmware="efi", secure_boot=False, cpus=1, cores_per_socket=1,
    memory_mib=512, network_adapters=(NetworkAdapter(4000, "Network adapter 1", "vmxnet3", "lan", "", False),),
)  # fmt: skip
REPLICA = NewReplica("web-01-replica", HARDWARE)
GOLD = ReplicaPlacement(None, "gold")


class Browser:
    """An environment browser: which versions each of the hosts creates, and which guests are known."""

    def __init__(self, name: str, newest: dict[str, int], guests: Sequence[str]) -> None:
        self._moId = name
        self._newest = newest
        self._guests = guests
        self.calls: list[str] = []

    def QueryConfigOptionDescriptor(self) -> list[Any]:
        self.calls.append("descriptor")
        return [
            vim.vm.ConfigOptionDescriptor(
                key=f"vmx-{version:02d}",
                createSupported=version > 8,
                host=[vim.HostSystem(host) for host, newest in self._newest.items() if newest >= version],
            )
            for version in (4, 8, 13, 19, 20, 21)
            if any(newest >= version for newest in self._newest.values())
        ]

    def QueryConfigOptionEx(self, spec: Any) -> Any:
        self.calls.append(f"option {ref_of(spec.host)} {spec.key} {spec.guestId[0]}")
        known = [guest for guest in self._guests if guest == spec.guestId[0]] or self._guests
        return SimpleNamespace(guestOSDescriptor=[SimpleNamespace(id=guest) for guest in known])


class Site:
    """Two datacenters, each with a datastore `gold`; hosts a-1 and a-2 in east, b-1 in west."""

    def __init__(self) -> None:
        self.browser = Browser("env-1", {"a-1": 21, "a-2": 21, "b-1": 21}, ["debian12_64Guest", "otherGuest64"])
        self.networks = {"a-1": ["lan", "nsx"], "a-2": ["lan", "nsx"], "b-1": ["lan"]}
        self.vms = {"a-1": 5, "a-2": 2, "b-1": 0}
        self.listings = 0

    def below(self, session: object, wanted: object, root: object = None) -> list[Found]:
        self.listings += 1
        found = [Found(vim.Folder("group-d1"), {"name": "Datacenters"})]
        for dc in ("east", "west"):
            vm_folder = vim.Folder(f"group-v-{dc}")
            found += [
                Found(vim.Datacenter(dc), {"name": dc, "vmFolder": vm_folder, "parent": vim.Folder("group-d1")}),
                Found(vim.Folder(f"group-h-{dc}"), {"name": "host", "parent": vim.Datacenter(dc)}),
                Found(vm_folder, {"name": "vm", "parent": vim.Datacenter(dc)}),
                Found(vim.Datastore(f"datastore-{dc}"), {"name": "gold"}),
                Found(
                    vim.ComputeResource(f"domain-{dc}"),
                    {
                        "name": dc, "parent": vim.Folder(f"group-h-{dc}"),
                        "resourcePool": vim.ResourcePool(f"pool-{dc}"), "environmentBrowser": self.browser,
                    },
                ),
            ]  # fmt: skip
        found += [Found(vim.Network(name), {"name": name}) for name in ("lan", "lan-2", "nsx")]
        for host, count in self.vms.items():
            dc = "east" if host.startswith("a") else "west"
            values = {
                "name": host, "parent": vim.ComputeResource(f"domain-{dc}"),
                "datastore": [vim.Datastore(f"datastore-{dc}")],
                "network": [vim.Network(name) for name in self.networks[host]],
                "vm": [vim.VirtualMachine(f"vm-{number}") for number in range(count)],
                "runtime.connectionState": "connected",
            }  # fmt: skip
            found.append(Found(vim.HostSystem(host), values))
        return found

    def these(self, session: object, objects: Sequence[Any], wanted: object) -> list[Found]:
        summary = vim.OpaqueNetwork.Summary(opaqueNetworkId="1a2b-3c", opaqueNetworkType="nsx.LogicalSwitch")
        return [
            Found(one, {"name": ref_of(one)} | ({"summary": summary} if ref_of(one) == "nsx" else {}))
            for one in objects
        ]


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    made = Site()
    monkeypatch.setattr(collector, "below", made.below)
    monkeypatch.setattr(collector, "these", made.these)
    return made


@pytest.fixture
def places() -> Places:
    return Places(None, monotonic=lambda: 0.0)  # type: ignore[arg-type]


def test_a_name_that_is_too_long_is_refused(site: Site, places: Places) -> None:
    places.find_for(NewReplica("x" * 80, HARDWARE), ReplicaPlacement("a-1", "gold"))
    with pytest.raises(NotReplicableError, match="81 characters, and vSphere takes 80"):
        places.find_for(NewReplica("x" * 81, HARDWARE), ReplicaPlacement("a-1", "gold"))


def test_equal_datastore_names_in_two_datacenters_are_told_apart(site: Site, places: Places) -> None:
    with pytest.raises(UsageError, match="2 datastores named gold"):
        places.find_for(REPLICA, GOLD)
    west = places.find_for(REPLICA, ReplicaPlacement(None, "west/gold"))
    assert (west.host_name, ref_of(west.datastore), west.datastore_name) == ("b-1", "datastore-west", "gold")
    assert ref_of(west.folder) == "group-v-west"
    east = places.find_for(REPLICA, ReplicaPlacement("a-1", "gold"))
    assert (ref_of(east.datastore), ref_of(east.folder)) == ("datastore-east", "group-v-east")
    with pytest.raises(NotFoundError, match="host b-1 has no datastore east/gold"):
        places.find(ReplicaPlacement("b-1", "east/gold"))


def test_replicas_spread_over_the_hosts_that_can_take_them(site: Site, places: Places) -> None:
    chosen = []
    for _ in range(6):
        place = places.find_for(REPLICA, ReplicaPlacement(None, "east/gold"))
        places.count(place)
        chosen.append(place.host_name)
    assert chosen == ["a-2", "a-2", "a-2", "a-1", "a-2", "a-1"]
    assert site.listings == 1, "a plan over many VMs lists the site once"
    assert site.browser.calls.count("descriptor") == 1


def test_only_a_host_that_knows_the_hardware_version_is_taken(site: Site, places: Places) -> None:
    site.browser._newest |= {"a-2": 13}
    assert places.find_for(REPLICA, ReplicaPlacement(None, "east/gold")).host_name == "a-1"
    with pytest.raises(NotReplicableError, match="a-2 knows hardware versions up to vmx-13, not vmx-19"):
        places.find_for(REPLICA, ReplicaPlacement("a-2", "gold"))


def test_versions_that_a_host_only_runs_are_not_made_there(site: Site, places: Places) -> None:
    old = Hardware(**{name: getattr(HARDWARE, name) for name in Hardware.__dataclass_fields__} | {"version": 8})
    with pytest.raises(NotReplicableError, match="not vmx-08"):
        places.find_for(NewReplica("old", old), ReplicaPlacement("a-1", "gold"))


def test_only_a_host_with_the_networks_is_taken(site: Site, places: Places) -> None:
    site.networks["a-2"] = []
    assert places.find_for(REPLICA, ReplicaPlacement(None, "east/gold")).host_name == "a-1"
    with pytest.raises(NotFoundError, match="host a-2 has no network lan"):
        places.find_for(REPLICA, ReplicaPlacement("a-2", "gold"))
    site.networks = {"a-1": ["lan-2"], "a-2": ["nsx"], "b-1": ["lan"]}
    with pytest.raises(NotFoundError, match="no host of the target has network lan") as caught:
        Places(None).find_for(REPLICA, ReplicaPlacement(None, "east/gold"))  # type: ignore[arg-type]
    assert "lan-2" in (caught.value.hint or "")


def test_a_guest_os_that_the_target_does_not_know_is_refused(site: Site, places: Places) -> None:
    """Where none matches, vSphere answers with the whole list."""
    new = Hardware(
        **{name: getattr(HARDWARE, name) for name in Hardware.__dataclass_fields__} | {"guest_id": "debian14_64Guest"}
    )
    with pytest.raises(NotReplicableError, match="host a-2 does not know the guest OS debian14_64Guest"):
        places.find_for(NewReplica("new", new), ReplicaPlacement(None, "east/gold"))


def test_networks_of_nsx_get_a_backing_of_their_own(site: Site, places: Places) -> None:
    """They have no port group, and vSphere refuses a plain network backing for them."""
    place = places.find_for(REPLICA, ReplicaPlacement("a-1", "gold", networks={"lan": "nsx"}))
    backing = adapter_backing("nsx", place)
    assert isinstance(backing, vim.vm.device.VirtualEthernetCard.OpaqueNetworkBackingInfo)
    assert (backing.opaqueNetworkId, backing.opaqueNetworkType) == ("1a2b-3c", "nsx.LogicalSwitch")
    assert not isinstance(adapter_backing("lan", place), type(backing))


def test_what_is_not_told_is_no_obstacle() -> None:
    offer = HostOffer("host-1", "esx-1", networks=frozenset({"lan"}))
    assert obstacle(offer, HARDWARE, ["lan"]) is None
    assert in_order([offer], HARDWARE, []) == [offer]


@pytest.mark.parametrize("hosts", [["esx-1"], ["esx-1", "esx-2"]])
def test_the_refusal_names_every_host_with_its_reason(hosts: list[str]) -> None:
    offers = [HostOffer(name, name, versions=frozenset({13, 14})) for name in hosts]
    with pytest.raises(VreplError) as caught:
        in_order(offers, HARDWARE, [])
    assert all(f"{name} knows hardware versions up to vmx-14" in caught.value.message for name in hosts)
    assert caught.value.hint
