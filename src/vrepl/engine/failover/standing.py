"""Which tests stand on a replica's restore points: what a run may not remove, and what a test may not stand on.

Removing a snapshot under a linked clone destroys the clone, and vSphere does not guard it. A run and a test may work at
one replica at once, from two machines that share no lock. So each writes what it is about to do into a file beside the
replica, and only then looks at the other one's: whichever comes second sees the first (Dekker's rule), and gives way.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from vrepl.model import VirtualMachine
from vrepl.model.failover_tests import ReplicaTests, SnapshotRemoval
from vrepl.planner.snapshots import held_by_clones
from vrepl.ports.failover import ReplicaFiles
from vrepl.repository.documents import DamagedError, DocumentType

TESTS_FILE = "vrepl-tests.json"
REMOVALS_FILE = "vrepl-removals.json"
KEY_TEST_OF = "vrepl.test.of"
"""instanceUuid of the replica that the clone is of."""
KEY_TEST_ID = "vrepl.test.id"
KEY_TEST_SNAPSHOT = "vrepl.test.snapshot"
"""Ref of the snapshot that the clone's disks are children of."""
KEY_TEST_NETWORK = "vrepl.test.network"
"""Name of the network that was made for it."""
REMOVAL_ENDS_WITHIN = dt.timedelta(minutes=10)
"""A removal that was announced longer ago was made, or its process is dead."""

TESTS_DOCUMENT = DocumentType(ReplicaTests)
REMOVAL_DOCUMENT = DocumentType(SnapshotRemoval)

Value = TypeVar("Value")


class CloneInventory(ReplicaFiles, Protocol):
    """What is asked to find tests."""

    def list_vms(self) -> list[VirtualMachine]: ...

    def current_time(self) -> dt.datetime: ...


@dataclass(frozen=True, slots=True)
class LinkedClone:
    """A linked clone that bears a test's mark."""

    vm: VirtualMachine
    test_id: str
    snapshot_ref: str
    network: str | None


def clones_of(vms: Iterable[VirtualMachine], replica: VirtualMachine) -> list[LinkedClone]:
    """Of one replica, whoever made them."""
    return [clone for vm in vms if (clone := as_linked_clone(vm)) is not None and _tests(clone, replica)]


def as_linked_clone(vm: VirtualMachine) -> LinkedClone | None:
    """None: no clone of a test."""
    marks = vm.extra_config
    if not marks.get(KEY_TEST_OF):
        return None
    return LinkedClone(
        vm, marks.get(KEY_TEST_ID, ""), marks.get(KEY_TEST_SNAPSHOT, ""), marks.get(KEY_TEST_NETWORK) or None
    )


def _tests(clone: LinkedClone, replica: VirtualMachine) -> bool:
    return clone.vm.extra_config[KEY_TEST_OF] == replica.instance_uuid


def read_tests(site: ReplicaFiles, replica: VirtualMachine) -> ReplicaTests:
    """Of a replica that was never tested: nothing. Raises DamagedError for a file that was not written whole."""
    found = _read(site, replica, TESTS_FILE, TESTS_DOCUMENT)
    if found is None or found.replica_instance_uuid != replica.instance_uuid:
        return ReplicaTests(replica.instance_uuid)
    return found


def write_tests(site: ReplicaFiles, replica: VirtualMachine, tests: ReplicaTests) -> None:
    """At the replica when it returns."""
    site.write_vm_file(replica, TESTS_FILE, TESTS_DOCUMENT.encode(tests))


def standing_clones(site: CloneInventory, replica: VirtualMachine) -> list[LinkedClone]:
    """Clones that stand on the replica's snapshots: one small file is read where there never was a test."""
    try:
        if read_tests(site, replica).standing is None:
            return []
    except DamagedError:
        pass  # it was being written: whether there is a test is seen by its clone
    return clones_of(site.list_vms(), replica)


def held_snapshots(site: CloneInventory, replica: VirtualMachine) -> frozenset[str]:
    """Refs of snapshots that must stay, for tests that stand and for one that was announced."""
    announced = None
    try:
        announced = read_tests(site, replica).standing
        if announced is None:
            return frozenset()
    except DamagedError:
        pass
    stood_on = [clone.snapshot_ref for clone in clones_of(site.list_vms(), replica)]
    if announced is not None and not stood_on and site.current_time() < announced.until:
        stood_on.append(announced.snapshot_ref)
    return held_by_clones(replica.snapshots, stood_on)


def announce_removal(site: CloneInventory, replica: VirtualMachine, snapshot_ref: str | None) -> None:
    """Before `held_snapshots` is asked whether it may be removed; None: it is not."""
    removal = SnapshotRemoval(replica.instance_uuid, snapshot_ref, site.current_time())
    site.write_vm_file(replica, REMOVALS_FILE, REMOVAL_DOCUMENT.encode(removal))


def removal_under(site: CloneInventory, replica: VirtualMachine, snapshot_ref: str) -> str | None:
    """Ref of a snapshot that a run is removing, and that a clone of `snapshot_ref` cannot do without.

    A file that was not written whole says nothing, but that a run is about to: that counts for every snapshot.
    """
    try:
        removal = _read(site, replica, REMOVALS_FILE, REMOVAL_DOCUMENT)
    except DamagedError:
        return snapshot_ref
    if removal is None or removal.snapshot_ref is None or removal.replica_instance_uuid != replica.instance_uuid:
        return None
    if site.current_time() - removal.time > REMOVAL_ENDS_WITHIN:
        return None
    return removal.snapshot_ref if removal.snapshot_ref in held_by_clones(replica.snapshots, [snapshot_ref]) else None


def names_of(clones: Sequence[LinkedClone]) -> tuple[str, ...]:
    return tuple(clone.vm.name for clone in clones)


def _read(site: ReplicaFiles, replica: VirtualMachine, name: str, document: DocumentType[Value]) -> Value | None:
    content = site.read_vm_file(replica, name)
    return None if content is None else document.decode(Path(name), content)
