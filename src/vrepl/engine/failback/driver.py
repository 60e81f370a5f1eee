"""Carries out a failback as its planner answers: save, do, look again. Every act may be done again after a crash."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from vrepl.engine.consolidation import consolidate
from vrepl.engine.context import FailbackContext
from vrepl.engine.failback.homecoming import Ends, Homecoming, disks_differ, home_disk
from vrepl.engine.failback.made import MADE_KEY, made_mark, spec_of
from vrepl.engine.failover.look import look
from vrepl.engine.failover.states import ReplicaStates
from vrepl.engine.knowledge import restore_point_snapshots
from vrepl.engine.marks import FailbackMark, SourceMark, failback_mark_of, restore_point_snapshot_name, source_mark_of
from vrepl.engine.recovery import Original, end_access_of_the_dead, recover_journal, recover_source
from vrepl.engine.sealing import seal
from vrepl.engine.vm_work import VmWork
from vrepl.errors import NotReadyError, VreplError, VsphereError
from vrepl.model import (
    Consistency,
    DiskPoint,
    PowerState,
    RestorePoint,
    SnapshotState,
    TransferKind,
    VirtualMachine,
)
from vrepl.model.failover import (
    FailbackPhase,
    FailbackRecord,
    FailbackWish,
    FailoverRecord,
    StartFailback,
    UndoFailback,
)
from vrepl.planner.conflicts import FailoverConflict
from vrepl.planner.failback import (
    Cross,
    DestroyOriginal,
    FailbackAct,
    FailbackReady,
    MakeOriginal,
    PowerOffOriginal,
    PowerOnOriginal,
    PowerOnReplica,
    RemoveReplicaSnapshot,
    RemoveUndoSnapshot,
    ResetTracking,
    RevertOriginal,
    SealReplica,
    SeenFailback,
    ShutDownReplica,
    SnapshotOriginal,
    advance_failback,
)
from vrepl.planner.failover import Done


@dataclass(slots=True)
class FailbackDriver:
    """Brings one VM home, or takes that back. The replica's lock is held."""

    context: FailbackContext
    states: ReplicaStates
    mirror: Callable[[FailoverRecord], None]
    """Keeps a copy in the repository."""
    work: VmWork
    homecoming: Homecoming
    replica_ref: str
    point: RestorePoint | None
    """The one that was failed over to."""
    shutdown_seconds: float = 300.0
    prepare_guest: Callable[[str], None] = lambda _ref: None
    """Before the VM at home is powered on: what its addresses were, if they were changed at the target."""
    downtime: float | None = field(default=None, init=False)
    """Seconds from the replica's shutdown to the power-on at home, if this process did both."""
    _down_since: float | None = field(default=None, init=False)

    def go(self, record: FailoverRecord, wish: FailbackWish) -> FailoverRecord:
        """Until nothing is left to do. Raises NotReadyError for a conflict, and what the sites raise."""
        self._recover(record)
        self._warn(record, wish)
        while True:
            seen = self._look(record, wish)
            answer = advance_failback(record, seen, wish)
            if isinstance(answer, FailoverConflict):
                raise NotReadyError(answer.message, hint=answer.hint or None)
            if isinstance(answer, Done):
                return record
            record = self._carry_out(answer, record, seen, wish)

    def _carry_out(
        self, answer: FailbackReady, record: FailoverRecord, seen: SeenFailback, wish: FailbackWish
    ) -> FailoverRecord:
        if answer.save is not None:
            record = answer.save
            self.work.enter(f"state {record.failback.phase}" if record.failback else f"state {record.state}")
            self.states.save(seen.replica.vm, record)
            self.mirror(record)
        for act in answer.do:
            self.work.enter(WORDS[type(act)])
            self._do(act, record, seen, wish)
        return record

    def _warn(self, record: FailoverRecord, wish: FailbackWish) -> None:
        """What cannot be as it should, whatever is done."""
        back = record.failback
        if back is None or back.made or back.phase in {FailbackPhase.PREPARING, FailbackPhase.UNDOING}:
            return
        seen = self._look(record, wish)
        if isinstance(wish, UndoFailback) and seen.original is not None and seen.undo is None:
            self.work.note(
                f"somebody removed the snapshot of what {seen.original.name} was before the failback: it stays as it is"
            )

    # -- what is there ------------------------------------------------------------------------------------------------

    def _look(self, record: FailoverRecord, wish: FailbackWish) -> SeenFailback:
        replica = look(self.context.target, self.replica_ref)
        if replica.vm.power is not PowerState.OFF:
            self._down_since = None
        back = record.failback
        uuid = record.source_instance_uuid
        if back is not None:
            uuid = back.instance_uuid
        elif isinstance(wish, StartFailback) and wish.place is not None:
            uuid = wish.place.instance_uuid
        original = self.context.home.find_vm_by_instance_uuid(uuid)
        undo = None
        if original is not None and back is not None:
            ours = FailbackMark(record.repository_id, back.id)
            undo = next((one for one in original.snapshots if failback_mark_of(one) == ours), None)
        if original is not None and back is not None and back.made and not self._made_by(original, record, back):
            original = None
        differs = ""
        if original is not None and self.point is not None and back is None:
            differs = disks_differ(self.point, replica.vm, original)
        return SeenFailback(
            replica,
            original,
            undo,
            crossed=self.homecoming.ended(),
            sealed=back is not None and back.point_id in restore_point_snapshots(replica.vm),
            shut_down=self._down_since is not None,
            differs=differs,
        )

    def _made_by(self, vm: VirtualMachine, record: FailoverRecord, back: FailbackRecord) -> bool:
        return vm.extra_config.get(MADE_KEY) == made_mark(record, back)

    def _recover(self, record: FailoverRecord) -> None:
        """What a dead process left of a crossing: access, disks on a proxy, a snapshot of the replica."""
        context, services, back = self.context, self.context.services, record.failback
        if back is None:
            return
        self.work.enter("recovery")
        home = context.home
        vm = home.find_vm_by_instance_uuid(back.instance_uuid)
        notes = recover_journal(
            services, self.homecoming.store, context.target, Original(home, vm) if vm is not None else None
        )
        context.target.wait_for_tasks(self.replica_ref)
        folder, replica = self.homecoming.folder, context.target.read_vm(self.replica_ref)
        notes += end_access_of_the_dead(services, folder, context.target, replica)
        notes += end_access_of_the_dead(services, folder, home, vm) if vm is not None else []
        for snapshot in reversed(replica.snapshots):
            mark = source_mark_of(snapshot)
            if mark is not None and mark.run_id.startswith(f"{back.id}-"):
                self._remove_of_replica(snapshot.ref)
                notes.append("removed the snapshot of the replica that an unfinished crossing left")
        for note in notes:
            self.work.note(note)

    # -- acts ---------------------------------------------------------------------------------------------------------

    def _do(self, act: FailbackAct, record: FailoverRecord, seen: SeenFailback, wish: FailbackWish) -> None:
        context, home, back = self.context, self.context.home, record.failback
        vm = seen.original
        match act:
            case PowerOnReplica():
                context.target.power_on(self.replica_ref)
                return
            case RemoveReplicaSnapshot():
                self._remove_of_replica(act.snapshot_ref)
                return
            case ShutDownReplica():
                self._shut_down(act)
                return
        assert back is not None, "only a failback that was saved does anything at home"
        if isinstance(act, MakeOriginal):
            self._make(record, back, seen.replica.vm, wish)
            return
        if isinstance(act, SealReplica):
            self._seal(back, seen)
            return
        assert vm is not None, "the planner has seen the VM at home"
        match act:
            case SnapshotOriginal():
                self._snapshot_original(record, back, vm)
            case Cross():
                self._cross(act, record, back, seen, vm)
            case PowerOnOriginal():
                if vm.power is PowerState.OFF:
                    self.prepare_guest(vm.ref)
                home.power_on(vm.ref)
                if self._down_since is not None:
                    self.downtime = time.monotonic() - self._down_since
            case PowerOffOriginal():
                home.power_off(vm.ref)
            case DestroyOriginal():
                home.destroy_vm(vm.ref)
            case RevertOriginal():
                self._patiently("revert the original", lambda: home.revert_to_snapshot(vm.ref, act.snapshot_ref))
                self._remove_at_home(vm, act.snapshot_ref)
            case RemoveUndoSnapshot():
                self._remove_at_home(vm, act.snapshot_ref)
            case ResetTracking():
                self._reset_tracking(back, home.read_vm(vm.ref))

    def _make(self, record: FailoverRecord, back: FailbackRecord, replica: VirtualMachine, wish: FailbackWish) -> None:
        place = wish.place if isinstance(wish, StartFailback) else None
        if place is None:
            raise NotReadyError(
                f"{record.source_name} was on its way into a new VM", hint="give the same options (--new) again"
            )
        made = self.context.home.create_replica(spec_of(record, back, replica, place))
        if made.instance_uuid != back.instance_uuid:
            self.context.home.destroy_vm(made.ref)
            raise VsphereError(f"site {back.site} gave the new VM another instanceUuid than {back.instance_uuid}")

    def _snapshot_original(self, record: FailoverRecord, back: FailbackRecord, vm: VirtualMachine) -> None:
        """Runs that the loss of the site killed may have left a snapshot of it: that goes first."""
        home, services = self.context.home, self.context.services
        for note in recover_source(services, self.homecoming.folder, home, vm):
            self.work.note(note)
        mark = FailbackMark(record.repository_id, back.id)
        self._patiently(
            "take the snapshot of the original",
            lambda: _nothing(home.create_snapshot(vm.ref, mark.snapshot_name, mark.description(), quiesce=False)),
        )

    def _cross(
        self, act: Cross, record: FailoverRecord, back: FailbackRecord, seen: SeenFailback, vm: VirtualMachine
    ) -> None:
        context = self.context
        if self.point is None:
            raise NotReadyError(f"the restore point {record.restore_point} that was failed over to is gone")
        base = seen.replica.base
        before: SnapshotState | None = None
        if seen.undo is not None:
            before = context.home.read_snapshot(seen.undo.ref)
        elif not back.made:
            raise NotReadyError(
                f"the snapshot of what {vm.name} was before the failback is gone",
                hint=f"vrepl failback undo {record.source_name}, then start anew",
            )
        ends = Ends(seen.replica.vm, context.target.read_snapshot(base.ref) if base is not None else None, vm, before)
        self.homecoming.cross(record, self.point, ends, first=act.first)

    def _shut_down(self, act: ShutDownReplica) -> None:
        target = self.context.target
        try:
            target.shut_down_guest(self.replica_ref, within=self.shutdown_seconds)
        except VreplError as error:
            if not act.power_off:
                error.hint = "shut it down by hand and run the command again, or say --power-off"
                raise
            self.work.note(f"the guest did not shut down, and is powered off: {error.message}")
            target.power_off(self.replica_ref)
        self._down_since = time.monotonic()

    def _reset_tracking(self, back: FailbackRecord, vm: VirtualMachine) -> None:
        """What any product knows of its change IDs speaks of bytes that were written over since.

        Switching tracking off takes effect on a running VM only with a snapshot (VMware KB 1020128), and it may be
        switched on only where there is none.
        """
        home, services = self.context.home, self.context.services
        if recover_source(services, self.homecoming.folder, home, vm):
            vm = home.read_vm(vm.ref)
        if back.made:
            home.set_extra_config(vm.ref, {MADE_KEY: ""})
        if vm.snapshots or not vm.cbt_supported:
            self.work.note(f"change tracking of {vm.name} is not reset, for it has snapshots: runs compare")
            return
        if vm.cbt_enabled:
            home.disable_cbt(vm.ref)
        if vm.power is not PowerState.OFF:
            mark = SourceMark(services.repository.id, f"{back.id}-reset")
            self._patiently(
                "take a snapshot to reset change tracking",
                lambda: _nothing(home.create_snapshot(vm.ref, mark.snapshot_name, mark.description(), quiesce=False)),
            )
            recover_source(services, self.homecoming.folder, home, vm)
        home.enable_cbt(vm.ref)

    def _seal(self, back: FailbackRecord, seen: SeenFailback) -> None:
        folder, point, vm = self.homecoming.folder, self.point, seen.original
        if point is None or vm is None or back.point_time is None:
            raise AssertionError("a commit knows its restore point and the VM at home")
        replica = self.context.target.read_vm(self.replica_ref)
        disks = []
        for disk in point.disks:
            ours = replica.disk(disk.target_key)
            theirs = home_disk(vm, ours, disk.source_key, made=back.made) if ours is not None else None
            if ours is None or theirs is None:
                raise VsphereError(f"disk {disk.index} ({disk.label}) is gone from the replica or its original")
            disks.append(
                DiskPoint(
                    source_key=theirs.key, index=theirs.index, label=theirs.label, capacity=ours.capacity,
                    source_disk_uuid=theirs.uuid, source_base_path=theirs.base_path,
                    change_id=None,  # the original's tracking begins anew with the next run
                    target_key=ours.key, kind=TransferKind.COMPARE, bytes_moved=0,
                )
            )  # fmt: skip
        home = RestorePoint(
            id=back.point_id,
            time=back.point_time,
            run_id=back.id,
            job=point.job,
            consistency=Consistency.POWERED_OFF,
            snapshot_name=restore_point_snapshot_name(back.point_id),
            parent_id=point.id,
            disks=tuple(disks),
        )
        keys = {disk.source_key: disk.target_key for disk in home.disks}
        folder.save_record(replace(folder.record, disk_keys=keys))
        if back.instance_uuid != folder.record.source_instance_uuid:
            self.work.note(
                f"job {point.job} still means the VM that was lost: put {vm.name} into it, and take the other one out"
            )
        self.homecoming.keep_digests(point, home)
        seal(self.context, folder, folder.record, replica, home, self.work.note, still_ready=lambda: None)
        self.homecoming.store.clear()

    # -- what acts share ----------------------------------------------------------------------------------------------

    def _remove_of_replica(self, snapshot_ref: str) -> None:
        target = self.context.target

        def remove() -> None:
            if target.remove_snapshot(self.replica_ref, snapshot_ref):
                target.consolidate(self.replica_ref)

        self._patiently("remove a snapshot of the replica", remove)

    def _remove_at_home(self, vm: VirtualMachine, snapshot_ref: str) -> None:
        home = self.context.home

        def remove() -> None:
            if home.remove_snapshot(vm.ref, snapshot_ref):
                consolidate(self.context.services, home, vm, wait_for_locks=True)

        self._patiently("remove the snapshot of the original", remove)

    def _patiently(self, what: str, action: Callable[[], None]) -> None:
        self.context.services.patiently(self.work.vm, what, action)


WORDS: dict[type[object], str] = {
    MakeOriginal: "make the VM at home",
    SnapshotOriginal: "snapshot of the original",
    Cross: "cross",
    ShutDownReplica: "shut down the replica's guest",
    PowerOnOriginal: "power on at home",
    PowerOffOriginal: "power off at home",
    RevertOriginal: "revert the original",
    DestroyOriginal: "remove the VM that was made",
    PowerOnReplica: "power on the replica",
    RemoveUndoSnapshot: "remove the original's snapshot",
    RemoveReplicaSnapshot: "remove the base of the failover",
    ResetTracking: "reset change tracking",
    SealReplica: "seal",
}
"""Steps as reports and messages call them."""


def _nothing(value: object) -> None:
    del value
