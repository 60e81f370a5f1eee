"""What failover asks of the site that is left: power, and a place beside the replica that no revert takes back."""

from __future__ import annotations

from typing import Protocol

from vrepl.model import VirtualMachine


class ReplicaFiles(Protocol):
    """Small files in the folder of a VM's own files on its datastore.

    A revert does not touch them, a standalone ESXi host has them too, and they survive that the VM is unregistered.
    """

    def read_vm_file(self, vm: VirtualMachine, name: str) -> bytes | None:
        """None where there is no such file."""
        ...

    def write_vm_file(self, vm: VirtualMachine, name: str, content: bytes) -> None:
        """Replaces it. Cut off in the middle, the file may hold anything."""
        ...
