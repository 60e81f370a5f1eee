"""Whether a guest serves: a heartbeat of VMware Tools, a TCP port, a script of the operator's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from vrepl.model import GuestState, PowerState
from vrepl.model.plans import Gate, HeartbeatGate, PortGate, ScriptGate
from vrepl.ports.failover import ServiceProbe


class WatchedSite(Protocol):
    """Where the guest runs."""

    def guest_state(self, vm_ref: str) -> GuestState: ...


@dataclass(frozen=True, slots=True)
class GateResult:
    """What became of one gate."""

    gate: Gate
    passed: bool
    seconds: float
    """From power-on until it passed, or was given up."""
    detail: str = ""
    """Why it did not pass."""


@dataclass(frozen=True, slots=True)
class GateKeeper:
    """Asks gates about one VM."""

    site: WatchedSite
    probe: ServiceProbe
    vm_ref: str
    environment: Mapping[str, str]
    """For scripts; VREPL_ADDRESS is added, once the guest has one."""

    def missing(self, gate: Gate) -> str | None:
        """What is still missing, in words; None: it passes. Raises NotFoundError once the VM is gone."""
        guest = self.site.guest_state(self.vm_ref)
        if guest.power is not PowerState.ON:
            return "it is powered off"
        if guest.question:
            return f"it waits for an answer in vSphere: {guest.question}"
        match gate:
            case HeartbeatGate():
                if not guest.tools_running:
                    return "VMware Tools do not run"
                return None if guest.heartbeat == "green" else f"its heartbeat is {guest.heartbeat}"
            case PortGate():
                if not guest.ip_address:
                    return "its guest reports no address"
                address = (guest.ip_address, gate.port)
                return None if self.probe.connects(*address) else f"{guest.ip_address} port {gate.port} does not answer"
            case ScriptGate():
                environment = {**self.environment, "VREPL_ADDRESS": guest.ip_address}
                status, said = self.probe.run(gate.command, environment)
                return None if status == 0 else f"{gate.command[0]} ended with {status}" + (f": {said}" if said else "")

    def wait(
        self,
        gates: Sequence[Gate],
        since: float,
        pause: Callable[[], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> list[GateResult]:
        """Until each has passed or had its time since `since` (monotonic seconds of power-on); `pause` may raise."""
        results: dict[Gate, GateResult] = {}
        while open_gates := [gate for gate in dict.fromkeys(gates) if gate not in results]:
            for gate in open_gates:
                detail = self.missing(gate)
                seconds = monotonic() - since
                if detail is None:
                    results[gate] = GateResult(gate, True, seconds)
                elif seconds >= gate.within:
                    results[gate] = GateResult(gate, False, seconds, detail)
            if len(results) < len(set(gates)):
                pause()
        return [results[gate] for gate in dict.fromkeys(gates)]
