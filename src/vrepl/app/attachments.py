"""HotAdd without VDDK, as far as the control process does it: who may attach, what hangs there, and what is left."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable

from vrepl.app.probes import is_of_this_machine, process_has_ended, process_name
from vrepl.engine.changes import changed_extents
from vrepl.errors import CbtError, DiskError, MoverError, VreplError
from vrepl.ports import AllocatedExtents, AttachedDisk, ControlDesk, DiskRequest
from vrepl.vsphere.attachments import Hanging, Mark
from vrepl.vsphere.site import VsphereSite

ALL_ALLOCATED = "*"
"""The change ID that stands for no change at all: QueryChangedDiskAreas then tells what is allocated (vSphere API
reference; VDDK guides call it deprecated since 6.7 in favour of QueryAllocatedBlocks, which only VDDK has)."""


class Attachments:
    """Implements ports.DiskAttachments. Thread-safe."""

    def __init__(
        self,
        sites: Callable[[str], VsphereSite],
        machine_uuid: Callable[[str], uuid.UUID | None],
        uuid_of_proxy: Callable[[str], uuid.UUID | None],
        repository: Callable[[], str],
        process: Callable[[], str] = process_name,
    ) -> None:
        """`machine_uuid`: the product uuid of the machine that serves a site, None where it cannot be read;
        `uuid_of_proxy`: of a configured one ("": this machine).

        `repository`: its ID, which everything that is attached bears.
        """
        self._sites = sites
        self._machine_uuid = machine_uuid
        self._uuid_of_proxy = uuid_of_proxy
        self._repository = repository
        self._process = process
        self._lock = threading.Lock()
        self._proxies: dict[tuple[str, uuid.UUID], str] = {}
        self._in_use: dict[AttachedDisk, Callable[[], bool]] = {}

    def desk(self, alive: Callable[[], bool]) -> ControlDesk:
        """As ports.DiskAttachments.desk."""
        return _Desk(self, alive)

    def attach(self, request: DiskRequest, alive: Callable[[], bool]) -> AttachedDisk:
        """For a data mover. Raises VreplErrors; a mover that has died meanwhile leaves nothing."""
        site = self._sites(request.site)
        mark = Mark(self._repository(), self._process(), request.vm_ref, request.path)
        disk = site.proxy_disks.attach(self._proxy(request.site, self._uuid(request)), request, mark)
        with self._lock:
            self._in_use[disk] = alive
        if not alive():
            self.detach(disk)
            raise MoverError("the data mover died while a disk was attached for it")
        return disk

    def _uuid(self, request: DiskRequest) -> uuid.UUID | None:
        """Of the machine whose mover asks."""
        if request.proxy is None:
            return self._machine_uuid(request.site)
        return self._uuid_of_proxy(request.proxy)

    def detach(self, disk: AttachedDisk) -> None:
        """As ports.ControlDesk.detach."""
        with self._lock:
            self._in_use.pop(disk, None)
        self._sites(disk.site).proxy_disks.detach(disk)

    def clean_up(self, site: str, vm_ref: str, proxy: str | None) -> int:
        """As ports.DiskAttachments.clean_up. Raises the first error, once all was tried."""
        machine = self._machine_uuid(site) if proxy is None else self._uuid_of_proxy(proxy)
        if machine is None:
            return 0
        try:
            ref = self._proxy(site, machine)
        except DiskError:  # it is no VM of this site: nothing can hang on it
            return 0
        disks = self._sites(site).proxy_disks
        failure: VreplError | None = None
        detached = 0
        for hanging in disks.hanging(ref):
            if hanging.disk.vm_ref != vm_ref or not self._is_left(hanging):
                continue
            try:
                disks.detach(hanging.disk)
                detached += bool(hanging.disk.device_key)
            except VreplError as error:
                failure = failure or error
        if failure is not None:
            raise failure
        return detached

    def clean_up_after(self, site: str, vm_ref: str, proxy: str) -> int:
        """As ports.DiskAttachments.clean_up_after."""
        vm = self._sites(site).read_vm(vm_ref)
        folders = {path.rpartition("/")[0] for disk in vm.disks for path in (disk.path, disk.base_path) if path}
        ref = self._proxy(site, self._uuid_of_proxy(proxy))
        if ref == vm_ref:
            return 0
        return self._sites(site).proxy_disks.detach_files_in(ref, folders)

    def allocated(self, request: DiskRequest) -> AllocatedExtents:
        """As ports.ControlDesk.allocated."""
        if request.snapshot_ref is None:
            raise CbtError("what is allocated is only asked of snapshots")
        site = self._sites(request.site)
        snapshot = request.snapshot_ref
        disk = next((one for one in site.read_snapshot(snapshot).disks if one.path == request.path), None)
        if disk is None:
            raise CbtError(f"{request.path} is no disk of the snapshot")
        key = disk.key
        return AllocatedExtents(
            tuple(
                changed_extents(
                    lambda start: site.changed_areas(request.vm_ref, snapshot, key, start, ALL_ALLOCATED), disk.capacity
                )
            )
        )

    # -- inside ----------------------------------------------------------------------------------------------------

    def _proxy(self, site: str, machine: uuid.UUID | None) -> str:
        """The MoRef of the VM that a machine is."""
        if machine is None:
            raise DiskError(
                "the product uuid of the proxy cannot be read (only root may, on most systems), so which VM it is, is "
                "not known",
                code=13,
            )
        with self._lock:
            known = self._proxies.get((site, machine))
        if known is None:
            spellings = [str(machine), str(uuid.UUID(bytes_le=machine.bytes))]
            known = self._sites(site).proxy_disks.find_proxy(spellings)
            with self._lock:
                self._proxies[site, machine] = known
        return known

    def _is_left(self, hanging: Hanging) -> bool:
        """Whether whoever attached it for this repository has no use for it any more."""
        if hanging.mark.repository != self._repository():
            return False
        if hanging.mark.process == self._process():
            with self._lock:
                alive = self._in_use.get(hanging.disk)
            return alive is None or not alive()
        if is_of_this_machine(hanging.mark.process):
            return process_has_ended(hanging.mark.process)
        # Of another machine nobody knows; but whoever asks holds the lock of the replica that it worked for.
        return True


class _Desk:
    """Implements ports.ControlDesk for one data mover."""

    def __init__(self, attachments: Attachments, alive: Callable[[], bool]) -> None:
        self._attachments = attachments
        self._alive = alive

    def attach(self, request: DiskRequest) -> AttachedDisk:
        return self._attachments.attach(request, self._alive)

    def detach(self, disk: AttachedDisk) -> None:
        self._attachments.detach(disk)

    def allocated(self, request: DiskRequest) -> AllocatedExtents:
        return self._attachments.allocated(request)
