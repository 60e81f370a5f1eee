"""Keeps a memory world beside its repository, so that what an older vrepl left can be gone on with by this one."""

from __future__ import annotations

import base64
import datetime as dt
import itertools
import json
import shutil
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from tests.support.memory_disk import MemoryDisk
from tests.support.memory_site import MemorySite, MemorySnapshot, MemoryVirtualDisk, MemoryVm, Tracking
from tests.support.world import World
from vrepl.model import Hardware, PowerState

_FIRST_NUMBER = 1000
"""Above every number that a kept world has given out."""


def keep(world: World, folder: Path) -> None:
    """Write the repository and both sites of `world` into `folder`."""
    folder.mkdir(parents=True)
    shutil.copytree(world.folder, folder / "repository")
    sites = {site.name: [_vm_to_json(vm) for vm in site.vms.values()] for site in (world.source, world.target)}
    content = {"now": world.clock.now.isoformat(), "sites": sites}
    (folder / "world.json").write_text(json.dumps(content, indent=1) + "\n")


def wake(kept: Path, folder: Path, **how: Any) -> World:
    """A world as `keep` found it, its repository copied to `folder`; `how`: further arguments of World."""
    shutil.copytree(kept / "repository", folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    content = json.loads((kept / "world.json").read_text())
    world = World(folder, **how)
    world.clock.now = dt.datetime.fromisoformat(content["now"])
    for site in (world.source, world.target):
        site._numbers = itertools.count(_FIRST_NUMBER)
        for data in content["sites"][site.name]:
            vm = _vm_from_json(data)
            site.vms[vm.ref] = vm
    world._ids = itertools.count(_FIRST_NUMBER)
    return world


def vm_named(site: MemorySite, name: str) -> MemoryVm:
    return next(vm for vm in site.vms.values() if vm.name == name)


def _vm_to_json(vm: MemoryVm) -> dict[str, Any]:
    return {
        "ref": vm.ref,
        "name": vm.name,
        "instance_uuid": vm.instance_uuid,
        "power": vm.power.value,
        "cbt_enabled": vm.cbt_enabled,
        "hardware": asdict(vm.hardware),
        "extra_config": vm.extra_config,
        "generations": vm.generations,
        "current": vm.current,
        "disks": [_disk_to_json(disk) for disk in vm.disks],
        "snapshots": [
            {
                "ref": one.ref,
                "name": one.name,
                "description": one.description,
                "created": one.created.isoformat(),
                "parent_ref": one.parent_ref,
                "quiesced": one.quiesced,
                "disks": [_disk_to_json(disk) for disk in one.disks],
                "change_ids": {str(key): value for key, value in one.change_ids.items()},
                "hardware": asdict(one.hardware),
                "extra_config": one.extra_config,
            }
            for one in vm.snapshots
        ],
    }


def _vm_from_json(data: dict[str, Any]) -> MemoryVm:
    return MemoryVm(
        ref=data["ref"],
        name=data["name"],
        instance_uuid=data["instance_uuid"],
        disks=[_disk_from_json(disk) for disk in data["disks"]],
        power=PowerState(data["power"]),
        cbt_enabled=data["cbt_enabled"],
        hardware=_hardware(data["hardware"]),
        snapshots=[
            MemorySnapshot(
                ref=one["ref"],
                name=one["name"],
                description=one["description"],
                created=dt.datetime.fromisoformat(one["created"]),
                parent_ref=one["parent_ref"],
                quiesced=one["quiesced"],
                disks=[_disk_from_json(disk) for disk in one["disks"]],
                change_ids={int(key): value for key, value in one["change_ids"].items()},
                hardware=_hardware(one["hardware"]),
                # A mark never changes, so a world that was kept before snapshots had settings has it all the same.
                extra_config=one.get("extra_config", data["extra_config"]),
            )
            for one in data["snapshots"]
        ],
        current=data["current"],
        extra_config=data["extra_config"],
        generations=data["generations"],
    )


def _hardware(data: dict[str, Any]) -> Hardware:
    return TypeAdapter(Hardware).validate_python(data)


def _disk_to_json(disk: MemoryVirtualDisk) -> dict[str, Any]:
    tracking = disk.tracking
    return {
        "key": disk.key,
        "label": disk.label,
        "uuid": disk.uuid,
        "base_path": disk.base_path,
        "datastore": disk.datastore,
        "unit": disk.unit,
        "generation": disk.generation,
        "capacity": disk.disk.capacity,
        "grains": {
            str(grain): base64.b64encode(zlib.compress(data)).decode() for grain, data in disk.disk._grains.items()
        },
        "tracking": tracking
        and {
            "id": tracking.id,
            "epoch": tracking.epoch,
            "last_change": {str(grain): epoch for grain, epoch in tracking.last_change.items()},
        },
    }


def _disk_from_json(data: dict[str, Any]) -> MemoryVirtualDisk:
    disk = MemoryDisk(data["capacity"])
    disk._grains = {int(grain): zlib.decompress(base64.b64decode(text)) for grain, text in data["grains"].items()}
    tracking = data["tracking"]
    return MemoryVirtualDisk(
        key=data["key"],
        label=data["label"],
        disk=disk,
        uuid=data["uuid"],
        base_path=data["base_path"],
        datastore=data["datastore"],
        unit=data["unit"],
        generation=data["generation"],
        tracking=Tracking(
            tracking["id"],
            tracking["epoch"],
            {int(grain): epoch for grain, epoch in tracking["last_change"].items()},
        )
        if tracking
        else None,
    )
