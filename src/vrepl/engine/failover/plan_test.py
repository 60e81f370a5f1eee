"""A test of a whole plan: clones are started in its order, held by its gates, isolated, and thrown away together.

The plan's scripts before and after are not run: what they do is meant for a real failover.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from vrepl.engine.failover.gates import GateResult
from vrepl.engine.failover.isolation import IsolatedNetwork
from vrepl.engine.failover.one_test import OneTest
from vrepl.engine.failover.plan_run import PlanRun, Watch, unwatched
from vrepl.engine.failover.replicas import FoundReplica
from vrepl.engine.failover.testing import SIDE_BY_SIDE, FailoverTests
from vrepl.engine.vm_work import Outcome, VmWork
from vrepl.errors import NotFoundError, stopped_on_request
from vrepl.model import ReplicaState
from vrepl.model.failover_tests import TestWish
from vrepl.model.plans import FailoverPlan, Gate
from vrepl.planner.plans import Stage
from vrepl.report.failover import FailoverReport, FailoverVm
from vrepl.report.model import ErrorReport, Result, why_not
from vrepl.report.plan import PlanReport, PlanResult, PlanVmReport


@dataclass(slots=True)
class _Standing:
    """One clone of the plan, until all are thrown away."""

    test: OneTest
    began: float
    outcome: Outcome
    window: ExitStack = field(default_factory=ExitStack)


@dataclass(slots=True)
class PlanTest:
    """One walk of one plan, over clones. It plays the plan's participants."""

    tests: FailoverTests
    plan: FailoverPlan
    """Naming VMs, not patterns; its gates are the checks."""
    replicas: Mapping[str, FoundReplica]
    wish: TestWish
    """Its checks are not asked."""
    watch: Watch = unwatched
    _standing: dict[str, _Standing] = field(init=False, default_factory=dict)
    _network: IsolatedNetwork = field(init=False)

    def run(self) -> FailoverReport:
        """Never raises for one VM's sake."""
        mine = [self.replicas[name] for name in self.plan.names if name in self.replicas]
        self.tests.power_ons_per_host = self.plan.power_ons_per_host
        with self.tests.network_for(mine) as self._network:
            run = PlanRun(
                self.plan,
                self,
                self.tests.services,
                self.watch,
                look_every=self.tests.look_every,
                side_by_side=SIDE_BY_SIDE,
            )
            try:
                plan = run.go()
            finally:
                rows = self._end_all(run.report())
        report = FailoverReport([rows.get(vm.name) or self._left_out(vm, plan) for vm in plan.vms], plan=plan)
        report.interrupted = self.tests.services.stop.is_set()
        return report

    # -- participants -----------------------------------------------------------------------------------------------

    def start(self, vm: str) -> str | None:
        """`Participants.start`."""
        replica = self.replicas.get(vm)
        if replica is None:
            return f"there is no replica of {vm} at site {self.tests.site.name}"
        gates = next(one.gates for one in self.plan.vms if one.name == vm)
        work = VmWork(self.tests.services, replica.source_name)
        addresses = self.tests.addresses(replica, work)
        booting = addresses.policy.wait if addresses is not None else 0.0
        test = OneTest(
            self.tests,
            replica,
            replace(self.wish, checks=gates),
            self._network,
            work,
            addresses=addresses,
            environment={"VREPL_PLAN": self.plan.name},
            stands_for=sum(_longest(self.plan, index) + booting for index in range(len(self.plan.groups))),
        )
        one = self._standing[vm] = _Standing(test, time.monotonic(), Outcome(Result.INTERRUPTED))

        def begin() -> None:
            one.window.enter_context(test.standing())
            test.power_on()

        one.outcome = work.outcome(begin)
        return why_not(one.outcome)

    def settle(self, vm: str) -> str | None:
        """`Participants.settle`: its guest has the addresses that it was given."""
        one = self._standing[vm]
        one.outcome = one.test.work.outcome(one.test.settle)
        return why_not(one.outcome)

    def missing(self, vm: str, gate: Gate) -> str | None:
        """`Participants.missing`."""
        try:
            return self._standing[vm].test.keeper.missing(gate)
        except NotFoundError as error:
            error.message = "its clone was thrown away meanwhile"
            raise

    # -- the end ----------------------------------------------------------------------------------------------------

    def _end_all(self, plan: PlanReport) -> dict[str, FailoverVm]:
        """Judge each, and throw it away unless it is kept."""
        with ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="failover-test") as pool:
            standing = [(vm, self._standing[vm.name]) for vm in plan.vms if vm.name in self._standing]
            ended = list(pool.map(lambda pair: self._end(*pair), standing))
        return {vm.name: row for (vm, _), row in zip(standing, ended, strict=True)}

    def _end(self, vm: PlanVmReport, one: _Standing) -> FailoverVm:
        work = one.test.work

        def judge() -> None:
            if vm.stage is Stage.BOOTING:
                raise stopped_on_request()
            planned = next(planned for planned in self.plan.vms if planned.name == vm.name)
            told = zip(planned.gates, vm.gates, strict=True)
            one.test.judge([GateResult(gate, found.passed, found.seconds, found.detail) for gate, found in told])

        with one.window:
            outcome = work.outcome(judge) if one.outcome.result is Result.SUCCESS else one.outcome
            seconds = time.monotonic() - one.began
        return self.tests.row(one.test, outcome, seconds)

    def _left_out(self, vm: PlanVmReport, plan: PlanReport) -> FailoverVm:
        """It had no clone."""
        replica = self.replicas.get(vm.name)
        if replica is None:
            error = ErrorReport(vm.reason or f"there is no replica of {vm.name}", "vrepl replicate makes one")
            result = Result.FAILED
        else:
            by = f" by {', '.join(plan.failed)}" if plan.failed else ""
            how = "interrupted" if plan.result is PlanResult.INTERRUPTED else f"stopped{by}"
            error = ErrorReport(f"not tested: plan {plan.name} was {how}", "--keep-going tests the rest all the same")
            result = Result.SKIPPED
        name = replica.vm.name if replica is not None else ""
        return FailoverVm(vm.name, name, result, str(ReplicaState.READY), error=error)


def _longest(plan: FailoverPlan, group: int) -> float:
    """Seconds that a group may take by its own delays and gates."""
    vms = plan.groups[group].vms
    return max(vm.delay + max((gate.within for gate in vm.gates), default=0.0) for vm in vms)
