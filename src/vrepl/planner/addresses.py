"""Which addresses a guest gets at a failover, from what it had at the source and the job's rules. Pure.

vCenter customises a guest as a whole (CustomizationSpec of the vSphere Web Services API): a setting for each adapter,
one IPv4 address each, a host name and, for Linux, a domain. So what no rule means is given what it has, and what the
guest never told cannot be given at all.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from vrepl.model import Hardware, NetworkAdapter
from vrepl.model.addresses import (
    AdapterAddresses,
    AddressChange,
    AddressConflict,
    AddressPlan,
    AddressPolicy,
    AddressRule,
    GuestAdapter,
    GuestFamily,
    GuestNetwork,
)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

DHCP, AUTO, KEEP = "dhcp", "auto", "keep"
_WORDS = {DHCP, AUTO, KEEP}
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?")
LONGEST_NAME = {GuestFamily.LINUX: 63, GuestFamily.WINDOWS: 15}
_LINUX = (
    "linux", "debian", "ubuntu", "rhel", "redhat", "centos", "sles", "suse", "oes", "fedora", "photon", "asianux",
    "mandrake", "mandriva", "coreos", "amazonlinux", "crxpod",
)  # fmt: skip
"""Parts of vSphere's guest IDs (VirtualMachineGuestOsIdentifier)."""


def rules_for(rules: Sequence[AddressRule], vm: str) -> tuple[AddressRule, ...]:
    """Those that mean a VM of this name, in their order."""
    return tuple(rule for rule in rules if any(fnmatchcase(vm, pattern) for pattern in rule.vms))


def family_of(guest_id: str) -> GuestFamily | None:
    """By vSphere's guest ID; None: vCenter customises no such system."""
    known = guest_id.lower()
    if known.startswith("win") or "windows" in known:
        return GuestFamily.WINDOWS
    return GuestFamily.LINUX if any(part in known for part in _LINUX) else None


def plan_addresses(
    policy: AddressPolicy, vm: str, guest: GuestNetwork | None, hardware: Hardware
) -> AddressPlan | AddressConflict | None:
    """What the guest is given. None: no rule means it, and it keeps what it has.

    `vm`: the source's name; `guest`: what its guest reported; `hardware`: of the VM that is to be started.
    """
    rules = rules_for(policy.rules, vm)
    if not rules:
        return None
    if guest is None:
        return _never_told(vm) if any(rule.new != KEEP for rule in rules) else None
    cards = sorted(hardware.network_adapters, key=lambda one: one.key)
    if len(cards) != len(guest.adapters):
        return AddressConflict(
            f"it has {len(cards)} network adapters here, and its source had {len(guest.adapters)}",
            "a run of the job brings them up to date; or set its addresses by hand",
        )
    given = [_readdressed(one, card, rules) for one, card in zip(guest.adapters, cards, strict=True)]
    changes = tuple(_change(one, card, to) for one, card, to in zip(guest.adapters, cards, given, strict=True))
    if not any(change.changes for change in changes):
        return None
    silent = next((card for card, to in zip(cards, given, strict=True) if to.unknown), None)
    if silent is not None:
        return AddressConflict(
            f"its guest never told the addresses of {silent.label}, and customisation takes all adapters or none",
            'give that adapter a rule of its own: { network = "NAME", new = "dhcp" } or an address',
        )
    return _identity(policy, vm, guest, hardware, given, changes)


def original_addresses(
    policy: AddressPolicy, vm: str, guest: GuestNetwork, hardware: Hardware
) -> AddressPlan | AddressConflict | None:
    """What takes a guest back to what it reported at its source; None where a failover could not change that."""
    away = plan_addresses(policy, vm, guest, hardware)
    if not isinstance(away, AddressPlan):
        return None
    cards = sorted(hardware.network_adapters, key=lambda one: one.key)
    given = [_readdressed(one, card, ()) for one, card in zip(guest.adapters, cards, strict=True)]
    silent = next((card for card, to in zip(cards, given, strict=True) if to.unknown), None)
    if silent is not None:
        return AddressConflict(f"its guest never told the addresses of {silent.label} at home", "set them by hand")
    changes = tuple(AddressChange(there.label, there.after, there.before, there.changes) for there in away.changes)
    home = AddressPolicy(domain=policy.domain, dns_suffixes=guest.search_domains or None, sysprep=policy.sysprep)
    return _identity(home, vm, guest, hardware, given, changes)


def mapped(address: Address, old: Network, new: Network) -> Address:
    """The same host of another network of the same size."""
    return type(address)(int(new.network_address) + int(address) - int(old.network_address))


# -- one adapter ------------------------------------------------------------------------------------------------------


class _Given(NamedTuple):
    addresses: AdapterAddresses
    changed: bool
    """A rule other than `keep` means one of its addresses."""
    unknown: bool
    """Nothing is known of its IPv4 addresses, and no rule gives it one."""
    warnings: tuple[str, ...]
    assumed: bool
    """Its IPv4 address may be a lease, and is going to be its own."""


