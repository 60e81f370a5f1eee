"""Promises of the facts about a proxy: which VM it is, which LUNs it sees, which ports are closed to it."""

from __future__ import annotations

import datetime as dt
import os
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from vrepl.model import Controller, Disk, Hardware, PowerState, Snapshot, VirtualMachine
from vrepl.proxy.facts import (
    ThisMachine,
    closed_ports,
    find_proxy_vm,
    free_scsi_slots,
    gather_facts,
    product_uuid,
    visible_luns,
    why_no_devices,
)

BIOS = uuid.UUID("4210f9a5-1b2c-3d4e-5f60-718293a4b5c6")
SWAPPED = uuid.UUID("a5f91042-2c1b-4e3d-5f60-718293a4b5c6")


def machine(name: str, bios: str, *, controllers: tuple[Controller, ...] = (), disks: int = 1) -> VirtualMachine:
    return VirtualMachine(
        ref=f"vm-{name}",
        name=name,
        instance_uuid=f"i-{name}",
        bios_uuid=bios,
        power=PowerState.ON,
        host="esx-1",
        datacenter="dc",
        folder_ref="group-1",
        hardware=Hardware(19, "other", "efi", False, 1, 1, 512, controllers=controllers),
        disks=tuple(
            Disk(2000 + i, i, f"Hard disk {i + 1}", f"[a] {name}/{i}.vmdk", "", 1 << 20, "u", "a") for i in range(disks)
        ),
    )


@pytest.mark.parametrize("seen", [BIOS, SWAPPED])
def test_the_proxy_is_the_one_vm_with_its_uuid_in_either_byte_order(seen: uuid.UUID) -> None:
    vm, _ = find_proxy_vm("p", seen, [machine("a", str(uuid.uuid4())), machine("b", str(BIOS)), machine("c", "")])
    assert vm is not None
    assert (vm.name, vm.disk_paths) == ("b", frozenset({"[a] b/0.vmdk"}))


@pytest.mark.parametrize(
    ("seen", "vms", "reason"),
    [
        (None, ["a"], "cannot be read"),
        (BIOS, [], "is no VM of this site"),
        (BIOS, ["a", "clone-of-a"], "2 VMs have the BIOS uuid of proxy p (a, clone-of-a)"),
    ],
)
def test_when_it_is_not_sure_it_is_none(seen: uuid.UUID | None, vms: list[str], reason: str) -> None:
    vm, why = find_proxy_vm("p", seen, [machine(name, str(BIOS)) for name in vms])
    assert vm is None
    assert reason in why


def test_scsi_slots() -> None:
    controllers = (Controller(1000, "pvscsi", 0), Controller(1001, "lsilogic", 1), Controller(200, "ide", 0))
    assert free_scsi_slots(machine("a", "", controllers=controllers, disks=4)) == 26
    assert free_scsi_slots(machine("a", "", controllers=controllers[2:])) == 0


def sysroot(folder: Path, *names: str) -> Path:
    by_id = folder / "dev/disk/by-id"
    by_id.mkdir(parents=True)
    for name in names:
        (by_id / name).touch()
    dmi = folder / "sys/class/dmi/id"
    dmi.mkdir(parents=True)
    (dmi / "product_uuid").write_text(f"{BIOS}\n")
    return folder


def test_luns_by_either_name_without_partitions(tmp_path: Path) -> None:
    one, two, three = "6" * 32, "60a98000" + "7" * 24, "5" * 16
    root = sysroot(tmp_path, f"wwn-0x{one}", f"scsi-3{one}", f"scsi-3{two}", f"wwn-0x{three}-part1", "ata-DISK_1")
    assert visible_luns(root) == {f"naa.{one}", f"naa.{two}"}
    assert visible_luns(tmp_path / "absent") == frozenset()


def test_the_product_uuid(tmp_path: Path) -> None:
    assert product_uuid(sysroot(tmp_path)) == BIOS
    assert product_uuid(tmp_path / "absent") is None


def dial(host: str, port: int) -> None:
    if (host, port) == ("esx-2", 902):
        raise OSError(111, "Connection refused")


def test_closed_ports_are_told_per_host() -> None:
    assert closed_ports(["esx-1", "esx-2"], 902, dial) == {"esx-2": "Connection refused (port 902)"}
    assert closed_ports(["esx-1", "esx-2"], 903, dial) == {}
    assert closed_ports([], 902, dial) == {}


@dataclass(frozen=True)
class FakeHost:
    name: str
    connected: bool = True
    datastore_refs: frozenset[str] = frozenset({"datastore-1"})


class FakeSite:
    def find_vms_by_bios_uuid(self, bios_uuid: str) -> list[VirtualMachine]:
        return [machine("proxy", bios_uuid)] if bios_uuid == str(BIOS) else []

    def hosts(self) -> list[FakeHost]:
        return [FakeHost("esx-1"), FakeHost("esx-2"), FakeHost("esx-3", connected=False)]


def test_all_facts_together(tmp_path: Path) -> None:
    facts = gather_facts("p", ThisMachine(sysroot(tmp_path, "scsi-3" + "6" * 32), dial), FakeSite(), 902)
    assert facts.vm is not None
    assert facts.vm.name == "proxy"
    assert facts.visible_luns == {"naa." + "6" * 32}
    assert set(facts.closed_nfc_hosts) == {"esx-2"}, "a host that is not connected is not dialled"
    assert facts.datastores_of_host["esx-1"] == {"datastore-1"}


@pytest.mark.parametrize(
    ("settings", "tells"),
    [
        ({}, False),
        ({"disk.EnableUUID": "TRUE"}, True),
        ({"disk.enableuuid": "true"}, True),
        ({"disk.EnableUUID": "0"}, False),
    ],
)
def test_whether_its_disks_tell_their_uuid_and_it_has_snapshots(settings: dict[str, str], tells: bool) -> None:
    plain = machine("a", str(BIOS))
    snapshot = Snapshot("snapshot-1", "mine", "", dt.datetime.now(dt.UTC), None)
    vm = replace(plain, hardware=replace(plain.hardware, extra_config=settings), snapshots=(snapshot,))
    found, _ = find_proxy_vm("p", BIOS, [vm])
    assert found is not None
    assert (found.disk_uuids, found.has_snapshots) == (tells, True)


def test_whether_this_user_may_use_block_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_no_devices(tmp_path) is None, "nothing to tell by"
    (tmp_path / "sys/bus/scsi/devices/2:0:0:0/block/sda").mkdir(parents=True)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/sda").touch()
    assert why_no_devices(tmp_path) is None
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK)
    assert "/dev/sda may not be read and written" in str(why_no_devices(tmp_path))
