"""Addresses of guests: what a source's guest reports, and by what rules they change at a failover.

Addresses stand as text: `10.1.0.5`, with a prefix `10.1.0.5/24`, networks as `10.1.0.0/16`, v4 and v6 alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class GuestAdapter:
    """One network adapter as the guest sees it."""

    key: int
    """vSphere's device key of the virtual adapter, which the replica's has too."""
    mac: str
    network: str = ""
    """Name of the network that it is on at the source."""
    addresses: tuple[str, ...] = ()
    """With their prefixes, the first one of each kind being the one that counts. None that a guest makes up itself."""
    dhcp_v4: bool | None = None
    """Whether the guest gets them by DHCP; None: it does not tell."""
    dhcp_v6: bool | None = None
    """By DHCP or router advertisements."""
    gateways: tuple[str, ...] = ()
    """Of default routes that lead out by this adapter."""
    dns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GuestNetwork:
    """What VMware Tools report of a guest's place in its networks."""

    host_name: str = ""
    """Without its domain."""
    domain: str = ""
    dns: tuple[str, ...] = ()
    search_domains: tuple[str, ...] = ()
    adapters: tuple[GuestAdapter, ...] = ()
    """By device key."""

    def adapter(self, key: int) -> GuestAdapter | None:
        return next((one for one in self.adapters if one.key == key), None)

    def after(self, before: GuestNetwork | None) -> GuestNetwork:
        """With what was known before of adapters that report no address now: a guest that boots tells by and by."""
        if before is None:
            return self
        known = {one.key: one for one in before.adapters}
        return replace(
            self,
            host_name=self.host_name or before.host_name,
            domain=self.domain or before.domain,
            adapters=tuple(one if one.addresses else known.get(one.key, one) for one in self.adapters),
        )


class OnAddressFailure(StrEnum):
    """What a failover does with a guest whose addresses cannot be set."""

    START = "start"
    """It starts with the addresses that it has, and that is said."""
    STOP = "stop"
    """It stays off."""


@dataclass(frozen=True, slots=True)
class AddressRule:
    """Which addresses of which guests become what."""

    new: str
    """A network that the host's part is kept in, one address with its prefix, `dhcp`, `auto` (IPv6), or `keep`."""
    old: str | None = None
    """Network that the address is in, or the address alone; None: any."""
    vms: tuple[str, ...] = ("*",)
    """Patterns of the source VM's name."""
    network: str | None = None
    """Name of the network at the source that the adapter is on; None: any."""
    gateways: tuple[str, ...] | None = None
    """None: what the rules make of those that the guest has."""
    dns: tuple[str, ...] | None = None
    """Likewise."""


@dataclass(frozen=True, slots=True)
class SyspreppedWindows:
    """What Sysprep asks for. It gives Windows a new SID and takes it out of its domain: somebody must want it."""

    time_zone: int
    """Index of Microsoft's list, as vSphere takes it: 85 is GMT."""
    workgroup: str = "WORKGROUP"


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """How a job's guests get their addresses at a failover. Without rules they keep what they have."""

    rules: tuple[AddressRule, ...] = ()
    """The first one that means an address counts."""
    dns: tuple[str, ...] | None = None
    """Name servers at the target; None: what the rules make of those that the guest has."""
    dns_suffixes: tuple[str, ...] | None = None
    """Search domains at the target; None: as they are."""
    domain: str | None = None
    """DNS domain of Linux guests that report none."""
    on_failure: OnAddressFailure = OnAddressFailure.START
    wait: float = 600.0
    """Seconds from power-on in which a guest must report its new addresses."""
    sysprep: SyspreppedWindows | None = None
    """None: Windows guests keep their addresses."""


@dataclass(frozen=True, slots=True)
class FailoverPolicy:
    """What a job says of failovers of its VMs."""

    networks: Mapping[str, str] = field(default_factory=dict)
    """Network of the replica -> network that it is connected to while it is failed over."""
    addresses: AddressPolicy = field(default_factory=AddressPolicy)


class GuestFamily(StrEnum):
    """Which of vCenter's two ways of customisation a guest takes."""

    LINUX = "linux"
    WINDOWS = "windows"


@dataclass(frozen=True, slots=True)
class AdapterAddresses:
    """What one adapter of a guest has, or is to get. Address texts, or `dhcp`, or `auto` (IPv6)."""

    key: int
    """Device key at the VM that it is meant for."""
    v4: str | None
    """With its prefix; None: no IPv4."""
    v6: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """`10.2.0.5/24, fd00:2::5/64`"""
        return ", ".join([*([self.v4] if self.v4 else []), *self.v6]) or "none"


@dataclass(frozen=True, slots=True)
class AddressChange:
    """One adapter, before and after."""

    label: str
    before: str
    after: str
    changes: bool
    """Whether a rule means it; the others are given what they have, as customisation wants all."""


@dataclass(frozen=True, slots=True)
class AddressPlan:
    """What a guest is given at its next power-on."""

    family: GuestFamily
    host_name: str
    domain: str
    adapters: tuple[AdapterAddresses, ...]
    """All of the VM's, in the order of their device keys."""
    dns: tuple[str, ...] = ()
    dns_suffixes: tuple[str, ...] = ()
    sysprep: SyspreppedWindows | None = None
    changes: tuple[AddressChange, ...] = ()
    warnings: tuple[str, ...] = ()
    """What may not be as somebody expects."""
    taken_for_static: tuple[str, ...] = ()
    """Adapters whose guest does not tell leases from addresses of its own."""

    @property
    def expected(self) -> frozenset[str]:
        """Addresses, without prefixes, that the guest reports once it has them; those by DHCP nobody knows."""
        texts = [text for one in self.adapters for text in (one.v4, *one.v6)]
        return frozenset(text.partition("/")[0] for text in texts if text and "/" in text)


@dataclass(frozen=True, slots=True)
class AddressConflict:
    """Why a guest cannot be given the addresses that rules say, and what would help."""

    reason: str
    hint: str
