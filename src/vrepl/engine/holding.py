"""The window in which a replica is held: nobody else works at it, and nothing of dead runs is left half-done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

from vrepl.engine.context import Services
from vrepl.engine.recovery import Original, Seen, recover
from vrepl.engine.vm_work import VmWork
from vrepl.errors import LockedError
from vrepl.ports import SnapshottedSite
from vrepl.report import format as words
from vrepl.repository.replica_folder import ReplicaFolder


@contextmanager
def replica_held(
    services: Services,
    work: VmWork,
    folder: ReplicaFolder,
    target: SnapshottedSite,
    original: Original | None = None,
    *,
    lock_wait: float = 0.0,
    first: Callable[[], Iterable[str]] = tuple,
) -> Iterator[Seen]:
    """Yields what recovery has just read of the two VMs.

    Raises LockedError naming who holds the replica, after waiting `lock_wait` seconds for that to end.

    `original`: the VM that is replicated, if its site is at hand. `first`: what cannot wait until the rest is
    recovered; what it did, in words.
    """
    with ExitStack() as held:
        try:
            held.enter_context(folder.lock())
        except LockedError as error:
            if lock_wait <= 0:
                raise
            work.note(f"{error.message}; waiting up to {words.duration(lock_wait)} for that to end")
            held.enter_context(folder.lock(lock_wait, sleep=services.wait))
        work.enter("recovery")
        for note in first():
            work.note(note)
        seen = Seen()
        for note in recover(services, folder, target, original, seen):
            work.note(note)
        yield seen
