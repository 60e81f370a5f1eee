"""What a replica is made of, and where its parts go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrepl.errors import NotFoundError
from vrepl.model import Controller, Disk, Hardware, NetworkAdapter, ReplicaPlacement, ReplicaSpec
from vrepl.vsphere import hardware
from vrepl.vsphere.api import kind_of, vim
from vrepl.vsphere.placement import Place

PLACE = Place(
    host=vim.HostSystem("host-1"),
    host_name="esx-1",
    datastore=vim.Datastore("datastore-1"),
    datastore_name="dr-ds",
    folder=vim.Folder("group-v1"),
    pool=vim.ResourcePool("resgroup-1"),
    networks={"VM Network": vim.Network("network-1"), "blue": vim.dvs.DistributedVirtualPortgroup("dvportgroup-2")},
    portgroups={"blue": ("dvportgroup-2", "50 0a")},
)


def disk(index: int, controller: int, unit: int, *, thin: bool = True) -> Disk:
    path = f"[ds] web/web_{index}.vmdk"
    return Disk(2000 + index, index, f"Hard disk {index}", path, path, 4 << 20, "u", "ds", thin=thin,
                controller_key=controller, unit_number=unit)  # fmt: skip


SPEC = ReplicaSpec(
    name="web/01-replica",
    placement=ReplicaPlacement("esx-1", "dr-ds", networks={"prod": "blue"}),
    hardware=Hardware(
        version=19,
        guest_id="debian12_64Guest",
        firmware="efi",
        secure_boot=True,
        cpus=4,
        cores_per_socket=2,
        memory_mib=4096,
        cpu_hot_add=True,
        memory_hot_add=False,
        controllers=(
            Controller(200, "ide", 0),
            Controller(201, "ide", 1),
            Controller(1000, "pvscsi", 0),
            Controller(1002, "lsilogic-sas", 2, "physicalSharing"),
            Controller(15000, "sata", 0),
            Controller(31000, "nvme", 0),
        ),
        network_adapters=(
            NetworkAdapter(4000, "Network adapter 1", "vmxnet3", "prod", "00:50:56:3f:00:01", True),
            NetworkAdapter(4001, "Network adapter 2", "e1000e", "VM Network", "00:50:56:8f:00:02", False, False),
        ),
        cdroms=1,
        extra_config={"disk.EnableUUID": "TRUE"},
    ),
    bios_uuid="42070000-0000-0000-0000-000000000001",
    disks=(disk(0, 1000, 0), disk(1, 1002, 9, thin=False), disk(2, 15000, 3), disk(3, 31000, 1)),
    keep_macs=True,
    thin=None,
    extra_config={"vrepl.source": "west"},
    annotation="replica of web/01",
)


def config_of(spec: ReplicaSpec = SPEC) -> Any:
    return hardware.replica_config(spec, PLACE, lambda: "5207-new")


def devices(config: Any, kind: str) -> list[Any]:
    return [change.device for change in config.deviceChange if kind_of(change.device) == kind]


def test_the_guest_finds_itself_on_the_same_machine() -> None:
    config = config_of()
    assert config.name == "web/01-replica"
    assert (config.version, config.guestId, config.firmware) == ("vmx-19", "debian12_64Guest", "efi")
    assert config.bootOptions.efiSecureBootEnabled
    assert (config.numCPUs, config.numCoresPerSocket, config.memoryMB) == (4, 2, 4096)
    assert (config.cpuHotAddEnabled, config.memoryHotAddEnabled) == (True, False)
    assert config.uuid == SPEC.bios_uuid
    assert config.instanceUuid == "5207-new"
    assert config.files.vmPathName == "[dr-ds]"
    assert {option.key: option.value for option in config.extraConfig} == {
        "disk.EnableUUID": "TRUE",
        "vrepl.source": "west",
    }


def test_change_tracking_is_on_from_birth_where_the_hardware_has_it() -> None:
    assert config_of().changeTrackingEnabled
    old = replace(SPEC, hardware=replace(SPEC.hardware, version=4))
    assert config_of(old).changeTrackingEnabled is None


def test_every_disk_hangs_where_its_source_hangs() -> None:
    config = config_of()
    controllers = {
        change.device.key: (kind_of(change.device), change.device.busNumber)
        for change in config.deviceChange
        if hasattr(change.device, "busNumber")
    }
    disks = devices(config, "VirtualDisk")
    assert [(controllers[one.controllerKey], one.unitNumber) for one in disks] == [
        (("ParaVirtualSCSIController", 0), 0),
        (("VirtualLsiLogicSASController", 2), 9),
        (("VirtualAHCIController", 0), 3),
        (("VirtualNVMEController", 0), 1),
    ]
    assert all(one.capacityInBytes == 4 << 20 and one.capacityInKB == 4096 for one in disks)
    assert all(one.backing.diskMode == "persistent" for one in disks)
    made = [change for change in config.deviceChange if kind_of(change.device) == "VirtualDisk"]
    assert {change.fileOperation for change in made} == {"create"}
    assert len({change.device.key for change in config.deviceChange}) == len(config.deviceChange)


def test_a_bus_of_a_replica_is_never_shared() -> None:
    (sas,) = devices(config_of(), "VirtualLsiLogicSASController")
    assert sas.sharedBus == "noSharing"


@pytest.mark.parametrize(
    ("wish", "made"), [(None, [True, False, True, True]), (True, [True] * 4), (False, [False] * 4)]
)
def test_thinness_follows_the_source_unless_the_job_says_otherwise(wish: bool | None, made: list[bool]) -> None:
    disks = devices(config_of(replace(SPEC, thin=wish)), "VirtualDisk")
    assert [one.backing.thinProvisioned for one in disks] == made


def test_networks_are_mapped_by_name_to_either_kind_of_port_group() -> None:
    (mapped,) = devices(config_of(), "VirtualVmxnet3")
    assert (mapped.backing.port.portgroupKey, mapped.backing.port.switchUuid) == ("dvportgroup-2", "50 0a")
    (kept,) = devices(config_of(), "VirtualE1000e")
    assert kept.backing.deviceName == "VM Network"
    assert kept.connectable.startConnected is False


def test_an_unknown_network_is_named_with_its_neighbours() -> None:
    spec = replace(SPEC, placement=replace(SPEC.placement, networks={"prod": "VM Netwrk"}))
    with pytest.raises(NotFoundError, match="no network VM Netwrk") as caught:
        config_of(spec)
    assert caught.value.hint == "did you mean VM Network?"


def test_macs_are_kept_only_where_asked_for_and_allowed() -> None:
    (first,), (second,) = devices(config_of(), "VirtualVmxnet3"), devices(config_of(), "VirtualE1000e")
    assert (first.addressType, first.macAddress) == ("manual", "00:50:56:3f:00:01")
    assert (second.addressType, second.macAddress) == ("generated", None), "an address that vCenter gave is its own"
    (fresh,) = devices(config_of(replace(SPEC, keep_macs=False)), "VirtualVmxnet3")
    assert (fresh.addressType, fresh.macAddress) == ("generated", None)


@pytest.mark.parametrize(
    ("mac", "allowed"),
    [
        ("00:50:56:00:00:00", True),
        ("00:50:56:3F:FF:FF", True),
        ("00-50-56-12-34-56", True),
        ("00:50:56:40:00:00", False),
        ("00:50:56:80:00:00", False),
        ("00:0c:29:12:34:56", False),
        ("", False),
        ("00:50:56:00:00", False),
        ("00:50:56:zz:00:00", False),
    ],
)
def test_the_range_for_static_macs(mac: str, allowed: bool) -> None:
    assert hardware.is_static_mac(mac) is allowed


@given(st.binary(min_size=6, max_size=6))
def test_no_mac_outside_vmwares_prefix_is_static(address: bytes) -> None:
    inside = address[:3] == b"\x00\x50\x56" and address[3] <= 0x3F
    assert hardware.is_static_mac(address.hex(":")) is inside


def test_the_cdrom_is_there_and_empty() -> None:
    (drive,) = devices(config_of(), "VirtualCdrom")
    assert kind_of(drive.backing) == "RemotePassthroughBackingInfo" or "RemotePassthrough" in kind_of(drive.backing)
    assert drive.connectable.startConnected is False
    ide = {one.key for one in devices(config_of(), "VirtualIDEController")}
    assert drive.controllerKey in ide


def test_a_cdrom_goes_around_ide_disks() -> None:
    ide = tuple(disk(index, 200 + index // 2, index % 2) for index in range(4))
    spec = replace(SPEC, disks=ide)
    (drive,) = devices(config_of(spec), "VirtualCdrom")
    (sata,) = devices(config_of(spec), "VirtualAHCIController")
    assert drive.controllerKey == sata.key


def test_an_sriov_card_becomes_paravirtual() -> None:
    card = NetworkAdapter(4000, "a", "sriov", "VM Network", "00:50:56:00:00:01", True)
    spec = replace(SPEC, hardware=replace(SPEC.hardware, network_adapters=(card,)))
    assert len(devices(config_of(spec), "VirtualVmxnet3")) == 1
