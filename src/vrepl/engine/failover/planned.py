"""A planned failover: sync, shut guests down, sync what they wrote last, start the replicas: nothing is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import groupby

from vrepl.engine.failover.command import Failovers
from vrepl.engine.failover.plan_failover import PlanFailover
from vrepl.engine.failover.replicas import FoundReplica
from vrepl.errors import NotFoundError, NotReadyError, VreplError
from vrepl.model import PowerState, ReplicaState
from vrepl.model.failover import Start
from vrepl.model.plans import OnGateFailure
from vrepl.ports.failover import PlannedSource
from vrepl.report.failover import FailoverReport, FailoverVm
from vrepl.report.model import ErrorReport, Result, RunReport

Sync = Callable[[str, Sequence[str]], RunReport]
"""Runs a job, by name, over these of its VMs."""


@dataclass(slots=True)
class PlannedFailover:
    """Over replicas whose source sites still live."""

    failovers: Failovers
    sources: Callable[[str], PlannedSource]
    """By site name."""
    sync: Sync
    shutdown_seconds: float
    """What a guest of the source gets to shut down; one that takes longer is left running, and is not failed over."""
    failed: dict[str, FailoverVm] = field(default_factory=dict)
    found_off: set[str] = field(default_factory=set)
    """Sources that nobody saw shut down: they may have lost power, and with it what change tracking held in memory."""

    def run(self, replicas: Sequence[FoundReplica], wish: Start) -> FailoverReport:
        """VMs that could not be synced or shut down are reported as failed, and stay where they are.

        What an earlier command began is gone on with: its source is off already.
        """
        begun = [one for one in replicas if self._state(one) is not ReplicaState.READY]
        fresh = self._synced([one for one in replicas if one not in begun])
        fresh = self._shut_down(fresh)
        fresh = self._synced(fresh)
        report = self.failovers.run([*begun, *fresh], self._wish(wish))
        report.vms.extend(self.failed.values())
        order = {one.source_name: number for number, one in enumerate(replicas)}
        report.vms.sort(key=lambda vm: order[vm.name])
        return report

    def run_plan(self, walk: PlanFailover, wish: Start) -> FailoverReport:
        """Sources are shut down in the reverse order of the plan's groups, replicas started in its order.

        Where a plan stops at what does not come up, it stops here already: nothing is shut down unless all are synced,
        and nothing is started unless all are off.
        """
        mine = [walk.replicas[name] for name in walk.plan.names if name in walk.replicas]
        fresh = self._synced([one for one in mine if self._state(one) is ReplicaState.READY])
        if self._stops(walk):
            return walk.not_begun("its sync failed, and nothing was shut down", self.failed)
        off: list[FoundReplica] = []
        for group in reversed(walk.plan.groups):
            names = {vm.name for vm in group.vms}
            off += self._shut_down([one for one in fresh if one.source_name in names])
            if self._stops(walk):
                sources = ", ".join(one.source_name for one in off) or "none"
                return walk.not_begun(f"not all could be shut down; off are: {sources}", self.failed)
        self._synced(off)
        if self._stops(walk):
            return walk.not_begun("the sync after the shutdown failed", self.failed)
        walk.wish, walk.failed_before = self._wish(wish), self.failed
        return walk.run()

    def _stops(self, walk: PlanFailover) -> bool:
        stopped = self.failovers.context.services.stop.is_set()
        return stopped or (bool(self.failed) and walk.plan.on_failure is OnGateFailure.STOP)

    def _wish(self, wish: Start) -> Callable[[FoundReplica], Start]:
        unseen = replace(wish, planned=False, source_is_down=True)
        return lambda one: unseen if one.source_name in self.found_off else wish

    def _state(self, replica: FoundReplica) -> ReplicaState:
        record = self.failovers.states.read(replica.vm)
        return record.state if record is not None else ReplicaState.READY

    def _synced(self, replicas: Iterable[FoundReplica]) -> list[FoundReplica]:
        """Those whose job sealed a new restore point."""
        good: list[FoundReplica] = []
        by_job = sorted(replicas, key=lambda one: one.job or "")
        for job, group in groupby(by_job, key=lambda one: one.job):
            members = list(group)
            if job is None:
                for one in members:
                    self._fail(one, NotReadyError(f"{one.source_name} has no restore point", hint="vrepl replicate"))
                continue
            try:
                reports = {vm.name: vm for vm in self.sync(job, [one.source_name for one in members]).vms}
            except VreplError as error:
                for one in members:
                    self._fail(one, error)
                continue
            for one in members:
                report = reports.get(one.source_name)
                if report is not None and report.result is Result.SUCCESS:
                    good.append(one)
                else:
                    self._record(one, report.error if report else None)
        return good

    def _shut_down(self, replicas: Sequence[FoundReplica]) -> list[FoundReplica]:
        """Those whose source is off now, by its own guest's doing."""

        def shut_down(replica: FoundReplica) -> bool:
            unknown = replica.never_failed_over
            try:
                source = self.sources(unknown.source_site)
                vm = source.find_vm_by_instance_uuid(unknown.source_instance_uuid)
                if vm is None:
                    raise NotFoundError(f"{replica.source_name} is gone from site {unknown.source_site}")
                if vm.power is not PowerState.OFF:
                    self.failovers.context.services.events.vm_step(replica.source_name, "shut down the source's guest")
                    source.shut_down_guest(vm.ref, within=self.shutdown_seconds)
                else:
                    self.found_off.add(replica.source_name)
            except VreplError as error:
                error.hint = error.hint or "shut it down by hand and run the command again"
                self._fail(replica, error.at(vm=replica.source_name, step="shut down the source"))
                return False
            return True

        if not replicas:
            return []
        with ThreadPoolExecutor(min(16, len(replicas)), thread_name_prefix="shutdown") as pool:
            done = list(pool.map(shut_down, replicas))
        return [one for one, good in zip(replicas, done, strict=True) if good]

    def _fail(self, replica: FoundReplica, error: VreplError) -> None:
        self._record(replica, ErrorReport.of(error))

    def _record(self, replica: FoundReplica, error: ErrorReport | None) -> None:
        self.failed[replica.source_name] = FailoverVm(
            name=replica.source_name,
            replica=replica.vm.name,
            result=Result.FAILED,
            state=str(ReplicaState.READY),
            error=error or ErrorReport("its sync ended without a restore point"),
        )
