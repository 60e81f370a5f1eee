"""One failover command over many replicas, side by side: each goes as far as it can, and all are told of."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import zip_longest

from vrepl.engine.context import FailoverContext
from vrepl.engine.failover.driver import FailoverDriver
from vrepl.engine.failover.head_start import HeadStart
from vrepl.engine.failover.readdressing import Readdressing, planner_for
from vrepl.engine.failover.replicas import FoundReplica, find_replicas, point_as_of
from vrepl.engine.failover.settings import ReplicaSettings
from vrepl.engine.failover.standing import names_of, standing_clones
from vrepl.engine.failover.states import ReplicaStates
from vrepl.engine.failover.summary import show_state
from vrepl.engine.marks import failover_mark_of
from vrepl.engine.vm_work import Outcome, VmWork
from vrepl.errors import LockedError, VreplError
from vrepl.model import ReplicaState, SnapshotState, VirtualMachine
from vrepl.model.addresses import FailoverPolicy
from vrepl.model.failover import FAILOVER_BASE, KEPT_STATE, Commit, FailoverRecord, Start, Undo, Wish
from vrepl.model.failover_settings import FailoverSettings
from vrepl.model.plans import POWER_ONS_PER_HOST, FailoverPlan
from vrepl.planner.conflicts import is_overdue
from vrepl.report.failover import FailoverReport, FailoverVm
from vrepl.report.model import Result
from vrepl.repository.failover import save_failover
from vrepl.repository.replica_folder import ReplicaFolder
from vrepl.repository.store import Repository

SIDE_BY_SIDE = 16
"""Replicas that are worked at at a time; what is slow, power-on, has a limit of its own per host."""
MOST_SIDE_BY_SIDE = 64
RUN_ENDS_WITHIN = 120.0
"""Seconds: a run on this machine that holds the replica sees the new state at its next step, and ends."""

SourceRuns = Callable[[FailoverRecord], bool | None]
PolicyOf = Callable[[FoundReplica], FailoverPolicy | None]
"""What the configuration says of failovers of a replica; None: nothing, and what lies beside it counts."""


def host_by_host(replicas: Sequence[FoundReplica]) -> list[FoundReplica]:
    """One of each host in turn: where those of one host came first, they would wait for it, and the others' behind."""
    hosts: dict[str, list[FoundReplica]] = {}
    for one in replicas:
        hosts.setdefault(one.vm.host, []).append(one)
    return [one for turn in zip_longest(*hosts.values()) for one in turn if one is not None]


@dataclass(slots=True)
class Attempt:
    """One replica of a command, and how far it came."""

    replica: FoundReplica
    work: VmWork
    record: FailoverRecord
    show: Callable[[FailoverRecord], None]
    """To people at the target."""
    outcome: Outcome = field(default_factory=lambda: Outcome(Result.SUCCESS))
    addresses: Readdressing | None = None
    began: float = field(default_factory=time.monotonic)

    def confirmed(self) -> FailoverVm:
        """Its row, once its guest has the addresses that it was given; never raises."""
        given, ref = self.addresses, self.replica.vm.ref
        if given is not None and self.outcome.result is Result.SUCCESS:
            self.outcome = self.work.outcome(lambda: given.confirm(ref))
        self.show(self.record)
        return FailoverVm(
            name=self.replica.source_name,
            replica=self.replica.vm.name,
            result=self.outcome.result,
            state=str(self.record.state),
            restore_point=self.record.restore_point,
            seconds=time.monotonic() - self.began,
            error=self.outcome.error,
            notes=self.work.notes,
            addresses=given.report if given is not None else None,
        )


