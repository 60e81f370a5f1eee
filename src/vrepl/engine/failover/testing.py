"""Tests of failovers: a linked clone of a restore point on a network that leads nowhere, checked and thrown away.

The replica stays what it is: runs go on, and a real failover is never kept waiting. What a test made bears its mark,
and is thrown away on every way out; what a killed one left, by the next command that tests.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace

from vrepl.engine.context import Surroundings
from vrepl.engine.failover.isolation import IsolatedNetwork
from vrepl.engine.failover.one_test import OneTest
from vrepl.engine.failover.readdressing import Readdressing
from vrepl.engine.failover.replicas import FoundReplica, find_replicas
from vrepl.engine.failover.standing import (
    LinkedClone,
    clones_of,
    read_tests,
    write_tests,
)
from vrepl.engine.failover.states import ReplicaStates
from vrepl.engine.vm_work import Outcome, VmWork
from vrepl.errors import NotFoundError, VreplError
from vrepl.model import PowerState, ReplicaState, SnapshotState, VirtualMachine
from vrepl.model.failover import FailoverRecord
from vrepl.model.failover_tests import ReplicaTests, StandingTest, TestWish
from vrepl.model.plans import POWER_ONS_PER_HOST
from vrepl.ports.failover import Sandbox, ServiceProbe
from vrepl.report.failover import FailoverReport, FailoverVm
from vrepl.repository.documents import DamagedError
from vrepl.repository.failover import save_tests
from vrepl.repository.store import Repository

SIDE_BY_SIDE = 8


@dataclass(slots=True)
class FailoverTests:
    """Everything that the tests of one command share."""

    services: Surroundings
    site: Sandbox
    repository: Repository | None
    probe: ServiceProbe
    owner: str
    """This process, as others can tell whether it lives."""
    is_dead: Callable[[str], bool]
    """Whether the process of such a name is known to have ended."""
    look_every: float = 1.0
    """Seconds between looks at a guest."""
    power_ons_per_host: int = POWER_ONS_PER_HOST
    addresses: Callable[[FoundReplica, VmWork], Readdressing | None] = lambda _replica, _work: None
    """What gives a clone's guest its addresses."""
    _hosts: dict[str, threading.Semaphore] = field(init=False, default_factory=dict)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)
    id: str = field(init=False)

    def __post_init__(self) -> None:
        self.id = self.services.new_id()

    def power_ons(self, host: str) -> AbstractContextManager[object]:
        """Held while a clone is powered on there, so that a host is not given too many at a time."""
        with self._lock:
            return self._hosts.setdefault(host, threading.Semaphore(self.power_ons_per_host))

    def find(self) -> list[FoundReplica]:
        """Every replica at the site; what dead tests left of clones is thrown away."""
        vms = self.site.list_vms()
        found = find_replicas(vms, self)
        for replica in found:
            if clones_of(vms, replica.vm):
                self.clear_leftovers(replica.vm, VmWork(self.services, replica.source_name))
        return found

    def saved_state(self, vm: VirtualMachine) -> FailoverRecord | None:
        return ReplicaStates(self.site, self.owner).read(vm)

    def read_snapshot(self, snapshot_ref: str) -> SnapshotState:
        return self.site.read_snapshot(snapshot_ref)

    def run(self, replicas: Sequence[FoundReplica], wish: TestWish) -> FailoverReport:
        """Side by side on one network, so that they find each other there. Never raises for one VM's sake."""
        with self.network_for(replicas) as network:
            return self._each(replicas, lambda one: self._run_one(one, wish, network))

    @contextmanager
    def network_for(self, replicas: Sequence[FoundReplica]) -> Iterator[IsolatedNetwork]:
        """One for them all, made where it is first needed, and gone afterwards."""
        network = IsolatedNetwork(self.site, f"vrepl-test-{self.id}")
        try:
            yield network
        finally:
            network.remove_unused(lambda text: self.services.events.note(network.name, text))
            for replica in replicas:
                self._retract(replica)

    def stop(self, replicas: Sequence[FoundReplica]) -> FailoverReport:
        """Throw away what stands, whoever made it."""
        return self._each(replicas, self._stop_one)

    def _each(self, replicas: Sequence[FoundReplica], act: Callable[[FoundReplica], FailoverVm]) -> FailoverReport:
        with ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="failover-test") as pool:
            report = FailoverReport(list(pool.map(act, replicas)))
        report.interrupted = self.services.stop.is_set()
        return report

    # -- one test -----------------------------------------------------------------------------------------------------

    def _run_one(self, replica: FoundReplica, wish: TestWish, network: IsolatedNetwork) -> FailoverVm:
        work = VmWork(self.services, replica.source_name)
        test = OneTest(self, replica, wish, network, work, addresses=self.addresses(replica, work))
        began = time.monotonic()
        outcome = work.outcome(test.go)
        return self.row(test, outcome, time.monotonic() - began)

    def row(self, test: OneTest, outcome: Outcome, seconds: float) -> FailoverVm:
        """What is told of one test."""
        return FailoverVm(
            name=test.replica.source_name,
            replica=test.replica.vm.name,
            result=outcome.result,
            state=self._state(test.replica),
            restore_point=test.point,
            seconds=seconds,
            error=outcome.error,
            notes=test.work.notes,
            test=test.report(),
            addresses=test.addresses.report if test.addresses is not None else None,
        )

    def _retract(self, replica: FoundReplica) -> None:
        """The announcement goes last: what it names is looked for by the next command as long as it stands."""
        try:
            tests = self.tests_of(replica.vm)
            if tests.standing is not None and tests.standing.id == self.id and not tests.standing.kept:
                self.save(replica, replace(tests, standing=None))
        except VreplError as error:
            self.services.events.note(replica.source_name, f"could not take the announcement back: {error}")

    def _stop_one(self, replica: FoundReplica) -> FailoverVm:
        work = VmWork(self.services, replica.source_name)
        began = time.monotonic()

        def go() -> None:
            work.enter("throw the test away")
            standing = self.tests_of(replica.vm).standing
            gone = self.throw_away(replica.vm, standing, clones_of(self.site.list_vms(), replica.vm))
            work.note(f"thrown away: {', '.join(gone)}" if gone else "no test stood")

        outcome = work.outcome(go)
        return FailoverVm(
            name=replica.source_name, replica=replica.vm.name, result=outcome.result, state=self._state(replica),
            seconds=time.monotonic() - began, error=outcome.error, notes=work.notes,
        )  # fmt: skip

    def _state(self, replica: FoundReplica) -> str:
        try:
            record = self.saved_state(replica.vm)
        except VreplError:
            record = None
        return str(record.state if record is not None else ReplicaState.READY)

    # -- what stands --------------------------------------------------------------------------------------------------

    def tests_of(self, replica: VirtualMachine) -> ReplicaTests:
        """A file that was not written whole tells nothing: the clones do."""
        try:
            return read_tests(self.site, replica)
        except DamagedError:
            return ReplicaTests(replica.instance_uuid)

    def save(self, replica: FoundReplica | VirtualMachine, tests: ReplicaTests) -> None:
        """At the replica, and in the repository if that can be had."""
        vm = replica.vm if isinstance(replica, FoundReplica) else replica
        write_tests(self.site, vm, tests)
        if self.repository is None or not isinstance(replica, FoundReplica):
            return
        source = replica.never_failed_over
        try:
            folder = self.repository.replica(source.source_site, source.source_instance_uuid)
            if folder is not None:
                save_tests(folder, tests)
        except VreplError as error:
            self.services.events.note(replica.source_name, f"the repository could not be told: {error.message}")

    def clear_leftovers(self, vm: VirtualMachine, work: VmWork) -> StandingTest | None:
        """The test that stands, unless its process died with it: then it is thrown away."""
        clones = clones_of(self.site.list_vms(), vm)
        standing = self.tests_of(vm).standing  # only now: it was written before there was a clone
        if standing is None and not clones:
            return None
        if standing is not None and standing.kept:
            clones = clones_of(self.site.list_vms(), vm)
            if clones:
                return standing
        elif standing is not None and not self._ended(standing):
            return standing
        gone = self.throw_away(vm, standing, clones)
        if gone:
            work.note(f"thrown away what a test that died had left: {', '.join(gone)}")
        return None

    def _ended(self, standing: StandingTest) -> bool:
        return self.is_dead(standing.owner) or self.site.current_time() >= standing.until

    def throw_away(self, vm: VirtualMachine, standing: StandingTest | None, clones: Sequence[LinkedClone]) -> list[str]:
        """These clones, then the networks that were made for them; returns the names of what went."""
        gone: list[str] = []
        networks: set[tuple[str, str]] = set()
        if standing is not None and standing.network is not None:
            networks.add((standing.host, standing.network))
        for clone in clones:
            self.destroy(clone)
            gone.append(clone.vm.name)
            if clone.network is not None:
                networks.add((clone.vm.host, clone.network))
        for host, name in sorted(networks):
            IsolatedNetwork(self.site, name, {host}).remove_unused(lambda _text: None)
        tests = self.tests_of(vm)
        if standing is not None and tests.standing == standing:
            write_tests(self.site, vm, replace(tests, standing=None))
        return gone

    def destroy(self, clone: LinkedClone) -> None:
        """One that is gone is fine."""
        try:
            if self.site.read_vm(clone.vm.ref).power is not PowerState.OFF:
                self.site.power_off(clone.vm.ref)
            self.site.destroy_vm(clone.vm.ref)
        except NotFoundError:
            return
