"""Which snapshots of a replica must stay, and how long its chain is. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vrepl.model import Snapshot

LONGEST_CHAIN = 32
"""Snapshots that vSphere takes in a chain (Best practices for using VMware snapshots, KB 1025279)."""
ROOM_FOR_A_RUN = 2
"""A run's seal, and one more for whoever has to act at once."""


def held_by_clones(snapshots: Iterable[Snapshot], stood_on: Iterable[str]) -> frozenset[str]:
    """Refs of snapshots that may not be removed while linked clones stand on those of `stood_on`.

    Removing a snapshot merges its disks into its child's, so that neither the snapshot that a clone's disks have as
    their parent nor any ancestor of it can go: vSphere guards neither, and the clone would read other bytes.
    """
    parents: Mapping[str, str | None] = {one.ref: one.parent_ref for one in snapshots}
    held: set[str] = set()
    for start in stood_on:
        ref: str | None = start if start in parents else None
        while ref is not None and ref not in held:
            held.add(ref)
            ref = parents.get(ref)
    return frozenset(held)


def longest_chain(snapshots: Iterable[Snapshot]) -> int:
    """Snapshots from the root to the deepest leaf: with branches this counts, not their number. Parents come first."""
    depths: dict[str | None, int] = {}
    for one in snapshots:  # parents before children
        depths[one.ref] = depths.get(one.parent_ref, 0) + 1
    return max(depths.values(), default=0)


def has_room_for_a_run(snapshots: Iterable[Snapshot]) -> bool:
    """Whether one more restore point fits into the chain."""
    return longest_chain(snapshots) + ROOM_FOR_A_RUN <= LONGEST_CHAIN
