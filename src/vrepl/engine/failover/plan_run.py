"""Walks a failover plan: starts its groups in order, asks their gates, stops or goes on where something failed.

What starting a VM means (a failover, a test's clone) is the participants' matter. The planner decides, in one thread;
starts and questions have threads of their own and tell it what happened.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from vrepl.engine.context import Surroundings
from vrepl.errors import NotFoundError, VreplError
from vrepl.model.plans import FailoverPlan, Gate, PlannedVm, gate_text
from vrepl.planner.plans import UNDER_WAY, WAITING, Progress, Stage, current_group, next_step
from vrepl.report.plan import GateReport, PlanGroupReport, PlanReport, PlanResult, PlanVmReport

POLL = 0.5
"""Seconds after which a stop that was asked for is noticed."""
ASKED_EACH_ROUND = 16
"""VMs that are asked once in `look_every`; where more boot at once each is asked less often."""
MOST_ASKED = 256


class Participants(Protocol):
    """The VMs of a plan."""

    def start(self, vm: str) -> str | None:
        """Bring it up, and return once it is powered on: None, or why it is not. Called from several threads."""
        ...

    def settle(self, vm: str) -> str | None:
        """Wait for what a VM that was powered on must have before any gate is asked: None, or why it never had it."""
        ...

    def missing(self, vm: str, gate: Gate) -> str | None:
        """What keeps a VM that was started from passing, in words; None: it passes. Raises VreplError."""
        ...


Watch = Callable[[PlanReport], None]
"""Is told how far the plan is whenever that has changed."""


def unwatched(_report: PlanReport) -> None:
    """Nobody looks on."""


@dataclass(slots=True)
class _Vm:
    planned: PlannedVm
    powered_on: float | None = None
    there: float | None = None
    gates: dict[Gate, GateReport] = field(default_factory=dict)


@dataclass(slots=True)
class PlanRun:
    """One walk. The plan names VMs, not patterns."""

    plan: FailoverPlan
    participants: Participants
    services: Surroundings
    watch: Watch = unwatched
    running: AbstractSet[str] = frozenset()
    """VMs that run already: they know no delay."""
    look_every: float = 1.0
    """Seconds between two questions to a VM."""
    side_by_side: int = 16
    """VMs that are started at a time; how many are powered on at once is the participants' matter."""
    monotonic: Callable[[], float] = time.monotonic
    _progress: dict[str, Progress] = field(init=False, default_factory=dict)
    _began: dict[int, float] = field(init=False, default_factory=dict)
    _vms: dict[str, _Vm] = field(init=False)
    _happened: queue.SimpleQueue[Callable[[], None]] = field(init=False, default_factory=queue.SimpleQueue)
    _over: threading.Event = field(init=False, default_factory=threading.Event)
    _zero: float = field(init=False)
    _starters: Executor = field(init=False)
    _askers: Executor = field(init=False)

    def __post_init__(self) -> None:
        self._vms = {vm.name: _Vm(vm) for vm in self.plan.vms}
        self._zero = self.monotonic()

    def go(self) -> PlanReport:
        """Until all are there, or nothing more is started. Never raises for one VM's sake."""
        asked = min(MOST_ASKED, max((len(group.vms) for group in self.plan.groups), default=1))
        self._starters = ThreadPoolExecutor(max(1, self.side_by_side), thread_name_prefix="failover")
        self._askers = ThreadPoolExecutor(max(1, asked), thread_name_prefix="gates")
        try:
            result = self._walk()
        finally:
            self._over.set()
            self._starters.shutdown(cancel_futures=True)
            self._askers.shutdown(cancel_futures=True)
        report = self.report(result)
        self.watch(report)
        return report

    def report(self, result: PlanResult = PlanResult.RUNNING) -> PlanReport:
        """How far it is."""
        groups = tuple(
            PlanGroupReport(group.name, tuple(self._vm_report(vm.name) for vm in group.vms), self._beginning(index))
            for index, group in enumerate(self.plan.groups)
        )
        failed = tuple(name for name, one in self._progress.items() if one.stage is Stage.FAILED)
        return PlanReport(self.plan.name, groups, result, self.monotonic() - self._zero, failed)

    # -- the walk, in one thread ------------------------------------------------------------------------------------

    def _walk(self) -> PlanResult:
        while True:
            stopping = self.services.stop.is_set()
            now = self.monotonic()
            group = current_group(self.plan, self._progress)
            if group is not None:
                self._began.setdefault(group, now)
            step = next_step(self.plan, self._progress, self._began, now, self.running)
            for name in step.overdue:
                self._set(name, Stage.FAILED, self._too_late(name))
            for name in step.start if not stopping else ():
                self._set(name, Stage.STARTING)
                self._starters.submit(self._start, name)
            self.watch(self.report())
            if step.ended:
                return PlanResult.STOPPED if step.stopped_by else PlanResult.COMPLETED
            if stopping and not self._any(Stage.STARTING):
                return PlanResult.INTERRUPTED
            if not step.overdue:
                self._take(POLL if step.look_again_in is None else min(POLL, step.look_again_in))

    def _take(self, seconds: float) -> None:
        """What happened, waiting for it so long at the most."""
        try:
            self._happened.get(timeout=max(seconds, 0.001))()
            while True:
                self._happened.get_nowait()()
        except queue.Empty:
            pass

    def _started(self, name: str, reason: str | None, moment: float) -> None:
        if reason is not None:
            self._set(name, Stage.FAILED, reason)
            return
        vm = self._vms[name]
        vm.powered_on = moment - self._zero
        vm.gates = {gate: GateReport(gate_text(gate), False, 0.0) for gate in vm.planned.gates}
        self._askers.submit(self._ask, name)

    def _settled(self, name: str, reason: str | None, moment: float) -> None:
        if reason is not None:
            self._set(name, Stage.FAILED, reason)
        elif self._vms[name].planned.gates:
            self._progress[name] = Progress(Stage.BOOTING, moment)
        else:
            self._there(name, moment)

    def _answered(self, name: str, gate: Gate, missing: str | None, moment: float) -> None:
        vm = self._vms[name]
        if self._stage(name) is not Stage.BOOTING:
            return
        seconds = moment - self._zero - (vm.powered_on or 0.0)
        vm.gates[gate] = GateReport(gate_text(gate), missing is None, seconds, missing or "")
        if all(one.passed for one in vm.gates.values()):
            self._there(name, moment)

    def _gone(self, name: str, error: VreplError) -> None:
        if self._stage(name) is Stage.BOOTING:
            self._set(name, Stage.FAILED, error.message)

    def _there(self, name: str, moment: float) -> None:
        self._vms[name].there = moment - self._zero
        self._progress[name] = Progress(Stage.THERE, moment)

    def _set(self, name: str, stage: Stage, reason: str = "") -> None:
        self._progress[name] = Progress(stage, self.monotonic(), reason)

    def _stage(self, name: str) -> Stage:
        return self._progress.get(name, WAITING).stage

    def _any(self, stage: Stage) -> bool:
        return any(one.stage is stage for one in self._progress.values())

    def _too_late(self, name: str) -> str:
        closed = [one for one in self._vms[name].gates.values() if not one.passed]
        within = max(gate.within for gate in self._vms[name].planned.gates)
        why = "; ".join(f"{one.gate}: {one.detail}" if one.detail else one.gate for one in closed)
        return f"{why}, after {within:g} s"

    def _beginning(self, group: int) -> float | None:
        began = self._began.get(group)
        return None if began is None else began - self._zero

    def _vm_report(self, name: str) -> PlanVmReport:
        vm, progress = self._vms[name], self._progress.get(name, WAITING)
        since = progress.since - self._zero if progress is not WAITING else 0.0
        return PlanVmReport(
            name, progress.stage, since, vm.powered_on, vm.there, tuple(vm.gates.values()), progress.reason
        )

    # -- what other threads do --------------------------------------------------------------------------------------

    def _start(self, name: str) -> None:
        try:
            reason = self.participants.start(name)
        except BaseException as error:
            self._happened.put(partial(_raise, error))
            return
        self._happened.put(partial(self._started, name, reason, self.monotonic()))

    def _ask(self, name: str) -> None:
        """Until every gate has passed, or nobody waits for it any more."""
        waiting = list(self._vms[name].planned.gates)
        try:
            reason = self.participants.settle(name)
            self._happened.put(partial(self._settled, name, reason, self.monotonic()))
            while waiting and reason is None and not self._over.is_set() and self._stage(name) in UNDER_WAY:
                for gate in tuple(waiting):
                    missing = self._missing(name, gate)
                    if missing is None:
                        waiting.remove(gate)
                    self._happened.put(partial(self._answered, name, gate, missing, self.monotonic()))
                if waiting:
                    booting = sum(one.stage is Stage.BOOTING for one in tuple(self._progress.values()))
                    self._over.wait(self.look_every * max(1.0, booting / ASKED_EACH_ROUND))
        except NotFoundError as error:
            self._happened.put(partial(self._gone, name, error))
        except BaseException as error:
            self._happened.put(partial(_raise, error))

    def _missing(self, name: str, gate: Gate) -> str | None:
        """A site that does not answer is no reason to give up: the gate has its time."""
        try:
            return self.participants.missing(name, gate)
        except NotFoundError:
            raise
        except VreplError as error:
            return error.message


def _raise(error: BaseException) -> None:
    raise error
