"""VsphereSite: every role of `ports.sites` for a vCenter Server or an ESXi host, made of the rooms beside it."""

from __future__ import annotations

import datetime as dt
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vrepl.model import (
    DISCONNECTED,
    ChangedAreas,
    DataEngine,
    Datastore,
    Disk,
    GuestState,
    Hardware,
    ListedVm,
    ReplicaPlacement,
    ReplicaSpec,
    Sighting,
    SnapshotState,
    VirtualMachine,
    VmAtRest,
)
from vrepl.model.addresses import AddressPlan, GuestNetwork
from vrepl.model.guests import GuestLogin, GuestProcess, ProgramEnd, Script
from vrepl.model.selection import Candidate
from vrepl.ports import NfcTicket, SiteConnection
from vrepl.vsphere import cbt, datastores, facts, tls
from vrepl.vsphere.api import vim
from vrepl.vsphere.attachments import ProxyDisks
from vrepl.vsphere.collector import Found
from vrepl.vsphere.customization import Customization
from vrepl.vsphere.datastore_files import DatastoreFiles
from vrepl.vsphere.disk_files import DiskFiles
from vrepl.vsphere.facts import EsxiHost
from vrepl.vsphere.guest import Guests
from vrepl.vsphere.guest_programs import GuestPrograms
from vrepl.vsphere.inventory import Inventory
from vrepl.vsphere.networks import connect, set_connected
from vrepl.vsphere.placement import NewReplica, Places
from vrepl.vsphere.privileges import NEEDS, Missing, Role, Scope, missing
from vrepl.vsphere.reconcile import Reconciler
from vrepl.vsphere.replica import Replicas
from vrepl.vsphere.sandbox import Sandboxes
from vrepl.vsphere.selecting import candidates
from vrepl.vsphere.session import Session, SiteSettings
from vrepl.vsphere.snapshots import Snapshots
from vrepl.vsphere.state_attribute import StateAttribute
from vrepl.vsphere.tasks import Tasks, running_among
from vrepl.vsphere.tickets import ticket


def _random_uuid() -> str:
    return str(uuid.uuid4())


