"""Moves a VM's network adapters from one network to another, as a failover maps them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from vrepl.errors import NotFoundError
from vrepl.model import ReplicaPlacement
from vrepl.vsphere import collector, hardware
from vrepl.vsphere.api import vim
from vrepl.vsphere.inventory import Inventory
from vrepl.vsphere.placement import Places
from vrepl.vsphere.session import Session
from vrepl.vsphere.tasks import Tasks
from vrepl.vsphere.translation import VM_PATHS, virtual_machine


def connect(
    session: Session, running: Tasks, inventory: Inventory, vm_ref: str, networks: Mapping[str, str]
) -> list[str]:
    """One reconfiguration of all adapters on a mapped network; what was changed, in words.

    Raises NotFoundError where the VM or a network is gone.
    """
    if not networks:
        return []
    vm = session.object(vim.VirtualMachine, vm_ref)
    found = collector.these(session, [vm], {vim.VirtualMachine: VM_PATHS})
    if not found:
        raise NotFoundError(f"VM {vm_ref} is gone", hint="was it deleted or unregistered?")
    replica = virtual_machine(vm_ref, found[0].values, inventory.names_for(found))
    cards = {
        int(device.key): device
        for device in found[0].get("config.hardware.device", [])
        if isinstance(device, vim.vm.device.VirtualEthernetCard)
    }
    moved = [
        (adapter, networks[adapter.network])
        for adapter in replica.hardware.network_adapters
        if networks.get(adapter.network, adapter.network) != adapter.network
    ]
    if not moved:
        return []
    datastore = replica.vm_path.partition("]")[0].removeprefix("[")
    place = Places(session).find(ReplicaPlacement(host=replica.host, datastore=datastore))
    changes: list[Any] = []
    for adapter, network in moved:
        card = cards[adapter.key]
        card.backing = hardware.adapter_backing(network, place)
        card.connectable.startConnected = True
        changes.append(hardware.edited(card))
    spec = vim.vm.ConfigSpec(deviceChange=changes)
    running.run(lambda: vm.ReconfigVM_Task(spec=spec), what=f"connect the networks of {replica.name}")
    return [f"{adapter.label}: {adapter.network} -> {network}" for adapter, network in moved]


def set_connected(session: Session, running: Tasks, vm_ref: str, adapters: Collection[int], connected: bool) -> None:
    """Whether adapters (device keys) of a VM that is off are connected at its power-on; one reconfiguration, if any."""
    vm = session.object(vim.VirtualMachine, vm_ref)
    found = collector.these(session, [vm], {vim.VirtualMachine: ["config.hardware.device"]})
    if not found:
        raise NotFoundError(f"VM {vm_ref} is gone", hint="was it deleted or unregistered?")
    changes: list[Any] = []
    for card in found[0].get("config.hardware.device", []):
        if not isinstance(card, vim.vm.device.VirtualEthernetCard) or int(card.key) not in adapters:
            continue
        if bool(card.connectable.startConnected) is not connected:
            card.connectable.startConnected = connected
            changes.append(hardware.edited(card))
    if changes:
        spec = vim.vm.ConfigSpec(deviceChange=changes)
        running.run(lambda: vm.ReconfigVM_Task(spec=spec), what=f"connect network adapters of {vm_ref}")
