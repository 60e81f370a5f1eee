"""Which addresses a guest gets at a failover: by rule, per VM, per network, v4 and v6, and what cannot be."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.support.memory_site import HARDWARE
from vrepl.config.failover import AddressRuleTable, FailoverTable
from vrepl.model import Hardware, NetworkAdapter
from vrepl.model.addresses import (
    AddressConflict,
    AddressPlan,
    AddressPolicy,
    AddressRule,
    GuestAdapter,
    GuestFamily,
    GuestNetwork,
    SyspreppedWindows,
)
from vrepl.planner.addresses import family_of, mapped, original_addresses, plan_addresses

LAN = GuestAdapter(
    4000, "00:50:56:00:00:01", "VM Network", ("10.1.7.5/24", "fd00:1::5/64"), False, False,
    ("10.1.7.1", "fd00:1::1"), ("10.1.0.53",),
)  # fmt: skip
STORAGE = GuestAdapter(4001, "00:50:56:00:00:02", "storage", ("192.168.7.5/24",), False)
GUEST = GuestNetwork("web-01", "example.com", ("10.1.0.53", "9.9.9.9"), ("example.com",), (LAN,))
MAP = AddressRule("10.2.0.0/16", "10.1.0.0/16")
MAP_V6 = AddressRule("fd00:2::/32", "fd00:1::/32")


def hardware(*keys: int, guest_id: str = "debian12_64Guest") -> Hardware:
    cards = tuple(
        NetworkAdapter(key, f"Network adapter {number}", "vmxnet3", "VM Network", "", mac_is_static=False)
        for number, key in enumerate(keys, start=1)
    )
    return replace(HARDWARE, guest_id=guest_id, network_adapters=cards)


ONE, TWO = hardware(4000), hardware(4000, 4001)


def plan(
    *rules: AddressRule, guest: GuestNetwork | None = GUEST, on: Hardware = ONE, **policy: object
) -> AddressPlan | AddressConflict | None:
    return plan_addresses(AddressPolicy(rules, **policy), "web-01", guest, on)  # type: ignore[arg-type]


def planned(*rules: AddressRule, **more: object) -> AddressPlan:
    found = plan(*rules, **more)  # type: ignore[arg-type]
    assert isinstance(found, AddressPlan), found
    return found


def refused(*rules: AddressRule, **more: object) -> AddressConflict:
    found = plan(*rules, **more)  # type: ignore[arg-type]
    assert isinstance(found, AddressConflict), found
    return found


def test_a_network_stands_for_a_network_with_gateway_and_name_servers() -> None:
    found = planned(MAP, MAP_V6)
    (adapter,) = found.adapters
    assert (adapter.key, adapter.v4, adapter.v6) == (4000, "10.2.7.5/24", ("fd00:2::5/64",))
    assert adapter.gateways == ("10.2.7.1", "fd00:2::1")
    assert (found.dns, found.dns_suffixes) == (("10.2.0.53", "9.9.9.9"), ("example.com",))
    assert (found.family, found.host_name, found.domain) == (GuestFamily.LINUX, "web-01", "example.com")
    assert found.expected == {"10.2.7.5", "fd00:2::5"}
    (change,) = found.changes
    assert (change.label, change.before, change.after) == (
        "Network adapter 1", "10.1.7.5/24, fd00:1::5/64", "10.2.7.5/24, fd00:2::5/64",
    )  # fmt: skip
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("rules", "v4", "v6", "gateways"),
    [
        ((MAP,), "10.2.7.5/24", ("fd00:1::5/64",), ("10.2.7.1", "fd00:1::1")),
        ((AddressRule("dhcp", "10.1.0.0/16"),), "dhcp", ("fd00:1::5/64",), ("fd00:1::1",)),
        ((AddressRule("auto", "fd00:1::/32"),), "10.1.7.5/24", ("auto",), ("10.1.7.1",)),
        ((AddressRule("dhcp", "fd00:1::5/128"),), "10.1.7.5/24", ("dhcp",), ("10.1.7.1",)),
        ((AddressRule("10.2.9.9/22", vms=("web-01",), gateways=("10.2.8.1",)),),
         "10.2.9.9/22", ("fd00:1::5/64",), ("10.2.8.1", "fd00:1::1")),
        ((AddressRule("10.2.9.9", "10.1.7.5/32"),), "10.2.9.9/24", ("fd00:1::5/64",), ("10.1.7.1", "fd00:1::1")),
        # the first one that means an address counts
        ((AddressRule("keep", "10.1.7.0/24"), MAP, MAP_V6), "10.1.7.5/24", ("fd00:2::5/64",),
         ("10.1.7.1", "fd00:2::1")),
        ((AddressRule("10.3.7.0/24", "10.1.7.0/24"), MAP), "10.3.7.5/24", ("fd00:1::5/64",), ("10.3.7.1", "fd00:1::1")),
        ((AddressRule("dhcp", vms=("db-*",)), MAP), "10.2.7.5/24", ("fd00:1::5/64",), ("10.2.7.1", "fd00:1::1")),
        ((AddressRule("dhcp", network="storage"), MAP), "10.2.7.5/24", ("fd00:1::5/64",), ("10.2.7.1", "fd00:1::1")),
    ],
)  # fmt: skip
def test_rules(rules: tuple[AddressRule, ...], v4: str, v6: tuple[str, ...], gateways: tuple[str, ...]) -> None:
    (adapter,) = planned(*rules).adapters
    assert (adapter.v4, adapter.v6, adapter.gateways) == (v4, v6, gateways)


@pytest.mark.parametrize(
    "rules",
    [
        (),
        (AddressRule("10.2.0.0/16", "10.9.0.0/16"),),
        (AddressRule("keep"), MAP),
        (AddressRule("dhcp", vms=("db-*",)),),
        (AddressRule("dhcp", network="storage"),),
        (AddressRule("10.1.7.5/24", vms=("web-01",)),),
    ],
)
def test_what_no_rule_changes_is_left_alone(rules: tuple[AddressRule, ...]) -> None:
    assert plan(*rules) is None


def test_adapters_that_no_rule_means_are_given_what_they_have() -> None:
    guest = replace(GUEST, adapters=(LAN, STORAGE))
    found = planned(MAP, guest=guest, on=TWO)
    assert [one.v4 for one in found.adapters] == ["10.2.7.5/24", "192.168.7.5/24"]
    assert [one.changes for one in found.changes] == [True, False]
    leased = replace(STORAGE, dhcp_v4=True)
    found = planned(MAP, guest=replace(GUEST, adapters=(LAN, leased)), on=TWO)
    assert [one.v4 for one in found.adapters] == ["10.2.7.5/24", "dhcp"]
    silent = replace(STORAGE, addresses=(), dhcp_v4=None)
    unknown = replace(GUEST, adapters=(LAN, silent))
    assert "never told the addresses of Network adapter 2" in refused(MAP, guest=unknown, on=TWO).reason
    found = planned(MAP, AddressRule("dhcp", network="storage"), guest=unknown, on=TWO)
    assert [one.v4 for one in found.adapters] == ["10.2.7.5/24", "dhcp"]


def test_an_address_from_dhcp_is_not_nailed_down() -> None:
    leased = replace(GUEST, adapters=(replace(LAN, dhcp_v4=True, dhcp_v6=True),))
    assert plan(AddressRule("dhcp"), AddressRule("auto"), guest=leased) is None
    assert plan(MAP, MAP_V6, guest=leased) is None, "whoever gives it its address gives it one there"
    (adapter,) = planned(AddressRule("10.2.9.9/24", "10.1.7.5/32"), guest=leased).adapters
    assert (adapter.v4, adapter.v6) == ("10.2.9.9/24", ("auto",)), "one that is given by name is meant"


def test_an_address_that_may_be_a_lease_is_named() -> None:
    assert planned(MAP).taken_for_static == ()
    silent = replace(GUEST, adapters=(replace(LAN, dhcp_v4=None),))
    assert planned(MAP, guest=silent).taken_for_static == ("Network adapter 1",)
    assert planned(AddressRule("dhcp", network="VM Network"), guest=silent).taken_for_static == ()
    assert planned(AddressRule("10.2.9.9/24", vms=("web-01",)), guest=silent).taken_for_static == ()


def test_name_servers() -> None:
    assert planned(MAP, dns=("10.2.0.99",)).dns == ("10.2.0.99",)
    assert planned(replace(MAP, dns=("10.2.0.98",))).dns == ("10.2.0.98",)
    assert planned(MAP, dns_suffixes=("dr.example.com",)).dns_suffixes == ("dr.example.com",)
    stub = replace(GUEST, dns=("127.0.0.53",))
    assert planned(MAP, guest=stub).dns == ("10.2.0.53",)
    none = replace(GUEST, dns=("127.0.0.53",), adapters=(replace(LAN, dns=()),))
    assert "no name server is known" in planned(MAP, guest=none).warnings[-1]


def test_what_may_not_be_as_expected_is_said() -> None:
    fixed = AddressRule("10.2.9.9/24", vms=("web-01",))
    assert planned(fixed).warnings == ("Network adapter 1: the gateway 10.1.7.1 is not in the network of 10.2.9.9/24",)
    two = replace(LAN, addresses=("10.1.7.5/24", "10.1.7.6/24"))
    assert "it loses 10.1.7.6/24" in planned(MAP, guest=replace(GUEST, adapters=(two,))).warnings[0]
    lost = replace(LAN, gateways=())
    assert "no gateway is known" in planned(MAP, guest=replace(GUEST, adapters=(lost,))).warnings[0]


@pytest.mark.parametrize(
    ("guest", "on", "says", "hint"),
    [
        (None, ONE, "never told its addresses", "by hand"),
        (GUEST, TWO, "2 network adapters here, and its source had 1", "run of the job"),
        (GUEST, hardware(4000, guest_id="freebsd14_64Guest"), "not the guest system freebsd14_64Guest", "DHCP"),
        (GUEST, hardware(4000, guest_id="windows2019srv_64Guest"), "Sysprep", "sysprep = { time_zone"),
        (replace(GUEST, host_name="web_01"), ONE, "'web_01'", "letters"),
        (replace(GUEST, host_name=""), ONE, "none reported", "letters"),
        (replace(GUEST, domain="", search_domains=()), ONE, "DNS domain", 'domain = "example.com"'),
    ],
)
def test_what_cannot_be(guest: GuestNetwork | None, on: Hardware, says: str, hint: str) -> None:
    found = refused(MAP, guest=guest, on=on)
    assert says in found.reason
    assert hint in found.hint


def test_windows_and_domains() -> None:
    windows = hardware(4000, guest_id="windows2019srv_64Guest")
    long = replace(GUEST, host_name="a-name-of-more-than-15")
    found = planned(MAP, guest=long, on=windows, sysprep=SyspreppedWindows(85))
    assert (found.family, found.host_name, found.sysprep) == (
        GuestFamily.WINDOWS, "a-name-of-more", SyspreppedWindows(85),
    )  # fmt: skip
    assert "new SID" in found.warnings[-1]
    assert planned(MAP, sysprep=SyspreppedWindows(85)).sysprep is None
    bare = replace(GUEST, domain="", search_domains=())
    assert planned(MAP, guest=bare, domain="corp.example").domain == "corp.example"
    assert planned(MAP, guest=replace(GUEST, domain="")).domain == "example.com"


def test_families() -> None:
    assert family_of("ubuntu64Guest") is family_of("other5xLinux64Guest") is family_of("rhel9_64Guest")
    assert family_of("win2000ServGuest") is family_of("windows11_64Guest") is GuestFamily.WINDOWS
    assert family_of("darwin21_64Guest") is family_of("otherGuest64") is None


def test_the_way_home_is_what_the_guest_had() -> None:
    guest = replace(GUEST, adapters=(LAN, STORAGE))
    policy = AddressPolicy((MAP, MAP_V6), dns=("10.2.0.99",), dns_suffixes=("dr.example.com",))
    home = original_addresses(policy, "web-01", guest, TWO)
    assert isinstance(home, AddressPlan)
    assert [one.v4 for one in home.adapters] == ["10.1.7.5/24", "192.168.7.5/24"]
    assert home.adapters[0].gateways == LAN.gateways
    assert (home.dns, home.dns_suffixes) == (GUEST.dns, GUEST.search_domains)
    assert next((one.before, one.after) for one in home.changes) == (
        "10.2.7.5/24, fd00:2::5/64", "10.1.7.5/24, fd00:1::5/64",
    )  # fmt: skip
    assert original_addresses(AddressPolicy(), "web-01", guest, TWO) is None


networks = st.one_of(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(8, 30), st.just(ipaddress.IPv4Network)),
    st.tuples(st.integers(0, 2**128 - 1), st.integers(16, 126), st.just(ipaddress.IPv6Network)),
)


@given(networks, st.integers(0), st.integers(0))
def test_the_host_is_the_same_in_another_network(network: tuple[int, int, type], number: int, other: int) -> None:
    base, prefix, kind = network
    old = kind((base, prefix), strict=False)
    new = kind((number % 2**old.max_prefixlen, prefix), strict=False)
    address = old[other % old.num_addresses]
    moved = mapped(address, old, new)
    assert moved in new
    assert int(moved) & int(new.hostmask) == int(address) & int(old.hostmask)
    assert mapped(moved, new, old) == address


@given(st.integers(0, 2**16 - 1), st.integers(0, 2**16 - 1))
def test_no_two_guests_get_one_address(first: int, second: int) -> None:
    def of(number: int) -> str | None:
        address = ipaddress.IPv4Address("10.1.0.0") + number
        adapter = replace(LAN, addresses=(f"{address}/16",), gateways=())
        found = plan(MAP, guest=replace(GUEST, adapters=(adapter,)))
        assert isinstance(found, AddressPlan)
        return found.adapters[0].v4

    assert (of(first) == of(second)) is (first == second)


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("10.1.0.0/16", "is no rule"),
        ("10.1.0.5/16 -> 10.2.0.0/16", 'the network is "10.1.0.0/16"'),
        ("ten -> 10.2.0.0/16", "is no network"),
        ("10.1.0.0/16 -> 10.2.0.0/24", "not of one size"),
        ("10.1.0.0/16 -> fd00::/16", "one of the two is IPv4"),
        ("10.1.0.0/16 -> 10.2.0.5/16", "is one address"),
        ("10.1.0.0/16 -> auto", '"dhcp"'),
        ("10.1.0.0/16 -> somewhere", "is none of"),
        ({"new": "10.2.0.0/16"}, "say which one it stands for"),
        ({"new": "10.2.0.5", "vms": "web-01"}, "lacks its prefix"),
        ({"new": "10.2.0.5/24", "vms": "web-*"}, "say whose"),
        ({"new": "10.2.0.5/24", "vms": "web-01", "gateway": "10.3.0.1"}, "is not in 10.2.0.0/24"),
        ({"old": "10.1.0.0/16", "new": "10.2.0.0/16", "gateway": "nowhere"}, "is no address"),
    ],
)
def test_rules_that_are_mistakes(rule: object, says: str) -> None:
    with pytest.raises(ValidationError, match="(?s)" + says.replace("(", r"\(")):
        AddressRuleTable.model_validate(rule)


@pytest.mark.parametrize(
    ("rules", "wrong"),
    [
        (["10.1.0.0/16 -> 10.2.0.0/16", "10.1.7.0/24 -> dhcp"], True),
        (["10.1.7.0/24 -> dhcp", "10.1.0.0/16 -> 10.2.0.0/16"], False),
        ([{"new": "keep"}, "10.1.7.0/24 -> dhcp"], True),
        ([{"new": "dhcp", "network": "storage"}, "10.1.7.0/24 -> dhcp"], False),
        ([{"new": "dhcp", "vms": "web-*"}, {"new": "dhcp", "vms": "web-*"}], True),
        ([{"new": "dhcp", "vms": "web-*"}, {"new": "dhcp", "vms": "db-*"}], False),
        (["10.1.0.0/16 -> 10.2.0.0/16", "fd00:1::/32 -> fd00:2::/32"], False),
    ],
)
def test_a_rule_that_never_counts_is_a_mistake(rules: list[object], wrong: bool) -> None:
    if wrong:
        with pytest.raises(ValidationError, match="rule 2 never counts: rule 1 means the same"):
            FailoverTable.model_validate({"addresses": rules})
    else:
        policy = FailoverTable.model_validate({"addresses": rules}).policy()
        assert len(policy.addresses.rules) == 2
