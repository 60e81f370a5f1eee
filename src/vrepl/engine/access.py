"""PrepareForAccess and EndAccess: while a run has a VM's disks open, nobody may relocate it (VDDK Programming Guide).

A crash leaves RelocateVM_Task disabled, so each access stands in the journal before it is made, and only what stands
in the journal of a dead run is ever given back by another one.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from vrepl.engine.context import RunContext
from vrepl.engine.moving import IntentKeeper
from vrepl.engine.undo import Undo
from vrepl.errors import DiskError, MoverError, VreplError
from vrepl.ports import DataMovers
from vrepl.repository.intent import PreparedAccess


def prepare_access(
    context: RunContext, undo: Undo, keeper: IntentKeeper, vm_name: str, *, source_ref: str, target_ref: str
) -> None:
    """PrepareForAccess on both VMs, each journalled before it is made and given back by `undo`."""
    for side, site, vm_ref in (("source", context.source, source_ref), ("target", context.target, target_ref)):
        if not site.is_vcenter:
            continue
        access = PreparedAccess(site.name, vm_ref, f"vrepl-{context.run_id}"[:50])
        keeper.change(
            lambda intent, access=access: replace(  # type: ignore[misc]
                intent,
                journal=replace(intent.journal, prepared_for_access=(*intent.journal.prepared_for_access, access)),
            )
        )

        def end(access: PreparedAccess = access) -> None:
            context.movers.end_access(access.site, access.vm_ref, access.identity)
            _forget_access(keeper, access)

        try:
            context.patiently(
                vm_name,
                f"prepare access at the {side}",
                lambda access=access: _prepare(context.movers, access),  # type: ignore[misc]
            )
        except DiskError:
            _forget_access(keeper, access)
            raise
        except VreplError:
            undo.push(f"end access at the {side}", end)  # it may have taken effect
            raise
        undo.push(f"end access at the {side}", end)


def _prepare(movers: DataMovers, access: PreparedAccess) -> None:
    """A mover that dies in the middle may have disabled the methods already: a second try would find them so."""
    try:
        movers.prepare_for_access(access.site, access.vm_ref, access.identity)
    except MoverError:
        with suppress(VreplError):
            movers.end_access(access.site, access.vm_ref, access.identity)
        raise


def _forget_access(keeper: IntentKeeper, access: PreparedAccess) -> None:
    keeper.change(
        lambda intent: replace(
            intent,
            journal=replace(
                intent.journal,
                prepared_for_access=tuple(one for one in intent.journal.prepared_for_access if one != access),
            ),
        )
    )
