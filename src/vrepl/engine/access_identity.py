"""By which name vrepl disables a VM's methods: it follows from the repository and the VM, so no record is needed.

Whoever holds that repository's lock of that VM may end such an access, with or without a journal. Only identities that
are made here are ever ended; another product, or another repository, may have the VM.
"""

from __future__ import annotations

import re

from blake3 import blake3

from vrepl.engine.marks import source_mark_of
from vrepl.errors import NotReadyError
from vrepl.model import VirtualMachine

PREFIX = "vrepl-"
RELOCATE = "RelocateVM_Task"
"""What PrepareForAccess disables."""
_HOLDER = re.compile(rf"{PREFIX}[0-9A-Za-z-]+")


def access_identity(repository_id: str, replica_id: str, vm: VirtualMachine) -> str:
    """`vrepl-<repository ID>-<hash>`, at most 50 characters (VDDK's limit).

    The hash is of the VM and of the replica whose lock is held: a VM that is a replica and is replicated itself is
    under two locks, and has two identities.
    """
    digest = blake3(f"{replica_id} {vm.instance_uuid}".encode()).hexdigest(length=6)
    return f"{PREFIX}{repository_id}-{digest}"[:50]


def dead_identities(repository_id: str, replica_id: str, vm: VirtualMachine) -> list[str]:
    """Under which names a dead run of this repository may hold the VM: today's, and those of before, by run."""
    marks = [mark for snapshot in vm.snapshots if (mark := source_mark_of(snapshot)) is not None]
    earlier = [f"{PREFIX}{mark.run_id}"[:50] for mark in marks if mark.repository_id == repository_id]
    return [access_identity(repository_id, replica_id, vm), *earlier]


def held_by_vrepl(message: str) -> str | None:
    """The identity of vrepl's that an error of PrepareForAccess names; None where it names none."""
    found = _HOLDER.search(message)
    return found.group() if found else None


def other_repositories(repository_id: str, vm: VirtualMachine) -> list[str]:
    """IDs of other repositories whose runs have a snapshot on the VM while its methods are disabled."""
    if RELOCATE not in vm.disabled_methods:
        return []
    marks = [mark for snapshot in vm.snapshots if (mark := source_mark_of(snapshot)) is not None]
    return sorted({mark.repository_id for mark in marks} - {repository_id})


def held_elsewhere(vm: VirtualMachine, holder: str) -> NotReadyError:
    """What to say where another repository's run has the VM; `holder` names it."""
    return NotReadyError(
        f"{vm.name} is held by {holder}: a run of another repository works at it, or died there",
        hint="wait until that run has ended, or run that repository's job once more; if its repository is lost, "
        "`vrepl repository rebuild` into an empty directory takes over its ID, and its next run cleans up",
    )
