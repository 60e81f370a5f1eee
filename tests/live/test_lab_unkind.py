"""What the lab does to its clients when a setting says so, because real sites do it (docs/lab.md, section 7)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pyVmomi import vim

from tests.support import plain_api
from tests.support.plain_api import vm_named, wait
from vrepl_lab.lab import Lab
from vrepl_lab.spec import DiskSpec, LabSpec, VmSpec

GRAIN = 65536
BLOCKS = 400
CAPACITY = BLOCKS * GRAIN
SPEC = LabSpec.of_vms(VmSpec("liar-01", disks=(DiskSpec(CAPACITY, content="empty"),), cbt=True))


@pytest.fixture(scope="module")
def vcenter(start_shared_lab: Callable[[LabSpec], Lab]) -> Lab:
    return start_shared_lab(SPEC)


@pytest.fixture
def api(vcenter: Lab) -> Iterator[Any]:
    with plain_api.session(vcenter) as instance:
        yield instance


def snapshot(vm: Any, name: str, *, quiesce: bool = False) -> Any:
    return wait(vm.CreateSnapshot_Task(name=name, description="", memory=False, quiesce=quiesce))


def first_disk(holder: Any) -> Any:
    return next(d for d in holder.config.hardware.device if isinstance(d, vim.vm.device.VirtualDisk))


def said(vm: Any, at: Any, since: str) -> list[int]:
    """The blocks that change tracking calls changed, over all its pages."""
    blocks: list[int] = []
    offset = 0
    while offset < CAPACITY:
        reply = vm.QueryChangedDiskAreas(at, first_disk(vm).key, offset, since)
        for area in reply.changedArea:
            blocks += range(area.start // GRAIN, (area.start + area.length) // GRAIN)
        offset = reply.startOffset + reply.length
    return blocks


def test_change_tracking_misses_adds_and_answers_with_the_whole_disk(vcenter: Lab, api: Any) -> None:
    vm = vm_named(api, "liar-01")
    one = snapshot(vm, "one")
    since = str(first_disk(one).backing.changeId)
    touched = set(range(0, BLOCKS, 2))
    for block in touched:
        vcenter.write("prod", "liar-01", 0, block * GRAIN, b"x")
    two = snapshot(vm, "two")
    assert set(said(vm, two, since)) == touched

    vcenter.set("prod.cbt_miss=0.1")
    missed = touched - set(said(vm, two, since))
    assert 5 <= len(missed) <= 40  # of 200: a tenth, as it falls
    assert set(said(vm, two, since)) <= touched
    vcenter.set("prod.cbt_page=3")
    assert touched - set(said(vm, two, since)) == missed  # the same lie on every page and each time
    again = min(missed)
    for attempt in range(20):  # a block that changes once more gets another chance to be told
        vcenter.write("prod", "liar-01", 0, again * GRAIN, b"y")
        later = snapshot(vm, f"later {attempt}")
        told = again in said(vm, later, since)
        wait(later.RemoveSnapshot_Task(removeChildren=False))
        if told:
            break
    assert told

    vcenter.set("prod.cbt_page=2000", "prod.cbt_miss=0", "prod.cbt_false=0.2")
    found = set(said(vm, two, since))
    assert touched < found
    assert 15 <= len(found - touched) <= 70

    vcenter.set("prod.cbt_whole_disk=on")
    for change in (since, "*"):
        (area,) = vm.QueryChangedDiskAreas(two, first_disk(vm).key, 0, change).changedArea
        assert (area.start, area.length) == (0, CAPACITY)
    vcenter.set("prod.cbt_whole_disk=off", "prod.cbt_false=0")
    assert set(said(vm, two, since)) == touched
    wait(vm.RemoveAllSnapshots_Task())
