"""What VMware Tools report of a guest's networks: `guest.net` and `guest.ipStack` as GuestNetwork.

vSphere Web Services API: GuestNicInfo, NetIpConfigInfo, NetIpConfigInfoIpAddressOrigin, GuestStackInfo. An adapter that
the guest made itself (a bridge, a tunnel) has no device of the VM behind it: `deviceConfigId` is then -1.

Tools for Linux say nothing of where an address comes from (open-vm-tools, lib/nicInfo/nicInfoPosix.c: origin and
status are not given). So a lease looks like any other address; what a router gave is known where it is made of the MAC
address, and then the others of its network are taken to be temporary ones (RFC 8981).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vrepl.model import NetworkAdapter
from vrepl.model.addresses import GuestAdapter, GuestNetwork

GUEST_PATHS = ("guest.hostName", "guest.net", "guest.ipStack")

_NOT_IN_USE = {"invalid", "inaccessible", "duplicate", "deprecated", "tentative"}
_BY_DHCP = {"dhcp"}
_BY_ROUTER = {"linklayer"}
_MADE_UP = {"random"}
"""Privacy addresses (RFC 3041), and IPv4 addresses of 169.254/16: others on the next day."""


def guest_network(values: Mapping[str, Any], hardware: Sequence[NetworkAdapter]) -> GuestNetwork | None:
    """From the values of GUEST_PATHS; None where the guest reports no adapter.

    `hardware`: the VM's adapters; one that the guest says nothing of has no addresses.
    """
    cards = list(values.get("guest.net") or ())
    if not any(_key(card) > 0 for card in cards):
        return None
    stacks = list(values.get("guest.ipStack") or ())
    routes = [route for stack in stacks for route in _default_routes(stack)]
    found = {
        _key(card): _adapter(
            card, [gateway for gateway, device in routes if _leads_by(card, str(number), gateway, device, cards)]
        )
        for number, card in enumerate(cards)
        if _key(card) > 0
    }
    adapters = [replace(found.get(one.key, GuestAdapter(one.key, one.mac)), network=one.network) for one in hardware]
    own = next((stack.dnsConfig for stack in stacks if getattr(stack, "dnsConfig", None) is not None), None)
    full_name = str(values.get("guest.hostName") or "")
    first, _, rest = full_name.partition(".")
    return GuestNetwork(
        host_name=str(getattr(own, "hostName", None) or first).partition(".")[0],
        domain=str(getattr(own, "domainName", None) or rest),
        dns=_texts(getattr(own, "ipAddress", None)),
        search_domains=_texts(getattr(own, "searchDomain", None)),
        adapters=tuple(sorted(adapters, key=lambda one: one.key)),
    )


def _key(card: Any) -> int:
    return int(getattr(card, "deviceConfigId", None) or -1)


def _adapter(card: Any, gateways: Iterable[str]) -> GuestAdapter:
    config = getattr(card, "ipConfig", None)
    found = [one for one in getattr(config, "ipAddress", None) or () if _counts(one)]
    made_of_mac = [
        one for one in found if not one.origin and _is_made_of(str(one.ipAddress), str(card.macAddress or ""))
    ]
    routers = {_network(one) for one in made_of_mac}
    kept = [one for one in found if one.origin or one in made_of_mac or _network(one) not in routers]
    dhcp = getattr(config, "dhcp", None)
    by_router = _dynamic(getattr(dhcp, "ipv6", None), kept, 6, _BY_DHCP | _BY_ROUTER)
    return GuestAdapter(
        key=_key(card),
        mac=str(card.macAddress or "").lower(),
        addresses=tuple(f"{one.ipAddress.partition('%')[0]}/{one.prefixLength}" for one in kept),
        dhcp_v4=_dynamic(getattr(dhcp, "ipv4", None), kept, 4, _BY_DHCP),
        dhcp_v6=True if by_router is None and made_of_mac else by_router,
        gateways=tuple(dict.fromkeys(gateways)),
        dns=_texts(getattr(getattr(card, "dnsConfig", None), "ipAddress", None)),
    )


def _counts(found: Any) -> bool:
    """An address that others reach the guest by, and that it has tomorrow too."""
    address = _parsed(str(found.ipAddress))
    if address is None or address.is_link_local or address.is_loopback or address.is_multicast:
        return False
    return str(found.state or "") not in _NOT_IN_USE and str(found.origin or "") not in _MADE_UP


def _network(found: Any) -> object:
    return ipaddress.ip_interface(f"{str(found.ipAddress).partition('%')[0]}/{found.prefixLength}").network


def _is_made_of(address: str, mac: str) -> bool:
    """Whether an IPv6 address ends in the modified EUI-64 of a MAC address (RFC 4291, appendix A)."""
    parsed = _parsed(address)
    digits = mac.replace(":", "").replace("-", "")
    if parsed is None or parsed.version == 4 or len(digits) != 12:
        return False
    number = int(digits, 16)
    interface = ((number >> 24) << 40) | (0xFFFE << 24) | (number & 0xFFFFFF)
    return int(parsed) & (2**64 - 1) == interface ^ (1 << 57)


def _dynamic(told: Any, addresses: Sequence[Any], version: int, origins: set[str]) -> bool | None:
    """Whether addresses of this kind are given by the network: as the guest says, or as their origins say."""
    known = [
        str(one.origin)
        for one in addresses
        if one.origin and (found := _parsed(str(one.ipAddress))) is not None and found.version == version
    ]
    if known:
        return known[0] in origins
    enabled = getattr(told, "enable", None)
    return None if enabled is None else bool(enabled)


def _default_routes(stack: Any) -> list[tuple[str, str]]:
    """Gateways with the device that each is reached by, in the order that Tools report them in."""
    routes = getattr(getattr(stack, "ipRouteConfig", None), "ipRoute", None) or ()
    return [
        (str(route.gateway.ipAddress), str(route.gateway.device or ""))
        for route in routes
        if route.prefixLength == 0 and route.gateway is not None and _parsed(str(route.gateway.ipAddress or ""))
    ]


def _leads_by(card: Any, number: str, gateway: str, device: str, cards: Sequence[Any]) -> bool:
    """A gateway belongs to the adapter whose network it is in; where it is in none, `device` is an index of guest.net.

    The Automation API documents its `interface_index` so; that GuestStackInfo means the same is a guess.
    """
    if any(_holds(one, gateway) for one in cards):
        return _holds(card, gateway)
    return device == number


def _holds(card: Any, gateway: str) -> bool:
    address = _parsed(gateway)
    for one in getattr(getattr(card, "ipConfig", None), "ipAddress", None) or ():
        own = _parsed(str(one.ipAddress))
        if address is None or own is None or own.version != address.version or own.is_link_local:
            continue
        if address in ipaddress.ip_network(f"{own}/{one.prefixLength}", strict=False):
            return True
    return False


def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None


def _texts(values: Iterable[Any] | None) -> tuple[str, ...]:
    return tuple(str(value) for value in values or ())
