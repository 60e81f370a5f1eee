"""Carries out what the planner answers: save, do, look again. Every act may be done again after a crash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vrepl.engine.events import EngineEvents
from vrepl.engine.failover.look import free_name, look
from vrepl.engine.failover.states import ReplicaStates
from vrepl.engine.marks import FailoverMark
from vrepl.errors import NotReadyError, VreplError
from vrepl.model.failover import FAILOVER_BASE, KEPT_STATE, FailoverRecord, Wish
from vrepl.planner.failover import (
    Act,
    Done,
    FailoverConflict,
    KeepState,
    MergeSnapshots,
    PowerOff,
    PowerOn,
    PrepareGuest,
    RemoveSnapshot,
    RevertTo,
    SeenReplica,
    ShutDownGuest,
    StandOn,
    advance,
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
    events: EngineEvents
    check_stop: Callable[[], None]
    patiently: Patiently
    tests: Callable[[], tuple[str, ...]] = tuple
    """Names of test clones that stand on the replica's snapshots."""
    source_runs: Callable[[], bool | None] = lambda: None
    shutdown_seconds: float = 300.0
    """What a guest gets to shut down before it is powered off."""
    prepare_guest: Callable[[str, FailoverRecord], None] = lambda _ref, _record: None
    """Beyond networks: what has the guest's addresses set at its next power-on."""

    def go(self, replica_ref: str, record: FailoverRecord, wish: Wish) -> tuple[FailoverRecord, SeenReplica]:
        """Until nothing is left to do. Raises NotReadyError for a conflict, and what the target raises."""
        name = record.source_name
        while True:
            self.check_stop()
            seen = look(self.target, replica_ref, tests=self.tests(), source_runs=self.source_runs())
            answer = advance(record, seen, wish)
            if isinstance(answer, Done):
                return record, seen
            if isinstance(answer, FailoverConflict):
                raise NotReadyError(answer.message, hint=answer.hint or None).at(vm=name)
            if answer.save is not None:
                self.events.vm_step(name, f"state {answer.save.state}")
                self.states.save(seen.vm, answer.save)
                self.mirror(answer.save)
                record = answer.save
            for act in answer.do:
                self.check_stop()
                step = WORDS[type(act)]
                self.events.vm_step(name, step)
                try:
                    self._do(act, replica_ref, record)
                except VreplError as error:
                    raise error.at(vm=name, step=step) from error

    def _do(self, act: Act, replica_ref: str, record: FailoverRecord) -> None:
        target = self.target
        match act:
            case StandOn():
                self.patiently("revert the replica", lambda: target.revert_to_snapshot(replica_ref, act.snapshot_ref))
                self._snapshot(
                    replica_ref,
                    FAILOVER_BASE,
                    record,
                    f"What the VM did after a failover stands upon this ({act.restore_point}).",
                )
            case PrepareGuest():
                for change in target.connect_networks(replica_ref, act.networks):
                    self.events.note(record.source_name, change)
                self.prepare_guest(replica_ref, record)
            case PowerOn():
                target.power_on(replica_ref)
            case PowerOff():
                target.power_off(replica_ref)
            case ShutDownGuest():
                self._shut_down(replica_ref, record)
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

    def _snapshot(self, replica_ref: str, name: str, record: FailoverRecord, what: str) -> None:
        description = FailoverMark(record.repository_id, record.epoch).description(what)
        self.patiently(
            f"take the snapshot {name}",
            lambda: _nothing(self.target.create_snapshot(replica_ref, name, description, quiesce=False)),
        )

    def _shut_down(self, replica_ref: str, record: FailoverRecord) -> None:
        try:
            self.target.shut_down_guest(replica_ref, within=self.shutdown_seconds)
        except VreplError as error:
            self.events.note(record.source_name, f"the guest did not shut down, and is powered off: {error.message}")
            self.target.power_off(replica_ref)

    def _remove(self, replica_ref: str, snapshot_ref: str) -> None:
        if self.target.remove_snapshot(replica_ref, snapshot_ref):
            self.target.consolidate(replica_ref)

    def _merge(self, replica_ref: str) -> None:
        """One at a time and oldest first, so that a failure in the middle leaves a VM that is whole."""
        while snapshots := self.target.read_vm(replica_ref).snapshots:
            self.check_stop()
            self._remove(replica_ref, snapshots[0].ref)


WORDS: dict[type[object], str] = {
    StandOn: "revert to the restore point",
    PrepareGuest: "connect networks",
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
