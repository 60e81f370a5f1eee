"""Replicas: made with empty disks, changed, removed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from vrepl.errors import NotFoundError, VreplError, VsphereError
from vrepl.model import Disk, PowerState, ReplicaSpec, VirtualMachine
from vrepl.vsphere import collector, disk_files, hardware
from vrepl.vsphere.api import ref_of, vim
from vrepl.vsphere.inventory import Inventory
from vrepl.vsphere.placement import NewReplica, Places
from vrepl.vsphere.reconcile import placed_on
from vrepl.vsphere.session import Session
from vrepl.vsphere.tasks import Tasks
from vrepl.vsphere.translation import links_of

log = logging.getLogger(__name__)


class Replicas:
    """What is done to replicas at the target site. VMs are named by their refs."""

    def __init__(
        self, session: Session, running: Tasks, inventory: Inventory, places: Places, *, new_uuid: Callable[[], str]
    ) -> None:
        self._session = session
        self._places = places
        self._tasks = running
        self._inventory = inventory
        self._new_uuid = new_uuid

    def create(self, spec: ReplicaSpec) -> VirtualMachine:
        """Create and register, powered off. Nothing is left behind when it raises.

        Raises NotFoundError for a host, datastore, folder, pool or network that does not exist.
        """
        place = self._places.find_for(NewReplica(spec.name, spec.hardware), spec.placement)
        config = hardware.replica_config(spec, place, self._new_uuid)
        what = f"create replica {spec.name} on host {place.host_name}"

        def there() -> Any:
            # Ours, if it exists: nobody else has this instanceUuid.
            found = self._session.content.searchIndex.FindAllByUuid(
                uuid=config.instanceUuid, vmSearch=True, instanceUuid=True
            )
            return found[0] if found else None

        folder = self._places.make_folders(place)
        made = self._tasks.run(
            lambda: folder.CreateVM_Task(config=config, pool=place.pool, host=place.host),
            what=what,
            recover=there,
        )
        try:
            vm = self._inventory.read_vm(ref_of(made))
            self._check_disks(vm, spec)
            self._places.count(place)
        except BaseException:
            self._undo(ref_of(made), what)
            raise
        return vm

    def add_disk(self, vm_ref: str, spec: ReplicaSpec, disk_index: int, *, path: str | None = None) -> VirtualMachine:
        """Add the empty counterpart of the source disk with this index, and its controller if it is missing.

        `path`: a file that is there, to be attached instead.
        """
        disk = next(disk for disk in spec.disks if disk.index == disk_index)
        vm = self._inventory.read_vm(vm_ref)
        place = self._places.find(placed_on(spec.placement, vm.host))
        kind, bus = _position(spec, disk)
        own = next((one for one in vm.hardware.controllers if (one.kind, one.bus_number) == (kind, bus)), None)
        changes = []
        if own is None:
            source = next(one for one in spec.hardware.controllers if one.key == disk.controller_key)
            controller_key = hardware.temporary_key(source.key)
            changes.append(hardware.added(hardware.controller_device(source, controller_key)))
        else:
            controller_key = own.key
            if any((one.controller_key, one.unit_number) == (own.key, disk.unit_number) for one in vm.disks):
                raise VsphereError(
                    f"replica {vm.name} already has a disk at {kind} {bus}:{disk.unit_number}",
                    fault="InvalidDeviceSpec",
                )
        datastore, datastore_name = place.store_of(spec.placement, disk.key)
        device = hardware.disk_device(
            disk,
            key=-100_000,
            controller_key=controller_key,
            thin=disk.thin if spec.thin is None else spec.thin,
            datastore=datastore,
            datastore_name=datastore_name,
        )
        if path is not None:
            hardware.name_file(device, path)
        changes.append(hardware.added(device, new_file=path is None))
        self._reconfigure(vm_ref, vim.vm.ConfigSpec(deviceChange=changes), f"add a disk to replica {vm.name}")
        return self._inventory.read_vm(vm_ref)

    def remove_disk(self, vm_ref: str, disk_key: int) -> None:
        """Remove the disk from the VM; one that is gone already is fine.

        Its files are destroyed only while the VM has no snapshots at all: any of them may stand for a configuration
        that needs the files, whatever the chain of the disk looks like now. Files that stay go with the last snapshot
        that names them, or with the VM; what no snapshot names is said in the log.
        """
        vm = self._inventory.read_vm(vm_ref)
        device = self._disk(vm_ref, disk_key)
        if device is not None:
            alone = len(list(links_of(device.backing))) == 1
            change = hardware.removed(device, destroy_file=alone and not vm.snapshots)
            if alone and vm.snapshots:
                log.info("%s: %s stays on its datastore, for the VM has snapshots", vm.name, device.backing.fileName)
            self._reconfigure(vm_ref, vim.vm.ConfigSpec(deviceChange=[change]), f"remove disk {disk_key} of {vm_ref}")

    def files_of(self, vm_ref: str, disk_key: int) -> tuple[str, ...]:
        """From the file that writes go to down to the base; () where there is no such disk."""
        device = self._disk(vm_ref, disk_key)
        return disk_files.files_of(device) if device is not None else ()

    def _disk(self, vm_ref: str, disk_key: int) -> Any | None:
        return next(
            (
                one
                for one in self._devices(vm_ref)
                if isinstance(one, vim.vm.device.VirtualDisk) and int(one.key) == disk_key
            ),
            None,
        )

    def set_extra_config(self, vm_ref: str, values: Mapping[str, str]) -> None:
        """An empty value removes the key."""
        config = vim.vm.ConfigSpec(extraConfig=hardware.options(values))
        self._reconfigure(vm_ref, config, f"set extraConfig of {vm_ref}")

    def destroy(self, vm_ref: str) -> None:
        """Unregister the VM and delete its files. Raises VsphereError if it is powered on; one that is gone is fine."""
        try:
            vm = self._inventory.read_vm(vm_ref)
        except NotFoundError:
            return
        if vm.power is PowerState.ON:
            raise VsphereError(
                f"VM {vm.name} is powered on and will not be destroyed",
                fault="InvalidPowerState",
                hint="power it off first",
            )
        target = self._vm(vm_ref)
        try:
            self._tasks.run(target.Destroy_Task, what=f"destroy VM {vm.name}")
        except NotFoundError:
            log.debug("VM %s is gone already", vm_ref)

    def _reconfigure(self, vm_ref: str, config: Any, what: str) -> None:
        vm = self._vm(vm_ref)
        self._tasks.run(lambda: vm.ReconfigVM_Task(spec=config), what=what)

    def _devices(self, vm_ref: str) -> list[Any]:
        path = "config.hardware.device"
        found = collector.these(self._session, [self._vm(vm_ref)], {vim.VirtualMachine: [path]})
        if not found:
            raise NotFoundError(f"VM {vm_ref} is gone", hint="was it deleted or unregistered?")
        return list(found[0].get(path, []))

    def _vm(self, vm_ref: str) -> Any:
        return self._session.object(vim.VirtualMachine, vm_ref)

    def _check_disks(self, vm: VirtualMachine, spec: ReplicaSpec) -> None:
        """What was made must be what was asked for: a disk too short would fail only in mid-copy."""
        made = {(*_place_of(vm, disk), disk.capacity) for disk in vm.disks}
        wanted = {(*_position(spec, disk), disk.unit_number, disk.capacity) for disk in spec.disks}
        if made != wanted:
            raise VsphereError(
                f"replica {spec.name} was created with other disks than its source has: {sorted(made)} "
                f"instead of {sorted(wanted)} (controller, bus, unit, bytes)"
            )

    def _undo(self, vm_ref: str, what: str) -> None:
        try:
            self.destroy(vm_ref)
        except VreplError as error:
            log.warning("%s failed, and removing what it made failed too: %s", what, error)


def _position(spec: ReplicaSpec, disk: Disk) -> tuple[str, int]:
    """Controller kind and bus of a source disk."""
    controller = next((one for one in spec.hardware.controllers if one.key == disk.controller_key), None)
    if controller is None:
        raise VsphereError(f"{disk.title} of {spec.name} hangs on a controller of a kind that vrepl does not know")
    return controller.kind, controller.bus_number


def _place_of(vm: VirtualMachine, disk: Disk) -> tuple[str, int, int]:
    """Controller kind, bus and unit of a replica's disk."""
    controller = next((one for one in vm.hardware.controllers if one.key == disk.controller_key), None)
    if controller is None:
        return "unknown", 0, disk.unit_number
    return controller.kind, controller.bus_number, disk.unit_number
