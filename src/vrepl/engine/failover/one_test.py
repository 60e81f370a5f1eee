"""One test of one replica: a linked clone is made, started, checked, and thrown away on every way out."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vrepl.engine.failover.gates import GateKeeper, GateResult
from vrepl.engine.failover.introduction import connected_adapters, introduce, shut_down_or_off
from vrepl.engine.failover.isolation import IsolatedNetwork
from vrepl.engine.failover.readdressing import Readdressing
from vrepl.engine.failover.replicas import FoundReplica
from vrepl.engine.failover.standing import (
    KEY_TEST_ID,
    KEY_TEST_NETWORK,
    KEY_TEST_OF,
    KEY_TEST_SNAPSHOT,
    LinkedClone,
    clones_of,
    names_of,
    removal_under,
)
from vrepl.engine.knowledge import restore_point_snapshots
from vrepl.engine.undo import Undo
from vrepl.engine.vm_work import VmWork
from vrepl.errors import NotFoundError, NotReadyError, VreplError, VsphereError
from vrepl.model import VirtualMachine
from vrepl.model.failover_tests import FailoverTest, StandingTest, TestWish
from vrepl.model.plans import gate_text
from vrepl.ports.failover import Sandbox
from vrepl.report.failover import TestReport

if TYPE_CHECKING:
    from vrepl.engine.failover.testing import FailoverTests

LONGEST_NAME = 80
"""Characters of a VM's name (vSphere)."""
TO_MAKE_IT = dt.timedelta(minutes=15)
"""What everything but the checks of a test may take."""
SHUTS_DOWN_WITHIN = 120.0
"""Seconds that a clone's guest gets; nothing on it is of worth."""
REMOVAL_LOOKS = 60
"""How often, once in `look_every`, a run is waited for that is about to remove the restore point."""


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
    environment: Mapping[str, str] = field(default_factory=dict)
    """More of it, for scripts that check."""
    stands_for: float = 0.0
    """Seconds that the clone may stand beside what its own checks take."""
    addresses: Readdressing | None = None
    """What gives the clone's guest the addresses that it would get at a failover."""
    _ended: FailoverTest | None = None
    _since: float = 0.0
    """Of its power-on."""
    _snapshot_ref: str = ""

    @property
    def site(self) -> Sandbox:
        return self.shared.site

    def go(self) -> None:
        """Raises NotReadyError where another test stands or there is nothing to test, VreplError where it failed."""
        with self.standing():
            self.power_on()
            self.settle()
            self.judge(self._wait_for_checks())

    @contextmanager
    def standing(self) -> Iterator[None]:
        """The clone is there, powered off, and gone afterwards unless it is kept. Raises as `go`."""
        if not self.site.is_vcenter:
            raise VsphereError(
                f"site {self.site.name} is a standalone ESXi host, which cannot clone VMs",
                fault="NotSupported",
                hint="register the host with a vCenter Server, or test by a real failover and its undo",
            )
        self.work.enter("look for other tests")
        replica = self.site.read_vm(self.replica.vm.ref)
        self._refuse_second(self.shared.clear_leftovers(replica, self.work))
        self.point, snapshot_ref = self._restore_point(replica)
        self._snapshot_ref = snapshot_ref
        with Undo(self.work.note) as undo:
            self.work.enter("announce the test")
            undo.push("throw the test away", self._throw_away)
            self._announce(replica, self.point, snapshot_ref)
            self._wait_for_removals(snapshot_ref)
            self.work.enter("clone")
            self.clone = self._clone(replica, snapshot_ref)
            self.work.enter("connect networks")
            self.site.connect_networks(self.clone.ref, self._networks(self.clone))
            if self.addresses is not None and self.addresses.give(self.clone.ref, may_introduce=True):
                self._introduce(self.clone, self.addresses)
                self.addresses.give(self.clone.ref)
            yield

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
        checks = max((gate.within for gate in self.wish.checks), default=0.0)
        booting = 2 * self.addresses.policy.wait if self.addresses is not None else 0.0
        longest = dt.timedelta(seconds=checks + booting + self.stands_for)
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

    def _introduce(self, clone: VirtualMachine, addresses: Readdressing) -> None:
        self.work.enter("let vCenter know of VMware Tools")
        adapters = connected_adapters(self.site.read_vm(clone.ref))
        introduce(
            self.site, clone.ref, adapters, self.work, self.shared.power_ons(self.replica.vm.host),
            lambda: shut_down_or_off(self.site, clone.ref, self.work, SHUTS_DOWN_WITHIN),
            within=addresses.policy.wait,
        )  # fmt: skip

    def power_on(self) -> None:
        self.work.enter("power on")
        with self.shared.power_ons(self.replica.vm.host):
            self._since = time.monotonic()
            self.site.power_on(self._there.ref)

    def settle(self) -> None:
        """Its guest has the addresses that it was given. Raises VreplError where the job wants that."""
        if self.addresses is not None:
            self.addresses.confirm(self._there.ref)

    @property
    def keeper(self) -> GateKeeper:
        """Who asks the clone whether it serves."""
        environment = {
            **self.environment,
            "VREPL_VM": self.replica.source_name,
            "VREPL_REPLICA": self.replica.vm.name,
            "VREPL_CLONE": self._there.name,
            "VREPL_RESTORE_POINT": self.point or "",
        }
        return GateKeeper(self.site, self.shared.probe, self._there.ref, environment)

    def _wait_for_checks(self) -> Sequence[GateResult]:
        self.work.enter("check")
        pause = self.shared.services.wait
        try:
            return self.keeper.wait(self.wish.checks, self._since, lambda: pause(self.shared.look_every))
        except NotFoundError as error:
            raise NotReadyError(
                f"the clone {self._there.name} was thrown away meanwhile",
                hint="did somebody type `vrepl failover test stop`?",
            ) from error

    def judge(self, results: Sequence[GateResult]) -> None:
        """What the checks came to is what the test came to. Raises VreplError where it failed."""
        clone, point = self._there, self.point or ""
        self.results = results
        failed = [one for one in self.results if not one.passed]
        reason = "; ".join(f"{gate_text(one.gate)}: {one.detail}, after {one.seconds:.0f} s" for one in failed)
        replica = self.site.read_vm(self.replica.vm.ref)
        if all(one.ref != self._snapshot_ref for one in replica.snapshots):
            reason = f"restore point {point} was removed under the test: what it showed counts for nothing"
        served = None if reason else max((one.seconds for one in self.results), default=0.0)
        self._ended = FailoverTest(self.site.current_time(), point, not reason, served, reason)
        self.kept = self.wish.keep
        if self.kept:
            self.work.note(f"{clone.name} is kept; vrepl failover test stop {self.replica.source_name} ends it")
        if reason:
            raise VreplError(
                f"the test failed: {reason}",
                hint="--keep leaves the clone, to be looked at" if not self.kept else f"look at {clone.name}",
            )

    @property
    def _there(self) -> VirtualMachine:
        assert self.clone is not None, "it was made"
        return self.clone

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
