"""A site in memory that plays every role of `ports.sites`: snapshots, CBT and locks are vSphere's, bytes are real.

It is the fast half of the proof (the lab is the slow one): a snapshot keeps a whole copy of each disk and of its
change tracking, so that it is right by being simple.
"""

from __future__ import annotations

import datetime as dt
import itertools
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tests.support.memory_disk import MemoryDisk, MemoryHandle
from vrepl.errors import (
    CbtError,
    DiskLockedError,
    NotFoundError,
    NotReplicableError,
    TransientVsphereError,
    VsphereError,
)
from vrepl.extents import GRAIN, Extent
from vrepl.model import (
    ChangedAreas,
    Controller,
    Datastore,
    Disk,
    GuestState,
    Hardware,
    ListedVm,
    PowerState,
    ReplicaPlacement,
    ReplicaSpec,
    Sighting,
    Snapshot,
    SnapshotState,
    VirtualMachine,
    VmAtRest,
)
from vrepl.model.addresses import AddressPlan, GuestAdapter, GuestNetwork
from vrepl.model.guests import GuestLogin, GuestProcess, ProgramEnd, Script
from vrepl.model.selection import Candidate
from vrepl.ports import DiskAddress, SiteConnection
from vrepl.transport.buffers import Buffer
from vrepl.transport.disk import Completion

HARDWARE = Hardware(
    version=19,
    guest_id="debian12_64Guest",
    firmware="bios",
    secure_boot=False,
    cpus=1,
    cores_per_socket=1,
    memory_mib=256,
    controllers=(Controller(1000, "pvscsi", 0),),
)


@dataclass
class Tracking:
    """CBT of one disk: the epoch of each grain's last write."""

    id: str
    epoch: int = 1
    last_change: dict[int, int] = field(default_factory=dict)

    def copy(self) -> Tracking:
        return Tracking(self.id, self.epoch, dict(self.last_change))


@dataclass
class MemoryVirtualDisk:
    key: int
    label: str
    disk: MemoryDisk
    uuid: str
    base_path: str
    datastore: str
    mode: str = "persistent"
    thin: bool = True
    tracking: Tracking | None = None
    unit: int = 0
    generation: int = 0
    """Of the leaf: snapshots and reverts begin a new one."""

    @property
    def path(self) -> str:
        leaf = f"-{self.generation:06}.vmdk" if self.generation else ".vmdk"
        return self.base_path.replace(".vmdk", leaf)

    def copy(self) -> MemoryVirtualDisk:
        return replace(self, disk=self.disk.clone(), tracking=self.tracking.copy() if self.tracking else None)


@dataclass
class MemorySnapshot:
    ref: str
    name: str
    description: str
    created: dt.datetime
    parent_ref: str | None
    quiesced: bool
    disks: list[MemoryVirtualDisk]
    change_ids: dict[int, str | None]
    hardware: Hardware
    extra_config: dict[str, str] = field(default_factory=dict)
    guest: GuestNetwork | None = None


@dataclass
class MemoryVm:
    ref: str
    name: str
    instance_uuid: str
    disks: list[MemoryVirtualDisk]
    power: PowerState = PowerState.ON
    cbt_enabled: bool = False
    cbt_supported: bool = True
    tools_running: bool = True
    hardware: Hardware = HARDWARE
    snapshots: list[MemorySnapshot] = field(default_factory=list)
    current: str | None = None
    extra_config: dict[str, str] = field(default_factory=dict)
    writers: int = 0
    readers: int = 0
    generations: int = 0
    template: bool = False
    consolidation_needed: bool = False
    access: str | None = None
    """Whose PrepareForAccess has disabled its relocation."""
    disabled_methods: tuple[str, ...] = ()
    lost_power: bool = False
    tracked: set[int] = field(default_factory=set)
    """Keys of the disks that change tracking was switched on for; empty: of all, where the VM has it on."""
    stun: bool = False
    """The next snapshot is the first after change tracking was enabled on the running VM."""
    tags: tuple[str, ...] = ()
    notes: str = ""
    host: str = "esx-1"
    stands_on: tuple[str, str] | None = None
    """Of a linked clone: VM and snapshot whose disks are its disks' parents."""
    heartbeat: str = "green"
    """Once it is powered on."""
    address: str = ""
    guest: GuestNetwork | None = None
    """What its Tools report while it runs; a snapshot keeps it, as the guest's own files say it."""
    given: AddressPlan | None = None
    """What customisation makes of it at its next power-on."""
    customised: tuple[dt.datetime, str] | None = None
    """When customisation ended in it, and why it failed ("": it did not)."""
    tools_known: bool = True
    """The site has seen its Tools run."""
    files: dict[str, bytes] = field(default_factory=dict)
    shown_state: str = ""
    """In the attribute that people see."""
    """Beside it on its datastore: what no revert takes back."""

    def snapshot(self, ref: str) -> MemorySnapshot:
        for snapshot in self.snapshots:
            if snapshot.ref == ref:
                return snapshot
        raise NotFoundError(f"snapshot {ref} of VM {self.name} is gone")


