"""What failover asks of the site that is left: power, and a place beside the replica that no revert takes back."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from vrepl.model import GuestState, SnapshotState, VirtualMachine
from vrepl.model.addresses import AddressPlan, GuestNetwork


class VmFiles(Protocol):
    """Small files in the folder of a VM's own files on its datastore, to be read."""

    def read_vm_file(self, vm: VirtualMachine, name: str) -> bytes | None:
        """None where there is no such file."""
        ...


class ReplicaFiles(VmFiles, Protocol):
    """The same, to be written.

    A revert does not touch them, a standalone ESXi host has them too, and they survive that the VM is unregistered.
    """

    def write_vm_file(self, vm: VirtualMachine, name: str, content: bytes) -> None:
        """Replaces it. Cut off in the middle, the file may hold anything."""
        ...


class Power(Protocol):
    """Switches VMs on and off. Each returns when it is done, or raises; a VM that is so already is fine."""

    def power_on(self, vm_ref: str) -> None: ...

    def power_off(self, vm_ref: str) -> None:
        """Hard."""
        ...

    def shut_down_guest(self, vm_ref: str, *, within: float) -> None:
        """Through VMware Tools, waiting for so many seconds. Raises VsphereError (ToolsUnavailable, Timedout)."""
        ...


class PlannedSource(Power, Protocol):
    """The source's site, while it still lives."""

    def find_vm_by_instance_uuid(self, instance_uuid: str) -> VirtualMachine | None: ...


class GuestAddresses(Protocol):
    """Sets what a guest's addresses are at its next power-on. A standalone ESXi host has no such thing."""

    @property
    def name(self) -> str: ...

    @property
    def is_vcenter(self) -> bool: ...

    def current_time(self) -> dt.datetime:
        """The site's clock, UTC."""
        ...

    def read_vm(self, vm_ref: str) -> VirtualMachine: ...

    def check_addresses(self, vm_ref: str, plan: AddressPlan) -> None:
        """Raises VsphereError where the site would refuse it; changes nothing."""
        ...

    def give_addresses(self, vm_ref: str, plan: AddressPlan) -> bool:
        """To a VM that is off. False: something was given to it before, and stays; or it was powered on meanwhile.

        A part of the VM's settings until it is powered on: a revert takes it away. Raises VsphereError.
        """
        ...

    def set_connected(self, vm_ref: str, adapters: Collection[int], connected: bool) -> None:
        """Whether these network adapters (device keys) are connected when the VM, which is off, is powered on."""
        ...

    def reported_addresses(self, vm_ref: str) -> GuestNetwork | None:
        """What the guest says of its networks now."""
        ...

    def address_end(self, vm_ref: str, since: dt.datetime | None) -> str | None:
        """How setting them ended in the guest since then: why it failed, "" if it did not, None: not ended yet."""
        ...


class StateDisplay(Protocol):
    """Where people look who have vSphere's own client and no vrepl."""

    def show_state(self, vm_ref: str, text: str) -> None:
        """Replaces what is shown with the VM; nothing on a standalone ESXi host. Raises VsphereError."""
        ...


class FailoverTarget(ReplicaFiles, Power, GuestAddresses, StateDisplay, Protocol):
    """The replica's site, as a transition of its state uses it."""

    @property
    def name(self) -> str: ...

    def current_time(self) -> dt.datetime:
        """The site's clock, UTC."""
        ...

    def list_vms(self) -> list[VirtualMachine]: ...

    def read_vm(self, vm_ref: str) -> VirtualMachine:
        """Raises NotFoundError if it is gone."""
        ...

    def read_snapshot(self, snapshot_ref: str) -> SnapshotState: ...

    def create_snapshot(self, vm_ref: str, name: str, description: str, *, quiesce: bool) -> SnapshotState:
        """Without memory; fails where a snapshot of that name exists."""
        ...

    def remove_snapshot(self, vm_ref: str, snapshot_ref: str) -> bool:
        """Not its children; returns the VM's `consolidationNeeded` afterwards."""
        ...

    def consolidate(self, vm_ref: str) -> None: ...

    def revert_to_snapshot(self, vm_ref: str, snapshot_ref: str) -> None: ...

    def guest_state(self, vm_ref: str) -> GuestState: ...

    def connect_networks(self, vm_ref: str, networks: Mapping[str, str]) -> list[str]:
        """Move adapters from the networks that are keys to those that are values, connected at power-on.

        Returns what was changed, in words. Raises NotFoundError for an unknown network.
        """
        ...


class ServiceProbe(Protocol):
    """Asks from this machine whether something serves."""

    def connects(self, address: str, port: int) -> bool:
        """Whether a TCP connection is taken; waits some seconds at the most."""
        ...

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str]:
        """The command's status, and its last line. `environment` is added to this process's own.

        One that cannot be started or does not end in time has failed, and says so.
        """
        ...


class Sandbox(Power, ReplicaFiles, GuestAddresses, Protocol):
    """What a test of a failover needs: a copy that costs nothing, on a network that leads nowhere."""

    @property
    def name(self) -> str: ...

    @property
    def is_vcenter(self) -> bool:
        """False for a standalone ESXi host, which cannot clone."""
        ...

    def current_time(self) -> dt.datetime: ...

    def list_vms(self) -> list[VirtualMachine]: ...

    def read_vm(self, vm_ref: str) -> VirtualMachine: ...

    def read_snapshot(self, snapshot_ref: str) -> SnapshotState: ...

    def clone_linked(
        self, vm_ref: str, snapshot_ref: str, name: str, extra_config: Mapping[str, str]
    ) -> VirtualMachine:
        """A powered off VM beside the other one, whose disks are children of the snapshot's.

        `extra_config` is set before it can be seen; an empty value takes a setting away that the snapshot had. Nothing
        keeps vSphere from removing the snapshot under the clone, which destroys it: whoever clones must.
        """
        ...

    def add_isolated_network(self, host: str, name: str) -> bool:
        """A port group on a virtual switch without an uplink; False: it was there already."""
        ...

    def remove_isolated_network(self, host: str, name: str) -> None:
        """With its switch; one that is gone already, or not isolated, is left as it is."""
        ...

    def connect_networks(self, vm_ref: str, networks: Mapping[str, str]) -> list[str]: ...

    def guest_state(self, vm_ref: str) -> GuestState: ...

    def destroy_vm(self, vm_ref: str) -> None: ...
