"""`[plans.NAME]`: in which order VMs are brought into service, as it is written in the configuration."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from vrepl.config.fields import Duration, Name, Table, Wait, Words
from vrepl.model.plans import (
    GATE_SECONDS,
    POWER_ONS_PER_HOST,
    FailoverPlan,
    OnGateFailure,
    PlanGroup,
    PlannedVm,
    parse_gate,
)


def _one_or_several(value: Any) -> Any:
    value = (value,) if isinstance(value, str) else value
    if isinstance(value, list | tuple):
        for text in value:
            if isinstance(text, str):
                parse_gate(text, GATE_SECONDS)
    return value


Gates = Annotated[tuple[Name, ...], BeforeValidator(_one_or_several)]
"""`heartbeat`, `port:N`, `script:COMMAND`; one of them or a list."""


class PlannedVmTable(Table):
    """A VM that is more than its name: what its group says of delay and gates does not hold for it."""

    name: Name
    delay: Wait | None = None
    gates: Gates | None = None
    gate_timeout: Duration | None = None


def _by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class PlanGroupTable(Table):
    """VMs that start side by side."""

    name: Name | None = None
    vms: tuple[Annotated[PlannedVmTable, BeforeValidator(_by_name)], ...] = Field(min_length=1)
    delay: Wait = 0.0
    gates: Gates | None = None
    gate_timeout: Duration | None = None

    def group(self, number: int, plan: PlanTable) -> PlanGroup:
        """`number`: its place, from 1; the name of a group that has none."""
        return PlanGroup(self.name or str(number), tuple(self._vm(vm, plan) for vm in self.vms))

    def _vm(self, vm: PlannedVmTable, plan: PlanTable) -> PlannedVm:
        texts = next((gates for gates in (vm.gates, self.gates, plan.gates) if gates is not None), ())
        within = vm.gate_timeout or self.gate_timeout or plan.gate_timeout
        delay = self.delay if vm.delay is None else vm.delay
        return PlannedVm(vm.name, delay, tuple(parse_gate(text, within) for text in dict.fromkeys(texts)))


class PlanTable(Table):
    """One failover plan."""

    groups: tuple[PlanGroupTable, ...] = Field(min_length=1)
    gates: Gates = ()
    gate_timeout: Duration = GATE_SECONDS
    power_ons_per_host: int = Field(default=POWER_ONS_PER_HOST, ge=1, le=64)
    on_failure: OnGateFailure = OnGateFailure.STOP
    before: Words | None = None
    after: Words | None = None
    script_timeout: Duration = GATE_SECONDS

    @model_validator(mode="after")
    def _each_once(self) -> PlanTable:
        place: dict[str, str] = {}
        for number, group in enumerate(self.groups, 1):
            title = group.name or str(number)
            for vm in group.vms:
                if vm.name in place:
                    where = f"in group {title} twice" if place[vm.name] == title else f"in {place[vm.name]} and {title}"
                    raise ValueError(f'"{vm.name}" is {where}: a VM starts in one group')
                place[vm.name] = title
        names = [group.name or str(number) for number, group in enumerate(self.groups, 1)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f'two groups have the name "{name}"')
        return self

    def plan(self, name: str, rank: int) -> FailoverPlan:
        """This plan as the engine takes it; `rank`: its place among all."""
        return FailoverPlan(
            name=name,
            groups=tuple(group.group(number, self) for number, group in enumerate(self.groups, 1)),
            power_ons_per_host=self.power_ons_per_host,
            before=self.before or (),
            after=self.after or (),
            script_timeout=self.script_timeout,
            on_failure=self.on_failure,
            rank=rank,
        )
