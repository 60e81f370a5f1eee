"""What the simulated vCenter promises about snapshots, change tracking and disks (docs/lab-internals.md, section 7)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from tests.support import plain_api
from tests.support.plain_api import disk_path, vm_named, wait
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

GRAIN = 65536
CAPACITY = 3 * MIB + 512
SPEC = LabSpec.of_vms(
    VmSpec("chain-01", disks=(DiskSpec(CAPACITY, content="random"),), cbt=True),
    VmSpec("page-01", disks=(DiskSpec(CAPACITY, content="random"),), cbt=True),
    VmSpec("move-01", disks=(DiskSpec(CAPACITY, content="random"),), cbt=True),
    VmSpec("late-01", disks=(DiskSpec(CAPACITY, content="random"),)),
    VmSpec("grow-01", disks=(DiskSpec(CAPACITY, content="random"),), power="poweredOff", tools="notRunning"),
)


@pytest.fixture(scope="module")
def vcenter(start_shared_lab: Callable[[LabSpec], Lab]) -> Lab:
    lab = start_shared_lab(SPEC)
    lab.set("nasty=off")  # each test says for itself what is not exact
    return lab


@pytest.fixture
def api(vcenter: Lab) -> Iterator[Any]:
    with plain_api.session(vcenter) as instance:
        yield instance


def snapshot(vm: Any, name: str) -> Any:
    return wait(vm.CreateSnapshot_Task(name=name, description="", memory=False, quiesce=False))


def first_disk(holder: Any) -> Any:
    return next(d for d in holder.config.hardware.device if isinstance(d, vim.vm.device.VirtualDisk))


def change_id(holder: Any) -> str:
    return str(first_disk(holder).backing.changeId)


def changed(vm: Any, since: Any, start: str) -> tuple[set[int], list[Any]]:
    """Grains that changed, and the replies; asserts that these join up."""
    grains: set[int] = set()
    replies = []
    offset = 0
    while offset < CAPACITY:
        reply = vm.QueryChangedDiskAreas(since, first_disk(vm).key, offset, start)
        assert reply.startOffset == offset
        assert reply.length > 0
        for area in reply.changedArea:
            assert offset <= area.start < area.start + area.length <= offset + reply.length
            grains |= set(range(area.start // GRAIN, (area.start + area.length + GRAIN - 1) // GRAIN))
        replies.append(reply)
        offset += reply.length
    assert offset == CAPACITY
    return grains, replies


@pytest.mark.parametrize("seed", range(3))
def test_every_state_stays_as_it_was_whatever_happens_to_the_chain(
    vcenter: Lab, api: Any, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    vm = vm_named(api, "chain-01")

    def content(of: str | None = None) -> bytes:
        return vcenter.export("prod", "chain-01", 0, tmp_path / "out.img", of).read_bytes()

    disk = bytearray(content())
    kept: list[tuple[Any, str, bytes]] = []
    previous: tuple[str, bytes] | None = None
    for step in range(25):
        action = chance.choice(["write", "write", "unmap", "snapshot", "snapshot", "remove", "revert"])
        offset = chance.randrange(CAPACITY)
        length = min(chance.randrange(1, 3 * GRAIN), CAPACITY - offset)
        if action == "write":
            data = chance.randbytes(length)
            vcenter.write("prod", "chain-01", 0, offset, data)
            disk[offset : offset + length] = data
        elif action == "unmap":
            vcenter.unmap("prod", "chain-01", 0, offset, length)
            disk[offset : offset + length] = bytes(length)
        elif action == "snapshot":
            made = snapshot(vm, f"{seed}-{step}")
            if previous is not None:
                grains, _ = changed(vm, made, previous[0])
                sectors = range(0, CAPACITY, 512)
                differ = {at // GRAIN for at in sectors if previous[1][at : at + 512] != disk[at : at + 512]}
                assert differ <= grains
            kept.append((made, f"{seed}-{step}", bytes(disk)))
            previous = change_id(made), bytes(disk)
        elif action == "remove" and kept:
            gone, _, _ = kept.pop(chance.randrange(len(kept)))
            wait(gone.RemoveSnapshot_Task(removeChildren=False))
        elif action == "revert" and kept:
            target, _, state = chance.choice(kept)
            old = change_id(target)
            wait(target.RevertToSnapshot_Task())
            disk[:] = state
            previous = None
            probe = snapshot(vm, "probe")
            with pytest.raises(vim.fault.FileFault):
                changed(vm, probe, old)
            wait(probe.RemoveSnapshot_Task(removeChildren=False))
        assert content() == disk
        for _, name, state in kept:
            assert content(name) == state
    wait(vm.RemoveAllSnapshots_Task())
    assert content() == disk
    assert vm.snapshot is None
    assert "-00000" not in disk_path(vm.config)
    assert not vm.runtime.consolidationNeeded


def test_pages_join_up_and_may_be_empty(vcenter: Lab, api: Any) -> None:
    vm = vm_named(api, "page-01")
    one = snapshot(vm, "one")
    touched = {0, 1, 5, 20, 47, 48}
    for grain in touched:
        vcenter.write("prod", "page-01", 0, grain * GRAIN + 17, b"x")
    two = snapshot(vm, "two")
    seen = {}
    for page, empty in ((2000, "no"), (1, "no"), (2, "yes")):
        vcenter.set(f"cbt_page={page}", f"cbt_empty_page={empty}")
        grains, replies = changed(vm, two, change_id(one))
        assert grains == touched
        seen[page] = [len(reply.changedArea) for reply in replies]
    vcenter.set("cbt_page=2000", "cbt_empty_page=no")
    assert seen[2000] == [4]
    assert seen[1] == [1, 1, 1, 1]
    assert 0 in seen[2]
    everything, _ = changed(vm, two, "*")
    assert touched <= everything
    key = first_disk(vm).key
    for start, change in ((CAPACITY, change_id(one)), (-1, change_id(one)), (0, "no change id")):
        with pytest.raises(vmodl.fault.InvalidArgument):
            vm.QueryChangedDiskAreas(two, key, start, change)
    with pytest.raises(vmodl.fault.InvalidArgument):
        vm.QueryChangedDiskAreas(None, key, 0, change_id(one))
    vcenter.reset_cbt("prod", "page-01", 0)
    three = snapshot(vm, "three")
    with pytest.raises(vim.fault.FileFault):
        changed(vm, three, change_id(two))
    wait(vm.RemoveAllSnapshots_Task())


def test_tracking_enabled_under_a_snapshot_starts_with_the_next(vcenter: Lab, api: Any) -> None:
    vm = vm_named(api, "late-01")
    early = snapshot(vm, "early")
    wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True)))
    assert vm.config.changeTrackingEnabled
    assert first_disk(early).backing.changeId is None
    with pytest.raises(vim.fault.FileFault):
        changed(vm, early, "*")
    late = snapshot(vm, "late")
    vcenter.write("prod", "late-01", 0, 0, b"x")
    last = snapshot(vm, "last")
    assert changed(vm, last, change_id(late))[0] == {0}
    wait(vm.RemoveAllSnapshots_Task())


def test_a_storage_vmotion_changes_paths_and_keeps_change_ids(vcenter: Lab, api: Any, tmp_path: Path) -> None:
    vm = vm_named(api, "move-01")
    before = snapshot(vm, "before")
    vcenter.write("prod", "move-01", 0, 3 * GRAIN, b"moved")
    content = vcenter.export("prod", "move-01", 0, tmp_path / "a.img").read_bytes()
    (other,) = [d for d in vm.runtime.host.datastore if d.name == "prod-vmfs-02"]
    wait(vm.RelocateVM_Task(vim.vm.RelocateSpec(datastore=other)))
    assert disk_path(vm.config).startswith("[prod-vmfs-02] ")
    assert disk_path(before.config).startswith("[prod-vmfs-02] ")
    after = snapshot(vm, "after")
    assert changed(vm, after, change_id(before))[0] == {3}
    wait(vm.RemoveAllSnapshots_Task())
    assert vcenter.export("prod", "move-01", 0, tmp_path / "b.img").read_bytes() == content


def test_a_disk_grows_without_snapshots_only_and_then_voids_change_ids(vcenter: Lab, api: Any, tmp_path: Path) -> None:
    vm = vm_named(api, "grow-01")
    wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True)))
    content = vcenter.export("prod", "grow-01", 0, tmp_path / "a.img").read_bytes()

    def grow() -> None:
        disk = first_disk(vm)
        disk.capacityInBytes, disk.capacityInKB = 4 * MIB, 4 * 1024
        edit = vim.vm.device.VirtualDeviceSpec(operation="edit", device=disk)
        wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[edit])))

    held = snapshot(vm, "held")
    old = change_id(held)
    with pytest.raises(vim.fault.InvalidDeviceSpec):
        grow()
    wait(held.RemoveSnapshot_Task(removeChildren=False))
    grow()
    assert first_disk(vm).capacityInBytes == 4 * MIB
    grown = vcenter.export("prod", "grow-01", 0, tmp_path / "b.img").read_bytes()
    assert grown == content + bytes(4 * MIB - len(content))
    with pytest.raises(vim.fault.FileFault):
        vm.QueryChangedDiskAreas(None, first_disk(vm).key, 0, old)


def test_a_chain_ends_at_32_snapshots(api: Any) -> None:
    vm = vm_named(api, "late-01")
    for n in range(32):
        snapshot(vm, f"level {n}")
    with pytest.raises(vim.fault.TooManySnapshotLevels):
        snapshot(vm, "level 33")
    wait(vm.RemoveAllSnapshots_Task())
