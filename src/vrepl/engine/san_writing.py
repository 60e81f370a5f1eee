"""Writes thick disks of a new replica over SAN, in the order of steps that VDDK wants for it.

SAN writes to the base of a disk only, through a snapshot (VDDK Programming Guide, "SAN Mode": a temporary snapshot is
taken, the base is written through that snapshot's reference, the VM is reverted to it and the snapshot removed).
Changes that pass vSphere by are unknown to change tracking, so the replica's is off until its first seal.

A run that dies in here leaves the snapshot. It carries a mark; the next run reverts to it and removes it, which brings
the base back with all that was written, and goes on from the transfer log.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from vrepl.engine.disk_crossing import CrossingRoute, DiskCrossing
from vrepl.engine.events import Note
from vrepl.engine.intent_keeper import IntentKeeper
from vrepl.engine.knowledge import leaf_identity
from vrepl.engine.marks import SanMark
from vrepl.engine.recovery import REMOVE_SAN_SNAPSHOT, remove_san_snapshots
from vrepl.engine.undo import Undo
from vrepl.errors import InterruptedRunError, VreplError
from vrepl.model import TransportMode, VirtualMachine


def move_side_by_side(runs: Sequence[Callable[[], None]]) -> None:
    """Run all to their ends; raises the error that matters most."""
    with ThreadPoolExecutor(max_workers=max(1, len(runs)), thread_name_prefix="disk") as pool:
        running: list[Future[None]] = [pool.submit(run) for run in runs]
    errors = [error for error in (future.exception() for future in running) if error is not None]
    if errors:
        # A stop is the reason for whatever else failed meanwhile.
        raise next((error for error in errors if isinstance(error, InterruptedRunError)), errors[0])


def write_over_san(route: CrossingRoute, disks: Sequence[DiskCrossing], note: Note) -> None:
    """Move those disks that SAN can write; whichever it could not is left unfinished, for another mode.

    The replica's change tracking is off afterwards, and has to be switched on before the first seal.
    """
    chosen = [disk for disk in disks if not disk.finished and disk.writes_over_san()]
    if not chosen:
        return
    services, target = route.services, route.written.site
    replica = target.read_vm(chosen[0].move.written_vm.ref)
    if replica.cbt_enabled:
        services.patiently(
            replica.name, "switch off change tracking of the replica", lambda: target.disable_cbt(replica.ref)
        )
        _note_leaves(route.keeper, target.read_vm(replica.ref))

    def discard() -> None:
        target.wait_for_tasks(replica.ref)
        remove_san_snapshots(services, target, target.read_vm(replica.ref), even_when_stopped=True)

    mark = SanMark(services.repository.id, route.keeper.intent.run_id)
    with Undo(note) as undo:
        undo.push(REMOVE_SAN_SNAPSHOT, discard)
        try:
            snapshot = services.patiently(
                replica.name,
                "create the replica's temporary snapshot",
                lambda: target.create_snapshot(
                    replica.ref,
                    mark.snapshot_name,
                    mark.description(),
                    quiesce=False,
                ),
            )
        except InterruptedRunError:
            raise
        except VreplError as error:
            note(f"SAN cannot write to the replica, the next mode is taken: {error.message}")
            for datastore in {disk.store for disk in replica.disks}:
                services.modes.failed(
                    target.name, datastore, TransportMode.SAN, f"no temporary snapshot of the replica: {error.message}"
                )
        else:
            move_side_by_side([lambda disk=disk: disk.run(snapshot) for disk in chosen])  # type: ignore[misc]
        undo.release_all()


def _note_leaves(keeper: IntentKeeper, replica: VirtualMachine) -> None:
    """Without change tracking a leaf is known by its file alone."""
    known = keeper.intent.journal.notes
    leaves = {f"leaf:{disk.key}": leaf_identity(disk) for disk in replica.disks if f"leaf:{disk.key}" in known}
    keeper.change(
        lambda intent: replace(intent, journal=replace(intent.journal, notes={**intent.journal.notes, **leaves}))
    )
