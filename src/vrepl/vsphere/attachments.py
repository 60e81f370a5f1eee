"""Disks of VMs attached to a proxy's VM, and taken off again: HotAdd by the public API, without VDDK.

What it goes by: the vSphere API (ReconfigVM_Task; VirtualDiskMode: `independent_nonpersistent` discards what is
written) and hystax/OpenVixDiskLib docs/hotadd.md, where a disk that is read is attached so through its snapshot, and
the disk of a powered-off VM `persistent` to be written, each without a file operation. What hangs there because of
vrepl says so in the proxy VM's extraConfig, set in the same reconfiguration, so that after any death it can be told
from what others did.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from vrepl.errors import DiskError, NotFoundError, VsphereError
from vrepl.model import ATTACHED_MARK
from vrepl.ports import AttachedDisk, DiskRequest
from vrepl.vsphere import collector, hardware
from vrepl.vsphere.api import kind_of, ref_of, vim
from vrepl.vsphere.session import Session
from vrepl.vsphere.tasks import Tasks
from vrepl.vsphere.translation import controllers_of, settings_of

SCSI_KINDS = ("pvscsi", "lsilogic-sas", "lsilogic", "buslogic")
"""The best first."""
UNITS = [unit for unit in range(16) if unit != 7]
"""Of a SCSI controller; 7 is its own (vSphere Virtual Machine Administration, "SCSI Controllers")."""
NO_ACCESS = 13
"""Code as VDDK has it (`vddk.codes`)."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Whose a disk on a proxy is."""

    repository: str
    process: str
    """Name of the control process that attached it (`app.probes.process_name`)."""
    vm_ref: str
    path: str

    def text(self) -> str:
        return json.dumps([self.repository, self.process, self.vm_ref, self.path], separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> Mark | None:
        """None: somebody else wrote it."""
        try:
            repository, process, vm_ref, path = json.loads(text)
        except (ValueError, TypeError):
            return None
        return cls(str(repository), str(process), str(vm_ref), str(path))


@dataclass(frozen=True, slots=True)
class Hanging:
    """A disk that hangs on the proxy, and its mark."""

    disk: AttachedDisk
    mark: Mark


@dataclass(frozen=True, slots=True)
class _Backing:
    """The disk that is to be attached, as its own VM has it."""

    uuid: str
    capacity: int
    datastore: Any


@dataclass(frozen=True, slots=True)
class _Proxy:
    """The proxy's VM as one read showed it."""

    devices: list[Any]
    settings: dict[str, str]
    version: str
    has_snapshots: bool


class ProxyDisks:
    """Attaches and detaches at one site. Thread-safe: one reconfiguration of a proxy at a time."""

    def __init__(self, session: Session, tasks: Tasks) -> None:
        self._session = session
        self._tasks = tasks
        self._lock = threading.Lock()

    def find_proxy(self, spellings: Sequence[str]) -> str:
        """The MoRef of the one VM that has one of these BIOS uuids. Raises DiskError where none or several have."""
        index = self._session.content.searchIndex
        found = {
            ref_of(vm)
            for uuid in dict.fromkeys(spellings)
            for vm in index.FindAllByUuid(uuid=uuid, vmSearch=True, instanceUuid=False) or ()
        }
        if len(found) != 1:
            raise DiskError(
                f"{len(found)} VMs of site {self._session.settings.name} have the BIOS uuid of the proxy, so disks "
                "cannot be attached to it",
                code=NO_ACCESS,
            )
        return found.pop()

    def attach(self, proxy_ref: str, request: DiskRequest, mark: Mark) -> AttachedDisk:
        """Raises DiskError where it cannot be, DiskLockedError while somebody else has it, and other VreplErrors."""
        backing = self._backing(request)
        proxy = self._session.object(vim.VirtualMachine, proxy_ref)

        def begin() -> Any:
            now = self._read(proxy)
            if now.has_snapshots:
                raise DiskError(
                    "the proxy's VM has a snapshot, and the next one would take along what hangs on it",
                    code=NO_ACCESS,
                    hint="remove the proxy's snapshots; nothing may take any while runs go on",
                )
            controller, unit = _free_slot(now.devices, request.path)
            disk = vim.vm.device.VirtualDisk(
                key=-1,
                controllerKey=controller,
                unitNumber=unit,
                backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
                    fileName=request.path,
                    datastore=backing.datastore,
                    diskMode="persistent" if request.writable else "independent_nonpersistent",
                ),
            )
            spec = vim.vm.ConfigSpec(
                changeVersion=now.version,  # another client may take the slot meanwhile
                deviceChange=[hardware.added(disk)],
                extraConfig=[vim.option.OptionValue(key=f"{ATTACHED_MARK}{controller}-{unit}", value=mark.text())],
            )
            return proxy.ReconfigVM_Task(spec=spec)

        def there() -> Hanging | None:
            """After a lost reply: is it there all the same?"""
            found = (one for one in self._hanging(proxy) if one.mark == mark and one.disk.device_key)
            return next(found, None)

        with self._lock:
            self._tasks.run(begin, what=f"attach {request.path} to the proxy", recover=there)
            hanging = there()
        if hanging is None:
            raise VsphereError(f"{request.path} was attached to the proxy, and does not hang there")
        disk = hanging.disk
        if disk.uuid.lower() != backing.uuid.lower() or disk.capacity != backing.capacity:
            raise VsphereError(
                f"{request.path} has uuid {backing.uuid} and {backing.capacity} bytes; what was attached to the proxy "
                f"has {disk.uuid} and {disk.capacity}"
            )
        return disk

    def hanging(self, proxy_ref: str) -> list[Hanging]:
        """What vrepl, of whatever repository, attached to this VM. Raises NotFoundError where it is gone."""
        with self._lock:  # what is being attached hangs there, or not, once it is known which
            return self._hanging(self._session.object(vim.VirtualMachine, proxy_ref))

    def detach(self, disk: AttachedDisk) -> None:
        """One that hangs there no longer is fine.

        Raises DiskError where the proxy got a snapshot meanwhile, which took the disk along: what was written since
        lies in a file of that snapshot, and is lost to the disk unless the snapshot is removed first.
        """
        proxy = self._session.object(vim.VirtualMachine, disk.proxy_ref)

        def begin() -> Any:
            now = self._read(proxy)
            device, key = _found(now, disk)
            spec = vim.vm.ConfigSpec(changeVersion=now.version)
            if device is not None:
                spec.deviceChange = [hardware.removed(device)]
            if key is not None:
                spec.extraConfig = [vim.option.OptionValue(key=key, value="")]
            return proxy.ReconfigVM_Task(spec=spec)

        def gone() -> bool | None:
            return True if _found(self._read(proxy), disk) == (None, None) else None

        with self._lock:
            try:
                if not gone():
                    self._tasks.run(begin, what=f"detach {disk.path} from the proxy", recover=gone)
            except NotFoundError:  # the proxy is gone, and what hung on it with it
                return

    def detach_files_in(self, proxy_ref: str, folders: Collection[str]) -> int:
        """Take off every disk whose file lies in one of these folders; how many. Raises VreplErrors.

        For what a client on a machine that is gone had attached, and bears no mark: VDDK's HotAdd.
        """
        proxy = self._session.object(vim.VirtualMachine, proxy_ref)

        def of_these() -> list[Any]:
            return [one for one in self._read(proxy).devices if _path(one).rpartition("/")[0] in folders]

        def begin() -> Any:
            changes = [hardware.removed(device) for device in of_these()]
            return proxy.ReconfigVM_Task(spec=vim.vm.ConfigSpec(deviceChange=changes))

        with self._lock:
            found = len(of_these())
            if found:
                self._tasks.run(begin, what="detach disks from the proxy", recover=lambda: not of_these() or None)
        return found

    def _hanging(self, proxy: Any) -> list[Hanging]:
        now = self._read(proxy)
        found = []
        for key, text in now.settings.items():
            mark = Mark.parse(text) if key.startswith(ATTACHED_MARK) else None
            if mark is None:
                continue
            device = next((one for one in now.devices if _slot(one) == key.removeprefix(ATTACHED_MARK)), None)
            shown = _path(device) if device is not None else mark.path
            if device is not None and shown != mark.path and not _stands_on(device, mark.path):
                device = None  # somebody took the disk off, and put another in its place
            found.append(Hanging(_attached(self._session.settings.name, ref_of(proxy), mark, device), mark))
        return found

    def _read(self, proxy: Any) -> _Proxy:
        paths = ["config.hardware.device", "config.extraConfig", "config.changeVersion", "snapshot"]
        found = collector.these(self._session, [proxy], {vim.VirtualMachine: paths})
        if not found:
            raise NotFoundError(f"the proxy's VM {ref_of(proxy)} is gone")
        return _Proxy(
            list(found[0].get("config.hardware.device", [])),
            settings_of(found[0].get("config.extraConfig", [])),
            str(found[0].get("config.changeVersion", "") or ""),
            found[0].get("snapshot") is not None,
        )

    def _backing(self, request: DiskRequest) -> _Backing:
        if request.snapshot_ref is not None:
            kind, ref = vim.vm.Snapshot, request.snapshot_ref
        else:
            kind, ref = vim.VirtualMachine, request.vm_ref
        path = "config.hardware.device"
        found = collector.these(self._session, [self._session.object(kind, ref)], {kind: [path]})
        for device in found[0].get(path, []) if found else []:
            if _path(device) == request.path:
                uuid = str(getattr(device.backing, "uuid", None) or "")
                if not uuid:
                    raise DiskError(
                        f"{request.path} has no uuid, so that on the proxy it could not be told from other disks",
                        code=NO_ACCESS,
                        hint="its descriptor file may lack ddb.uuid: vmkfstools -J setuuid gives it one",
                    )
                return _Backing(uuid, int(device.capacityInBytes), device.backing.datastore)
        raise DiskError(
            f"{request.path} is no disk of {kind_of(self._session.object(kind, ref))} {ref}",
            code=NO_ACCESS,
            hint="was the disk moved, or a snapshot taken?",
        )


