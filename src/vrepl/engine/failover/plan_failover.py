"""A failover in the order of a plan: replicas are started group after group, and what did not come up is named.

Nothing of a plan's walk is kept: a command that was cut off is given again, and VMs that run pass as soon as their
gates say so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol

from vrepl.engine.failover.command import Attempt, Failovers
from vrepl.engine.failover.gates import GateKeeper
from vrepl.engine.failover.plan_run import PlanRun, Watch, unwatched
from vrepl.engine.failover.replicas import FoundReplica
from vrepl.engine.vm_work import Outcome
from vrepl.errors import NotFoundError, VreplError
from vrepl.model import PowerState, ReplicaState
from vrepl.model.failover import Start, Wish
from vrepl.model.guests import ProgramEnd
from vrepl.model.plans import FailoverPlan, Gate
from vrepl.planner.plans import Stage
from vrepl.ports.failover import ServiceProbe
from vrepl.report.failover import FailoverReport, FailoverVm
from vrepl.report.model import ErrorReport, Result, why_not
from vrepl.report.plan import PlanReport, PlanResult, PlanVmReport

LOOKS_SIDE_BY_SIDE = 16


class Commands(Protocol):
    """This machine, as far as a plan's scripts before and after need it."""

    def run_command(self, words: Sequence[str], environment: Mapping[str, str], *, within: float) -> ProgramEnd:
        """Without a shell, `environment` added to this process's own. Raises UsageError where it cannot be started."""
        ...


