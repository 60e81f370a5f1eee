"""Lets a guest run once without networks, so that vCenter gets to know of its VMware Tools.

vCenter customises a guest only where it knows of Tools, and it learns of them when they run: a replica has never run at
its site (open-vm-tools #262: "If I boot the machine and shut it down again, vcenter realizes that open-vm-tools was
indeed installed"). The guest's old addresses must not be seen on the target's networks, so it boots without any.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import Protocol

from vrepl.engine.vm_work import VmWork
from vrepl.errors import VreplError
from vrepl.model import GuestState, PowerState, VirtualMachine
from vrepl.ports.failover import Power

LOOK_EVERY = 2.0
"""Seconds between looks at a guest that boots."""


class IntroducingSite(Power, Protocol):
    """Where the guest runs for once."""

    def read_vm(self, vm_ref: str) -> VirtualMachine: ...

    def guest_state(self, vm_ref: str) -> GuestState: ...

    def set_connected(self, vm_ref: str, adapters: Collection[int], connected: bool) -> None: ...


def connected_adapters(vm: VirtualMachine) -> tuple[int, ...]:
    """Device keys of those that are connected at power-on: what is to be so again afterwards."""
    return tuple(one.key for one in vm.hardware.network_adapters if one.connected)


def introduce(
    site: IntroducingSite,
    vm_ref: str,
    adapters: Collection[int],
    work: VmWork,
    power_ons: AbstractContextManager[object],
    shut_down: Callable[[], None],
    *,
    within: float,
) -> None:
    """Boot it without `adapters`, wait for its Tools, shut it down, connect them again; a crash is no matter.

    `within`: seconds that VMware Tools get to come up. A guest whose Tools do not is shut down all the same, and that
    is said.
    """
    if site.read_vm(vm_ref).power is PowerState.OFF:
        site.set_connected(vm_ref, adapters, False)
        with power_ons:
            site.power_on(vm_ref)
    until = time.monotonic() + within
    while not site.guest_state(vm_ref).tools_running:
        if time.monotonic() >= until:
            work.note(f"its VMware Tools did not come up within {within:.0f} s: vCenter does not know of them")
            break
        work.services.wait(LOOK_EVERY)
    else:
        work.note("it ran once without networks, so that vCenter knows of its VMware Tools")
    shut_down()
    site.set_connected(vm_ref, adapters, True)


def shut_down_or_off(site: Power, vm_ref: str, work: VmWork, within: float) -> None:
    """A guest that does not go down in its time is powered off."""
    try:
        site.shut_down_guest(vm_ref, within=within)
    except VreplError as error:
        work.note(f"the guest did not shut down, and is powered off: {error.message}")
        site.power_off(vm_ref)
