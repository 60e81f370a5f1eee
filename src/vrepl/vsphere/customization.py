"""Guest customisation: what a guest's addresses become at its next boot, and what came of it.

vSphere Web Services API reference: VirtualMachine.CustomizeVM_Task (of a VM that is powered off; privilege
VirtualMachine.Provisioning.Customize); CustomizationSpec.nicSettingMap ("should match number of network adapters in the
VM"); CustomizationIPSettings (name servers per adapter are for Windows, Linux has one list; `ip` is required, so that
an adapter without IPv4 is given DHCP); CustomizationWinOptions.changeSID ("For Vista OS and greater, SID will always be
modified and a value of false will generate an error"); CustomizationLinuxPrep (host name and domain are required).
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence
from typing import Any

from vrepl.errors import NotFoundError, VsphereError
from vrepl.model import NetworkAdapter
from vrepl.model.addresses import AdapterAddresses, AddressPlan, GuestFamily, GuestNetwork
from vrepl.vsphere import collector
from vrepl.vsphere.api import kind_of, vim
from vrepl.vsphere.guest_network import GUEST_PATHS, guest_network
from vrepl.vsphere.session import Session
from vrepl.vsphere.tasks import Tasks
from vrepl.vsphere.translation import Names, adapters_of

_CARDS = "config.hardware.device"


class Customization:
    """Of guests at one vCenter."""

    def __init__(self, session: Session, running: Tasks) -> None:
        self._session = session
        self._tasks = running

    def give(self, vm_ref: str, plan: AddressPlan) -> bool:
        """At the next power-on of a VM that is off. False: something is given to it already, and stays; or it is on.

        Raises VsphereError, its fault naming why vCenter does not take it.
        """
        vm, spec = self._prepared(vm_ref, plan)
        try:
            self._tasks.run(lambda: vm.CustomizeVM_Task(spec=spec), what=f"customise the guest of {vm_ref}")
        except VsphereError as error:
            # A power-on that a dead process began has its end only now: whatever that process gave, it has.
            if error.fault not in {"CustomizationPending", "InvalidPowerState"}:
                raise
            return False
        return True

    def check(self, vm_ref: str, plan: AddressPlan) -> None:
        """Raises VsphereError where vCenter would not take it; changes nothing."""
        vm, spec = self._prepared(vm_ref, plan)
        vm.CheckCustomizationSpec(spec=spec)

    def reported(self, vm_ref: str) -> GuestNetwork | None:
        """What the guest says of its networks now. Raises NotFoundError if the VM is gone."""
        values = self._read(vm_ref, [*GUEST_PATHS, _CARDS])
        return guest_network(values, _cards(values))

    def end(self, vm_ref: str, since: dt.datetime | None) -> str | None:
        """How it ended in the guest: why it failed, "" where it did not, None while it has not ended.

        `since`: by the site's clock; what ended before does not count.
        """
        vm = self._session.object(vim.VirtualMachine, vm_ref)
        recursion = vim.event.EventFilterSpec.RecursionOption.self
        of_vm = vim.event.EventFilterSpec.ByEntity(entity=vm, recursion=recursion)
        wanted = vim.event.EventFilterSpec(entity=of_vm)
        if since is not None:
            wanted.time = vim.event.EventFilterSpec.ByTime(beginTime=since)
        found = self._session.content.eventManager.QueryEvents(filter=wanted) or []
        ours = [one for one in found if isinstance(one, vim.event.CustomizationEvent)]
        last = max(ours, key=lambda one: int(one.key), default=None)
        if isinstance(last, vim.event.CustomizationFailed):
            return str(getattr(last, "reason", "") or kind_of(last))
        return "" if isinstance(last, vim.event.CustomizationSucceeded) else None

    def _prepared(self, vm_ref: str, plan: AddressPlan) -> tuple[Any, Any]:
        macs = {card.key: card.mac for card in _cards(self._read(vm_ref, [_CARDS]))}
        return self._session.object(vim.VirtualMachine, vm_ref), specification(plan, macs)

    def _read(self, vm_ref: str, paths: Sequence[str]) -> dict[str, Any]:
        vm = self._session.object(vim.VirtualMachine, vm_ref)
        found = collector.these(self._session, [vm], {vim.VirtualMachine: paths})
        if not found:
            raise NotFoundError(f"VM {vm_ref} is gone", hint="was it deleted or unregistered?")
        return dict(found[0].values)


def _cards(values: dict[str, Any]) -> tuple[NetworkAdapter, ...]:
    return adapters_of(values.get(_CARDS) or [], Names())


def specification(plan: AddressPlan, macs: dict[int, str]) -> Any:
    """The CustomizationSpec. `macs`: by device key; settings without one would go by the order of adapters."""
    types = vim.vm.customization
    known = all(macs.get(one.key) for one in plan.adapters)
    return types.Specification(
        identity=_linux(plan) if plan.family is GuestFamily.LINUX else _windows(plan),
        options=types.LinuxOptions() if plan.family is GuestFamily.LINUX else _windows_options(),
        globalIPSettings=types.GlobalIPSettings(
            dnsServerList=list(plan.dns) if plan.family is GuestFamily.LINUX else [],
            dnsSuffixList=list(plan.dns_suffixes),
        ),
        nicSettingMap=[
            types.AdapterMapping(macAddress=macs[one.key] if known else None, adapter=_adapter(one, plan))
            for one in plan.adapters
        ],
    )


def _linux(plan: AddressPlan) -> Any:
    types = vim.vm.customization
    return types.LinuxPrep(hostName=types.FixedName(name=plan.host_name), domain=plan.domain)


def _windows(plan: AddressPlan) -> Any:
    types = vim.vm.customization
    assert plan.sysprep is not None, "the planner refuses Windows without it"
    return types.Sysprep(
        guiUnattended=types.GuiUnattended(timeZone=plan.sysprep.time_zone, autoLogon=False, autoLogonCount=0),
        userData=types.UserData(
            fullName=plan.host_name,
            orgName=plan.host_name,
            computerName=types.FixedName(name=plan.host_name),
            productId="",
        ),
        identification=types.Identification(joinWorkgroup=plan.sysprep.workgroup),
    )


def _windows_options() -> Any:
    return vim.vm.customization.WinOptions(changeSID=True, deleteAccounts=False, reboot="reboot")


def _adapter(addresses: AdapterAddresses, plan: AddressPlan) -> Any:
    types = vim.vm.customization
    settings = types.IPSettings(ip=types.DhcpIpGenerator())
    if addresses.v4 is not None and "/" in addresses.v4:
        interface = ipaddress.ip_interface(addresses.v4)
        settings.ip = types.FixedIp(ipAddress=str(interface.ip))
        settings.subnetMask = str(interface.netmask)
    settings.gateway = [one for one in addresses.gateways if ":" not in one]
    if addresses.v6:
        settings.ipV6Spec = types.IPSettings.IpV6AddressSpec(
            ip=[_v6(text) for text in addresses.v6], gateway=[one for one in addresses.gateways if ":" in one]
        )
    if plan.family is GuestFamily.WINDOWS:
        settings.dnsServerList = list(addresses.dns or plan.dns)
        settings.dnsDomain = plan.domain or None
    return settings


def _v6(text: str) -> Any:
    types = vim.vm.customization
    if text == "auto":
        return types.AutoIpV6Generator()
    if text == "dhcp":
        return types.DhcpIpV6Generator()
    interface = ipaddress.ip_interface(text)
    return types.FixedIpV6(ipAddress=str(interface.ip), subnetMask=interface.network.prefixlen)
