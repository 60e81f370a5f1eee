"""`repository rebuild`: make folders, records and restore points from what the target site's replicas say of themselves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vrepl.model import ReplicaState, VirtualMachine
from vrepl.repository.store import Repository


@dataclass(frozen=True, slots=True)
class FoundReplica:
    """A VM of a target site that bears a replica's mark (`commit_record.read_mark`), as one read of the site showed it."""

    site: str
    vm: VirtualMachine
    state: ReplicaState = ReplicaState.READY


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What became of one VM. `restore_points` is how many; `problem` says why it was passed over ("" if not)."""

    vm_name: str
    replica_id: str
    restore_points: int
    problem: str = ""


def rebuild(repository: Repository, found: Iterable[FoundReplica], *, adopt: bool = False) -> list[Rebuilt]:
    """Recreate every replica found; what the repository holds already stays, and is completed.

    A replica that another repository made is passed over, unless `adopt`. Where the repository is new (its folder
    was lost) and all replicas name one other repository, the new one takes that id over.
    """
    raise NotImplementedError