def _free_slot(devices: Sequence[Any], path: str) -> tuple[int, int]:
    """Key of a controller, and a unit of it. Raises DiskError."""
    if any(_path(one) == path for one in devices):
        raise DiskError(
            f"{path} hangs on the proxy already: another client has it open, or one that died left it there",
            code=NO_ACCESS,
        )
    taken = {_slot(one) for one in devices}
    scsi = [one for one in controllers_of(devices) if one.kind in SCSI_KINDS and one.sharing == "noSharing"]
    scsi.sort(key=lambda one: (SCSI_KINDS.index(one.kind), one.bus_number))
    for controller in scsi:
        for unit in UNITS:
            if f"{controller.key}-{unit}" not in taken:
                return controller.key, unit
    raise DiskError(
        "the proxy's VM has no free SCSI slot", code=NO_ACCESS, hint="give it another (paravirtual) SCSI controller"
    )


def _found(now: _Proxy, disk: AttachedDisk) -> tuple[Any | None, str | None]:
    """The device, and the key of its mark. Raises DiskError where a snapshot of the proxy took the disk along."""
    device = next((one for one in now.devices if one.key == disk.device_key and _path(one) == disk.path), None)
    if device is None and any(_stands_on(one, disk.path) for one in now.devices):
        raise DiskError(
            f"the proxy's VM got a snapshot while {disk.path} hung on it, which took the disk along",
            code=NO_ACCESS,
            hint="remove the proxy's snapshots, then run the job again; a proxy may not have any",
        )
    return device, next((key for key, text in now.settings.items() if _marks(key, text, disk)), None)


