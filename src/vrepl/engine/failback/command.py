"""One failback command over many replicas: each goes as far as it can, and all are told of."""

from __future__ import annotations

import datetime as dt
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from vrepl.engine.context import FailbackContext, timestamped_id
from vrepl.engine.failback.driver import FailbackDriver
from vrepl.engine.failback.homecoming import Homecoming
from vrepl.engine.failover.command import RUN_ENDS_WITHIN, Failovers
from vrepl.engine.failover.readdressing import Readdressing
from vrepl.engine.failover.replicas import FoundReplica
from vrepl.engine.vm_work import VmWork
from vrepl.errors import NotReadyError, UsageError
from vrepl.model import ReplicaPlacement, ReplicaState
from vrepl.model.addresses import OnAddressFailure
from vrepl.model.failover import (
    CommitFailback,
    ElsewherePlace,
    FailbackWish,
    FailoverRecord,
    StartFailback,
    UndoFailback,
)
from vrepl.planner.addresses import original_addresses
from vrepl.report.failover import Crossed, FailoverReport, FailoverVm
from vrepl.report.model import Result
from vrepl.repository.failback import FailbackFolder
from vrepl.repository.failover import save_failover
from vrepl.repository.replica_folder import ReplicaFolder

SIDE_BY_SIDE = 4
"""VMs that come home at a time: how many disks cross at once has a limit of its own."""


@dataclass(frozen=True, slots=True)
class NewPlace:
    """A new VM is wanted at home."""

    placement: ReplicaPlacement
    name: str | None = None
    """None: the original's, which must be gone."""


@dataclass(slots=True)
class Failbacks:
    """Everything that the VMs of one command share."""

    failovers: Failovers
    context: Callable[[FoundReplica, str | None], FailbackContext]
    """By the job that replicated it last, and the site that it is on its way to already."""
    shutdown_seconds: float = 300.0

    def can_start(self, replica: FoundReplica) -> bool:
        """Whether it is failed over, or on its way home."""
        return self._state(replica) in {ReplicaState.FAILED_OVER, ReplicaState.FAILING_BACK}

    def is_on_its_way(self, replica: FoundReplica) -> bool:
        return self._state(replica) is ReplicaState.FAILING_BACK

    def _state(self, replica: FoundReplica) -> ReplicaState:
        return (self.failovers.states.read(replica.vm) or replica.never_failed_over).state

    def start(
        self, replicas: Sequence[FoundReplica], new: Callable[[FoundReplica], NewPlace | None], *, power_off: bool
    ) -> FailoverReport:
        """Bring them home; `new`: where, if not into the original."""

        def wish(replica: FoundReplica, context: FailbackContext, record: FailoverRecord) -> FailbackWish:
            services = context.services
            failback_id = timestamped_id(services.clock(), services.new_id())
            place = new(replica)
            where = None if place is None else _elsewhere(context, replica, record, place, failback_id)
            return StartFailback(failback_id, context.home.name, where, power_off)

        return self._run(replicas, wish)

    def undo(self, replicas: Sequence[FoundReplica]) -> FailoverReport:
        return self._run(replicas, lambda *_: UndoFailback())

    def commit(self, replicas: Sequence[FoundReplica]) -> FailoverReport:
        def wish(replica: FoundReplica, context: FailbackContext, _: FailoverRecord) -> FailbackWish:
            services = context.services
            # Restore points are ordered by time: this one comes after all that there are.
            moment = max([services.clock(), *(_next(point.time) for point in replica.restore_points)])
            return CommitFailback(timestamped_id(moment, services.new_id()), moment)

        return self._run(replicas, wish)

    def _run(
        self,
        replicas: Sequence[FoundReplica],
        wish_for: Callable[[FoundReplica, FailbackContext, FailoverRecord], FailbackWish],
    ) -> FailoverReport:
        report = FailoverReport()
        with ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="failback") as pool:
            report.vms = list(pool.map(lambda one: self.run_one(one, wish_for), replicas))
        report.interrupted = self.failovers.context.services.stop.is_set()
        return report

    def run_one(
        self,
        replica: FoundReplica,
        wish_for: Callable[[FoundReplica, FailbackContext, FailoverRecord], FailbackWish],
    ) -> FailoverVm:
        """One VM, as far as it goes; never raises."""
        states = self.failovers.states
        work = VmWork(self.failovers.context.services, replica.source_name)
        began = time.monotonic()
        last = [replica.never_failed_over]
        crossed = Crossed()
        addresses: Readdressing | None = None
        at_home: list[str] = []
        sealed = ""

        def go() -> None:
            nonlocal addresses, sealed
            last[0] = states.read(replica.vm) or replica.never_failed_over
            back = last[0].failback
            context = self.context(replica, back.site if back is not None else None)
            folder = _folder(context, last[0])
            with folder.lock(RUN_ENDS_WITHIN):
                last[0] = states.read(replica.vm) or last[0]

                def mirror(record: FailoverRecord) -> None:
                    nonlocal sealed
                    last[0] = record
                    sealed = record.failback.point_id if record.failback is not None else sealed
                    save_failover(folder, record)

                homecoming = Homecoming(context, folder, FailbackFolder(folder), work)
                driver = FailbackDriver(
                    context=context,
                    states=states,
                    mirror=mirror,
                    work=work,
                    homecoming=homecoming,
                    replica_ref=replica.vm.ref,
                    point=next((one for one in replica.restore_points if one.id == last[0].restore_point), None),
                    shutdown_seconds=self.shutdown_seconds,
                )
                if not last[0].adopted:
                    addresses = self._homeward(replica, context, work)

                    def prepare_guest(vm_ref: str, given: Readdressing = addresses) -> None:
                        at_home.append(vm_ref)
                        given.give(vm_ref)

                    driver.prepare_guest = prepare_guest
                try:
                    wish = wish_for(replica, context, last[0])
                    last[0] = driver.go(last[0], wish)
                    if isinstance(wish, CommitFailback):
                        sealed = sealed or last[0].came_home_as or ""
                finally:
                    crossed.bytes_moved, crossed.downtime = homecoming.bytes_moved, driver.downtime

        outcome = work.outcome(go)
        if outcome.result is Result.SUCCESS and addresses is not None and at_home:
            given, vm_ref = addresses, at_home[-1]
            outcome = work.outcome(lambda: given.confirm(vm_ref))
        record = last[0]
        self.failovers.show_state(replica, record, work)
        return FailoverVm(
            name=replica.source_name,
            replica=replica.vm.name,
            result=outcome.result,
            state=str(record.state),
            restore_point=record.restore_point or sealed or None,
            seconds=time.monotonic() - began,
            error=outcome.error,
            notes=work.notes,
            crossed=crossed,
            addresses=addresses.report if addresses is not None else None,
        )

    def _homeward(self, replica: FoundReplica, context: FailbackContext, work: VmWork) -> Readdressing:
        """What gives the guest back what it had at home: its disks come with what it got at the target."""
        settings = self.failovers.settings_of(replica, work)
        policy = replace(settings.policy.addresses, on_failure=OnAddressFailure.START)
        name, guest, services = replica.source_name, settings.guest, context.services
        return Readdressing(
            context.home,
            lambda vm: None if guest is None else original_addresses(policy, name, guest, vm.hardware),
            policy,
            work,
            lambda what, action: services.patiently(name, what, action),
        )