class MemorySite:
    """`cbt_unit`: bytes of a CBT block. `page_areas`: areas per page of QueryChangedDiskAreas."""

    is_vcenter = True

    def __init__(
        self, name: str, clock: Callable[[], dt.datetime], *, cbt_unit: int = GRAIN, page_areas: int = 2
    ) -> None:
        self.name = name
        self._clock = clock
        self._numbers = itertools.count(1)
        self.cbt_unit = cbt_unit
        self.page_areas = page_areas
        self.vms: dict[str, MemoryVm] = {}
        self.calls: list[str] = []
        self.before_call: Callable[[str], None] = lambda method: None
        """A test's way to interfere: called with the method's name before it has any effect."""
        self.after_call: Callable[[str], None] = lambda method: None
        self.free = 10**15
        self.cbt_misses: Callable[[int, int], bool] = lambda index, offset: False
        """Which writes of a guest (disk's index, offset) change tracking does not see: it lies in silence."""
        self.customisation: Callable[[MemoryVm], str | None] = lambda vm: ""
        """How customisation ends in a guest: why it fails, "" where it does not, None where it never ends."""
        self.powered_on: list[tuple[str, tuple[bool, ...]]] = []
        """VMs in their order, with what their adapters were connected to."""
        self.isolated_networks: set[tuple[str, str]] = set()
        """(host, name)"""
        self.newest_hardware = 21
        self.cbt_per_disk = True
        """Change tracking is switched on for the disks that are there at that moment, and for no later ones."""
        self.cbt_answer: str = "true"
        """What QueryChangedDiskAreas says: the truth, `whole` (all of the disk), `false` (too much), `fault`."""
        self.quiesce_fault: Exception | None = None
        """What a quiesced snapshot fails with; `quiesce_leaves`: and leaves the snapshot all the same."""
        self.quiesce_leaves = False
        self.waiting_in_guests: dict[int, tuple[str, float]] = {}
        """By pid: the script's name, and after how many seconds the guest runs it by itself."""
        self.guest_programs: Callable[[MemoryVm, GuestLogin, Script], ProgramEnd] = lambda vm, login, script: (
            ProgramEnd(0)
        )
        """What a program in a guest comes to."""
        self.description_limit: int | None = None
        """Characters that a snapshot's description keeps."""
        self.value_limit: int | None = None
        """Characters that an extraConfig value keeps."""
        self.loose_disks: dict[str, MemoryDisk] = {}
        """Files of disks that were taken off a VM, or are copies: what nothing refers to has to be deleted."""
        self.copy_fault: Exception | None = None
        """What copying a disk fails with."""
        self.survives: Callable[[int], bool] = lambda number: False
        """Which of its unflushed writes (by number) reach the disk when a data mover dies."""

    # -- what a test does ---------------------------------------------------------------------------------------------

    def add_vm(self, name: str, capacities: Sequence[int], *, power: PowerState = PowerState.ON) -> MemoryVm:
        number = next(self._numbers)
        disks = [self._new_disk(name, index, capacity) for index, capacity in enumerate(capacities)]
        vm = MemoryVm(f"vm-{number}", name, str(uuid.UUID(int=number + hash_of(self.name))), disks, power)
        self.vms[vm.ref] = vm
        return vm

    def clone_by_hand(self, vm: MemoryVm, name: str) -> MemoryVm:
        """As vSphere clones: extraConfig comes along, snapshots do not, and the instanceUuid is the clone's own."""
        made = self.add_vm(name, [disk.disk.capacity for disk in vm.disks], power=PowerState.OFF)
        for ours, theirs in zip(made.disks, vm.disks, strict=True):
            ours.disk = theirs.disk.clone()
        made.extra_config = dict(vm.extra_config)
        made.cbt_enabled = vm.cbt_enabled
        return made

    def _new_disk(self, vm_name: str, index: int, capacity: int) -> MemoryVirtualDisk:
        return MemoryVirtualDisk(
            key=2000 + index,
            label=f"Hard disk {index + 1}",
            disk=MemoryDisk(capacity),
            uuid=str(uuid.UUID(int=next(self._numbers) + 1000)),
            base_path=f"[{self.name}-ds] {vm_name}/{vm_name}_{index}.vmdk",
            datastore=f"{self.name}-ds",
            unit=index,
        )

    def guest_write(self, vm: MemoryVm, index: int, offset: int, data: bytes) -> None:
        disk = vm.disks[index]
        if not self.cbt_misses(index, offset):
            self._touch(disk, offset, len(data))
        disk.disk.write(offset, data)

    def guest_unmap(self, vm: MemoryVm, index: int, extent: Extent) -> None:
        disk = vm.disks[index]
        if not self.cbt_misses(index, extent.offset):
            self._touch(disk, extent.offset, extent.length)
        disk.disk.unmap(extent)

    def reset_cbt(self, vm: MemoryVm, index: int) -> None:
        if vm.disks[index].tracking:
            vm.disks[index].tracking = Tracking(self._tracking_id())

    def _touch(self, disk: MemoryVirtualDisk, offset: int, length: int) -> None:
        if disk.tracking is None:
            return
        for grain in range(offset // GRAIN, -(-(offset + length) // GRAIN)):
            disk.tracking.last_change[grain] = disk.tracking.epoch

    def _tracking_id(self) -> str:
        return f"52 {next(self._numbers):04x}"

    # -- ports.sites --------------------------------------------------------------------------------------------------

    @property
    def soap_calls(self) -> int:
        return len(self.calls)

    def _call(self, method: str) -> None:
        self.calls.append(method)
        self.before_call(method)

    def connection(self) -> SiteConnection:
        return SiteConnection("memory", 443, 902, "user", "password", "00")

    def close(self) -> None:
        pass

    def list_vms(self) -> list[VirtualMachine]:
        self._call("list_vms")
        return [self._view(vm) for vm in self.vms.values()]

    def find_vms(self, names: Sequence[str]) -> list[VirtualMachine]:
        self._call("find_vms")
        by_name = {vm.name: vm for vm in self.vms.values()}
        missing = [name for name in names if name not in by_name]
        if missing:
            raise NotFoundError(f"site {self.name} has no VM named {', '.join(missing)}")
        return [self._view(by_name[name]) for name in names]

    def list_named(self, names: Sequence[str]) -> list[ListedVm]:
        return [_listed(vm) for vm in self.find_vms(names)]

    def list_those(self, vm_refs: Sequence[str]) -> list[ListedVm]:
        return [_listed(vm) for vm in self.read_vms(vm_refs)]

    def candidates(self, tag_patterns: Sequence[str]) -> list[Candidate]:
        self._call("candidates")
        if tag_patterns:
            self.calls.extend(["tags"] * 4)
        return [
            Candidate(
                ref=vm.ref,
                name=vm.name,
                path=f"dc/{vm.name}",
                folder="dc",
                tags=vm.tags if tag_patterns else (),
                power=vm.power,
                template=vm.template,
            )
            for vm in self.vms.values()
        ]

    def read_vms(self, vm_refs: Sequence[str]) -> list[VirtualMachine]:
        self._call("read_vms")
        return [self._view(self.vms[ref]) for ref in vm_refs if ref in self.vms]

    def find_vm_by_instance_uuid(self, instance_uuid: str) -> VirtualMachine | None:
        self._call("find_vm_by_instance_uuid")
        return next((self._view(vm) for vm in self.vms.values() if vm.instance_uuid == instance_uuid), None)

    def read_vm(self, vm_ref: str) -> VirtualMachine:
        self._call("read_vm")
        return self._view(self._vm(vm_ref))

    def _vm(self, vm_ref: str) -> MemoryVm:
        if vm_ref not in self.vms:
            raise NotFoundError(f"VM {vm_ref} is gone")
        return self.vms[vm_ref]

    def wait_for_tasks(self, vm_ref: str) -> None:
        pass

    def read_vm_at_rest(self, vm_ref: str) -> VirtualMachine:
        vm = self._vm(vm_ref)
        return replace(self.read_vm(vm_ref), guest=vm.guest if vm.power is PowerState.ON else None)

    def find_vm_at_rest(self, instance_uuid: str, near: Sighting | None) -> VmAtRest | None:
        self._call("find_vm_at_rest")
        vm = next((vm for vm in self.vms.values() if vm.instance_uuid == instance_uuid), None)
        if vm is None:
            return None
        known = near.snapshot_ref if near is not None and near.vm_ref == vm.ref else None
        state = next((self._state(one) for one in vm.snapshots if one.ref == known), None)
        return VmAtRest(replace(self._view(vm), guest=vm.guest if vm.power is PowerState.ON else None), state)

    def read_snapshot(self, snapshot_ref: str) -> SnapshotState:
        self._call("read_snapshot")
        for vm in self.vms.values():
            for snapshot in vm.snapshots:
                if snapshot.ref == snapshot_ref:
                    return self._state(snapshot)
        raise NotFoundError(f"snapshot {snapshot_ref} is gone")

    def enable_cbt(self, vm_ref: str) -> bool:
        self._call("enable_cbt")
        vm = self._vm(vm_ref)
        untracked = {disk.key for disk in vm.disks} - vm.tracked
        switched = not vm.cbt_enabled or bool(untracked)
        vm.cbt_enabled = True
        vm.tracked |= untracked
        vm.stun = vm.stun or (switched and vm.power is PowerState.ON)
        return switched

    def disable_cbt(self, vm_ref: str) -> None:
        self._call("disable_cbt")
        vm = self._vm(vm_ref)
        vm.cbt_enabled = False
        vm.tracked = set()
        for disk in vm.disks:
            disk.tracking = None

    def create_snapshot(
        self, vm_ref: str, name: str, description: str, *, quiesce: bool, within: float | None = None
    ) -> SnapshotState:
        del within
        self._call("create_snapshot")
        vm = self._vm(vm_ref)
        if vm.writers:
            raise TransientVsphereError(f"a disk of {vm.name} is open for writing", fault="FileLocked")
        if quiesce and self.quiesce_fault is not None and not self.quiesce_leaves:
            raise self.quiesce_fault
        stunned, vm.stun = vm.stun, False
        if stunned and quiesce:
            raise VsphereError("the guest stood still while change tracking began", fault="ApplicationQuiesceFault")
        change_ids: dict[int, str | None] = {}
        for disk in vm.disks:
            tracked = disk.key in vm.tracked or not self.cbt_per_disk or not vm.tracked
            if vm.cbt_enabled and disk.tracking is None and tracked:
                disk.tracking = Tracking(self._tracking_id())
            change_ids[disk.key] = f"{disk.tracking.id}/{disk.tracking.epoch}" if disk.tracking else None
        snapshot = MemorySnapshot(
            ref=f"snapshot-{next(self._numbers)}",
            name=name,
            description=description[: self.description_limit],
            created=self._clock(),
            parent_ref=vm.current,
            quiesced=quiesce and vm.tools_running,
            disks=[disk.copy() for disk in vm.disks],
            change_ids=change_ids,
            hardware=vm.hardware,
            extra_config=dict(vm.extra_config),
            guest=vm.guest,
        )
        vm.snapshots.append(snapshot)
        vm.current = snapshot.ref
        vm.generations += 1
        for disk in vm.disks:
            disk.generation = vm.generations
            if disk.tracking:
                disk.tracking.epoch += 1
        self.after_call("create_snapshot")
        if quiesce and self.quiesce_fault is not None:
            raise self.quiesce_fault
        return self._state(snapshot)

    def run_in_guest(self, vm_ref: str, login: GuestLogin, script: Script, *, within: float) -> ProgramEnd:
        del within
        self._call(f"run_in_guest {script.name}")
        end = self.guest_programs(self._vm(vm_ref), login, script)
        self.after_call(f"run_in_guest {script.name}")
        return end

    def run_in_guest_later(self, vm_ref: str, login: GuestLogin, script: Script, *, seconds: float) -> GuestProcess:
        del vm_ref, login
        self._call("run_in_guest_later")
        pid = next(self._numbers)
        self.waiting_in_guests[pid] = script.name, seconds
        self.after_call("run_in_guest_later")
        return GuestProcess(pid, f"/tmp/vrepl {pid}")

    def forget_in_guest(self, vm_ref: str, login: GuestLogin, process: GuestProcess) -> None:
        del vm_ref, login
        self._call("forget_in_guest")
        assert process.folder == f"/tmp/vrepl {process.pid}"
        self.waiting_in_guests.pop(process.pid, None)
        self.after_call("forget_in_guest")

    def remove_snapshot(self, vm_ref: str, snapshot_ref: str) -> bool:
        self._call("remove_snapshot")
        vm = self._vm(vm_ref)
        if vm.writers:
            raise TransientVsphereError(f"a disk of {vm.name} is open for writing", fault="FileLocked")
        gone = next((one for one in vm.snapshots if one.ref == snapshot_ref), None)
        if gone is None:
            return False
        self._spoil_clones(vm, snapshot_ref)
        for snapshot in vm.snapshots:
            if snapshot.parent_ref == snapshot_ref:
                snapshot.parent_ref = gone.parent_ref
        if vm.current == snapshot_ref:
            vm.current = gone.parent_ref
        vm.snapshots.remove(gone)
        if not vm.snapshots:
            for disk in vm.disks:  # what the leaf held has gone down into the base
                disk.generation = 0
        vm.consolidation_needed = vm.consolidation_needed or vm.readers > 0
        self.after_call("remove_snapshot")
        return vm.consolidation_needed

    def consolidate(self, vm_ref: str) -> None:
        self._call("consolidate")
        vm = self._vm(vm_ref)
        if vm.readers:
            raise TransientVsphereError(f"a disk of {vm.name} is open", fault="FileLocked")
        vm.consolidation_needed = False

    def revert_to_snapshot(self, vm_ref: str, snapshot_ref: str) -> None:
        self._call("revert_to_snapshot")
        vm = self._vm(vm_ref)
        if vm.writers:
            raise TransientVsphereError(f"a disk of {vm.name} is open for writing", fault="FileLocked")
        snapshot = vm.snapshot(snapshot_ref)
        vm.disks = [disk.copy() for disk in snapshot.disks]
        vm.hardware = snapshot.hardware
        vm.extra_config = dict(snapshot.extra_config)
        vm.guest, vm.given = snapshot.guest, None
        vm.current = snapshot_ref
        vm.generations += 1
        for disk in vm.disks:
            disk.generation = vm.generations
            if disk.tracking:
                disk.tracking = Tracking(self._tracking_id())
        self.after_call("revert_to_snapshot")

    def changed_areas(
        self, vm_ref: str, snapshot_ref: str | None, disk_key: int, start: int, change_id: str
    ) -> ChangedAreas:
        self._call("changed_areas")
        vm = self._vm(vm_ref)
        disks = vm.snapshot(snapshot_ref).disks if snapshot_ref else vm.disks
        disk = next(one for one in disks if one.key == disk_key)
        capacity = disk.disk.capacity
        if start >= capacity:
            raise VsphereError("startOffset is beyond the disk", fault="InvalidArgument")
        if disk.tracking is None or disk.tracking.id != change_id.split("/")[0]:
            raise CbtError(f"change ID {change_id} cannot be resolved")
        if self.cbt_answer == "fault":
            raise CbtError("vSphere cannot read the change tracking file of the disk")
        if self.cbt_answer == "whole":
            return ChangedAreas(start, capacity - start, (Extent(start, capacity - start),))
        since = int(change_id.split("/")[1])
        units = sorted(
            {grain * GRAIN // self.cbt_unit for grain, epoch in disk.tracking.last_change.items() if epoch > since}
        )
        if self.cbt_answer == "false":
            units = sorted({*units, *range(0, -(-capacity // self.cbt_unit), 3)})
        areas: list[Extent] = []
        for unit in units:
            offset = unit * self.cbt_unit
            if offset + self.cbt_unit <= start or offset >= capacity:
                continue
            if len(areas) == self.page_areas:
                last = areas[-1]
                return ChangedAreas(start, last.end - start, tuple(areas))
            end = min(offset + self.cbt_unit, capacity)
            offset = max(offset, start)
            areas.append(Extent(offset, end - offset))
        return ChangedAreas(start, capacity - start, tuple(areas))

    def datastores(self) -> list[Datastore]:
        self._call("datastores")
        return [Datastore("datastore-1", f"{self.name}-ds", "VMFS", 10**15, self.free)]

    def check_place(self, name: str, hardware: Hardware, placement: ReplicaPlacement) -> list[str]:
        self._call("check_place")
        if len(name) > 80:
            raise NotReplicableError(f"the replica's name would have {len(name)} characters")
        if hardware.version > self.newest_hardware:
            raise NotReplicableError(f"no host of the target can take it: not vmx-{hardware.version}")
        return []

    def create_replica(self, spec: ReplicaSpec) -> VirtualMachine:
        self._call("create_replica")
        vm = self.add_vm(spec.name, [disk.capacity for disk in spec.disks], power=PowerState.OFF)
        vm.cbt_enabled = True
        for made, disk in zip(vm.disks, spec.disks, strict=True):
            made.thin = disk.thin if spec.thin is None else spec.thin
        vm.extra_config = dict(spec.extra_config)
        vm.hardware = spec.hardware
        vm.notes = spec.annotation
        vm.instance_uuid = spec.instance_uuid or vm.instance_uuid
        self.after_call("create_replica")
        return self._view(vm)

    def reconcile_replica(
        self,
        replica: VirtualMachine,
        hardware: Hardware,
        placement: ReplicaPlacement,
        *,
        keep_macs: bool,
        annotation: str | None = None,
    ) -> list[str]:
        del placement, keep_macs
        self._call("reconcile_replica")
        if replica.hardware == hardware and annotation in {None, replica.notes}:
            return []
        vm = self._vm(replica.ref)
        vm.notes = vm.notes if annotation is None else annotation
        if vm.hardware == hardware:
            return []
        vm.hardware = hardware
        return ["hardware"]

    def add_replica_disk(self, vm_ref: str, spec: ReplicaSpec, disk_index: int) -> VirtualMachine:
        self._call("add_replica_disk")
        vm = self._vm(vm_ref)
        wanted = next(disk for disk in spec.disks if disk.index == disk_index)
        if any(one.unit == wanted.unit_number for one in vm.disks):
            raise VsphereError(f"unit {wanted.unit_number} of {vm.name} is taken", fault="InvalidDeviceSpec")
        disk = self._new_disk(vm.name, wanted.unit_number, wanted.capacity)
        # As vSphere does, keys follow the place: a new disk gets the key of the one that was there before.
        disk.key = 2000 + wanted.unit_number
        disk.base_path = disk.base_path.replace(".vmdk", f"-{next(self._numbers)}.vmdk")
        vm.disks.append(disk)
        vm.disks.sort(key=lambda one: one.unit)
        self.after_call("add_replica_disk")
        return self._view(vm)

    def remove_replica_disk(self, vm_ref: str, disk_key: int) -> None:
        self._call("remove_replica_disk")
        vm = self._vm(vm_ref)
        for disk in vm.disks:
            if disk.key == disk_key and vm.snapshots:
                self.loose_disks |= dict.fromkeys((disk.path, disk.base_path), disk.disk)
        vm.disks = [disk for disk in vm.disks if disk.key != disk_key]
        self.after_call("remove_replica_disk")

    def disk_files(self, vm_ref: str, disk_key: int) -> tuple[str, ...]:
        return next(
            (tuple(dict.fromkeys((one.path, one.base_path))) for one in self._vm(vm_ref).disks if one.key == disk_key),
            (),
        )

    def copy_disk(self, vm_ref: str, source: str, to: str, disk: Disk, *, thin: bool) -> None:
        del thin
        self._call("copy_disk")
        if self.copy_fault is not None:
            raise self.copy_fault
        made = MemoryDisk(disk.capacity)
        self.loose_disks[to] = made
        self.after_call("copy_disk began")
        [found] = {
            id(one.disk): one.disk
            for snapshot in self._vm(vm_ref).snapshots
            for one in snapshot.disks
            if one.path == source
        }.values()
        for extent in found.allocated(Extent(0, found.capacity)):
            made.write(extent.offset, found.read(extent.offset, extent.length))
        self.after_call("copy_disk")

    def attach_replica_disk(self, vm_ref: str, spec: ReplicaSpec, disk_index: int, path: str) -> VirtualMachine:
        self._call("attach_replica_disk")
        vm = self._vm(vm_ref)
        wanted = next(disk for disk in spec.disks if disk.index == disk_index)
        if any(one.unit == wanted.unit_number for one in vm.disks):
            raise VsphereError(f"unit {wanted.unit_number} of {vm.name} is taken", fault="InvalidDeviceSpec")
        disk = self._new_disk(vm.name, wanted.unit_number, wanted.capacity)
        disk.key = 2000 + wanted.unit_number
        disk.base_path, disk.disk = path, self.loose_disks[path]
        vm.disks.append(disk)
        vm.disks.sort(key=lambda one: one.unit)
        self.after_call("attach_replica_disk")
        return self._view(vm)

    def remove_unused_disks(self, vm_ref: str, paths: Sequence[str]) -> list[str]:
        self._call("remove_unused_disks")
        assert vm_ref in self.vms
        return self._delete_unused(paths)

    def _delete_unused(self, paths: Sequence[str]) -> list[str]:
        used = {
            path
            for vm in self.vms.values()
            for disk in (*vm.disks, *(one for snapshot in vm.snapshots for one in snapshot.disks))
            for path in (disk.path, disk.base_path)
        }
        gone = [path for path in paths if path not in used]
        for path in gone:
            self.loose_disks.pop(path, None)
            self.after_call("disk file deleted")
        return gone

    def set_extra_config(self, vm_ref: str, values: Mapping[str, str]) -> None:
        self._call("set_extra_config")
        config = self._vm(vm_ref).extra_config
        config.update({key: value[: self.value_limit] for key, value in values.items()})
        for key in [key for key, value in config.items() if not value]:
            del config[key]
        self.after_call("set_extra_config")

    # -- power and networks -------------------------------------------------------------------------------------------

    def current_time(self) -> dt.datetime:
        return self._clock()

    def power_on(self, vm_ref: str) -> None:
        self._call("power_on")
        vm = self._vm(vm_ref)
        if vm.writers:
            raise DiskLockedError(f"a disk of {vm.name} is open for writing")
        vm.power = PowerState.ON
        vm.tools_known = vm.tools_known or vm.tools_running
        self.powered_on.append((vm.name, tuple(one.connected for one in vm.hardware.network_adapters)))
        if vm.given is not None:
            why = self.customisation(vm)
            if why == "":
                vm.guest = customised(vm, vm.given)
            vm.customised = None if why is None else (self._clock(), why)
            vm.given = None
        self.after_call("power_on")

    def power_off(self, vm_ref: str) -> None:
        self._call("power_off")
        self._vm(vm_ref).power = PowerState.OFF
        self.after_call("power_off")

    def shut_down_guest(self, vm_ref: str, *, within: float) -> None:
        del within
        self._call("shut_down_guest")
        vm = self._vm(vm_ref)
        if not vm.tools_running:
            raise VsphereError(f"{vm.name} has no VMware Tools", fault="ToolsUnavailable")
        vm.power = PowerState.OFF
        self.after_call("shut_down_guest")

    def guest_state(self, vm_ref: str) -> GuestState:
        self._call("guest_state")
        vm = self._vm(vm_ref)
        runs = vm.power is PowerState.ON
        tools = runs and vm.tools_running
        return GuestState(vm.power, tools, vm.heartbeat if tools else "gray", vm.name, vm.address if runs else "", "")

    # -- guests' addresses --------------------------------------------------------------------------------------------

    def check_addresses(self, vm_ref: str, plan: AddressPlan) -> None:
        self._call("check_addresses")
        self._may_customise(self._vm(vm_ref), plan)

    def give_addresses(self, vm_ref: str, plan: AddressPlan) -> bool:
        self._call("give_addresses")
        vm = self._vm(vm_ref)
        if vm.power is not PowerState.OFF or vm.given is not None:
            return False
        self._may_customise(vm, plan)
        vm.given = plan
        self.after_call("give_addresses")
        return True

    def _may_customise(self, vm: MemoryVm, plan: AddressPlan) -> None:
        if not vm.tools_known:
            raise VsphereError(f"the guest of {vm.name} cannot be customised", fault="UncustomizableGuest")
        if len(plan.adapters) != len(vm.hardware.network_adapters):
            raise VsphereError("the number of adapters does not match", fault="NicSettingMismatch")

    def set_connected(self, vm_ref: str, adapters: Collection[int], connected: bool) -> None:
        self._call("set_connected")
        vm = self._vm(vm_ref)
        if vm.power is not PowerState.OFF:
            raise VsphereError(f"{vm.name} is powered on", fault="InvalidPowerState")
        changed = tuple(
            replace(one, connected=connected) if one.key in adapters else one for one in vm.hardware.network_adapters
        )
        vm.hardware = replace(vm.hardware, network_adapters=changed)
        self.after_call("set_connected")

    def reported_addresses(self, vm_ref: str) -> GuestNetwork | None:
        self._call("reported_addresses")
        vm = self._vm(vm_ref)
        return vm.guest if vm.power is PowerState.ON else None

    def address_end(self, vm_ref: str, since: dt.datetime | None) -> str | None:
        self._call("address_end")
        ended = self._vm(vm_ref).customised
        return ended[1] if ended is not None and (since is None or ended[0] >= since) else None

    # -- sandboxes ----------------------------------------------------------------------------------------------------

    def clone_linked(
        self, vm_ref: str, snapshot_ref: str, name: str, extra_config: Mapping[str, str]
    ) -> VirtualMachine:
        self._call("clone_linked")
        vm = self._vm(vm_ref)
        snapshot = vm.snapshot(snapshot_ref)
        if any(one.name == name for one in self.vms.values()):
            raise VsphereError(f"the name {name} is taken", fault="DuplicateName")
        clone = self.add_vm(name, [], power=PowerState.OFF)
        clone.disks = [disk.copy() for disk in snapshot.disks]
        clone.hardware, clone.host, clone.tools_running = snapshot.hardware, vm.host, vm.tools_running
        clone.heartbeat = vm.heartbeat
        clone.guest, clone.tools_known = snapshot.guest, vm.tools_known
        clone.stands_on = (vm.ref, snapshot.ref)
        config = {**snapshot.extra_config, **extra_config}
        clone.extra_config = {key: value for key, value in config.items() if value}
        self.after_call("clone_linked")
        return self._view(clone)

    def _spoil_clones(self, vm: MemoryVm, snapshot_ref: str) -> None:
        """The snapshot's disks go into its child's, and what else hangs on them reads anything."""
        parents = {one.ref: one.parent_ref for one in vm.snapshots}
        for clone in self.vms.values():
            ref = clone.stands_on[1] if clone.stands_on is not None and clone.stands_on[0] == vm.ref else None
            while ref is not None and ref != snapshot_ref:
                ref = parents.get(ref)
            if ref is not None:
                for disk in clone.disks:
                    disk.disk.write(0, b"spoilt".ljust(GRAIN, b"!"))

    def add_isolated_network(self, host: str, name: str) -> bool:
        self._call("add_isolated_network")
        made = (host, name) not in self.isolated_networks
        self.isolated_networks.add((host, name))
        self.after_call("add_isolated_network")
        return made

    def remove_isolated_network(self, host: str, name: str) -> None:
        self._call("remove_isolated_network")
        for vm in self.vms.values():
            if vm.host == host and any(one.network == name for one in vm.hardware.network_adapters):
                raise VsphereError(f"network {name} is in use by {vm.name}", fault="ResourceInUse")
        self.isolated_networks.discard((host, name))
        self.after_call("remove_isolated_network")

    def connect_networks(self, vm_ref: str, networks: Mapping[str, str]) -> list[str]:
        self._call("connect_networks")
        vm = self._vm(vm_ref)
        adapters = tuple(
            replace(one, network=networks.get(one.network, one.network)) for one in vm.hardware.network_adapters
        )
        vm.hardware = replace(vm.hardware, network_adapters=adapters)
        return []

    def read_vm_file(self, vm: VirtualMachine, name: str) -> bytes | None:
        """A plain HTTPS request, like the next one: no call of the API."""
        self.before_call("read_vm_file")
        return self._vm(vm.ref).files.get(name)

    def write_vm_file(self, vm: VirtualMachine, name: str, content: bytes) -> None:
        self.before_call("write_vm_file")
        self._vm(vm.ref).files[name] = content
        self.after_call("write_vm_file")

    def show_state(self, vm_ref: str, text: str) -> None:
        self.before_call("show_state")
        self._vm(vm_ref).shown_state = text

    def destroy_vm(self, vm_ref: str, *, with_files: Sequence[str] = ()) -> None:
        self._call("destroy_vm")
        if vm_ref in self.vms and self.vms[vm_ref].power is PowerState.ON:
            raise VsphereError(f"{self.vms[vm_ref].name} is powered on", fault="InvalidPowerState")
        self.vms.pop(vm_ref, None)
        self._delete_unused(with_files)
        self.after_call("destroy_vm")

    # -- views --------------------------------------------------------------------------------------------------------

    def _view(self, vm: MemoryVm) -> VirtualMachine:
        return VirtualMachine(
            ref=vm.ref,
            name=vm.name,
            instance_uuid=vm.instance_uuid,
            bios_uuid=vm.instance_uuid,
            power=vm.power,
            host=vm.host,
            datacenter="dc",
            folder_ref="group-v1",
            hardware=vm.hardware,
            disks=tuple(self._disk(disk, index, None) for index, disk in enumerate(vm.disks)),
            snapshots=tuple(
                Snapshot(one.ref, one.name, one.description, one.created, one.parent_ref, one.quiesced)
                for one in vm.snapshots
            ),
            current_snapshot_ref=vm.current,
            template=vm.template,
            consolidation_needed=vm.consolidation_needed,
            cbt_enabled=vm.cbt_enabled,
            cbt_supported=vm.cbt_supported,
            tools_running=vm.tools_running,
            lost_power=vm.lost_power and vm.power is PowerState.OFF,
            notes=vm.notes,
            disabled_methods=(*vm.disabled_methods, *(["RelocateVM_Task"] if vm.access else [])),
            extra_config=dict(vm.extra_config),
        )

    def _state(self, snapshot: MemorySnapshot) -> SnapshotState:
        disks = tuple(
            self._disk(disk, index, snapshot.change_ids[disk.key])
            for index, disk in enumerate(snapshot.disks)
            if not disk.mode.startswith("independent")
        )
        return SnapshotState(
            snapshot.ref, snapshot.name, snapshot.description, snapshot.quiesced, disks, snapshot.extra_config
        )

    def _disk(self, disk: MemoryVirtualDisk, index: int, change_id: str | None) -> Disk:
        if change_id is None and disk.tracking:
            change_id = f"{disk.tracking.id}/{disk.tracking.epoch}"
        return Disk(
            key=disk.key,
            index=index,
            label=disk.label,
            path=disk.path,
            base_path=disk.base_path,
            capacity=disk.disk.capacity,
            uuid=disk.uuid,
            datastore=disk.datastore,
            mode=disk.mode,
            thin=disk.thin,
            unit_number=disk.unit,
            change_id=change_id,
        )


def customised(vm: MemoryVm, plan: AddressPlan) -> GuestNetwork:
    """What the guest reports afterwards; DHCP gives anything."""
    adapters = tuple(
        GuestAdapter(
            given.key,
            card.mac,
            card.network,
            tuple(text if "/" in text else f"10.99.0.{given.key % 250}/24" for text in (given.v4, *given.v6) if text),
            gateways=given.gateways,
        )
        for given, card in zip(plan.adapters, vm.hardware.network_adapters, strict=True)
    )
    return GuestNetwork(plan.host_name, plan.domain, plan.dns, plan.dns_suffixes, adapters)


def _listed(vm: VirtualMachine) -> ListedVm:
    return ListedVm(vm.ref, vm.name, vm.instance_uuid, vm.power, tuple(sorted({disk.store for disk in vm.disks})))


def hash_of(name: str) -> int:
    """The same in every process, unlike `hash`."""
    return int.from_bytes(name.encode()[:8], "big") << 32


class TrackedHandle(MemoryHandle):
    """Writes count as changes of the disk, as those of a data mover do, and hold the VM's lock until closed."""

    def __init__(self, site: MemorySite, vm: MemoryVm, disk: MemoryVirtualDisk, *, writable: bool) -> None:
        super().__init__(disk.disk, writable=writable)
        self._site, self._vm, self._virtual = site, vm, disk
        self._counted = True
        if writable:
            vm.writers += 1
        else:
            vm.readers += 1

    def submit_write(self, offset: int, buffer: Buffer, start: int, length: int, done: Completion) -> None:
        self._site._touch(self._virtual, offset, length)
        super().submit_write(offset, buffer, start, length, done)

    def _release(self) -> None:
        if self._counted:
            self._counted = False
            if self._writable:
                self._vm.writers -= 1
            else:
                self._vm.readers -= 1

    def close(self) -> None:
        super().close()
        self._release()

    def abandon(self, survives: Callable[[int], bool] = lambda number: False) -> None:
        del survives
        super().abandon(self._site.survives)
        self._release()


class MemoryOpener:
    """Opens disks of memory sites as VDDK would: by VM, snapshot and path, and only where all three fit."""

    def __init__(self, sites: Sequence[MemorySite]) -> None:
        self._sites = {site.name: site for site in sites}

    def open_reader(self, address: DiskAddress) -> MemoryHandle:
        return self._open(address, writable=False)

    def open_writer(self, address: DiskAddress) -> MemoryHandle:
        return self._open(address, writable=True)

    def _open(self, address: DiskAddress, *, writable: bool) -> MemoryHandle:
        site = self._sites[address.site]
        vm = site._vm(address.vm_ref)
        disks = vm.snapshot(address.snapshot_ref).disks if address.snapshot_ref else vm.disks
        for disk in disks:
            if disk.path == address.path:
                if disk.disk.capacity != address.capacity:
                    raise AssertionError("the capacity of the address is not the disk's")
                if writable and vm.writers > len(vm.disks):
                    raise DiskLockedError("locked", code=15)
                return TrackedHandle(site, vm, disk, writable=writable)
        raise AssertionError(f"{address.path} is no disk of {vm.name} at {address.snapshot_ref}")