def _path(device: Any) -> str:
    """Of a disk's file; "" for what is no disk."""
    if not isinstance(device, vim.vm.device.VirtualDisk):
        return ""
    return str(getattr(device.backing, "fileName", "") or "")


def _slot(device: Any) -> str:
    if not isinstance(device, vim.vm.device.VirtualDevice) or device.unitNumber is None:
        return ""
    return f"{device.controllerKey}-{device.unitNumber}"


def _stands_on(device: Any, path: str) -> bool:
    """Whether a disk's chain of links has this file below its own."""
    backing = getattr(getattr(device, "backing", None), "parent", None)
    while backing is not None:
        if getattr(backing, "fileName", None) == path:
            return True
        backing = getattr(backing, "parent", None)
    return False


def _marks(key: str, text: str, disk: AttachedDisk) -> bool:
    mark = Mark.parse(text) if key.startswith(ATTACHED_MARK) else None
    return mark is not None and (mark.vm_ref, mark.path) == (disk.vm_ref, disk.path)


def _attached(site: str, proxy_ref: str, mark: Mark, device: Any | None) -> AttachedDisk:
    return AttachedDisk(
        site=site,
        vm_ref=mark.vm_ref,
        path=mark.path,
        proxy_ref=proxy_ref,
        device_key=int(device.key) if device is not None else 0,
        unit=int(device.unitNumber) if device is not None else 0,
        uuid=str(getattr(device.backing, "uuid", None) or "") if device is not None else "",
        capacity=int(device.capacityInBytes) if device is not None else 0,
    )
