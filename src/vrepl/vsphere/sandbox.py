"""Linked clones and networks without an uplink, for tests of a failover."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vrepl.errors import NotFoundError, VsphereError
from vrepl.model import VirtualMachine
from vrepl.vsphere import collector, hardware
from vrepl.vsphere.api import ref_of, vim
from vrepl.vsphere.inventory import Inventory
from vrepl.vsphere.session import Session
from vrepl.vsphere.tasks import Tasks
from vrepl.vsphere.translation import decode_name, encode_name

LINKED = "createNewChildDiskBacking"
"""vSphere API, VirtualMachineRelocateDiskMoveOptions: a new disk whose parent is the snapshot's."""
SWITCH_PREFIX = "vrepl-"
"""Virtual switches that vrepl makes; a name has 32 characters at the most (HostVirtualSwitchConfig)."""
LONGEST_SWITCH_NAME = 31


class Sandboxes:
    """VMs are named by their refs, hosts and networks by their names."""

    def __init__(self, session: Session, running: Tasks, inventory: Inventory) -> None:
        self._session = session
        self._tasks = running
        self._inventory = inventory

    def clone_linked(
        self, vm_ref: str, snapshot_ref: str, name: str, extra_config: Mapping[str, str]
    ) -> VirtualMachine:
        """See `ports.Sandbox`."""
        session = self._session
        if not session.is_vcenter:
            raise VsphereError(
                f"site {session.settings.name} is a standalone ESXi host, which cannot clone VMs",
                fault="NotSupported",
                hint="register the host with a vCenter Server, or test by a real failover and its undo",
            )
        vm = session.object(vim.VirtualMachine, vm_ref)
        found = collector.these(session, [vm], {vim.VirtualMachine: ["parent", "resourcePool", "runtime.host"]})
        if not found:
            raise NotFoundError(f"VM {vm_ref} is gone", hint="was it deleted or unregistered?")
        facts = found[0]
        spec = vim.vm.CloneSpec(
            location=vim.vm.RelocateSpec(
                diskMoveType=LINKED, pool=facts.get("resourcePool"), host=facts.get("runtime.host")
            ),
            snapshot=session.object(vim.vm.Snapshot, snapshot_ref),
            powerOn=False,
            template=False,
            config=vim.vm.ConfigSpec(extraConfig=hardware.options(extra_config)),
        )

        def there() -> Any:
            clones = [one for one in self._inventory.list_vms() if one.name == name]
            return session.object(vim.VirtualMachine, clones[0].ref) if clones else None

        made = self._tasks.run(
            lambda: vm.CloneVM_Task(folder=facts.get("parent"), name=encode_name(name), spec=spec),
            what=f"clone {vm_ref} as {name}",
            recover=there,
        )
        return self._inventory.read_vm(ref_of(made))

    def add_network(self, host: str, name: str) -> bool:
        """See `ports.Sandbox`. Raises NotFoundError for an unknown host."""
        system = self._networking(host)
        config = system.networkInfo
        if any(group.spec.name == name for group in config.portgroup):
            return False
        switch = _switch_name(name)
        if all(one.name != switch for one in config.vswitch):
            system.AddVirtualSwitch(vswitchName=switch, spec=vim.host.VirtualSwitch.Specification(numPorts=128))
        system.AddPortGroup(
            portgrp=vim.host.PortGroup.Specification(
                name=name, vlanId=0, vswitchName=switch, policy=vim.host.NetworkPolicy()
            )
        )
        return True

    def remove_network(self, host: str, name: str) -> None:
        """See `ports.Sandbox`."""
        system = self._networking(host)
        switch = _switch_name(name)
        config = system.networkInfo
        if any(group.spec.name == name and group.spec.vswitchName == switch for group in config.portgroup):
            system.RemovePortGroup(pgName=name)
        others = [group for group in config.portgroup if group.spec.vswitchName == switch and group.spec.name != name]
        if not others and any(one.name == switch for one in config.vswitch):
            system.RemoveVirtualSwitch(vswitchName=switch)

    def _networking(self, host: str) -> Any:
        found = collector.below(self._session, {vim.HostSystem: ["name", "configManager.networkSystem"]})
        for one in found:
            if decode_name(str(one.get("name", ""))) == host:
                return one.get("configManager.networkSystem")
        raise NotFoundError(f"site {self._session.settings.name} has no host {host}")


def _switch_name(network: str) -> str:
    return f"{SWITCH_PREFIX}{network}"[:LONGEST_SWITCH_NAME]
