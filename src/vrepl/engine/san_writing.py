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

from vrepl.engine.context import RunContext
from vrepl.engine.knowledge import leaf_identity
from vrepl.engine.marks import SanMark
from vrepl.engine.moving import DiskMover, IntentKeeper
from vrepl.engine.recovery import REMOVE_SAN_SNAPSHOT, remove_san_snapshots
from vrepl.engine.undo import Undo
from vrepl.errors import InterruptedRunError, VreplError
from vrepl.model import TransportMode, VirtualMachine

Note = Callable[[str], None]


def move_side_by_side(runs: Sequence[Callable[[], None]]) -> None:
    """Run all to their ends; raises the error that matters most."""
    with ThreadPoolExecutor(max_workers=max(1, len(runs)), thread_name_prefix="disk") as pool:
        running: list[Future[None]] = [pool.submit(run) for run in runs]
    errors = [error for error in (future.exception() for future in running) if error is not None]
    if errors:
        # A stop is the reason for whatever else failed meanwhile.
        raise next((error for error in errors if isinstance(error, InterruptedRunError)), errors[0])


def write_over_san(
    context: RunContext, undo: Undo, keeper: IntentKeeper, replica_ref: str, movers: Sequence[DiskMover], note: Note
) -> None:
    """Move those disks that SAN can write; whichever it could not is left unfinished, for another mode.

    The replica's change tracking is off afterwards, and has to be switched on before the first seal.
    """
    chosen = [mover for mover in movers if not mover.finished and mover.writes_over_san()]
    if not chosen:
        return
    target = context.target
    replica = target.read_vm(replica_ref)
    if replica.cbt_enabled:
        context.patiently(
            replica.name, "switch off change tracking of the replica", lambda: target.disable_cbt(replica_ref)
        )
        _note_leaves(keeper, target.read_vm(replica_ref))

    def discard() -> None:
        target.settle_tasks(replica_ref)
        remove_san_snapshots(context, target.read_vm(replica_ref), even_when_stopped=True)

    mark = SanMark(context.repository.id, context.run_id)
    undo.push(REMOVE_SAN_SNAPSHOT, discard)
    try:
        snapshot = context.patiently(
            replica.name,
            "create the replica's temporary snapshot",
            lambda: target.create_snapshot(
                replica_ref,
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
            context.transports.failed(
                target.name, datastore, TransportMode.SAN, f"no temporary snapshot of the replica: {error.message}"
            )
    else:
        move_side_by_side([lambda mover=mover: mover.run(snapshot) for mover in chosen])  # type: ignore[misc]
    undo.settle(REMOVE_SAN_SNAPSHOT)


def _note_leaves(keeper: IntentKeeper, replica: VirtualMachine) -> None:
    """Without change tracking a leaf is known by its file alone."""
    known = keeper.intent.journal.notes
    leaves = {f"leaf:{disk.key}": leaf_identity(disk) for disk in replica.disks if f"leaf:{disk.key}" in known}
    keeper.change(
        lambda intent: replace(intent, journal=replace(intent.journal, notes={**intent.journal.notes, **leaves}))
    )
