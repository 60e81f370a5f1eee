"""Failover plans: which VMs start in which order, and what must answer before the next ones do."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class HeartbeatGate:
    """VMware Tools of the VM report a green heartbeat."""

    within: float = 300.0
    """Seconds after power-on."""


@dataclass(frozen=True, slots=True)
class PortGate:
    """The VM takes connections on a TCP port, at the address that its guest reports."""

    port: int
    within: float = 300.0


@dataclass(frozen=True, slots=True)
class ScriptGate:
    """A command on the machine that runs vrepl ends with 0; it is asked again until then."""

    command: tuple[str, ...]
    within: float = 300.0


Gate = HeartbeatGate | PortGate | ScriptGate


@dataclass(frozen=True, slots=True)
class PlannedVm:
    """One VM of a group."""

    name: str
    delay: float = 0.0
    """Seconds from the beginning of its group until it is powered on."""
    gate: Gate | None = None
    """None: powered on is enough."""


@dataclass(frozen=True, slots=True)
class PlanGroup:
    """VMs that start side by side, once the group before is there."""

    name: str
    vms: tuple[PlannedVm, ...]


@dataclass(frozen=True, slots=True)
class FailoverPlan:
    """`[plans.NAME]` of the configuration; each replica also carries its own part of it."""

    name: str
    groups: tuple[PlanGroup, ...]
    power_ons_per_host: int = 4
    """Power-ons under way at one ESXi host at any time."""
    before: tuple[str, ...] = ()
    """Command on this machine before the first group; the plan ends where it fails."""
    after: tuple[str, ...] = field(default=())
    """Command on this machine once the last group is there."""

    @property
    def vms(self) -> tuple[PlannedVm, ...]:
        return tuple(vm for group in self.groups for vm in group.vms)

    def group_of(self, vm: str) -> int | None:
        """Index of the VM's group; None for a VM that is not in the plan."""
        return next(
            (index for index, group in enumerate(self.groups) if any(one.name == vm for one in group.vms)), None
        )


def gate_text(gate: Gate) -> str:
    """As it is written on the command line and in a configuration."""
    match gate:
        case HeartbeatGate():
            return "heartbeat"
        case PortGate():
            return f"port:{gate.port}"
        case ScriptGate():
            return f"script:{shlex.join(gate.command)}"


def parse_gate(text: str, within: float) -> Gate:
    """`heartbeat`, `port:N` or `script:COMMAND`; `within`: seconds from power-on. Raises ValueError, saying what is."""
    kind, _, value = text.partition(":")
    if text == "heartbeat":
        return HeartbeatGate(within)
    if kind == "port" and value.isascii() and value.isdigit() and 0 < int(value) < 65536:
        return PortGate(int(value), within)
    if kind == "script" and value.strip():
        return ScriptGate(tuple(shlex.split(value)), within)
    raise ValueError(f"{text}: expected heartbeat, port:NUMBER or script:COMMAND")
