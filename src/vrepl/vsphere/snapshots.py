"""Snapshots of a VM: never with memory; their own configuration is what counts afterwards."""

from __future__ import annotations

import logging
from typing import Any

from vrepl.errors import NotFoundError, VreplError, VsphereError
from vrepl.model import Snapshot, SnapshotState
from vrepl.vsphere import collector
from vrepl.vsphere.api import ref_of, vim
from vrepl.vsphere.inventory import Inventory
from vrepl.vsphere.session import Session
from vrepl.vsphere.task_collector import VmBeside
from vrepl.vsphere.tasks import Tasks
from vrepl.vsphere.translation import encode_name, snapshots_of

log = logging.getLogger(__name__)


class Snapshots:
    """Makes, removes and reverts to snapshots. VMs and snapshots are named by their refs."""

    def __init__(self, session: Session, running: Tasks, inventory: Inventory) -> None:
        self._session = session
        self._tasks = running
        self._inventory = inventory
        self._tried: set[tuple[str, str]] = set()
        """VMs and names that a snapshot was asked for already: a try that seemed to fail may have made it."""

    def create(
        self, vm_ref: str, name: str, description: str, *, quiesce: bool, within: float | None = None
    ) -> SnapshotState:
        """Raises VsphereError with `fault` naming the quiesce fault if quiescing fails.

        `name` must be unique within the VM: after a lost connection the snapshot is found again by it.
        """
        vm = self._vm(vm_ref)
        what = f"create snapshot {name} of {vm_ref}"
        tried_before = (vm_ref, name) in self._tried
        if tried_before and any(one.name == name for one in self._all(vm_ref)):
            raise _name_taken(what)
        self._tried.add((vm_ref, name))

        def there() -> str | None:
            self._tasks.wait_for_running(vm)
            return next((one.ref for one in self._all(vm_ref) if one.name == name), None)

        made = self._tasks.run(
            lambda: vm.CreateSnapshot_Task(
                name=encode_name(name), description=description, memory=False, quiesce=quiesce
            ),
            what=what,
            recover=there,
            within=within,
        )
        snapshot_ref = made if isinstance(made, str) else ref_of(made)
        try:
            state, all_of_vm = self._inventory.read_snapshot_among(snapshot_ref)
            others = [one.ref for one in all_of_vm if one.name == name and one.ref != snapshot_ref]
            if others and not tried_before:
                raise _name_taken(what)
            for late in others:
                # What an earlier try of this process asked for and gave up waiting for came after all.
                self.remove(vm_ref, late)
            return state
        except VreplError:
            # Nobody else knows of it yet, so nobody else would remove it.
            self._remove_unread(vm_ref, snapshot_ref)
            raise

    def remove(self, vm_ref: str, snapshot_ref: str) -> bool:
        """Remove one snapshot, not its children; one that is gone already is fine.

        Returns the VM's `consolidationNeeded` afterwards.
        """
        snapshot = self._session.object(vim.vm.Snapshot, snapshot_ref)
        beside = VmBeside(self._vm(vm_ref))
        try:
            self._tasks.run(
                lambda: snapshot.RemoveSnapshot_Task(removeChildren=False, consolidate=True),
                what=f"remove snapshot {snapshot_ref} of {vm_ref}",
                beside=beside,
            )
        except NotFoundError:
            log.debug("snapshot %s of %s is gone already", snapshot_ref, vm_ref)
            return self.consolidation_needed(vm_ref)
        needed = beside.consolidation_needed
        return self.consolidation_needed(vm_ref) if needed is None else needed

    def consolidation_needed(self, vm_ref: str) -> bool:
        """False too if the VM is gone."""
        path = "runtime.consolidationNeeded"
        found = collector.these(self._session, [self._vm(vm_ref)], {vim.VirtualMachine: [path]})
        return any(bool(one.get(path, False)) for one in found)

    def consolidate(self, vm_ref: str) -> None:
        vm = self._vm(vm_ref)
        self._tasks.run(vm.ConsolidateVMDisks_Task, what=f"consolidate the disks of {vm_ref}")

    def revert(self, vm_ref: str, snapshot_ref: str) -> None:
        """The VM is left powered off: no snapshot of vrepl's holds memory."""
        snapshot = self._session.object(vim.vm.Snapshot, snapshot_ref)
        self._tasks.run(
            lambda: snapshot.RevertToSnapshot_Task(suppressPowerOn=True),
            what=f"revert {vm_ref} to snapshot {snapshot_ref}",
        )

    def _remove_unread(self, vm_ref: str, snapshot_ref: str) -> None:
        try:
            self.remove(vm_ref, snapshot_ref)
        except VreplError as error:
            log.warning("snapshot %s of %s stays behind: %s", snapshot_ref, vm_ref, error)

    def _vm(self, vm_ref: str) -> Any:
        return self._session.object(vim.VirtualMachine, vm_ref)

    def _all(self, vm_ref: str) -> tuple[Snapshot, ...]:
        found = collector.these(self._session, [self._vm(vm_ref)], {vim.VirtualMachine: ["snapshot"]})
        if not found:
            raise NotFoundError(f"VM {vm_ref} is gone", hint="was it deleted or unregistered?")
        return snapshots_of(found[0].get("snapshot"))


def _name_taken(what: str) -> VsphereError:
    return VsphereError(f"{what}: a snapshot of that name exists", fault="DuplicateName")
