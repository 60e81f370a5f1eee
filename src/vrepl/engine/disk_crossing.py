"""One disk on its way across: attempt by attempt, each one's intent on disk before its first write."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from vrepl.engine.context import Services
from vrepl.engine.crossing_state import Reached, Tally
from vrepl.engine.disk_move import DiskMove, first_intent, relocated
from vrepl.engine.gate import End, Gate
from vrepl.engine.intent_keeper import IntentKeeper
from vrepl.engine.knowledge import TransferLogs
from vrepl.errors import (
    DiskError,
    DiskLockedError,
    InterruptedRunError,
    MoverError,
    TransportModeError,
    VreplError,
    VsphereError,
)
from vrepl.extents import intersect, subtract, total, union
from vrepl.model import (
    Disk,
    Side,
    SnapshotState,
    TransportMode,
    TransportPlan,
    VirtualMachine,
)
from vrepl.planner.disks import issued_extents
from vrepl.ports import DiskAddress, SourceSite, TransferOrder, TransferProgress
from vrepl.report.disk import DiskReport
from vrepl.repository.intent import DiskIntent, HotAddedDisks
from vrepl.repository.transferlog import read_log

UNREACHABLE = frozenset({14008, 14009, 14010, 18000})
"""VixErrors of a connection to an ESXi host that was never made (VMware, "Virtual Disk API Errors")."""


LOOK_EVERY = 10.0
"""Seconds of a transfer between looks whether it may go on: a failover that has begun elsewhere waits for its end."""


@dataclass(frozen=True, slots=True)
class CrossingEnd:
    """One side of a crossing: the site whose disks are read, or written, and how they may be reached."""

    side: Side
    """Whose site it is: the original's (`source`) or the replica's (`target`), whichever way bytes go."""
    site: SourceSite
    modes: tuple[TransportMode, ...]


@dataclass(frozen=True, slots=True)
class CrossingRoute:
    """From where to where a crossing goes, and what it needs for that."""

    services: Services
    gate: Gate
    logs: TransferLogs
    keeper: IntentKeeper
    read: CrossingEnd
    written: CrossingEnd
    fallback: bool = True
    """Whether the next transport mode may be tried when one fails."""
    still_allowed: Callable[[], None] = lambda: None
    """Raises NotReadyError once the written VM is no longer this command's; asked now and then as bytes move."""


