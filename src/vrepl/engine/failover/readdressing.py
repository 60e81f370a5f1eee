"""Gives a guest its addresses at its next power-on, and sees that it has them: at failovers, in tests, on the way home.

What cannot be set is no reason to leave a site down, unless the job says so: the guest starts with what it has, and
that is said. Everything here may be done again after a crash: what is given already stays given, and a revert to a
restore point takes it away again.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from vrepl.engine.vm_work import VmWork
from vrepl.errors import NotReadyError, PermissionDeniedError, TransientVsphereError, VreplError, VsphereError
from vrepl.model import VirtualMachine
from vrepl.model.addresses import (
    AddressConflict,
    AddressPlan,
    AddressPolicy,
    FailoverPolicy,
    GuestNetwork,
    OnAddressFailure,
)
from vrepl.planner.addresses import DHCP, plan_addresses
from vrepl.ports.failover import GuestAddresses
from vrepl.report.addresses import AddressReport, AddressResult

UNKNOWN_TOOLS = "UncustomizableGuest"
"""The fault where vCenter knows nothing of the guest's VMware Tools; also that of a system that it does not support."""
LOOK_EVERY = 2.0
"""Seconds between looks at a guest that is to get its addresses."""

Planner = Callable[[VirtualMachine], AddressPlan | AddressConflict | None]
"""What the guest of a VM is to get, by the VM's hardware."""


def planner_for(policy: FailoverPolicy, name: str, guest: GuestNetwork | None) -> Planner:
    """By a job's rules."""
    return lambda vm: plan_addresses(policy.addresses, name, guest, vm.hardware)