class VsphereSite:
    """Logs in at first use; see `ports.sites` for what each method promises."""

    def __init__(
        self,
        settings: SiteSettings,
        *,
        sleep: Callable[[float], None] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        new_uuid: Callable[[], str] = _random_uuid,
    ) -> None:
        self._session = Session(settings, sleep=sleep)
        self._tasks = Tasks(self._session, monotonic=monotonic)
        self._inventory = Inventory(self._session, monotonic=monotonic)
        self._customization = Customization(self._session, self._tasks)
        self._guests = Guests(self._session, self._tasks, monotonic=monotonic)
        self._guest_programs = GuestPrograms(self._session, monotonic=monotonic)
        self._snapshots = Snapshots(self._session, self._tasks, self._inventory)
        self._places = Places(self._session, monotonic=monotonic)
        self._replicas = Replicas(self._session, self._tasks, self._inventory, self._places, new_uuid=new_uuid)
        self._sandbox = Sandboxes(self._session, self._tasks, self._inventory)
        self._files = DatastoreFiles(self._session)
        self._state_attribute = StateAttribute(self._session)
        self.proxy_disks = ProxyDisks(self._session, self._tasks)
        self._disk_files = DiskFiles(self._session, self._tasks)
        self._reconciler = Reconciler(self._session, self._tasks, self._inventory, self._places)

    # --- the site itself

    @property
    def name(self) -> str:
        return self._session.settings.name

    @property
    def soap_calls(self) -> int:
        return self._session.soap_calls

    @property
    def is_vcenter(self) -> bool:
        return self._session.is_vcenter

    @property
    def product(self) -> str:
        """Such as `VMware vCenter Server 8.0.3 build-24022515`."""
        return self._session.product

    def hurry(self) -> None:
        """The operator asked to stop: waits for tasks end, and clean-up waits for none of its own for long."""
        self._tasks.hurry()
        self._session.hurry()

    def give_up_if_silent(self) -> bool:
        """After `hurry`, for a thread of its own: True once the site has answered nothing for some seconds.

        From then on everything that is asked of it fails at once.
        """
        return self._session.give_up_if_silent()

    def login(self) -> None:
        """Connect and log in now instead of at first use."""
        self._session.login()

    def connection(self) -> SiteConnection:
        settings = self._session.settings
        self._session.refuse_if_silent()
        return SiteConnection(
            server=settings.server,
            port=settings.port,
            nfc_port=settings.nfc_port,
            nfc_compression=settings.nfc_compression,
            user=settings.user,
            password=settings.password,
            sha1_thumbprint=tls.sha1_thumbprint(self._session.certificate()),
        )

    def nfc_ticket(self, vm_ref: str, path: str, *, writable: bool) -> NfcTicket:
        """To open a disk at its ESXi host without VDDK; good for one connection, and a secret."""
        return ticket(self._session, vm_ref, path, writable=writable)

    def current_time(self) -> dt.datetime:
        """The site's clock, UTC."""
        moment: dt.datetime = self._session.object(vim.ServiceInstance, "ServiceInstance").CurrentTime()
        return moment.astimezone(dt.UTC)

    def close(self) -> None:
        self._tasks.close()
        self._session.close()

    def __enter__(self) -> VsphereSite:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    # --- reading

    def list_vms(self) -> list[VirtualMachine]:
        return self._inventory.list_vms()

    def find_vms(self, names: Sequence[str]) -> list[VirtualMachine]:
        return self._inventory.find_vms(names)

    def list_named(self, names: Sequence[str]) -> list[ListedVm]:
        return self._inventory.list_named(names)

    def list_those(self, vm_refs: Sequence[str]) -> list[ListedVm]:
        return self._inventory.list_those(vm_refs)

    def candidates(self, tag_patterns: Sequence[str] = ()) -> list[Candidate]:
        return candidates(self._session, tag_patterns)

    def read_vms(self, vm_refs: Sequence[str]) -> list[VirtualMachine]:
        return self._inventory.read_vms(vm_refs)

    def find_vm_by_instance_uuid(self, instance_uuid: str) -> VirtualMachine | None:
        return self._inventory.by_instance_uuid(instance_uuid)

    def read_vm(self, vm_ref: str) -> VirtualMachine:
        return self._inventory.read_vm(vm_ref)

    def wait_for_tasks(self, vm_ref: str) -> None:
        self._tasks.wait_for_running(self._session.object(vim.VirtualMachine, vm_ref))

    def read_vm_at_rest(self, vm_ref: str) -> VirtualMachine:
        vm, tasks = self._inventory.read_vm_and_tasks(vm_ref)
        if vm is None:
            return self._inventory.read_vm(vm_ref)
        return self._at_rest(vm, tasks) if tasks else vm

    def _at_rest(self, vm: VirtualMachine, tasks: Sequence[Found]) -> VirtualMachine:
        """What has ended just now may be missing in what was read of the VM in the same call."""
        if running_among(tasks):
            self.wait_for_tasks(vm.ref)
        return replace(self._inventory.read_vm(vm.ref), guest=vm.guest)

    def find_vm_at_rest(self, instance_uuid: str, near: Sighting | None) -> VmAtRest | None:
        if near is not None:
            vm, snapshot, tasks = self._inventory.read_sighted(near)
            if vm is not None and vm.instance_uuid == instance_uuid:
                # What else has ended just now may have changed both since they were read.
                return VmAtRest(self._at_rest(vm, tasks)) if tasks else VmAtRest(vm, snapshot)
        vm = self._inventory.by_instance_uuid(instance_uuid)
        return None if vm is None else VmAtRest(self.read_vm_at_rest(vm.ref))

    def read_snapshot(self, snapshot_ref: str) -> SnapshotState:
        return self._inventory.read_snapshot(snapshot_ref)

    def datastores(self) -> list[Datastore]:
        return datastores.read_all(self._session, self._inventory.names())

    # --- facts for transport selection and checks

    def find_vms_by_bios_uuid(self, bios_uuid: str) -> list[VirtualMachine]:
        """All of them: clones repeat a BIOS uuid, so that a proxy is known by it only if there is exactly one."""
        return self._inventory.by_bios_uuid(bios_uuid)

    def hosts(self) -> list[EsxiHost]:
        """Every ESXi host, by name."""
        return facts.read_hosts(self._session, self._inventory.names())

    def missing_privileges(
        self,
        role: Role,
        *,
        vm_refs: Sequence[str] = (),
        datastore_refs: Sequence[str] = (),
        placement: ReplicaPlacement | None = None,
        engine: DataEngine = DataEngine.VDDK,
    ) -> list[Missing]:
        """What the site's user lacks for a role: on these VMs and datastores, or where replicas shall go."""
        entities: dict[Scope, list[Any]] = {
            Scope.VM: [self._session.object(vim.VirtualMachine, ref) for ref in vm_refs],
            Scope.DATASTORE: [self._session.object(vim.Datastore, ref) for ref in datastore_refs],
        }
        if any(need.scope is Scope.ENCRYPTED_VM for need in NEEDS[role]):
            encrypted = {vm.ref for vm in self._inventory.read_vms(vm_refs) if any(disk.encrypted for disk in vm.disks)}
            entities[Scope.ENCRYPTED_VM] = [self._session.object(vim.VirtualMachine, ref) for ref in sorted(encrypted)]
        if role is Role.HOTADD_PROXY:
            # Space counts where the proxy itself lies (VDDK Programming Guide: "On the backup appliance …").
            stores = {disk.datastore_ref for vm in self._inventory.read_vms(vm_refs) for disk in vm.disks} - {""}
            entities[Scope.DATASTORE] = [self._session.object(vim.Datastore, ref) for ref in sorted(stores)]
        if placement is not None:
            place = self._places.find(placement)
            entities[Scope.FOLDER] = [place.folder]
            entities[Scope.POOL] = [place.pool]
            others = [place.store(name) for name in sorted(set(placement.disk_stores.values()))]
            entities[Scope.DATASTORE] = [place.datastore, *(one for one in others if one != place.datastore)]
            networks = sorted(set(placement.networks.values()) - {DISCONNECTED})
            entities[Scope.NETWORK] = [place.network(name) for name in networks]
            # Before the first replica exists, what will count on it is what the folder hands down.
            entities[Scope.VM] = entities[Scope.VM] or [place.folder]
        return missing(self._session, role, entities, engine)

    # --- change tracking and snapshots

    def enable_cbt(self, vm_ref: str) -> bool:
        return cbt.enable(self._session, self._tasks, vm_ref)

    def disable_cbt(self, vm_ref: str) -> None:
        cbt.disable(self._session, self._tasks, vm_ref)

    def changed_areas(
        self, vm_ref: str, snapshot_ref: str | None, disk_key: int, start: int, change_id: str
    ) -> ChangedAreas:
        return cbt.changed_areas(self._session, vm_ref, snapshot_ref, disk_key, start, change_id)

    def create_snapshot(
        self, vm_ref: str, name: str, description: str, *, quiesce: bool, within: float | None = None
    ) -> SnapshotState:
        return self._snapshots.create(vm_ref, name, description, quiesce=quiesce, within=within)

    def remove_snapshot(self, vm_ref: str, snapshot_ref: str) -> bool:
        return self._snapshots.remove(vm_ref, snapshot_ref)

    def consolidate(self, vm_ref: str) -> None:
        self._snapshots.consolidate(vm_ref)

    def revert_to_snapshot(self, vm_ref: str, snapshot_ref: str) -> None:
        self._snapshots.revert(vm_ref, snapshot_ref)

    # --- guests' addresses

    def check_addresses(self, vm_ref: str, plan: AddressPlan) -> None:
        self._customization.check(vm_ref, plan)

    def give_addresses(self, vm_ref: str, plan: AddressPlan) -> bool:
        return self._customization.give(vm_ref, plan)

    def set_connected(self, vm_ref: str, adapters: Collection[int], connected: bool) -> None:
        set_connected(self._session, self._tasks, vm_ref, adapters, connected)

    def reported_addresses(self, vm_ref: str) -> GuestNetwork | None:
        return self._customization.reported(vm_ref)

    def address_end(self, vm_ref: str, since: dt.datetime | None) -> str | None:
        return self._customization.end(vm_ref, since)

    # --- power and the guest

    def guest_state(self, vm_ref: str) -> GuestState:
        """Raises NotFoundError if the VM is gone."""
        return self._guests.state(vm_ref)

    def power_on(self, vm_ref: str) -> None:
        """One that is on already is fine."""
        self._guests.power_on(vm_ref)

    def power_off(self, vm_ref: str) -> None:
        """Hard; one that is off already is fine."""
        self._guests.power_off(vm_ref)

    def shut_down_guest(self, vm_ref: str, *, within: float) -> None:
        """Through VMware Tools, waiting for so many seconds. Raises VsphereError (ToolsUnavailable, Timedout)."""
        self._guests.shut_down(vm_ref, within=within)

    def run_in_guest(self, vm_ref: str, login: GuestLogin, script: Script, *, within: float) -> ProgramEnd:
        return self._guest_programs.run(vm_ref, login, script, within=within)

    def run_in_guest_later(self, vm_ref: str, login: GuestLogin, script: Script, *, seconds: float) -> GuestProcess:
        return self._guest_programs.run_later(vm_ref, login, script, seconds=seconds)

    def forget_in_guest(self, vm_ref: str, login: GuestLogin, process: GuestProcess) -> None:
        self._guest_programs.forget(vm_ref, login, process)

    def connect_networks(self, vm_ref: str, networks: Mapping[str, str]) -> list[str]:
        return connect(self._session, self._tasks, self._inventory, vm_ref, networks)

    def clone_linked(
        self, vm_ref: str, snapshot_ref: str, name: str, extra_config: Mapping[str, str]
    ) -> VirtualMachine:
        return self._sandbox.clone_linked(vm_ref, snapshot_ref, name, extra_config)

    def add_isolated_network(self, host: str, name: str) -> bool:
        made = self._sandbox.add_network(host, name)
        self._places.forget()
        return made

    def remove_isolated_network(self, host: str, name: str) -> None:
        self._sandbox.remove_network(host, name)

    # --- files beside a VM

    def read_vm_file(self, vm: VirtualMachine, name: str) -> bytes | None:
        return self._files.read(vm, name)

    def write_vm_file(self, vm: VirtualMachine, name: str, content: bytes) -> None:
        self._files.write(vm, name, content)

    def show_state(self, vm_ref: str, text: str) -> None:
        self._state_attribute.show(vm_ref, text)

    # --- replicas

    def check_place(self, name: str, hardware: Hardware, placement: ReplicaPlacement) -> list[str]:
        """Raises what would keep a replica of this name and hardware from being made there; makes nothing."""
        place = self._places.find_for(NewReplica(name, hardware), placement)
        if not place.missing_folders:
            return []
        return [f"folder {'/'.join(place.missing_folders)} is made at the target (target_folder = {placement.folder})"]

    def create_replica(self, spec: ReplicaSpec) -> VirtualMachine:
        return self._replicas.create(spec)

    def reconcile_replica(
        self,
        replica: VirtualMachine,
        hardware: Hardware,
        placement: ReplicaPlacement,
        *,
        keep_macs: bool,
        annotation: str | None = None,
    ) -> list[str]:
        return self._reconciler.reconcile(replica, hardware, placement, keep_macs=keep_macs, annotation=annotation)

    def add_replica_disk(self, vm_ref: str, spec: ReplicaSpec, disk_index: int) -> VirtualMachine:
        return self._replicas.add_disk(vm_ref, spec, disk_index)

    def remove_replica_disk(self, vm_ref: str, disk_key: int) -> None:
        self._replicas.remove_disk(vm_ref, disk_key)

    def disk_files(self, vm_ref: str, disk_key: int) -> tuple[str, ...]:
        return self._replicas.files_of(vm_ref, disk_key)

    def copy_disk(self, vm_ref: str, source: str, to: str, disk: Disk, *, thin: bool) -> None:
        kinds = {one.key: one.kind for one in self.read_vm(vm_ref).hardware.controllers}
        self._disk_files.copy(vm_ref, source, to, disk, kinds.get(disk.controller_key, ""), thin=thin)

    def attach_replica_disk(self, vm_ref: str, spec: ReplicaSpec, disk_index: int, path: str) -> VirtualMachine:
        return self._replicas.add_disk(vm_ref, spec, disk_index, path=path)

    def remove_unused_disks(self, vm_ref: str, paths: Sequence[str]) -> list[str]:
        return self._disk_files.remove_unused(self._disk_files.around(vm_ref), paths)

    def set_extra_config(self, vm_ref: str, values: Mapping[str, str]) -> None:
        self._replicas.set_extra_config(vm_ref, values)

    def destroy_vm(self, vm_ref: str, *, with_files: Sequence[str] = ()) -> None:
        around = self._disk_files.around(vm_ref) if with_files else None
        self._replicas.destroy(vm_ref)
        if around is not None:
            self._disk_files.remove_unused(around, with_files)
