"""Carries out what the planner answers: save, do, look again. Every act may be done again after a crash."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from vrepl.engine.failover.introduction import connected_adapters, introduce, shut_down_or_off
from vrepl.engine.failover.look import free_name, look
from vrepl.engine.failover.states import ReplicaStates
from vrepl.engine.marks import FailoverMark
from vrepl.engine.vm_work import VmWork
from vrepl.errors import NotReadyError
from vrepl.model import ReplicaState
from vrepl.model.failover import FAILOVER_BASE, KEPT_STATE, FailoverRecord, Start, Wish
from vrepl.planner.conflicts import FailoverConflict
from vrepl.planner.failover import (
    Act,
    Done,
    IntroduceGuest,
    KeepState,
    MergeSnapshots,
    PowerOff,
    PowerOn,
    PrepareGuest,
    Ready,
    RemoveSnapshot,
    RevertTo,
    SeenReplica,
    ShutDownGuest,
    StandOn,
    advance,
    needs_introduction,
    was_introduced,
)
from vrepl.ports.failover import FailoverTarget

Patiently = Callable[[str, Callable[[], None]], None]
"""Does something (named in words), again where an error may pass."""


@dataclass(slots=True)
class FailoverDriver:
    """Brings one replica where a wish wants it."""

    target: FailoverTarget
    states: ReplicaStates
    mirror: Callable[[FailoverRecord], None]
    """Keeps a copy in the repository; one that cannot be had is no reason to stop."""
    work: VmWork
    patiently: Patiently
    tests: Callable[[], tuple[str, ...]] = tuple
    """Names of test clones that stand on the replica's snapshots."""
    source_runs: Callable[[], bool | None] = lambda: None
    shutdown_seconds: float = 300.0
    """What a guest gets to shut down before it is powered off."""
    boot_seconds: float = 600.0
    """What its VMware Tools get to come up, where vCenter must know of them before its failover."""
    prepare_guest: Callable[[str, bool], bool] = lambda _ref, _may_introduce: False
    """Beyond networks: what has the guest's addresses set at its next power-on.

    True: only once vCenter knows of its VMware Tools. The second argument: whether that can still be done.
    """
    on_its_way: Callable[[], None] = lambda: None
    """Told before whatever the target is given to do: from the first time on it is the target that takes its time."""
    power_ons: AbstractContextManager[object] = field(default_factory=nullcontext)
    """Held while a VM is powered on, so that a host is not given too many at a time."""
    powered_on: bool = field(default=False, init=False)
    """By this command."""

    def go(self, replica_ref: str, record: FailoverRecord, wish: Wish) -> tuple[FailoverRecord, SeenReplica]:
        """Until nothing is left to do. Raises NotReadyError for a conflict, and what the target raises.

        It looks again after whatever it saved or did: until others see a state they may be at work at the replica.
        """
        while True:
            seen = self._look(replica_ref, record, wish)
            answer = self._answer(record, seen, wish)
            if isinstance(answer, Done):
                return record, seen
            if answer.save is not None:
                record = self._save(seen, answer.save)
            for act in answer.do:
                self.on_its_way()
                self.work.enter(WORDS[type(act)])
                after = self._do(act, replica_ref, record)
                if after is not None:
                    record = self._save(seen, after)
                    break
            if not answer.do and isinstance(advance(record, seen, wish), Done):
                return record, seen  # that was only to be written down

    def claim(self, replica_ref: str, record: FailoverRecord, wish: Wish) -> FailoverRecord:
        """Only the first step, if it is one that saves and does nothing: whoever works at the replica then ends."""
        seen = self._look(replica_ref, record, wish)
        answer = self._answer(record, seen, wish)
        if isinstance(answer, Done) or answer.save is None or answer.do:
            return record
        return self._save(seen, answer.save)

    def _look(self, replica_ref: str, record: FailoverRecord, wish: Wish) -> SeenReplica:
        """With what the planner goes by in this state: each costs a call, and many VMs wait for theirs."""
        asks = False
        if isinstance(wish, Start) and record.state is ReplicaState.READY:
            asks = not (wish.source_is_down or wish.planned)
        return look(
            self.target,
            replica_ref,
            tests=self.tests(),
            source_runs=self.source_runs() if asks else None,
            change_ids=record.base_change_ids is None,
        )

    def _answer(self, record: FailoverRecord, seen: SeenReplica, wish: Wish) -> Ready | Done:
        answer = advance(record, seen, wish)
        if isinstance(answer, FailoverConflict):
            raise NotReadyError(answer.message, hint=answer.hint or None)
        return answer

    def _save(self, seen: SeenReplica, record: FailoverRecord) -> FailoverRecord:
        self.work.enter(f"state {record.state}")
        self.states.save(seen.vm, record)
        self.mirror(record)
        return record

    def _do(self, act: Act, replica_ref: str, record: FailoverRecord) -> FailoverRecord | None:
        """A record: it is saved now, and what comes next is decided anew."""
        target = self.target
        match act:
            case StandOn():
                self.patiently("revert the replica", lambda: target.revert_to_snapshot(replica_ref, act.snapshot_ref))
                self._snapshot(
                    replica_ref,
                    FAILOVER_BASE,
                    record,
                    f"What the VM did after a failover stands upon this ({act.restore_point}).",
                    stands_on=act.snapshot_ref,
                )
            case PrepareGuest():
                for change in target.connect_networks(replica_ref, act.networks):
                    self.work.note(change)
                first = record.state is ReplicaState.FAILING_OVER  # one that was powered off since has its addresses
                if first and self.prepare_guest(replica_ref, not record.introduced):
                    return needs_introduction(record, connected_adapters(target.read_vm(replica_ref)))
            case IntroduceGuest():
                introduce(
                    target,
                    replica_ref,
                    act.adapters,
                    self.work,
                    self.power_ons,
                    lambda: self._shut_down(replica_ref),
                    within=self.boot_seconds,
                )
                return was_introduced(record)
            case PowerOn():
                with self.power_ons:
                    target.power_on(replica_ref)
                self.powered_on = True
            case PowerOff():
                target.power_off(replica_ref)
            case ShutDownGuest():
                self._shut_down(replica_ref)
            case KeepState():
                self._snapshot(
                    replica_ref, free_name(target.read_vm(replica_ref), KEPT_STATE), record,
                    "What ran at the target until its failover was undone.",
                )  # fmt: skip
            case RevertTo():
                self.patiently("revert the replica", lambda: target.revert_to_snapshot(replica_ref, act.snapshot_ref))
            case RemoveSnapshot():
                self._remove(replica_ref, act.snapshot_ref)
            case MergeSnapshots():
                self._merge(replica_ref)
        return None

    def _snapshot(self, replica_ref: str, name: str, record: FailoverRecord, what: str, stands_on: str = "") -> None:
        description = FailoverMark(record.repository_id, record.epoch, stands_on).description(what)
        self.patiently(
            f"take the snapshot {name}",
            lambda: _nothing(self.target.create_snapshot(replica_ref, name, description, quiesce=False)),
        )

    def _shut_down(self, replica_ref: str) -> None:
        shut_down_or_off(self.target, replica_ref, self.work, self.shutdown_seconds)

    def _remove(self, replica_ref: str, snapshot_ref: str) -> None:
        if self.target.remove_snapshot(replica_ref, snapshot_ref):
            self.target.consolidate(replica_ref)

    def _merge(self, replica_ref: str) -> None:
        """One at a time and oldest first, so that a failure in the middle leaves a VM that is whole."""
        while snapshots := self.target.read_vm(replica_ref).snapshots:
            self.work.services.check_stop()
            self._remove(replica_ref, snapshots[0].ref)


WORDS: dict[type[object], str] = {
    StandOn: "revert to the restore point",
    PrepareGuest: "connect networks",
    IntroduceGuest: "let vCenter know of VMware Tools",
    PowerOn: "power on",
    PowerOff: "power off",
    ShutDownGuest: "shut down the guest",
    KeepState: "keep what ran",
    RevertTo: "revert to the newest restore point",
    RemoveSnapshot: "remove the base of the failover",
    MergeSnapshots: "merge restore points",
}
"""Steps as reports and messages call them."""


def _nothing(value: object) -> None:
    del value
