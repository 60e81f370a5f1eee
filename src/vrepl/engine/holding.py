"""The window in which a replica is held: nobody else works at it, and nothing of dead runs is left half-done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vrepl.engine.context import Services
from vrepl.engine.recovery import Original, recover
from vrepl.engine.vm_work import VmWork
from vrepl.ports import SnapshottedSite
from vrepl.repository.replica_folder import ReplicaFolder


@contextmanager
def replica_held(
    services: Services, work: VmWork, folder: ReplicaFolder, target: SnapshottedSite, original: Original | None = None
) -> Iterator[None]:
    """Raises LockedError naming who holds it. `original`: the VM that is replicated, if its site is at hand."""
    with folder.lock():
        work.enter("recovery")
        for note in recover(services, folder, target, original):
            work.note(note)
        yield