@dataclass(slots=True)
class Failovers:
    """Everything that the replicas of one command share."""

    context: FailoverContext
    repository: Repository | None
    """None where it is lost: then only what lies at the target counts."""
    source_runs: SourceRuns = lambda _record: None
    policy_of: PolicyOf = lambda _replica: None
    shutdown_seconds: float = 300.0
    power_ons_per_host: int = POWER_ONS_PER_HOST
    plans: tuple[FailoverPlan, ...] = ()
    """Of the configuration, if there is one; else what lies beside the replicas counts."""
    states: ReplicaStates = field(init=False)
    settings: ReplicaSettings = field(init=False)
    _hosts: dict[str, threading.Semaphore] = field(init=False, default_factory=dict)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        services = self.context.services
        self.states = ReplicaStates(self.context.target, f"{services.new_id()}{services.new_id()}")
        self.settings = ReplicaSettings(self.context.target)

    def find(self) -> list[FoundReplica]:
        """Every replica at the target."""
        return find_replicas(self.context.target.list_vms(), self)

    def saved_state(self, vm: VirtualMachine) -> FailoverRecord | None:
        return self.states.read(vm)

    def read_snapshot(self, snapshot_ref: str) -> SnapshotState:
        return self.context.target.read_snapshot(snapshot_ref)

    def run(self, replicas: Sequence[FoundReplica], wish_for: Callable[[FoundReplica], Wish]) -> FailoverReport:
        """Never raises for one VM's sake. All are powered on before any is waited for."""
        report = FailoverReport()
        order = host_by_host(replicas)
        hosts = len({one.vm.host for one in replicas})
        ahead = HeadStart(one.vm.ref for one in order[: self.power_ons_per_host * hosts])

        def go(one: FoundReplica) -> Attempt:
            ahead.wait(one.vm.ref)
            try:
                return self.attempt(one, wish_for(one), lambda: ahead.gone(one.vm.ref))
            finally:
                ahead.gone(one.vm.ref)

        with ThreadPoolExecutor(self.side_by_side(replicas), thread_name_prefix="failover") as pool:
            begun = {one.vm.ref: pool.submit(go, one) for one in order}
            attempts = [begun[one.vm.ref].result() for one in replicas]
        with ThreadPoolExecutor(MOST_SIDE_BY_SIDE, thread_name_prefix="addresses") as pool:
            report.vms = list(pool.map(Attempt.confirmed, attempts))
        report.interrupted = self.context.services.stop.is_set()
        return report

    def keep_deadlines(self, found: Sequence[FoundReplica], but: Sequence[FoundReplica]) -> list[FailoverVm]:
        """Takes back what was to be undone by now, by the target's clock; what ran is kept as a snapshot.

        `but`: those that the operator speaks of in this command: what is said of them counts. Never raises for one VM.
        """
        now = self.context.target.current_time()
        overdue: list[FoundReplica] = []
        for one in found:
            if one in but or not any(failover_mark_of(snapshot, FAILOVER_BASE) for snapshot in one.vm.snapshots):
                continue
            try:
                record = self.states.read(one.vm)
            except VreplError:
                continue
            if record is not None and is_overdue(record, now):
                overdue.append(one)
        rows = self.run(overdue, lambda _: Undo(keep_state=True)).vms
        for row in rows:
            row.notes = [*row.notes, f"its deadline had passed: it is undone, and what ran is kept as {KEPT_STATE}"]
        return rows

    def side_by_side(self, replicas: Sequence[FoundReplica]) -> int:
        """How many are worked at at a time: while some are powered on the next ones get ready."""
        hosts = len({one.vm.host for one in replicas})
        return min(max(SIDE_BY_SIDE, 2 * self.power_ons_per_host * hosts), MOST_SIDE_BY_SIDE)

    def limit_power_ons(self, per_host: int) -> None:
        """Before any was made."""
        self.power_ons_per_host = per_host
        self._hosts.clear()

    def run_one(self, replica: FoundReplica, wish: Wish) -> FailoverVm:
        """One replica, as far as it goes; never raises."""
        return self.attempt(replica, wish).confirmed()

    def attempt(self, replica: FoundReplica, wish: Wish, on_its_way: Callable[[], None] = lambda: None) -> Attempt:
        """Up to the power-on; never raises. `on_its_way`: as the driver's."""
        services = self.context.services
        work = VmWork(services, replica.source_name)
        attempt = Attempt(
            replica, work, replica.never_failed_over, lambda record: self.show_state(replica, record, work)
        )
        last = [replica.never_failed_over]

        def go() -> None:
            attempt.record = last[0] = self.states.read(replica.vm) or replica.never_failed_over
            folder = self._folder(last[0])
            driver = self._driver(replica, work, folder, last)
            driver.on_its_way = on_its_way
            wanted = wish
            if isinstance(wish, Start):
                settings = self.settings_of(replica, work, anew=wish.planned)
                wanted = self.asked_for(replica, wish, last[0], settings)
                attempt.addresses = self.readdressing(replica, work, settings)
                driver.prepare_guest = attempt.addresses.give
                driver.boot_seconds = settings.policy.addresses.wait
            if isinstance(wish, Commit):  # nothing else minds a test
                driver.tests = lambda: names_of(standing_clones(self.context.target, replica.vm))
            with self._held(driver, folder, replica, last, wanted):
                before = last[0].epoch
                last[0], _ = driver.go(replica.vm.ref, last[0], wanted)
            if attempt.addresses is not None and not last[0].adopted:
                under_way = driver.powered_on or last[0].epoch != before
                attempt.addresses.resume(replica.vm.ref, under_way=under_way)

        attempt.outcome = work.outcome(go)
        attempt.record = last[0]
        return attempt

    def show_state(self, replica: FoundReplica, record: FailoverRecord, work: VmWork) -> None:
        """To people at the target, who may have no vrepl."""
        show_state(self.context.target, replica.vm.ref, record, work)

    def asked_for(
        self, replica: FoundReplica, wish: Start, record: FailoverRecord, settings: FailoverSettings
    ) -> Start:
        """With what the operator left open: networks as the job has them, a restore point by its time.

        Raises NotReadyError where no restore point is that old.
        """
        wanted = wish
        if record.state is ReplicaState.READY:  # one that is under way has its own, unless others are said
            wanted = replace(wish, networks=wish.networks or settings.policy.networks)
        if wish.as_of is None or record.state not in {ReplicaState.READY, ReplicaState.FAILING_OVER}:
            return wanted
        return replace(wanted, restore_point=point_as_of(replica, wish.as_of).id)

    def settings_of(self, replica: FoundReplica, work: VmWork, *, anew: bool = False) -> FailoverSettings:
        """What the job says of failovers: by the configuration where there is one, else as it lies beside the replica.

        What the guest reported lies there alone. `anew`: a run may have written it since this command looked.
        """
        found = None
        try:
            found = (self.settings.read if anew else self.settings.seen)(replica.vm)
        except VreplError as error:
            work.note(f"what a failover should know cannot be read beside the replica: {error.message}")
        settings = found or FailoverSettings(replica.vm.instance_uuid, replica.source_name)
        policy = self.policy_of(replica)
        return settings if policy is None else replace(settings, policy=policy)

    def readdressing(
        self, replica: FoundReplica, work: VmWork, settings: FailoverSettings | None = None
    ) -> Readdressing:
        """What gives the guest its addresses at the target; a clone's guest as well."""
        settings = settings or self.settings_of(replica, work)
        services, policy = self.context.services, settings.policy
        return Readdressing(
            self.context.target,
            planner_for(policy, replica.source_name, settings.guest),
            policy.addresses,
            work,
            lambda what, action: services.patiently(replica.source_name, what, action),
        )

    def _driver(
        self, replica: FoundReplica, work: VmWork, folder: ReplicaFolder | None, last: list[FailoverRecord]
    ) -> FailoverDriver:
        services = self.context.services

        def mirror(record: FailoverRecord) -> None:
            last[0] = record
            if folder is None:
                return
            try:
                save_failover(folder, record)
            except VreplError as error:
                work.note(f"the repository could not be told: {error.message}")

        return FailoverDriver(
            target=self.context.target,
            states=self.states,
            mirror=mirror,
            work=work,
            patiently=lambda what, action: services.patiently(replica.source_name, what, action),
            source_runs=lambda: self.source_runs(last[0]),
            shutdown_seconds=self.shutdown_seconds,
            power_ons=self._power_ons(replica.vm.host),
        )

    @contextmanager
    def _held(
        self,
        driver: FailoverDriver,
        folder: ReplicaFolder | None,
        replica: FoundReplica,
        last: list[FailoverRecord],
        wish: Wish,
    ) -> Iterator[None]:
        """The replica's lock on this machine. Who holds it is told by the new state, and given time to end."""
        with ExitStack() as held:
            if folder is not None:
                try:
                    held.enter_context(folder.lock())
                except LockedError:
                    last[0] = driver.claim(replica.vm.ref, last[0], wish)
                    held.enter_context(folder.lock(RUN_ENDS_WITHIN))
            yield

    def _folder(self, record: FailoverRecord) -> ReplicaFolder | None:
        if self.repository is None or self.repository.id != record.repository_id:
            return None
        return self.repository.replica(record.source_site, record.source_instance_uuid)

    def _power_ons(self, host: str) -> threading.Semaphore:
        with self._lock:
            return self._hosts.setdefault(host, threading.Semaphore(self.power_ons_per_host))
