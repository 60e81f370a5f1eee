"""Bring a replica's hardware to its source's; disks and power are left alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vrepl.errors import NotFoundError
from vrepl.model import DISCONNECTED, Controller, Hardware, NetworkAdapter, ReplicaPlacement, VirtualMachine
from vrepl.vsphere import collector, hardware
from vrepl.vsphere.api import kind_of, vim
from vrepl.vsphere.inventory import Inventory
from vrepl.vsphere.placement import Place, Places, mapped_network
from vrepl.vsphere.session import Session
from vrepl.vsphere.tasks import Tasks
from vrepl.vsphere.translation import VM_PATHS, adapters_of, virtual_machine

_PLAIN: tuple[tuple[str, str, str], ...] = (
    ("cpus", "numCPUs", "CPUs"),
    ("cores_per_socket", "numCoresPerSocket", "cores per socket"),
    ("memory_mib", "memoryMB", "memory (MiB)"),
    ("cpu_hot_add", "cpuHotAddEnabled", "CPU hot-add"),
    ("memory_hot_add", "memoryHotAddEnabled", "memory hot-add"),
    ("guest_id", "guestId", "guest OS"),
    ("firmware", "firmware", "firmware"),
    ("nested_virtualisation", "nestedHVEnabled", "nested virtualisation"),
    ("performance_counters", "vPMCEnabled", "virtual performance counters"),
)
"""Attribute of Hardware, of ConfigSpec, and what people call it."""


class Reconciler:
    """Finds the differences, and applies them in one reconfiguration."""

    def __init__(self, session: Session, running: Tasks, inventory: Inventory, places: Places) -> None:
        self._session = session
        self._places = places
        self._tasks = running
        self._inventory = inventory

    def reconcile(
        self,
        seen: VirtualMachine,
        wanted: Hardware,
        placement: ReplicaPlacement,
        *,
        keep_macs: bool,
        annotation: str | None = None,
    ) -> list[str]:
        """What was changed, in words; empty if the replica follows its source already.

        `seen`: the replica as it was read last; it is read anew before anything is changed. The hardware version is
        raised where the source's is newer. Raises NotFoundError for an unknown network.
        """
        if self._follows(seen, wanted, placement, keep_macs=keep_macs, annotation=annotation):
            return []
        vm_ref = seen.ref
        vm = self._session.object(vim.VirtualMachine, vm_ref)
        found = collector.these(self._session, [vm], {vim.VirtualMachine: VM_PATHS})
        if not found:
            raise NotFoundError(f"replica {vm_ref} is gone", hint="was it deleted or unregistered?")
        names = self._inventory.names_for(found)
        replica = virtual_machine(vm_ref, found[0].values, names)
        devices = list(found[0].get("config.hardware.device", []))
        have = replica.hardware
        changed: list[str] = []
        config = vim.vm.ConfigSpec()
        _follow(config, have, wanted, changed)
        if annotation is not None and replica.notes != annotation:
            config.annotation = annotation
            changed.append("notes")
        changes: list[Any] = []
        for controller in _missing_controllers(have, wanted):
            key = hardware.temporary_key(controller.key)
            changes.append(hardware.added(hardware.controller_device(controller, key)))
            changed.append(f"controller {controller.kind} {controller.bus_number}: added")
        if self._adapters_differ(have, wanted, placement, keep_macs=keep_macs):
            cards = [one for one in devices if isinstance(one, vim.vm.device.VirtualEthernetCard)]
            cards.sort(key=lambda card: int(card.key))
            place = self._places.find(placed_on(placement, replica.host))
            changes += self._adapters(cards, wanted, placement, place, changed, keep_macs=keep_macs)
        if changes:
            config.deviceChange = changes
        if changed:
            self._tasks.run(lambda: vm.ReconfigVM_Task(spec=config), what=f"reconfigure replica {replica.name}")
        if wanted.version > have.version > 0:
            version = f"vmx-{wanted.version:02d}"
            self._tasks.run(lambda: vm.UpgradeVM_Task(version=version), what=f"upgrade replica {replica.name}")
            changed.append(f"hardware version: {have.version} -> {wanted.version}")
        return changed

    def _follows(
        self,
        seen: VirtualMachine,
        wanted: Hardware,
        placement: ReplicaPlacement,
        *,
        keep_macs: bool,
        annotation: str | None,
    ) -> bool:
        differing: list[str] = []
        _follow(vim.vm.ConfigSpec(), seen.hardware, wanted, differing)
        return not (
            differing
            or wanted.version > seen.hardware.version > 0
            or (annotation is not None and seen.notes != annotation)
            or _missing_controllers(seen.hardware, wanted)
            or self._adapters_differ(seen.hardware, wanted, placement, keep_macs=keep_macs)
        )

    def _adapters_differ(
        self, have: Hardware, wanted: Hardware, placement: ReplicaPlacement, *, keep_macs: bool
    ) -> bool:
        def facts(adapter: NetworkAdapter, network: str) -> tuple[str, str, bool, str]:
            kind = hardware.ADAPTER_CLASSES[adapter.kind]
            mac = adapter.mac if keep_macs and hardware.is_static_mac(adapter.mac) else ""
            return kind, network, adapter.connected, mac

        theirs = [_as_placed(one, placement) for one in wanted.network_adapters]
        # Which network an adapter has that is to be disconnected does not matter.
        loose = {number for number, one in enumerate(theirs) if one.network == DISCONNECTED}
        mine = [
            facts(one, DISCONNECTED if number in loose else one.network)
            for number, one in enumerate(have.network_adapters)
        ]
        return mine != [facts(one, one.network) for one in theirs]

    def _adapters(
        self,
        cards: list[Any],
        wanted: Hardware,
        placement: ReplicaPlacement,
        place: Place,
        changed: list[str],
        *,
        keep_macs: bool,
    ) -> list[Any]:
        """The n-th adapter of the replica follows the n-th of the source."""
        changes: list[Any] = []
        present = adapters_of(cards, self._inventory.names())
        for number, one in enumerate(wanted.network_adapters):
            adapter = _as_placed(one, placement)
            network = adapter.network
            key = -200_000 - number
            if number >= len(cards):
                device = hardware.adapter_device(adapter, key=key, network=network, place=place, keep_mac=keep_macs)
                changes.append(hardware.added(device))
                changed.append(f"network adapter {number + 1}: added ({network})")
                continue
            card, mine = cards[number], present[number]
            if kind_of(card) != hardware.ADAPTER_CLASSES[adapter.kind]:
                device = hardware.adapter_device(adapter, key=key, network=network, place=place, keep_mac=keep_macs)
                changes += [hardware.removed(card), hardware.added(device)]
                changed.append(f"network adapter {number + 1}: {mine.kind} -> {adapter.kind}")
                continue
            said = []
            if network not in {mine.network, DISCONNECTED}:
                card.backing = hardware.adapter_backing(network, place)
                said.append(f"network {mine.network} -> {network}")
            if mine.connected != adapter.connected:
                card.connectable.startConnected = adapter.connected
                said.append("connected" if adapter.connected else "disconnected")
            if keep_macs and hardware.is_static_mac(adapter.mac) and mine.mac != adapter.mac:
                hardware.set_mac(card, adapter.mac)
                said.append(f"MAC {mine.mac} -> {adapter.mac}")
            if said:
                changes.append(hardware.edited(card))
                changed.append(f"network adapter {number + 1}: {', '.join(said)}")
        for number, card in enumerate(cards[len(wanted.network_adapters) :], len(wanted.network_adapters)):
            changes.append(hardware.removed(card))
            changed.append(f"network adapter {number + 1}: removed")
        return changes


def _missing_controllers(have: Hardware, wanted: Hardware) -> list[Controller]:
    positions = {(one.kind, one.bus_number) for one in have.controllers}
    return [one for one in wanted.controllers if one.kind != "ide" and (one.kind, one.bus_number) not in positions]


def _follow(config: Any, have: Hardware, wanted: Hardware, changed: list[str]) -> None:
    """Put into a ConfigSpec what differs beside devices, and say it in `changed`."""
    for attribute, field, title in _PLAIN:
        old, new = getattr(have, attribute), getattr(wanted, attribute)
        if old != new:
            setattr(config, field, new)
            changed.append(f"{title}: {old} -> {new}")
    if have.secure_boot != wanted.secure_boot:
        config.bootOptions = vim.vm.BootOptions(efiSecureBootEnabled=wanted.secure_boot)
        changed.append(f"Secure Boot: {have.secure_boot} -> {wanted.secure_boot}")
    guarded = (wanted.io_mmu, wanted.virtualisation_based_security)
    if (have.io_mmu, have.virtualisation_based_security) != guarded:
        config.flags = hardware.flags(wanted)
        changed.append(f"I/O MMU and virtualisation-based security: {guarded[0]}, {guarded[1]}")
    if wanted.resources is not None and have.resources != wanted.resources:
        for name, value in hardware.resource_fields(wanted.resources).items():
            setattr(config, name, value)
        changed.append("reservations, limits, shares and latency sensitivity")
    settings = {key: text for key, text in wanted.extra_config.items() if have.extra_config.get(key) != text}
    settings |= {key: "" for key in have.extra_config if key not in wanted.extra_config}
    if settings:
        config.extraConfig = hardware.options(settings)
        changed.append(f"extraConfig: {', '.join(sorted(settings))}")


def _as_placed(adapter: NetworkAdapter, placement: ReplicaPlacement) -> NetworkAdapter:
    """A source's adapter as the replica's is to be."""
    network = mapped_network(adapter.network, placement.networks)
    return replace(adapter, network=network, connected=adapter.connected and network != DISCONNECTED)


def placed_on(placement: ReplicaPlacement, host: str) -> ReplicaPlacement:
    """Networks and datastores are those of the host that the replica is on now (DRS may have moved it), wherever the
    job put it; one whose host may not be read has those of the job's.
    """
    return replace(placement, host=host or placement.host, folder=None, resource_pool=None, cluster=None)
