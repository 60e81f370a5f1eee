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


@dataclass(frozen=True, slots=True)
class FailoverPolicy:
    """What a job says of failovers of its VMs."""

    networks: Mapping[str, str] = field(default_factory=dict)
    """Network of the replica -> network that it is connected to while it is failed over."""
    addresses: AddressPolicy = field(default_factory=AddressPolicy)
