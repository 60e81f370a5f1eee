"""What a failover needs to know, kept beside the replica: written when it changes, readable when all else is gone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace as Like

import pytest

from tests.support.memory_site import MemoryVm
from tests.support.world import World, folder_of
from vrepl.engine.failover.settings import SLOTS, ReplicaSettings
from vrepl.errors import VsphereError
from vrepl.extents import GRAIN
from vrepl.model import NetworkAdapter
from vrepl.model.addresses import AddressPolicy, AddressRule, FailoverPolicy, GuestAdapter, GuestNetwork
from vrepl.model.failover_settings import FailoverSettings
from vrepl.report.model import Result
from vrepl.repository.failover import SETTINGS_FILE, read_settings
from vrepl.vsphere.guest_network import guest_network

GUEST = GuestNetwork(
    "web-01", "example.com", ("10.1.0.53",), ("example.com",),
    (GuestAdapter(4000, "00:50:56:00:00:01", addresses=("10.1.0.5/24",), gateways=("10.1.0.1",)),),
)  # fmt: skip


class Kept:
    """A world whose run writes settings, and how often it did."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self.source = self.world.source.add_vm("web-01", [4 * GRAIN])
        self.source.guest = GUEST
        self.written: list[str] = []

    def run(self) -> None:
        before = {name: self.files.get(name) for name in SLOTS}
        report = self.world.run_vm()
        assert report.result is Result.SUCCESS, report.error
        self.written = [name for name in SLOTS if self.files.get(name) != before[name]]

    @property
    def files(self) -> dict[str, bytes]:
        replicas = list(self.world.target.vms.values())
        return replicas[0].files if replicas else {}

    def read(self) -> FailoverSettings | None:
        return read(self.world, self.world.replica())


def read(world: World, vm: MemoryVm) -> FailoverSettings | None:
    return ReplicaSettings(world.target).read(world.target.read_vm(vm.ref))


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def test_a_run_writes_what_has_changed_and_else_asks_nothing(kept: Kept) -> None:
    kept.run()
    first = kept.read()
    assert first is not None
    assert first.source_name == "web-01"
    assert first.guest == GUEST
    asked: list[str] = []
    target = kept.world.target
    read_file, write_file = target.read_vm_file, target.write_vm_file
    target.read_vm_file = lambda vm, name: (asked.append(name), read_file(vm, name))[1]  # type: ignore
    target.write_vm_file = lambda vm, name, content: asked.append(name)  # type: ignore[method-assign]
    kept.run()
    assert not set(asked) & set(SLOTS)
    target.read_vm_file, target.write_vm_file = read_file, write_file  # type: ignore[method-assign]
    moved = replace(GUEST.adapters[0], addresses=("10.1.0.6/24",))
    kept.source.guest = replace(GUEST, adapters=(moved,))
    kept.run()
    assert len(kept.written) == 1
    assert kept.read() == replace(first, sequence=first.sequence + 1, guest=kept.source.guest)


def test_what_the_guest_does_not_tell_now_stays_known(kept: Kept) -> None:
    kept.run()
    kept.source.guest = None
    kept.run()
    silent = replace(GUEST.adapters[0], addresses=(), gateways=())
    second = GuestAdapter(4001, "00:50:56:00:00:02", addresses=("10.9.0.5/24",))
    kept.source.guest = replace(GUEST, host_name="", adapters=(silent, second))
    kept.run()
    found = kept.read()
    assert found is not None
    assert found.guest == replace(GUEST, adapters=(GUEST.adapters[0], second))


def test_a_write_that_is_cut_off_leaves_the_other_one(kept: Kept) -> None:
    kept.run()
    first = kept.read()
    kept.source.guest = replace(GUEST, host_name="web-02")
    kept.run()
    (name,) = kept.written
    kept.files[name] = kept.files[name][:100]
    assert kept.read() == first
    kept.files[name] = kept.files[SLOTS[1 - SLOTS.index(name)]].replace(b"web-01", b"web-07")
    assert kept.read() == first


def test_a_repository_without_its_copy_goes_on_from_the_replica(kept: Kept) -> None:
    kept.run()
    folder = folder_of(kept.world)
    (folder.path / SETTINGS_FILE).unlink()
    kept.source.guest = None
    kept.run()
    found = kept.read()
    assert found is not None
    assert found.guest == GUEST
    (folder.path / SETTINGS_FILE).write_text("{")
    kept.source.guest = replace(GUEST, host_name="web-02")
    kept.run()
    assert read_settings(folder) == kept.read()


def test_files_of_another_vm_do_not_count(kept: Kept) -> None:
    kept.run()
    other = kept.world.target.add_vm("copy", [GRAIN])
    other.files = dict(kept.files)
    assert read(kept.world, other) is None


def test_a_folder_that_cannot_be_written_to_costs_a_note_and_not_the_run(kept: Kept) -> None:
    def refuse(vm: object, name: str, content: bytes) -> None:
        raise VsphereError("HTTP 500")

    kept.world.target.write_vm_file = refuse  # type: ignore[method-assign]
    report = kept.world.run_vm()
    assert report.result is Result.SUCCESS
    assert any("could not be kept beside the replica: HTTP 500" in note for note in report.notes)