@dataclass(slots=True)
class Readdressing:
    """One guest's addresses in one command."""

    site: GuestAddresses
    planner: Planner
    policy: AddressPolicy
    work: VmWork
    patiently: Callable[[str, Callable[[], None]], None]
    report: AddressReport | None = field(default=None, init=False)
    """None: nothing is to be changed."""
    _plan: AddressPlan | None = field(default=None, init=False)
    _since: dt.datetime | None = field(default=None, init=False)

    def preview(self, vm: VirtualMachine) -> None:
        """What would be done, in the report; vCenter is asked whether it would take it, and nothing is changed."""
        planned = self._planned(vm)
        if not isinstance(planned, AddressPlan):
            return
        if planned.taken_for_static and self.report is not None:
            adapters = ", ".join(planned.taken_for_static)
            lease = f'{adapters}: taken for static; if its addresses are leases: {{ network = "NAME", new = "dhcp" }}'
            self.report.warnings = (*self.report.warnings, lease)
        try:
            self.site.check_addresses(vm.ref, planned)
        except (VsphereError, PermissionDeniedError) as error:
            if isinstance(error, VsphereError) and error.fault == UNKNOWN_TOOLS and self.report is not None:
                self.report.warnings = (
                    *self.report.warnings,
                    f"it boots twice, once without networks: {error.message}",
                )
                return
            self._keep(planned, AddressConflict(error.message, error.hint or ""))

    def give(self, vm_ref: str, may_introduce: bool = False) -> bool:
        """Before the first power-on. Raises NotReadyError where it cannot be done, and the job wants it to stay off.

        True: vCenter would, if it knew of the guest's VMware Tools; only where the caller can see to that.
        """
        planned = self._planned_for(vm_ref)
        if planned is None:
            return False
        if isinstance(planned, AddressConflict):
            self._give_up(planned)
            return False
        self.work.enter("set addresses")
        self._since = self.site.current_time()
        given: list[bool] = []
        try:
            self.patiently("set addresses", lambda: given.append(self.site.give_addresses(vm_ref, planned)))
        except TransientVsphereError:
            raise  # nothing says that it cannot be done
        except (VsphereError, PermissionDeniedError) as error:
            if may_introduce and isinstance(error, VsphereError) and error.fault == UNKNOWN_TOOLS:
                return True
            refusal = AddressConflict(error.message, error.hint or "set its addresses by hand")
            self._keep(planned, refusal)
            self._give_up(refusal)
            return False
        self._plan = planned
        for warning in planned.warnings:
            self.work.note(warning)
        if not given[-1]:
            self.work.note("addresses were given to it before, by a command that was cut off: those count")
        return False

    def resume(self, vm_ref: str, *, under_way: bool) -> None:
        """For a guest that runs already, whose addresses an earlier command gave it.

        `under_way`: that was cut off, and the guest is given its time; else it is only asked what it reports.
        """
        if self.report is not None:
            return
        planned = self._planned_for(vm_ref)
        if not isinstance(planned, AddressPlan):
            self.report = None
        elif under_way:
            self._plan = planned
        elif self.report is not None and not self._look(self.report, planned, vm_ref)[0]:
            self.report.result = AddressResult.UNCONFIRMED
            self.report.reason = f"it reports {', '.join(self.report.reported) or 'no address'}"

    def confirm(self, vm_ref: str) -> None:
        """After power-on, until the guest reports its new addresses or has had its time.

        Raises VreplError where it does not, and the job would rather have had it stay off.
        """
        plan, report = self._plan, self.report
        if plan is None or report is None:
            return
        self.work.enter("wait for addresses")
        began = time.monotonic()
        while True:
            there, end = self._look(report, plan, vm_ref)
            if there:
                report.seconds = time.monotonic() - began
                return
            if end or time.monotonic() - began >= self.policy.wait:
                break
            self.work.services.wait(LOOK_EVERY)
        shown = ", ".join(report.reported) or "no address"
        report.result = AddressResult.FAILED if end else AddressResult.UNCONFIRMED
        report.reason = (
            f"its guest could not set them: {end}" if end else f"it reports {shown} after {self.policy.wait:.0f} s"
        )
        message = f"it runs, but not with the addresses that it was given: {report.reason}"
        hint = "look at its console; /var/log/vmware-imc (Linux) or C:\\Windows\\Temp\\vmware-imc say more"
        if self.policy.on_failure is OnAddressFailure.STOP:
            raise VreplError(message, hint=hint)
        self.work.note(f"{message} ({hint})")

    def _look(self, report: AddressReport, plan: AddressPlan, vm_ref: str) -> tuple[bool, str | None]:
        """Whether the guest has them, and how customisation ended."""
        reported = self.site.reported_addresses(vm_ref)
        end = self.site.address_end(vm_ref, self._since)
        report.reported = addresses_of(reported)
        there = _has(plan, reported, end)
        if there:
            report.result = AddressResult.SET
        return there, end

    # -- steps --------------------------------------------------------------------------------------------------------

    def _planned_for(self, vm_ref: str) -> AddressPlan | AddressConflict | None:
        return self._planned(self.site.read_vm(vm_ref)) if self.policy.rules else None

    def _planned(self, vm: VirtualMachine) -> AddressPlan | AddressConflict | None:
        planned = self.planner(vm)
        if planned is None:
            return None
        if not self.site.is_vcenter:
            planned = AddressConflict(
                f"site {self.site.name} is a standalone ESXi host, which customises no guests",
                "register the host with a vCenter Server, or set its addresses by hand",
            )
        if isinstance(planned, AddressConflict):
            self._keep(None, planned)
        else:
            self.report = AddressReport(AddressResult.PLANNED, planned.changes, warnings=planned.warnings)
        return planned

    def _keep(self, plan: AddressPlan | None, why: AddressConflict) -> None:
        changes = plan.changes if plan is not None else ()
        self.report = AddressReport(AddressResult.KEPT, changes, reason=why.reason, hint=why.hint or None)

    def _give_up(self, why: AddressConflict) -> None:
        if self.policy.on_failure is OnAddressFailure.STOP:
            raise NotReadyError(
                f"its addresses cannot be set, and its job wants it to stay off then: {why.reason}", hint=why.hint
            )
        self.work.note(f"it keeps its addresses: {why.reason} ({why.hint})")


def addresses_of(guest: GuestNetwork | None) -> tuple[str, ...]:
    """Without prefixes."""
    if guest is None:
        return ()
    return tuple(text.partition("/")[0] for one in guest.adapters for text in one.addresses)


def _has(plan: AddressPlan, guest: GuestNetwork | None, end: str | None) -> bool:
    """All that were given; what DHCP gives nobody knows before: any address, once customisation has ended."""
    reported = set(addresses_of(guest))
    if not plan.expected <= reported:
        return False
    leases = any(one.v4 == DHCP for one in plan.adapters)
    return bool(plan.expected) if not leases else bool(reported) and (end == "" or bool(plan.expected))
