"""Many replicas of one content, each of its own VM, made without a run for each."""

from __future__ import annotations

import copy
import uuid
from dataclasses import replace

from tests.support.world import World
from vrepl.extents import GRAIN
from vrepl.report.model import Result

HOSTS = 4


def make_replicas(world: World, count: int) -> None:
    """`web-01` is replicated; `vm-001` and so on are what would be if theirs were other VMs of the same content."""
    vm = world.source.add_vm("web-01", [2 * GRAIN])
    world.source.guest_write(vm, 0, 0, b"\x01" * GRAIN)
    assert world.run_vm().result is Result.SUCCESS
    first = world.replica()
    first.host = "esx-0"
    for number in range(1, count):
        uuids = {vm.instance_uuid: str(uuid.UUID(int=number)), first.instance_uuid: str(uuid.UUID(int=number << 64))}
        other = copy.copy(first)

        def renamed(text: str, uuids: dict[str, str] = uuids, number: int = number) -> str:
            for old, new in uuids.items():
                text = text.replace(old, new)
            return text.replace("web-01", f"vm-{number:03}")

        other.ref, other.name = f"copy-{number}", renamed(first.name)
        other.instance_uuid = uuids[first.instance_uuid]
        other.host = f"esx-{number % HOSTS}"
        other.files = {}
        other.disks = [disk.copy() for disk in first.disks]
        other.extra_config = {key: renamed(value) for key, value in first.extra_config.items()}
        other.snapshots = [
            replace(
                one,
                ref=f"{one.ref}-{number}",
                description=renamed(one.description),
                extra_config=dict(other.extra_config),
            )
            for one in first.snapshots
        ]
        other.current = other.snapshots[-1].ref
        world.target.vms[other.ref] = other
