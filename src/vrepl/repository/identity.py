"""Tells a replica from its clones: a clone inherits the mark, and gets an instanceUuid of its own. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from vrepl.model import VirtualMachine
from vrepl.repository.commit_record import ReplicaMark, named_restore_point, read_mark


class VmAt(NamedTuple):
    """A VM, known by its site and its reference there."""

    site: str
    ref: str


def find_clones(found: Iterable[tuple[str, VirtualMachine]]) -> set[VmAt]:
    """Those of these VMs (each with its site) that bear the mark of a replica and are only clones of it.

    The mark names the replica's own instanceUuid, so where one VM bears it rightly all others are clones. A vCenter may
    give a VM another instanceUuid when it is registered anew: where nobody bears the mark rightly, the only VM that has
    restore points is taken for the replica, for vSphere clones no snapshots.
    """
    bearers: dict[tuple[str, str, str], list[tuple[VmAt, VirtualMachine, ReplicaMark]]] = {}
    for site, vm in found:
        mark = read_mark(vm.extra_config)
        if mark is not None:
            key = mark.repository_id, mark.source_site, mark.source_instance_uuid
            bearers.setdefault(key, []).append((VmAt(site, vm.ref), vm, mark))
    clones: set[VmAt] = set()
    for group in bearers.values():
        doubtful = [(at, vm) for at, vm, mark in group if not mark.is_of(vm.instance_uuid)]
        rightful = len(group) > len(doubtful)
        sealed = [at for at, vm in doubtful if any(named_restore_point(one.description) for one in vm.snapshots)]
        true = set(sealed) if not rightful and len(sealed) == 1 else set()
        clones |= {at for at, _ in doubtful} - true
    return clones
