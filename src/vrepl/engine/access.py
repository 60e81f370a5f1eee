"""PrepareForAccess and EndAccess: while a run has a VM's disks open, nobody may relocate it (VDDK Programming Guide).

A crash leaves RelocateVM_Task disabled, so each access stands in the journal before it is made, and only what stands
in the journal of a dead run is ever given back by another one.

Where another product holds a VM already (a backup reads it), its methods are disabled anyway: vrepl waits for it a
while, and then goes on without access of its own, for the VM cannot be moved as long as that one reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from vrepl.engine.context import Services
from vrepl.engine.events import Note
from vrepl.engine.intent_keeper import IntentKeeper
from vrepl.engine.undo import Undo
from vrepl.errors import DiskError, MoverError, VreplError
from vrepl.model import Side
from vrepl.ports import AccessGuard, Inventory
from vrepl.repository.intent import PreparedAccess

RELOCATE = "RelocateVM_Task"
"""What PrepareForAccess disables."""


@dataclass(frozen=True, slots=True)
class GuardedVm:
    """A VM whose disks are going to be opened."""

    side: Side
    """For messages alone."""
    site: Inventory
    ref: str


@contextmanager
def access_window(
    services: Services, keeper: IntentKeeper, vm_name: str, guarded: Sequence[GuardedVm], note: Note
) -> Iterator[None]:
    """PrepareForAccess on each VM, in this order, and EndAccess on every way out, the last one first.

    `vm_name`: whom events speak of. A standalone ESXi host knows neither, nor does vrepl's own data engine: their VMs
    are passed over, and a migration meanwhile is survived or resumed like any loss of a connection.
    """
    with Undo(note) as undo:
        for vm in guarded:
            if vm.site.is_vcenter and services.movers.guards_access(vm.site.name):
                _guard(services, undo, keeper, vm_name, vm, note)
        yield
        undo.release_all()


def _guard(services: Services, undo: Undo, keeper: IntentKeeper, vm_name: str, vm: GuardedVm, note: Note) -> None:
    access = PreparedAccess(vm.site.name, vm.ref, f"vrepl-{keeper.intent.run_id}"[:50])
    keeper.change(
        lambda intent: replace(
            intent, journal=replace(intent.journal, prepared_for_access=(*intent.journal.prepared_for_access, access))
        )
    )

    def end() -> None:
        services.movers.end_access(access.site, access.vm_ref, access.identity)
        _forget(keeper, access)

    try:
        if not _prepare_patiently(services, vm_name, vm, access, note):
            _forget(keeper, access)
            return
    except DiskError:
        _forget(keeper, access)
        raise
    except VreplError:
        undo.push(f"end access at the {vm.side}", end)  # it may have taken effect
        raise
    undo.push(f"end access at the {vm.side}", end)


def _prepare_patiently(services: Services, vm_name: str, vm: GuardedVm, access: PreparedAccess, note: Note) -> bool:
    """False: another product holds the VM, and goes on doing so. Raises DiskError for any other failure.

    The loop is VMware's own (vixDiskLibSample tries PrepareForAccess again for up to 10 minutes).
    """
    pause, left = services.patience.access_pause, services.patience.access
    told = False
    while True:
        try:
            if told:
                _prepare(services.movers, access)
            else:
                services.patiently(
                    vm_name, f"prepare access at the {vm.side}", lambda: _prepare(services.movers, access)
                )
            return True
        except DiskError as error:
            if RELOCATE not in vm.site.read_vm(vm.ref).disabled_methods:
                raise
            if left <= 0:
                note(
                    f"another product keeps the VM at the {vm.side} from being moved ({error.message}): the run goes "
                    "on without PrepareForAccess of its own"
                )
                return False
            if not told:
                services.events.note(
                    vm_name,
                    f"another product keeps the VM at the {vm.side} from being moved: it is waited for, {left:.0f} s "
                    "at the most",
                )
                told = True
        services.wait(min(pause, left))
        left -= pause


def _prepare(movers: AccessGuard, access: PreparedAccess) -> None:
    """A mover that dies in the middle may have disabled the methods already: a second try would find them so."""
    try:
        movers.prepare_for_access(access.site, access.vm_ref, access.identity)
    except MoverError:
        with suppress(VreplError):
            movers.end_access(access.site, access.vm_ref, access.identity)
        raise


def _forget(keeper: IntentKeeper, access: PreparedAccess) -> None:
    keeper.change(
        lambda intent: replace(
            intent,
            journal=replace(
                intent.journal,
                prepared_for_access=tuple(one for one in intent.journal.prepared_for_access if one != access),
            ),
        )
    )
