"""The NVRAM file of an EFI guest, which holds its boot entries and the keys of its Secure Boot, brought to the replica.

Without it EFI looks for a loader at the default path only, and a boot entry of another name is lost. It lies beside the
.vmx, and a VM that is off takes what it finds there at its next power-on (a guess: no document says so, and people
move VMs by copying it). It changes rarely, so it is looked at once a day.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

from vrepl.engine.context import ReplicationContext
from vrepl.engine.events import Note
from vrepl.errors import VreplError
from vrepl.model import VirtualMachine
from vrepl.repository.replica_folder import ReplicaFolder

EVERY = dt.timedelta(hours=24)


def carry_nvram(
    context: ReplicationContext, folder: ReplicaFolder, source: VirtualMachine, replica: VirtualMachine, note: Note
) -> None:
    """Never raises for what cannot be read or written: that is said, and the replica starts with what it has."""
    read, now = folder.record.nvram_read, context.services.clock()
    if source.hardware.firmware != "efi" or not (source.nvram and replica.nvram):
        return
    if read is not None and read <= now < read + EVERY:
        return
    try:
        content = context.source.read_vm_file(source, source.nvram)
        if content and content != context.target.read_vm_file(replica, replica.nvram):
            context.target.write_vm_file(replica, replica.nvram, content)
            note(f"the replica has the source's NVRAM file ({len(content)} bytes: boot entries, Secure Boot keys)")
    except VreplError as error:
        note(f"the source's NVRAM file was not brought over: {error.message}")
        return
    folder.save_record(replace(folder.record, nvram_read=now))
