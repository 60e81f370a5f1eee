"""PrepareForAccess and EndAccess: while a run has a VM's disks open, nobody may relocate it (VDDK Programming Guide).

A crash leaves RelocateVM_Task disabled. The identity follows from repository and VM (`access_identity`), so that the
next run of that repository ends it, from its journal or without one.

Where another product holds a VM already (a backup reads it), its methods are disabled anyway: vrepl waits for it a
while, and then goes on without access of its own, for the VM cannot be moved as long as that one reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from vrepl.engine.access_identity import RELOCATE, held_by_vrepl, held_elsewhere, other_repositories
from vrepl.engine.context import Services
from vrepl.engine.events import Note
from vrepl.engine.intent_keeper import IntentKeeper
from vrepl.engine.undo import Undo
from vrepl.errors import DiskError, MoverError, NotReadyError, VreplError
from vrepl.model import Side, VirtualMachine
from vrepl.ports import AccessGuard, Inventory
from vrepl.repository.intent import PreparedAccess


@dataclass(frozen=True, slots=True)
class GuardedVm:
    """A VM whose disks are going to be opened."""

    side: Side
    """For messages alone."""
    site: Inventory
    vm: VirtualMachine
    """As it was read with the replica's lock held."""
    identity: str

    @property
    def ref(self) -> str:
        return self.vm.ref


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
    for other in other_repositories(services.repository.id, vm.vm):
        raise held_elsewhere(vm.vm, f"repository {other}")
    access = PreparedAccess(vm.site.name, vm.ref, vm.identity)
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
    except (DiskError, NotReadyError):
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
                _prepare(services.movers, vm, access)
            else:
                services.patiently(
                    vm_name, f"prepare access at the {vm.side}", lambda: _prepare(services.movers, vm, access)
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


def _prepare(movers: AccessGuard, vm: GuardedVm, access: PreparedAccess) -> None:
    """A mover that dies in the middle may have disabled the methods already: a second try would find them so.

    Raises NotReadyError at once where another repository has the VM: waiting for it is for the next run.
    """
    try:
        movers.prepare_for_access(access.site, access.vm_ref, access.identity)
    except MoverError:
        with suppress(VreplError):
            movers.end_access(access.site, access.vm_ref, access.identity)
        raise
    except DiskError as error:
        holder = held_by_vrepl(error.message)
        if holder is None:
            raise
        if holder != access.identity:
            raise held_elsewhere(vm.vm, holder) from error
        movers.end_access(access.site, access.vm_ref, access.identity)
        movers.prepare_for_access(access.site, access.vm_ref, access.identity)


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