def test_rules_for_other_vms_stay_at_home(kept: Kept) -> None:
    mine = AddressRule("10.2.0.0/16", "10.1.0.0/16", vms=("web-*",))
    other = AddressRule("dhcp", vms=("db-*",))
    policy = FailoverPolicy({"idle": "VM Network"}, AddressPolicy(rules=(other, mine)))
    kept.world.job = replace(kept.world.job, failover=policy)
    kept.run()
    found = kept.read()
    assert found is not None
    assert found.policy == FailoverPolicy({"idle": "VM Network"}, AddressPolicy(rules=(mine,)))


HARDWARE = [
    NetworkAdapter(key, "", "vmxnet3", "lan", f"00:50:56:00:00:0{letter}", mac_is_static=False)
    for key, letter in zip(range(4000, 4004), "abcd", strict=True)
]


def card(key: int, *addresses: tuple[str, int, str | None, str | None], dhcp: bool | None = None) -> Like:
    config = Like(
        ipAddress=[
            Like(ipAddress=address, prefixLength=length, origin=origin, state=state)
            for address, length, origin, state in addresses
        ],
        dhcp=None if dhcp is None else Like(ipv4=Like(enable=dhcp), ipv6=None),
    )
    return Like(deviceConfigId=key, macAddress="00:50:56:00:00:0A", ipConfig=config, dnsConfig=None)


def test_what_tools_report() -> None:
    stack = Like(
        dnsConfig=Like(hostName="web-01", domainName="example.com", ipAddress=["10.1.0.53"], searchDomain=["a", "b"]),
        ipRouteConfig=Like(
            ipRoute=[
                Like(prefixLength=0, network="0.0.0.0", gateway=Like(ipAddress="10.1.0.1", device="1")),
                Like(prefixLength=0, network="::", gateway=Like(ipAddress="fe80::1", device="2")),
                Like(prefixLength=24, network="10.1.0.0", gateway=Like(ipAddress=None, device="1")),
            ]
        ),
    )
    values = {
        "guest.hostName": "web-01.example.com",
        "guest.net": [
            card(-1, ("172.17.0.1", 16, None, "preferred")),  # docker0
            card(4001, ("10.1.0.5", 24, "manual", "preferred"), ("10.1.0.6", 24, "manual", "preferred")),
            card(
                4000,
                ("fe80::250", 64, "linklayer", "preferred"),
                ("2001:db8::250", 64, "linklayer", "preferred"),
                ("2001:db8::77", 64, "random", "preferred"),
                ("2001:db8::9", 64, "dhcp", "deprecated"),
                ("10.9.0.5", 24, "dhcp", "preferred"),
            ),
            card(4002, ("169.254.1.2", 16, "random", "preferred"), dhcp=True),
        ],
        "guest.ipStack": [stack],
    }
    found = guest_network(values, HARDWARE)
    assert found is not None
    assert (found.host_name, found.domain, found.dns, found.search_domains) == (
        "web-01", "example.com", ("10.1.0.53",), ("a", "b"),
    )  # fmt: skip
    assert [one.key for one in found.adapters] == [4000, 4001, 4002, 4003]
    first, second, third, _ = found.adapters
    assert (first.addresses, first.dhcp_v4, first.dhcp_v6) == (("2001:db8::250/64", "10.9.0.5/24"), True, True)
    assert first.gateways == ("fe80::1",)
    assert (second.addresses, second.dhcp_v4, second.gateways) == (("10.1.0.5/24", "10.1.0.6/24"), False, ("10.1.0.1",))
    assert (third.addresses, third.dhcp_v4, third.dhcp_v6) == ((), True, None)
    assert found.adapters[3] == GuestAdapter(4003, "00:50:56:00:00:0d", "lan")
    assert guest_network({"guest.net": [card(-1, ("172.17.0.1", 16, None, None))]}, HARDWARE) is None
    assert guest_network({}, HARDWARE) is None


def test_linux_does_not_say_where_addresses_come_from() -> None:
    mac, made_of_it = "00:50:56:00:00:0A", "2001:db8::250:56ff:fe00:a"
    linux = card(
        4000,
        ("10.1.0.5", 24, None, None), (made_of_it, 64, None, None), ("2001:db8::77aa:1", 64, None, None),
        ("fd00:9::5", 64, None, None),
    )  # fmt: skip
    assert linux.macAddress == mac
    found = guest_network({"guest.net": [linux]}, HARDWARE[:1])
    assert found is not None
    (adapter,) = found.adapters
    assert adapter.addresses == ("10.1.0.5/24", f"{made_of_it}/64", "fd00:9::5/64"), "no temporary address"
    assert (adapter.dhcp_v4, adapter.dhcp_v6) == (None, True)
    fixed = card(4000, ("10.1.0.5", 24, None, None), ("fd00:9::5", 64, None, None))
    found = guest_network({"guest.net": [fixed]}, HARDWARE[:1])
    assert found is not None
    assert found.adapters[0].dhcp_v6 is None