def _readdressed(adapter: GuestAdapter, card: NetworkAdapter, rules: Sequence[AddressRule]) -> _Given:
    own = [rule for rule in rules if rule.network in {None, adapter.network}]
    v4 = [text for text in adapter.addresses if _version(text) == 4]
    v6 = [text for text in adapter.addresses if _version(text) == 6]
    used: list[AddressRule] = []
    changed = False
    warnings: list[str] = []

    def new_of(text: str | None, version: int, dynamic: bool | None) -> str | None:
        nonlocal changed
        rule = next((one for one in own if _means(one, text, version)), None)
        if rule is not None:
            used.append(rule)
        before = (DHCP if version == 4 else AUTO) if dynamic else text
        after = before if rule is None else _result(rule, text, before)
        changed = changed or after != before
        return after

    first = new_of(v4[0] if v4 else None, 4, adapter.dhcp_v4)
    if len(v4) > 1:
        warnings.append(f"{card.label}: customisation sets one IPv4 address; it loses {', '.join(v4[1:])}")
    sixth = [new_of(text, 6, adapter.dhcp_v6) for text in v6] or [new_of(None, 6, adapter.dhcp_v6)]
    gateways = _gateways(adapter, own, used)
    dns = next((rule.dns for rule in used if rule.dns is not None), None)
    unknown = first is None and not any(sixth)
    given = AdapterAddresses(
        key=card.key,
        v4=first,
        v6=tuple(dict.fromkeys(text for text in sixth if text)),
        gateways=tuple(one for one in gateways if _wanted(one, first, sixth)),
        dns=_usable(adapter.dns, own) if dns is None else dns,
    )
    warnings += _gateway_warnings(card.label, given)
    named = any(rule.old is None or rule.new in _WORDS for rule in used)
    assumed = adapter.dhcp_v4 is None and bool(v4) and first is not None and "/" in first and not named
    return _Given(given, changed, unknown, tuple(warnings), assumed)


def _means(rule: AddressRule, text: str | None, version: int) -> bool:
    """Whether a rule means an address of this version, or for None an adapter that has none."""
    if rule.old is not None:
        old = ipaddress.ip_network(rule.old)
        return text is not None and old.version == version and _address(text) in old
    if rule.new == DHCP:
        return version == 4
    if rule.new == AUTO:
        return version == 6
    return (rule.new == KEEP and text is not None) or (rule.new != KEEP and _version(rule.new) == version)


def _result(rule: AddressRule, text: str | None, before: str | None) -> str | None:
    if rule.new == KEEP:
        return before
    if rule.new in _WORDS:
        return rule.new
    if rule.old is not None and text is not None and _is_network(rule.new):
        if before in _WORDS:
            return before  # whoever gives it its address here gives it one there
        address = mapped(_address(text), ipaddress.ip_network(rule.old), ipaddress.ip_network(rule.new))
        return f"{address}/{text.partition('/')[2]}"
    if "/" in rule.new:
        return rule.new
    return f"{rule.new}/{text.partition('/')[2] if text else '24'}"


def _gateways(adapter: GuestAdapter, rules: Sequence[AddressRule], used: Sequence[AddressRule]) -> list[str]:
    """Those that the rules say for the kinds of addresses that they give, and the guest's own for the others."""
    said = [gateway for rule in used for gateway in rule.gateways or ()]
    kinds = {_version(one) for one in said}
    kept = [_translated(one, rules) for one in adapter.gateways if _version(one) not in kinds]
    return list(dict.fromkeys([*said, *kept]))


def _wanted(gateway: str, v4: str | None, v6: Sequence[str | None]) -> bool:
    """What comes by DHCP or from a router comes with its gateway."""
    texts = [v4] if _version(gateway) == 4 else list(v6)
    return any(text and "/" in text for text in texts)


def _gateway_warnings(label: str, given: AdapterAddresses) -> list[str]:
    warnings = []
    for gateway in given.gateways:
        address = ipaddress.ip_address(gateway)
        texts = [text for text in (given.v4, *given.v6) if text and "/" in text and _version(text) == address.version]
        inside = any(address in ipaddress.ip_interface(text).network for text in texts)
        if not inside and not address.is_link_local:
            warnings.append(f"{label}: the gateway {gateway} is not in the network of {' or '.join(texts)}")
    return warnings


def _usable(servers: Iterable[str], rules: Sequence[AddressRule]) -> tuple[str, ...]:
    """Name servers as the rules translate them; a stub that listens in the guest itself (127.0.0.53) is none."""
    found = [one for one in servers if not ipaddress.ip_address(one).is_loopback]
    return tuple(dict.fromkeys(_translated(one, rules) for one in found))