class DiskCrossing:
    """Moves one disk, trying again from its transfer log what may pass."""

    def __init__(self, route: CrossingRoute, move: DiskMove, vm: str) -> None:
        """`vm`: whom events speak of."""
        self._route = route
        self._services = route.services
        self.move = move
        self._vm = vm
        self._intent = first_intent(move)
        self._announced = False
        self._left_on_proxy: set[tuple[Side, str | None]] = set()
        self._proxies: dict[Side, str | None] = dict.fromkeys(Side)
        """Whose movers the last attempt asked; None where it came to none, or there is no choice."""
        self._reached = {Side.SOURCE: Reached(), Side.TARGET: Reached()}
        self.tally = Tally()
        self.finished = not move.regions

    def run(self, through: SnapshotState | None = None) -> None:
        """Raises the error of the last attempt, with VM, disk and step in it.

        `through`: a temporary snapshot of the written VM, through which the base of its disk is written over SAN (see
        `engine.san_writing`); returns with the disk unfinished where SAN fails.
        """
        waits = list(self._services.patience.waits)
        while not self.finished:
            self.tally.attempts += 1
            intent = self._intent
            try:
                self.finished = self._attempt(intent, through)
                if not self.finished:
                    return
            except VreplError as error:
                following, progressed = self._after_failure(intent, error)
                if progressed:
                    waits = list(self._services.patience.waits)
                if not waits:
                    raise
                self._intent = following
                self.tally.retries.append(error.message)
                self._route.keeper.set_disk(following)
                self._pause(error, 0.0 if progressed or isinstance(error, TransportModeError) else waits.pop(0))
                self._detach_leavings(error)

    def writes_over_san(self) -> bool:
        """Whether SAN is how the rules would reach the written disk now."""
        return self._written_plan().modes[0] is TransportMode.SAN and not self.move.written_vm.snapshots

    def choose_modes(self) -> None:
        """Choose how both ends are reached; nothing is opened."""
        self._reached[Side.SOURCE].take(self._read_plan())
        self._reached[Side.TARGET].take(self._written_plan())

    def report(self) -> DiskReport:
        """How it went so far."""
        move, tally = self.move, self.tally
        return DiskReport(
            index=move.read_disk.index,
            label=move.read_disk.label,
            kind=move.decision.kind,
            reason=move.decision.reason,
            capacity=move.read_disk.capacity,
            bytes_read=tally.read,
            bytes_moved=tally.moved,
            bytes_skipped=tally.skipped,
            resumed=bool(move.decision.carry or move.decision.dirty),
            attempts=tally.attempts,
            retries=list(tally.retries),
            seconds=tally.seconds,
            waits=dict(tally.waits),
            source=self._reached[Side.SOURCE].report(),
            target=self._reached[Side.TARGET].report(),
        )

    def _attempt(self, intent: DiskIntent, through: SnapshotState | None) -> bool:
        """False: SAN may no longer be used, so that nothing was moved through the temporary snapshot."""
        move = self.move
        self._proxies = dict.fromkeys(Side)
        while True:
            read, written = self._read_address(), self._written_address(through)
            ends = (
                _end(read, move.read_vm, False, self._read_plan()),
                _end(written, move.written_vm, True, self._written_plan()),
            )
            with self._route.gate.hold_disk(object(), ends, total(intent.planned)):
                if through is not None and not self.writes_over_san():
                    return False
                if (read, written) != (self._read_address(), self._written_address(through)):
                    continue  # a mode failed for another disk while this one waited
                self.choose_modes()
                self._proxies = {Side.SOURCE: read.proxy, Side.TARGET: written.proxy}
                self._transfer(intent, read, written)
                return True

    def _transfer(self, intent: DiskIntent, read: DiskAddress, written: DiskAddress) -> None:
        move, events = self.move, self._services.events
        index = move.read_disk.index
        if not self._announced:
            self._announced = True
            events.disk_started(self._vm, index, move.read_disk.title, intent.kind.value, move.decision.reason)
        for end, address in ((self._route.read, read), (self._route.written, written)):
            if address.modes[0] is TransportMode.HOTADD:
                self._route.keeper.note_hotadd(HotAddedDisks(end.side, address.vm_ref, address.proxy or ""))
        order = TransferOrder(
            kind=intent.kind,
            source=read,
            target=written,
            regions=intent.planned,
            allocated_only=intent.allocated_only,
            dirty=intent.dirty,
            parent=move.parent_digests,
            compare_with_target=move.decision.compare_with_target,
            log=self._route.logs.transfer_log(intent.source_key),
            attempt=intent.attempt,
        )
        seen = TransferProgress()

        looked_at = time.monotonic()

        def progressed(progress: TransferProgress) -> None:
            nonlocal seen, looked_at
            seen = progress
            if time.monotonic() - looked_at > LOOK_EVERY:
                self._route.still_allowed()
                looked_at = time.monotonic()
            events.disk_progress(self._vm, index, progress)

        try:
            result = self._services.movers.transfer(order, progressed)
        except VreplError:
            self.tally.add(seen.bytes_read, seen.bytes_moved)
            raise
        self.tally.add_result(result)
        self._reached[Side.SOURCE].mode = result.source_mode
        self._reached[Side.TARGET].mode = result.target_mode
        self._reached[Side.SOURCE].fallbacks.extend(result.resent_modes)

    def _after_failure(self, intent: DiskIntent, error: VreplError) -> tuple[DiskIntent, bool]:
        """The intent of the next attempt, and whether this one settled anything; raises what trying cannot mend."""
        error.at(vm=self._vm, disk=self.move.read_disk.title, step="transfer")
        self._name_host(error)
        if isinstance(error, InterruptedRunError):
            raise error
        may_pass = error.retryable
        if isinstance(error, TransportModeError):
            self._mode_failed(error)  # at once, and where the disk was: no other disk of that datastore shall try it
            may_pass = True
        if not (self._find_again() or may_pass):
            raise error
        state = read_log(self._route.logs.transfer_log(intent.source_key)).attempt(intent.attempt)
        done = intersect(intent.planned, state.done)
        issued = issued_extents(intent.planned, state.allowed, intent.capacity)
        following = replace(
            intent,
            attempt=intent.attempt + 1,
            planned=tuple(subtract(intent.planned, done)),
            dirty=tuple(union(intent.dirty, issued)),
        )
        return following, bool(done)

    def _find_again(self) -> bool:
        """Look where both VMs are by now; whether a file of this disk has another path.

        Without PrepareForAccess a VM may be moved to another host, and its disks to another datastore (vMotion, Storage
        vMotion), while they are open. What lies elsewhere is opened there; what is another disk, or stands on other
        snapshots than before, is not this crossing's.
        """
        was, read, written = self.move, self._route.read.site, self._route.written.site
        try:
            state = read.read_snapshot(was.read_snapshot.ref)
            self.move = relocated(was, read.read_vm(was.read_vm.ref), state, written.read_vm(was.written_vm.ref))
        except VreplError:  # the next attempt tells whether the disk can be had
            return False
        places = [(was.read_disk.path, self.move.read_disk.path), (was.written_disk.path, self.move.written_disk.path)]
        moved = [new for old, new in places if old != new]
        for path in moved:
            self._services.events.note(self._vm, f"{was.read_disk.title} was moved meanwhile, to {path}")
        return bool(moved)

    def _name_host(self, error: VreplError) -> None:
        """VDDK does not say which ESXi host it could not reach; the disk that it speaks of tells."""
        if not isinstance(error, DiskError) or error.code not in UNREACHABLE:
            return
        move = self.move
        for path, vm in ((move.read_disk.path, move.read_vm), (move.written_disk.path, move.written_vm)):
            if path and path in error.message and vm.host:
                error.message += f"; the disk is reached through ESXi host {vm.host}"
                return

    def _pause(self, error: VreplError, seconds: float) -> None:
        again = f"trying again in {seconds:g} s" if seconds else "going on from the checkpoint"
        self._services.events.note(self._vm, f"{self.move.read_disk.title}: {error.message}; {again}")
        self._services.wait(seconds)

    def _detach_leavings(self, error: VreplError) -> None:
        """A data mover that died over HotAdd left the disk on the proxy VM, where it stays locked until Cleanup.

        Asked again as long as the disk is locked: who died may not be seen to be dead yet. Disks of this VM that
        other data movers hold stay where they are.
        """
        ends = {
            Side.SOURCE: (self._route.read.site.name, self.move.read_vm),
            Side.TARGET: (self._route.written.site.name, self.move.written_vm),
        }
        if isinstance(error, MoverError):
            for side, (site, vm) in ends.items():
                proxy = self._proxies[side]
                if self._reached[side].mode == TransportMode.HOTADD:
                    self._left_on_proxy.add((side, proxy))
                if proxy is not None and error.machine in {None, proxy}:
                    self._services.modes.proxy_failed(site, vm, proxy)
        if not isinstance(error, MoverError | DiskLockedError):
            return
        for side, proxy in sorted(self._left_on_proxy, key=str):
            site, vm = ends[side]
            try:
                self._services.movers.cleanup(site, vm.ref, proxy)
            except InterruptedRunError:
                raise
            except VreplError as failure:  # the next attempt tells whether the disk can be had
                self._services.events.note(self._vm, f"detaching what HotAdd left: {failure.message}")

    def _mode_failed(self, error: TransportModeError) -> None:
        """Rule the mode out for its datastore in this run; raises if no other may be tried."""
        if not self._route.fallback:
            raise error
        mode = TransportMode(error.mode)
        held = False
        for side, end, disk in (
            (Side.SOURCE, self._route.read, self.move.read_disk),
            (Side.TARGET, self._route.written, self.move.written_disk),
        ):
            reached = self._reached[side]
            if reached.mode == error.mode and error.side in {None, side}:
                self._services.modes.failed(end.site.name, disk.store, mode, error.message)
                reached.fallbacks.append(f"{mode} failed: {error.message}")
                held = True
        if not held:
            raise error

    def _read_plan(self) -> TransportPlan:
        move, end = self.move, self._route.read
        return self._services.modes.plan(
            Side.SOURCE,
            end.site.name,
            move.read_vm,
            move.read_disk,
            first_run=move.parent_restore_point_id is None,
            allowed=end.modes,
        )

    def _written_plan(self) -> TransportPlan:
        """On the proxy that reads, if that reaches the disk as well as any."""
        move, end = self.move, self._route.written
        return self._services.modes.plan(
            Side.TARGET,
            end.site.name,
            move.written_vm,
            move.written_disk,
            first_run=move.parent_restore_point_id is None and not move.written_vm.snapshots,
            allowed=end.modes,
            beside=self._read_plan().proxy,
        )

    def _usable(self, plan: TransportPlan) -> tuple[TransportMode, ...]:
        return plan.modes if self._route.fallback else plan.modes[:1]

    def _read_address(self) -> DiskAddress:
        move = self.move
        plan = self._read_plan()
        return DiskAddress(
            site=self._route.read.site.name,
            vm_ref=move.read_vm.ref,
            snapshot_ref=move.read_snapshot.ref,
            path=move.read_disk.path,
            capacity=move.read_disk.capacity,
            modes=self._usable(plan),
            vm_name=move.read_vm.name,
            disk_title=move.read_disk.title,
            proxy=plan.proxy,
        )

    def _written_address(self, through: SnapshotState | None) -> DiskAddress:
        move = self.move
        plan = self._written_plan()
        disk: Disk | None = move.written_disk
        if through is not None:
            # Over SAN alone: every other mode would have to write to a leaf that is going to be reverted.
            disk = through.disk(move.written_disk.key)
        if disk is None:
            raise VsphereError(f"{move.written_disk.title} is missing from the replica's temporary snapshot")
        return DiskAddress(
            site=self._route.written.site.name,
            vm_ref=move.written_vm.ref,
            snapshot_ref=through.ref if through else None,
            path=disk.path,
            capacity=move.written_disk.capacity,
            modes=(TransportMode.SAN,) if through else self._usable(plan),
            vm_name=move.written_vm.name,
            disk_title=move.written_disk.title,
            proxy=plan.proxy,
        )


def _end(address: DiskAddress, vm: VirtualMachine, written: bool, plan: TransportPlan) -> End:
    return End(address, vm, written, plan.usable[0], plan.engine)
