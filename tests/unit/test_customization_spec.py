"""What vCenter is told to make of a guest: every field where it belongs, in a form that its API takes."""

from __future__ import annotations

from typing import Any

import pytest
from pyVmomi import SoapAdapter

from vrepl.model.addresses import AdapterAddresses, AddressPlan, GuestFamily, SyspreppedWindows
from vrepl.vsphere.api import vim
from vrepl.vsphere.customization import specification

LAN = AdapterAddresses(4000, "10.2.7.5/20", ("fd00:2::5/64", "auto"), ("10.2.0.1", "fe80::1"), ("10.2.0.54",))
LEASED = AdapterAddresses(4001, "dhcp", ("dhcp",))
MACS = {4000: "00:50:56:00:00:01", 4001: "00:50:56:00:00:02"}


def plan(family: GuestFamily) -> AddressPlan:
    sysprep = SyspreppedWindows(85, "DR") if family is GuestFamily.WINDOWS else None
    return AddressPlan(
        family, "web-01", "example.com", (LAN, LEASED), ("10.2.0.53",), ("a.example", "b.example"), sysprep
    )


def spec_of(family: GuestFamily, macs: dict[int, str]) -> Any:
    made = specification(plan(family), macs)
    assert "CustomizationSpec" in SoapAdapter.Serialize(made, version="vim.version.version12").decode()
    return made


def test_linux() -> None:
    spec = spec_of(GuestFamily.LINUX, MACS)
    assert (spec.identity.hostName.name, spec.identity.domain) == ("web-01", "example.com")
    assert isinstance(spec.options, vim.vm.customization.LinuxOptions)
    assert list(spec.globalIPSettings.dnsServerList) == ["10.2.0.53"]
    assert list(spec.globalIPSettings.dnsSuffixList) == ["a.example", "b.example"]
    first, second = spec.nicSettingMap
    assert (first.macAddress, second.macAddress) == (MACS[4000], MACS[4001])
    adapter = first.adapter
    assert (adapter.ip.ipAddress, adapter.subnetMask) == ("10.2.7.5", "255.255.240.0")
    assert list(adapter.gateway) == ["10.2.0.1"]
    fixed, router = adapter.ipV6Spec.ip
    assert (fixed.ipAddress, fixed.subnetMask) == ("fd00:2::5", 64)
    assert isinstance(router, vim.vm.customization.AutoIpV6Generator)
    assert list(adapter.ipV6Spec.gateway) == ["fe80::1"]
    assert list(adapter.dnsServerList) == []
    assert isinstance(second.adapter.ip, vim.vm.customization.DhcpIpGenerator)
    assert isinstance(second.adapter.ipV6Spec.ip[0], vim.vm.customization.DhcpIpV6Generator)


def test_windows_has_its_name_servers_at_each_adapter_and_a_new_identity() -> None:
    spec = spec_of(GuestFamily.WINDOWS, MACS)
    assert (spec.identity.userData.computerName.name, spec.identity.guiUnattended.timeZone) == ("web-01", 85)
    assert spec.identity.identification.joinWorkgroup == "DR"
    assert spec.options.changeSID
    assert list(spec.globalIPSettings.dnsServerList) == []
    first, second = spec.nicSettingMap
    assert list(first.adapter.dnsServerList) == ["10.2.0.54"]
    assert list(second.adapter.dnsServerList) == ["10.2.0.53"]
    assert first.adapter.dnsDomain == "example.com"


@pytest.mark.parametrize("macs", [{}, {4000: "00:50:56:00:00:01"}, {4000: "00:50:56:00:00:01", 4001: ""}])
def test_settings_go_by_mac_address_or_all_by_order(macs: dict[int, str]) -> None:
    assert [one.macAddress for one in spec_of(GuestFamily.LINUX, macs).nicSettingMap] == [None, None]