def _translated(text: str, rules: Sequence[AddressRule]) -> str:
    """An address of another machine, moved as the guest's own would be; else as it is."""
    address = ipaddress.ip_address(text)
    for rule in rules:
        if rule.old is None:
            continue
        old = ipaddress.ip_network(rule.old)
        if old.version == address.version and address in old:
            if rule.new in _WORDS or not _is_network(rule.new):
                return text
            return str(mapped(address, old, ipaddress.ip_network(rule.new)))
    return text


# -- the guest as a whole ---------------------------------------------------------------------------------------------


def _identity(
    policy: AddressPolicy,
    vm: str,
    guest: GuestNetwork,
    hardware: Hardware,
    given: Sequence[_Given],
    changes: tuple[AddressChange, ...],
) -> AddressPlan | AddressConflict:
    family = family_of(hardware.guest_id)
    if family is None:
        return AddressConflict(
            f"vCenter customises Linux and Windows, not the guest system {hardware.guest_id}",
            "set its addresses by hand, or have its network give them (DHCP)",
        )
    if family is GuestFamily.WINDOWS and policy.sysprep is None:
        return AddressConflict(
            "vCenter sets addresses of Windows by Sysprep, which gives it a new SID and takes it out of its domain",
            "say sysprep = { time_zone = NUMBER } if that is wanted, or have its network give them (DHCP)",
        )
    name = guest.host_name
    if family is GuestFamily.WINDOWS:
        name = name[: LONGEST_NAME[family]].rstrip("-")
    if len(name) > LONGEST_NAME[family] or not _HOST_NAME.fullmatch(name):
        return AddressConflict(
            f"customisation also sets the host name, and takes none such as {guest.host_name or '(none reported)'!r}",
            "letters, digits and - alone; set its addresses by hand",
        )
    domain = guest.domain or policy.domain or next(iter(policy.dns_suffixes or guest.search_domains), "")
    if family is GuestFamily.LINUX and not domain:
        return AddressConflict(
            "customisation of Linux also sets the DNS domain, and its guest reports none", 'say domain = "example.com"'
        )
    rules = rules_for(policy.rules, vm)
    of_adapters = [server for one in given for server in one.addresses.dns]
    servers = policy.dns
    if servers is None:
        own = tuple(dict.fromkeys(server for rule in rules for server in rule.dns or ()))
        servers = own or _usable(guest.dns, rules) or tuple(dict.fromkeys(of_adapters))
    warnings = [text for one in given for text in one.warnings]
    static = [one.addresses for one in given if one.addresses.v4 not in {None, DHCP}]
    if static and not any(one.addresses.gateways for one in given):
        warnings.append("no gateway is known: the guest gets none; say gateway = ADDRESS in the rule")
    if static and not servers:
        warnings.append("no name server is known: say dns = [ADDRESS]")
    if family is GuestFamily.WINDOWS:
        warnings.append("Sysprep gives it a new SID, and takes it out of its domain")
    return AddressPlan(
        family=family,
        host_name=name,
        domain=domain,
        adapters=tuple(_with_dns(one.addresses, policy.dns) for one in given),
        dns=servers,
        dns_suffixes=guest.search_domains if policy.dns_suffixes is None else policy.dns_suffixes,
        sysprep=policy.sysprep if family is GuestFamily.WINDOWS else None,
        changes=changes,
        warnings=tuple(warnings),
        taken_for_static=tuple(change.label for change, one in zip(changes, given, strict=True) if one.assumed),
    )


def _with_dns(addresses: AdapterAddresses, dns: tuple[str, ...] | None) -> AdapterAddresses:
    if dns is None:
        return addresses
    return AdapterAddresses(addresses.key, addresses.v4, addresses.v6, addresses.gateways, dns)


def _change(adapter: GuestAdapter, card: NetworkAdapter, given: _Given) -> AddressChange:
    before = [DHCP] if adapter.dhcp_v4 else [text for text in adapter.addresses if _version(text) == 4]
    if adapter.dhcp_v6:
        before.append(AUTO)
    else:
        before += [text for text in adapter.addresses if _version(text) == 6]
    label = card.label or f"adapter {card.key}"
    return AddressChange(label, ", ".join(before) or "unknown", given.addresses.text, given.changed)


def _never_told(vm: str) -> AddressConflict:
    return AddressConflict(
        f"the guest of {vm} never told its addresses: did VMware Tools run at the source, and has a run ended since?",
        "set its addresses by hand",
    )


def _version(text: str) -> int:
    return _address(text).version


def _address(text: str) -> Address:
    return ipaddress.ip_address(text.partition("/")[0])


def _is_network(text: str) -> bool:
    """`10.2.0.0/16` rather than an address within one."""
    if "/" not in text:
        return False
    interface = ipaddress.ip_interface(text)
    return interface.ip == interface.network.network_address and interface.network.prefixlen < interface.max_prefixlen