@dataclass(slots=True)
class PlanFailover:
    """One walk of one plan, over the replicas of one site. It plays the plan's participants."""

    failovers: Failovers
    plan: FailoverPlan
    """Naming VMs, not patterns."""
    replicas: Mapping[str, FoundReplica]
    """By their names in plans; a VM of the plan that has none fails when its turn comes."""
    probe: ServiceProbe
    commands: Commands
    watch: Watch = unwatched
    look_every: float = 1.0
    wish: Callable[[FoundReplica], Wish] = lambda _: Start()
    failed_before: Mapping[str, FailoverVm] = field(default_factory=dict)
    """VMs that failed before the plan began, in a planned failover's sync or shutdown: they are not started."""
    rows: dict[str, FailoverVm] = field(init=False, default_factory=dict)
    attempts: dict[str, Attempt] = field(init=False, default_factory=dict)

    def run(self) -> FailoverReport:
        """Never raises for one VM's sake."""
        states = self._states()
        failed = "" if any(state is not ReplicaState.READY for state in states.values()) else self._command("before")
        if failed:
            return self.not_begun(failed)
        self.failovers.limit_power_ons(self.plan.power_ons_per_host)
        run = PlanRun(
            self.plan,
            self,
            self.failovers.context.services,
            self.watch,
            running=frozenset(name for name, one in self.replicas.items() if one.vm.power is PowerState.ON),
            look_every=self.look_every,
            side_by_side=self.failovers.side_by_side(list(self.replicas.values())),
        )
        report = run.go()
        if report.result is PlanResult.COMPLETED:
            report = replace(report, error=self._command("after"))
        return self._told(report)

    # -- participants -----------------------------------------------------------------------------------------------

    def start(self, vm: str) -> str | None:
        """`Participants.start`."""
        replica = self.replicas.get(vm)
        failed = self.failed_before.get(vm) or (self._lost(vm) if replica is None else None)
        if failed is not None or replica is None:
            return self._reason(vm, failed or self._lost(vm))
        attempt = self.failovers.attempt(replica, self.wish(replica))
        if attempt.record.state is ReplicaState.COMMITTED and self._runs(replica):
            attempt.outcome = Outcome(Result.SUCCESS)
            attempt.work.note("it was committed, and runs")
        if attempt.outcome.result is not Result.SUCCESS:
            return self._reason(vm, attempt.confirmed())
        self.attempts[vm] = attempt
        return None

    def settle(self, vm: str) -> str | None:
        """`Participants.settle`: its guest has the addresses that it was given."""
        return self._reason(vm, self.attempts[vm].confirmed())

    def _reason(self, vm: str, row: FailoverVm) -> str | None:
        self.rows[vm] = row
        return why_not(row)

    def missing(self, vm: str, gate: Gate) -> str | None:
        """`Participants.missing`."""
        replica = self.replicas[vm]
        environment = {"VREPL_PLAN": self.plan.name, "VREPL_VM": vm, "VREPL_REPLICA": replica.vm.name}
        target = self.failovers.context.target
        return GateKeeper(target, self.probe, replica.vm.ref, environment).missing(gate)

    def _lost(self, vm: str) -> FailoverVm:
        site = self.failovers.context.target.name
        error = NotFoundError(
            f"there is no replica of {vm} at site {site}",
            hint=f"replicate it, or take it out of plan {self.plan.name}; --keep-going starts what comes after it",
        )
        return FailoverVm(vm, "", Result.FAILED, str(ReplicaState.READY), error=ErrorReport.of(error))

    def _runs(self, replica: FoundReplica) -> bool:
        try:
            return self.failovers.context.target.read_vm(replica.vm.ref).power is PowerState.ON
        except VreplError:
            return False

    # -- around it --------------------------------------------------------------------------------------------------

    def _states(self) -> dict[str, ReplicaState]:
        """Of its replicas; one whose state cannot be read counts as ready: its start tells why."""

        def state(one: FoundReplica) -> ReplicaState:
            try:
                record = self.failovers.states.read(one.vm)
            except VreplError:
                record = None
            return record.state if record is not None else ReplicaState.READY

        mine = [one for name, one in self.replicas.items() if self.plan.group_of(name) is not None]
        with ThreadPoolExecutor(LOOKS_SIDE_BY_SIDE, thread_name_prefix="states") as pool:
            return {one.source_name: found for one, found in zip(mine, pool.map(state, mine), strict=True)}

    def _command(self, moment: str) -> str:
        """Runs the plan's script before or after; why it failed, or nothing."""
        words = self.plan.before if moment == "before" else self.plan.after
        if not words:
            return ""
        events = self.failovers.context.services.events
        events.note("", f"plan {self.plan.name}: {words[0]} ({moment})")
        environment = {"VREPL_PLAN": self.plan.name, "VREPL_MOMENT": moment}
        try:
            end = self.commands.run_command(words, environment, within=self.plan.script_timeout)
        except VreplError as error:
            return error.message
        if end.status == 0:
            return ""
        why = f"ended with {end.status}" if end.status is not None else f"took more than {self.plan.script_timeout:g} s"
        lines = end.output.decode(errors="replace").strip().splitlines()
        return f"its script {moment}, {words[0]}, {why}" + (f": {lines[-1]}" if lines else "")

    def not_begun(self, why: str, failed: Mapping[str, FailoverVm] | None = None) -> FailoverReport:
        """Nothing is started. `failed`: VMs that are to blame for it."""
        self.rows.update(failed or {})
        report = PlanRun(self.plan, self, self.failovers.context.services).report(PlanResult.STOPPED)
        return self._told(replace(report, error=why, failed=tuple(self.rows)))

    # -- what is told -----------------------------------------------------------------------------------------------

    def _told(self, plan: PlanReport) -> FailoverReport:
        report = FailoverReport([self._row(vm, plan) for vm in plan.vms], plan=plan)
        report.interrupted = self.failovers.context.services.stop.is_set()
        return report

    def _row(self, vm: PlanVmReport, plan: PlanReport) -> FailoverVm:
        row = self.rows.get(vm.name)
        if row is None:
            replica = self.replicas.get(vm.name)
            error = ErrorReport(f"not started: plan {plan.name} {_why(plan)}", self._to_go_on)
            name = replica.vm.name if replica is not None else ""
            return FailoverVm(vm.name, name, Result.SKIPPED, str(ReplicaState.READY), error=error)
        if row.result is not Result.SUCCESS or vm.stage is Stage.THERE:
            return row
        result, why = Result.FAILED, f"it runs, and does not serve: {vm.reason}"
        if vm.stage is Stage.BOOTING:
            result, why = Result.INTERRUPTED, f"it runs; its gates had not opened yet: {vm.waits_for}"
        return replace(row, result=result, error=ErrorReport(why, self._to_go_on, step="gates"))

    @property
    def _to_go_on(self) -> str:
        return "the same command goes on with the plan; --keep-going goes on without what does not come up"


def _why(plan: PlanReport) -> str:
    if plan.error:
        return f"stopped: {plan.error}"
    return f"was stopped by {', '.join(plan.failed)}" if plan.failed else f"was {plan.result}"
