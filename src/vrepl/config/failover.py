"""`[jobs.NAME.failover]`: networks and addresses of guests at the target."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from vrepl.config.fields import Duration, Name, Names, Table
from vrepl.model.addresses import AddressPolicy, AddressRule, FailoverPolicy, OnAddressFailure, SyspreppedWindows
from vrepl.model.selection import is_pattern

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
ARROW = "->"


def _list(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _plain_address(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value.strip()))
    except ValueError as error:
        raise ValueError(f'"{value}" is no address; write it like "10.2.0.1" or "fd00:2::1"') from error


PlainAddress = Annotated[str, BeforeValidator(lambda value: _plain_address(value) if isinstance(value, str) else value)]
Addresses = Annotated[tuple[PlainAddress, ...], BeforeValidator(_list)]


def _old(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = value.strip()
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        pass
    try:
        inside = ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise ValueError(f'"{value}" is no network; write it like "10.1.0.0/16", or an address alone') from error
    raise ValueError(f'"{value}" is an address in a network; the network is "{inside}"')


def _new(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.lower() in {"dhcp", "auto", "keep"}:
        return text.lower()
    try:
        if "/" not in text:
            return str(ipaddress.ip_address(text))
        interface = ipaddress.ip_interface(text)
    except ValueError as error:
        raise ValueError(
            f'"{value}" is none of "10.2.0.0/16" (a network), "10.2.0.5/24" (an address), "dhcp", "auto", "keep"'
        ) from error
    return str(interface)


class AddressRuleTable(Table):
    """`"10.1.0.0/16 -> 10.2.0.0/16"` is short for `{ old = "10.1.0.0/16", new = "10.2.0.0/16" }`."""

    new: Annotated[str, BeforeValidator(_new)]
    old: Annotated[str | None, BeforeValidator(_old)] = None
    vms: Annotated[Names, BeforeValidator(_list), Field(min_length=1)] = ("*",)
    network: Name | None = None
    gateway: Addresses | None = None
    dns: Addresses | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        old, arrow, new = value.partition(ARROW)
        if not arrow:
            raise ValueError(f'"{value}" is no rule; write it like "10.1.0.0/16 -> 10.2.0.0/16"')
        return {"old": old.strip(), "new": new.strip()}

    @model_validator(mode="after")
    def _means_something(self) -> AddressRuleTable:
        old = None if self.old is None else ipaddress.ip_network(self.old)
        if self.new == "auto" and old is not None and old.version == 4:
            raise ValueError('"auto" is for IPv6; IPv4 has "dhcp"')
        if self.new in {"dhcp", "auto", "keep"}:
            return self
        new = ipaddress.ip_interface(self.new)
        if old is not None and old.version != new.version:
            raise ValueError("one of the two is IPv4, and the other one is IPv6")
        if "/" in self.new and new.ip == new.network.network_address and new.network.prefixlen < new.max_prefixlen:
            self._maps(old, new.network)
        else:
            self._one_address(old)
        for gateway in self.gateway or ():
            address = ipaddress.ip_address(gateway)
            known = "/" in self.new and address.version == new.version and not address.is_link_local
            if known and address not in new.network:
                raise ValueError(f"the gateway {gateway} is not in {new.network}")
        return self

    def _maps(self, old: Network | None, new: Network) -> None:
        if old is None:
            raise ValueError(f'{new} is a network: say which one it stands for, old = "NETWORK"')
        if old.prefixlen != new.prefixlen:
            raise ValueError(f"{old} and {new} are not of one size: every host of the old one needs a place")

    def _one_address(self, old: Network | None) -> None:
        single = old is not None and old.prefixlen == old.max_prefixlen
        one_vm = len(self.vms) == 1 and not is_pattern(self.vms[0])
        if not single and not one_vm:
            raise ValueError(f'{self.new} is one address: say whose, vms = "NAME" or old = "ADDRESS"')
        if old is None and "/" not in self.new:
            raise ValueError(f'"{self.new}" lacks its prefix: write it like "{self.new}/24"')

    def rule(self) -> AddressRule:
        return AddressRule(self.new, self.old, self.vms, self.network, self.gateway, self.dns)


class SysprepTable(Table):
    time_zone: int = Field(ge=0, le=999)
    workgroup: Name = "WORKGROUP"


class FailoverTable(Table):
    networks: dict[Name, Name] = Field(default_factory=dict)
    addresses: tuple[AddressRuleTable, ...] = ()
    dns: Addresses | None = None
    dns_suffixes: Annotated[Names | None, BeforeValidator(_list)] = None
    domain: Name | None = None
    on_address_failure: Literal["start", "stop"] = "start"
    address_wait: Duration = 600.0
    sysprep: SysprepTable | None = None

    @field_validator("addresses")
    @classmethod
    def _each_counts(cls, rules: tuple[AddressRuleTable, ...]) -> tuple[AddressRuleTable, ...]:
        for number, rule in enumerate(rules):
            before = next((at for at, one in enumerate(rules[:number]) if _covers(one, rule)), None)
            if before is not None:
                raise ValueError(
                    f"rule {number + 1} never counts: rule {before + 1} means the same addresses, and the first one "
                    f"counts; put it before that one"
                )
        return rules

    def policy(self) -> FailoverPolicy:
        """As the engine takes it."""
        return FailoverPolicy(
            networks=dict(self.networks),
            addresses=AddressPolicy(
                rules=tuple(one.rule() for one in self.addresses),
                dns=self.dns,
                dns_suffixes=self.dns_suffixes,
                domain=self.domain,
                on_failure=OnAddressFailure(self.on_address_failure),
                wait=self.address_wait,
                sysprep=None
                if self.sysprep is None
                else SyspreppedWindows(self.sysprep.time_zone, self.sysprep.workgroup),
            ),
        )


def _covers(first: AddressRuleTable, later: AddressRuleTable) -> bool:
    """Whether the first one leaves nothing for the later one; patterns of names count as they are written."""
    if not (_names_cover(first.vms, later.vms) and first.network in {None, later.network}):
        return False
    if first.old is None:
        # without `old` a rule means one kind of address, or any that is there ("keep")
        return first.new == "keep" or (later.old is None and first.new == later.new)
    if later.old is None:
        return False
    one, other = ipaddress.ip_network(first.old), ipaddress.ip_network(later.old)
    if isinstance(one, ipaddress.IPv4Network):
        return isinstance(other, ipaddress.IPv4Network) and other.subnet_of(one)
    return isinstance(other, ipaddress.IPv6Network) and other.subnet_of(one)


def _names_cover(first: Iterable[str], later: Iterable[str]) -> bool:
    names = set(first)
    return "*" in names or set(later) <= names
