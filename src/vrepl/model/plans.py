"""Failover plans: which VMs start in which order, and what must answer before the next ones do."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Literal

from vrepl.model.selection import is_pattern

POWER_ONS_PER_HOST = 4
"""Power-ons under way at one ESXi host, where nothing else is said."""
GATE_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class HeartbeatGate:
    """VMware Tools of the VM report a green heartbeat."""

    within: float = GATE_SECONDS
    """Seconds after power-on."""
    kind: Literal["heartbeat"] = "heartbeat"


@dataclass(frozen=True, slots=True)
class PortGate:
    """The VM takes connections on a TCP port, at the address that its guest reports."""

    port: int
    within: float = GATE_SECONDS
    kind: Literal["port"] = "port"


@dataclass(frozen=True, slots=True)
class ScriptGate:
    """A command on the machine that runs vrepl ends with 0; it is asked again until then."""

    command: tuple[str, ...]
    within: float = GATE_SECONDS
    kind: Literal["script"] = "script"


Gate = HeartbeatGate | PortGate | ScriptGate


class OnGateFailure(StrEnum):
    """What becomes of the rest of a plan when a VM of it does not come up."""

    STOP = "stop"
    CONTINUE = "continue"


@dataclass(frozen=True, slots=True)
class PlannedVm:
    """One VM of a group, or those that a pattern means."""

    name: str
    """Of the source VM."""
    delay: float = 0.0
    """Seconds from the beginning of its group until it is powered on."""
    gates: tuple[Gate, ...] = ()
    """It is there once each has let it pass; none: powered on is enough."""


@dataclass(frozen=True, slots=True)
class PlanGroup:
    """VMs that start side by side, once the group before is there."""

    name: str
    vms: tuple[PlannedVm, ...]


@dataclass(frozen=True, slots=True)
class FailoverPlan:
    """`[plans.NAME]` of the configuration; a copy of it lies beside each of its replicas."""

    name: str
    groups: tuple[PlanGroup, ...]
    power_ons_per_host: int = POWER_ONS_PER_HOST
    """Power-ons under way at one ESXi host at any time."""
    before: tuple[str, ...] = ()
    """Command on this machine before the first group; the plan ends where it fails."""
    after: tuple[str, ...] = field(default=())
    """Command on this machine once the last group is there."""
    script_timeout: float = GATE_SECONDS
    """Seconds that each of the two may take."""
    on_failure: OnGateFailure = OnGateFailure.STOP
    rank: int = 0
    """Its place among the plans of its configuration: where all VMs are failed over, plans go in this order."""

    @property
    def vms(self) -> tuple[PlannedVm, ...]:
        return tuple(vm for group in self.groups for vm in group.vms)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(vm.name for vm in self.vms)

    @property
    def commands(self) -> tuple[tuple[str, ...], ...]:
        """All that it runs on this machine."""
        gates = (gate.command for vm in self.vms for gate in vm.gates if isinstance(gate, ScriptGate))
        return tuple(dict.fromkeys(command for command in (self.before, *gates, self.after) if command))

    def group_of(self, vm: str) -> int | None:
        """Index of the VM's group; None for a VM that is not in the plan."""
        return next(
            (index for index, group in enumerate(self.groups) if any(one.name == vm for one in group.vms)), None
        )

    def means(self, vm: str) -> bool:
        """Whether a source VM of this name is in it, by its name or by a pattern."""
        return any(vm == name or (is_pattern(name) and fnmatchcase(vm, name)) for name in self.names)

    @property
    def has_patterns(self) -> bool:
        """Whether it takes the names of a site's replicas to know all its VMs."""
        return any(is_pattern(name) for name in self.names)


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
