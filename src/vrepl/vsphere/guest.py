"""Power and the guest: what failover asks of a VM. VMs are named by their refs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from vrepl.errors import NotFoundError, VsphereError
from vrepl.model import GuestState, PowerState
from vrepl.vsphere import collector
from vrepl.vsphere.api import vim
from vrepl.vsphere.session import Session
from vrepl.vsphere.tasks import Tasks

LOOK_EVERY = 2.0
"""Seconds between looks at a guest that shuts down: no task tells when it is done."""

_PATHS = (
    "runtime.powerState",
    "guest.toolsRunningStatus",
    "guestHeartbeatStatus",
    "guest.hostName",
    "guest.ipAddress",
    "runtime.question",
)


class Guests:
    """Switches VMs on and off."""

    def __init__(self, session: Session, running: Tasks, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._session = session
        self._tasks = running
        self._monotonic = monotonic

    def state(self, vm_ref: str) -> GuestState:
        """Raises NotFoundError if the VM is gone."""
        found = collector.these(self._session, [self._vm(vm_ref)], {vim.VirtualMachine: _PATHS})
        if not found:
            raise NotFoundError(f"VM {vm_ref} is gone", hint="was it deleted or unregistered?")
        values = found[0]
        question = values.get("runtime.question")
        return GuestState(
            power=PowerState(str(values.get("runtime.powerState", "poweredOff"))),
            tools_running=str(values.get("guest.toolsRunningStatus", "")) == "guestToolsRunning",
            heartbeat=str(values.get("guestHeartbeatStatus", "gray")),
            host_name=str(values.get("guest.hostName", "")),
            ip_address=str(values.get("guest.ipAddress", "")),
            question=str(question.text) if question is not None else "",
        )

    def power_on(self, vm_ref: str) -> None:
        """One that is on already is fine."""
        self._switch(self._vm(vm_ref).PowerOnVM_Task, vm_ref, PowerState.ON, "power on")

    def power_off(self, vm_ref: str) -> None:
        """Hard, as by the plug; one that is off already is fine."""
        self._switch(self._vm(vm_ref).PowerOffVM_Task, vm_ref, PowerState.OFF, "power off")

    def shut_down(self, vm_ref: str, *, within: float) -> None:
        """Ask the guest to shut down and wait until the VM is off, for so many seconds.

        One that is off already is fine. Raises VsphereError, with fault ToolsUnavailable where VMware Tools do not run
        and Timedout where the guest has not gone down in time (it may still).
        """
        if self.state(vm_ref).power is PowerState.OFF:
            return
        until = self._monotonic() + within
        self._vm(vm_ref).ShutdownGuest()
        while self.state(vm_ref).power is not PowerState.OFF:
            if self._monotonic() >= until:
                raise VsphereError(
                    f"the guest of {vm_ref} has not shut down within {within:.0f} s",
                    fault="Timedout",
                    hint="look at its console; power it off in vSphere if it hangs",
                )
            self._session.pause(LOOK_EVERY)

    def _switch(self, start: Callable[[], Any], vm_ref: str, wanted: PowerState, doing: str) -> None:
        try:
            self._tasks.run(start, what=f"{doing} {vm_ref}")
        except VsphereError as error:
            # The wish was granted before, perhaps to us: the reply to it may have been lost.
            if error.fault != "InvalidPowerState" or self.state(vm_ref).power is not wanted:
                raise

    def _vm(self, vm_ref: str) -> Any:
        return self._session.object(vim.VirtualMachine, vm_ref)