def _folder(context: FailbackContext, record: FailoverRecord) -> ReplicaFolder:
    """Raises NotReadyError where the repository does not know the replica: digests and logs have their place there."""
    repository = context.services.repository
    folder = repository.replica(record.source_site, record.source_instance_uuid)
    if folder is None or repository.id != record.repository_id:
        raise NotReadyError(
            f"the repository {repository.path} does not know the replica of {record.source_name}",
            hint="vrepl repository rebuild makes it anew from the replicas",
        )
    return folder


def _elsewhere(
    context: FailbackContext, replica: FoundReplica, record: FailoverRecord, new: NewPlace, failback_id: str
) -> ElsewherePlace:
    """A VM that takes the place of one that is gone gets its instanceUuid: then it is the one that the job replicates.

    Raises NotReadyError where the original exists and no other name is given, and what else keeps the VM from being
    made there.
    """
    home = context.home
    gone = home.find_vm_by_instance_uuid(record.source_instance_uuid) is None
    name = new.name or record.source_name
    if record.failback is None:
        if not gone and new.name is None:
            raise NotReadyError(
                f"the original of {record.source_name} exists at site {home.name}",
                hint="without --new it is what comes home; to leave it as it is, give the new VM a --name",
            )
        try:
            home.check_place(name, replica.vm.hardware, new.placement)
        except UsageError as error:
            error.hint = "say --datastore DATACENTER/NAME, or --host NAME"
            raise
    instance_uuid = record.source_instance_uuid
    if not gone or home.name != record.source_site:
        instance_uuid = str(uuid.uuid5(uuid.NAMESPACE_OID, f"vrepl/{record.repository_id}/{failback_id}"))
    return ElsewherePlace(name, instance_uuid, new.placement)


def _next(moment: dt.datetime) -> dt.datetime:
    return moment + dt.timedelta(seconds=1)
