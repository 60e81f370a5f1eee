"""Tests of failovers: a linked clone of a restore point on a network that leads nowhere, checked and thrown away.

The replica stays what it is: runs go on, and a real failover is never kept waiting. What a test made bears its mark,
and is thrown away on every way out; what a killed one left, by the next command that tests.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

from vrepl.engine.context import Surroundings
from vrepl.engine.failover.gates import GateKeeper, GateResult
from vrepl.engine.failover.isolation import IsolatedNetwork
from vrepl.engine.failover.replicas import FoundReplica, find_replicas
from vrepl.engine.failover.standing import (
    KEY_TEST_ID,
    KEY_TEST_NETWORK,
    KEY_TEST_OF,
    KEY_TEST_SNAPSHOT,
    LinkedClone,
    clones_of,
    names_of,
    read_tests,
    removal_under,
    write_tests,
)
from vrepl.engine.failover.states import ReplicaStates
from vrepl.engine.knowledge import restore_point_snapshots
from vrepl.engine.undo import Undo
from vrepl.engine.vm_work import VmWork
from vrepl.errors import NotFoundError, NotReadyError, VreplError, VsphereError
from vrepl.model import PowerState, ReplicaState, SnapshotState, VirtualMachine
from vrepl.model.failover import FailoverRecord
from vrepl.model.failover_tests import FailoverTest, ReplicaTests, StandingTest, TestWish
from vrepl.model.plans import gate_text
from vrepl.ports.failover import Sandbox, ServiceProbe
from vrepl.report.failover import FailoverReport, FailoverVm, TestReport
from vrepl.repository.documents import DamagedError
from vrepl.repository.failover import save_tests
from vrepl.repository.store import Repository

SIDE_BY_SIDE = 8
LONGEST_NAME = 80
"""Characters of a VM's name (vSphere)."""
TO_MAKE_IT = dt.timedelta(minutes=15)
"""What everything but the checks of a test may take."""
REMOVAL_LOOKS = 60
"""How often, once in `look_every`, a run is waited for that is about to remove the restore point."""


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
    power_ons: AbstractContextManager[object] = field(default_factory=nullcontext)
    id: str = field(init=False)

    def __post_init__(self) -> None:
        self.id = self.services.new_id()

    def find(self) -> list[FoundReplica]:
        """Every replica at the site; what dead tests left of clones is thrown away."""
        vms = self.site.list_vms()
        found = find_replicas(vms, self)
        for replica in found:
            if clones_of(vms, replica.vm):
                self._clear_leftovers(replica.vm, VmWork(self.services, replica.source_name))
        return found

    def saved_state(self, vm: VirtualMachine) -> FailoverRecord | None:
        return ReplicaStates(self.site, self.owner).read(vm)

    def read_snapshot(self, snapshot_ref: str) -> SnapshotState:
        return self.site.read_snapshot(snapshot_ref)

    def run(self, replicas: Sequence[FoundReplica], wish: TestWish) -> FailoverReport:
        """Side by side on one network, so that they find each other there. Never raises for one VM's sake."""
        network = IsolatedNetwork(self.site, f"vrepl-test-{self.id}")
        try:
            return self._each(replicas, lambda one: self._run_one(one, wish, network))
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
        test = OneTest(self, replica, wish, network, work)
        began = time.monotonic()
        outcome = work.outcome(test.go)
        return FailoverVm(
            name=replica.source_name,
            replica=replica.vm.name,
            result=outcome.result,
            state=self._state(replica),
            restore_point=test.point,
            seconds=time.monotonic() - began,
            error=outcome.error,
            notes=work.notes,
            test=test.report(),
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

    def _clear_leftovers(self, vm: VirtualMachine, work: VmWork) -> StandingTest | None:
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


@dataclass(slots=True)
class OneTest:
    """One replica's test, as prose."""

    shared: FailoverTests
    replica: FoundReplica
    wish: TestWish
    network: IsolatedNetwork
    work: VmWork
    point: str | None = None
    clone: VirtualMachine | None = None
    kept: bool = False
    results: Sequence[GateResult] = ()
    _ended: FailoverTest | None = None

    @property
    def site(self) -> Sandbox:
        return self.shared.site

    def go(self) -> None:
        """Raises NotReadyError where another test stands or there is nothing to test, VreplError where it failed."""
        if not self.site.is_vcenter:
            raise VsphereError(
                f"site {self.site.name} is a standalone ESXi host, which cannot clone VMs",
                fault="NotSupported",
                hint="register the host with a vCenter Server, or test by a real failover and its undo",
            )
        self.work.enter("look for other tests")
        replica = self.site.read_vm(self.replica.vm.ref)
        self._refuse_second(self.shared._clear_leftovers(replica, self.work))
        self.point, snapshot_ref = self._restore_point(replica)
        with Undo(self.work.note) as undo:
            self.work.enter("announce the test")
            undo.push("throw the test away", self._throw_away)
            self._announce(replica, self.point, snapshot_ref)
            self._wait_for_removals(snapshot_ref)
            self.work.enter("clone")
            self.clone = self._clone(replica, snapshot_ref)
            self.work.enter("connect networks")
            self.site.connect_networks(self.clone.ref, self._networks(self.clone))
            self._check(self.point, snapshot_ref)

    def report(self) -> TestReport | None:
        """None where there was no clone."""
        if self.clone is None:
            return None
        passed = self._ended is not None and self._ended.passed
        return TestReport(
            clone=self.clone.name,
            kept=self.kept,
            passed=passed,
            seconds_to_service=self._ended.seconds if self._ended is not None else None,
            checks=[
                {"check": gate_text(one.gate), "passed": one.passed, "seconds": round(one.seconds, 3),
                 "detail": one.detail or None}
                for one in self.results
            ],
        )  # fmt: skip

    def _refuse_second(self, standing: StandingTest | None) -> None:
        if standing is None:
            return
        name = self.replica.source_name
        what = "is kept" if standing.kept else f"runs ({standing.owner.split('/')[0]})"
        raise NotReadyError(
            f"a test of {name} at restore point {standing.restore_point} {what} already",
            hint=f"wait for it, or: vrepl failover test stop {name}",
        )

    def _restore_point(self, replica: VirtualMachine) -> tuple[str, str]:
        points = restore_point_snapshots(replica)
        wanted = self.wish.restore_point or max(points, default=None)
        if wanted is None or wanted not in points:
            raise NotReadyError(
                f"{self.replica.source_name} has no restore point" + (f" {wanted}" if wanted else ": nothing to test"),
                hint=f"there are: {', '.join(sorted(points)) or 'none'}",
            )
        return wanted, points[wanted]

    def _announce(self, replica: VirtualMachine, point: str, snapshot_ref: str) -> None:
        """Two that announce at once: one's file stays, and the other one gives way."""
        made = self.wish.network is None and bool(replica.hardware.network_adapters)
        longest = dt.timedelta(seconds=max((gate.within for gate in self.wish.checks), default=0.0))
        standing = StandingTest(
            id=self.shared.id,
            restore_point=point,
            snapshot_ref=snapshot_ref,
            owner=self.shared.owner,
            until=self.site.current_time() + longest + TO_MAKE_IT,
            network=self.network.name if made else None,
            host=replica.host,
        )
        self.shared.save(self.replica, replace(self.shared.tests_of(replica), standing=standing))
        now = self.shared.tests_of(replica).standing
        if now != standing:
            self._refuse_second(now)

    def _wait_for_removals(self, snapshot_ref: str) -> None:
        """A run that looked before the announcement removes what it chose; one that looks after it does not."""
        for _ in range(REMOVAL_LOOKS):
            replica = self.site.read_vm(self.replica.vm.ref)
            if all(one.ref != snapshot_ref for one in replica.snapshots):
                raise NotReadyError(
                    f"restore point {self.point} was removed by a run meanwhile",
                    hint="test again: a newer one is there",
                )
            if removal_under(self.site, replica, snapshot_ref) is None:
                return
            self.work.enter("wait for a run that removes restore points")
            self.shared.services.wait(self.shared.look_every)
        raise NotReadyError(f"a run is removing a restore point under {self.point}", hint="test again in a few minutes")

    def _clone(self, replica: VirtualMachine, snapshot_ref: str) -> VirtualMachine:
        marks = dict.fromkeys(self.site.read_snapshot(snapshot_ref).extra_config, "")
        marks |= {
            KEY_TEST_OF: replica.instance_uuid,
            KEY_TEST_ID: self.shared.id,
            KEY_TEST_SNAPSHOT: snapshot_ref,
        }
        if self.wish.network is None and replica.hardware.network_adapters:
            marks[KEY_TEST_NETWORK] = self.network.on(replica.host)
        name = f"{replica.name[: LONGEST_NAME - 5]}-test"
        try:
            clone = self.site.clone_linked(replica.ref, snapshot_ref, name, marks)
        except VsphereError as error:
            others = [one for one in clones_of(self.site.list_vms(), replica) if one.test_id != self.shared.id]
            if not others:
                raise
            raise self._overtaken(others) from error
        if clone.extra_config.get(KEY_TEST_ID) != self.shared.id:
            raise self._overtaken(clones_of([clone], replica))
        return clone

    def _overtaken(self, others: Sequence[LinkedClone]) -> NotReadyError:
        name = self.replica.source_name
        return NotReadyError(
            f"another test of {name} stands already: {', '.join(names_of(others))}",
            hint=f"wait for it, or: vrepl failover test stop {name}",
        )

    def _networks(self, clone: VirtualMachine) -> Mapping[str, str]:
        to = self.wish.network or self.network.name
        names = {adapter.network for adapter in clone.hardware.network_adapters}
        return {name: self.wish.networks.get(name, to) for name in names}

    def _check(self, point: str, snapshot_ref: str) -> None:
        assert self.clone is not None
        ref = self.clone.ref
        environment = {
            "VREPL_VM": self.replica.source_name,
            "VREPL_REPLICA": self.replica.vm.name,
            "VREPL_CLONE": self.clone.name,
            "VREPL_RESTORE_POINT": point,
        }
        self.work.enter("power on")
        with self.shared.power_ons:
            since = time.monotonic()
            self.site.power_on(ref)
        self.work.enter("check")
        keeper = GateKeeper(self.site, self.shared.probe, ref, environment)
        pause = self.shared.services.wait
        try:
            self.results = keeper.wait(self.wish.checks, since, lambda: pause(self.shared.look_every))
        except NotFoundError as error:
            raise NotReadyError(
                f"the clone {self.clone.name} was thrown away meanwhile",
                hint="did somebody type `vrepl failover test stop`?",
            ) from error
        failed = [one for one in self.results if not one.passed]
        reason = "; ".join(f"{gate_text(one.gate)}: {one.detail}, after {one.seconds:.0f} s" for one in failed)
        replica = self.site.read_vm(self.replica.vm.ref)
        if all(one.ref != snapshot_ref for one in replica.snapshots):
            reason = f"restore point {point} was removed under the test: what it showed counts for nothing"
        served = None if reason else max((one.seconds for one in self.results), default=time.monotonic() - since)
        self._ended = FailoverTest(self.site.current_time(), point, not reason, served, reason)
        self.kept = self.wish.keep
        if self.kept:
            self.work.note(f"{self.clone.name} is kept; vrepl failover test stop {self.replica.source_name} ends it")
        if reason:
            raise VreplError(
                f"the test failed: {reason}",
                hint="--keep leaves the clone, to be looked at" if not self.kept else f"look at {self.clone.name}",
            )

    def _throw_away(self) -> None:
        """On every way out, unless the clone is kept; the result stays with the replica."""
        replica = self.site.read_vm(self.replica.vm.ref)
        clones = clones_of(self.site.list_vms(), replica)
        mine = [one for one in clones if one.test_id == self.shared.id]
        if not self.kept:
            for clone in mine:
                self.shared.destroy(clone)
        tests = self.shared.tests_of(replica)
        standing = tests.standing
        others = [one for one in clones if one.test_id != self.shared.id]
        if standing is not None and standing.id == self.shared.id:
            if others:  # two announced at once, and this one's file covered the other's
                standing = replace(
                    standing, id=others[0].test_id, snapshot_ref=others[0].snapshot_ref, owner="", network=None
                )
            elif self.kept:
                standing = replace(standing, kept=True)
        after = replace(tests, standing=standing, last=self._ended or tests.last)
        if after != tests:
            self.shared.save(self.replica, after)
