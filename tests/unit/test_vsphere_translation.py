"""From pyVmomi's objects to the model: what a VM is, read without a call."""

from __future__ import annotations

import datetime as dt

import pytest

from vrepl.model import PowerState
from vrepl.vsphere import translation
from vrepl.vsphere.api import vim

device = vim.vm.device


def chain(*names: str, **leaf: object) -> object:
    """A backing for the first name, over the others; `leaf` are its extra fields."""
    below = None
    for name in reversed(names):
        below = device.VirtualDisk.FlatVer2BackingInfo(
            fileName=f"[ds 1] vm/{name}", diskMode="persistent", thinProvisioned=below is None, parent=below
        )
    for key, value in leaf.items():
        setattr(below, key, value)
    return below


def disk(key: int, controller: int, unit: int, backing: object, capacity: int = 1024 * 1024) -> object:
    return device.VirtualDisk(
        key=key,
        controllerKey=controller,
        unitNumber=unit,
        backing=backing,
        capacityInBytes=capacity,
        deviceInfo=vim.Description(label=f"Hard disk {key}", summary=""),
    )


def test_disks_are_indexed_by_position_and_know_their_chain() -> None:
    second = disk(2001, 1000, 1, chain("vm_1.vmdk"))
    first = disk(2005, 1000, 0, chain("vm-000002.vmdk", "vm-000001.vmdk", "vm.vmdk", uuid="u-1", changeId="52 aa/7"))
    nvme = disk(2002, 31000, 0, chain("vm_2.vmdk"))
    found = translation.disks_of([nvme, second, device.VirtualKeyboard(key=600), first])
    assert [(one.index, one.key) for one in found] == [(0, 2005), (1, 2001), (2, 2002)]
    assert found[0].path == "[ds 1] vm/vm-000002.vmdk"
    assert found[0].base_path == "[ds 1] vm/vm.vmdk"
    assert found[0].datastore == "ds 1"
    assert found[0].change_id == "52 aa/7"
    assert found[0].thin, "the base's allocation counts, not the delta's"
    assert found[1].path == found[1].base_path
    assert found[1].change_id is None


def test_an_rdm_a_shared_and_an_encrypted_disk_are_told() -> None:
    raw = device.VirtualDisk.RawDiskMappingVer1BackingInfo(
        fileName="[ds] vm/rdm.vmdk", compatibilityMode="physicalMode", diskMode="independent_persistent"
    )
    shared = chain("shared.vmdk", sharing="sharingMultiWriter")
    secret = chain("secret.vmdk", keyId=vim.encryption.CryptoKeyId(keyId="k"))
    found = translation.disks_of([disk(2000, 1000, 0, raw), disk(2001, 1000, 1, shared), disk(2002, 1000, 2, secret)])
    assert [one.rdm for one in found] == ["physicalMode", None, None]
    assert [one.mode for one in found] == ["independent_persistent", "persistent", "persistent"]
    assert [one.sharing for one in found] == ["sharingNone", "sharingMultiWriter", "sharingNone"]
    assert [one.encrypted for one in found] == [False, False, True]


def test_an_old_disk_without_bytes_counts_kib() -> None:
    old = device.VirtualDisk(key=2000, controllerKey=1000, unitNumber=0, backing=chain("a.vmdk"), capacityInKB=2048)
    assert translation.disks_of([old])[0].capacity == 2 * 1024 * 1024


@pytest.mark.parametrize(
    ("made", "kind"),
    [
        (device.ParaVirtualSCSIController, "pvscsi"),
        (device.VirtualLsiLogicController, "lsilogic"),
        (device.VirtualLsiLogicSASController, "lsilogic-sas"),
        (device.VirtualBusLogicController, "buslogic"),
        (device.VirtualAHCIController, "sata"),
        (device.VirtualNVMEController, "nvme"),
        (device.VirtualIDEController, "ide"),
    ],
)
def test_controllers(made: type, kind: str) -> None:
    (found,) = translation.controllers_of(
        [made(key=1001, busNumber=1), device.VirtualPCIController(key=100, busNumber=0)]
    )
    assert (found.kind, found.bus_number, found.key) == (kind, 1, 1001)


def test_networks_have_the_names_that_people_know() -> None:
    card = device.VirtualEthernetCard
    names = translation.Names(
        names={"network-7": "VM Network", "dvportgroup-9": "blue"},
        portgroups={"dvportgroup-9": "blue"},
        opaque_networks={"nsx-1": "green"},
    )
    standard = card.NetworkBackingInfo(deviceName="old name", network=vim.Network("network-7"))
    unknown = card.NetworkBackingInfo(deviceName="a%2fb", network=vim.Network("network-99"))
    distributed = card.DistributedVirtualPortBackingInfo(
        port=vim.dvs.PortConnection(portgroupKey="dvportgroup-9", switchUuid="s")
    )
    opaque = card.OpaqueNetworkBackingInfo(opaqueNetworkId="nsx-1", opaqueNetworkType="nsx.LogicalSwitch")
    assert [translation.network_of(one, names) for one in (standard, unknown, distributed, opaque)] == [
        "VM Network",
        "a/b",
        "blue",
        "green",
    ]


def test_a_snapshot_tree_is_flat_with_parents_first() -> None:
    when = dt.datetime(2024, 5, 1, 14, tzinfo=dt.timezone(dt.timedelta(hours=2)))

    def node(ref: str, *children: object) -> object:
        return vim.vm.SnapshotTree(
            snapshot=vim.vm.Snapshot(ref),
            name=ref,
            description=f"about {ref}",
            createTime=when,
            quiesced=ref == "s-2",
            childSnapshotList=list(children),
        )

    tree = vim.vm.SnapshotInfo(rootSnapshotList=[node("s-1", node("s-2", node("s-4")), node("s-3"))])
    found = translation.snapshots_of(tree)
    assert [(one.ref, one.parent_ref) for one in found] == [
        ("s-1", None),
        ("s-2", "s-1"),
        ("s-4", "s-2"),
        ("s-3", "s-1"),
    ]
    assert found[1].quiesced
    assert found[0].created == dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC)
    assert translation.snapshots_of(None) == ()


def test_a_whole_vm_from_one_read() -> None:
    names = translation.Names(
        names={"host-3": "esx-1", "group-v4": "Production", "datacenter-2": "west"},
        parents={"group-v4": "group-v3", "group-v3": "datacenter-2"},
        datacenters=frozenset({"datacenter-2"}),
    )
    vm = translation.virtual_machine(
        "vm-12",
        {
            "name": "web%2f01",
            "parent": vim.Folder("group-v4"),
            "config.uuid": "4207AAAA-0000-0000-0000-000000000001",
            "config.instanceUuid": "5007AAAA-0000-0000-0000-000000000001",
            "config.version": "vmx-19",
            "config.firmware": "efi",
            "config.bootOptions.efiSecureBootEnabled": True,
            "config.hardware.numCPU": 4,
            "config.hardware.numCoresPerSocket": 2,
            "config.hardware.memoryMB": 8192,
            "config.hardware.device": [
                device.ParaVirtualSCSIController(key=1000, busNumber=0),
                disk(2000, 1000, 0, chain("vm.vmdk")),
                device.VirtualCdrom(key=3000),
                device.VirtualTPM(key=11000),
                device.VirtualUSB(key=8000),
                device.VirtualUSB(key=8001),
                device.VirtualPCIPassthrough(key=13000),
                device.VirtualFloppy(key=8500),
            ],
            "config.extraConfig": [
                vim.option.OptionValue(key="vrepl.source-site", value="west"),
                vim.option.OptionValue(key="disk.EnableUUID", value="TRUE"),
                vim.option.OptionValue(key="sched.swap.derivedName", value="/vmfs/x.vswp"),
            ],
            "config.changeTrackingEnabled": True,
            "runtime.powerState": "poweredOn",
            "runtime.host": vim.HostSystem("host-3"),
            "guest.toolsRunningStatus": "guestToolsRunning",
            "disabledMethod": ["RelocateVM_Task"],
            "summary.storage.committed": 12345,
        },
        names,
    )
    assert (vm.name, vm.host, vm.datacenter, vm.folder_ref) == ("web/01", "esx-1", "west", "group-v4")
    assert vm.instance_uuid == "5007aaaa-0000-0000-0000-000000000001"
    assert vm.power is PowerState.ON
    assert (vm.hardware.version, vm.hardware.firmware, vm.hardware.secure_boot) == (19, "efi", True)
    assert (vm.hardware.cpus, vm.hardware.cores_per_socket, vm.hardware.memory_mib) == (4, 2, 8192)
    assert vm.hardware.cdroms == 1
    assert vm.extra_config == {"vrepl.source-site": "west"}
    assert vm.hardware.extra_config == {"disk.EnableUUID": "TRUE"}
    assert vm.devices_left_behind == ("PCI passthrough device", "USB device")
    assert vm.virtual_tpm
    assert vm.cbt_enabled
    assert vm.tools_running
    assert vm.disabled_methods == ("RelocateVM_Task",)
    assert vm.committed == 12345


def test_a_vm_that_cannot_be_read_is_still_a_vm() -> None:
    """Orphaned or inaccessible VMs have no configuration; they must not break the listing of all others."""
    vm = translation.virtual_machine("vm-9", {"name": "lost", "runtime.powerState": "poweredOff"}, translation.Names())
    assert (vm.name, vm.instance_uuid, vm.disks, vm.datacenter) == ("lost", "", (), "")


@pytest.mark.parametrize(
    ("power", "clean", "lost"),
    [("poweredOff", False, True), ("poweredOff", True, False), ("poweredOff", None, False), ("poweredOn", None, False)],
)
def test_a_vm_lost_power_where_it_is_off_and_was_not_powered_off(power: str, clean: bool | None, lost: bool) -> None:
    values = {"name": "one", "runtime.powerState": power, "runtime.cleanPowerOff": clean}
    assert translation.virtual_machine("vm-9", values, translation.Names()).lost_power is lost


@pytest.mark.parametrize("name", ["plain", "a/b", "a\\b", "100%", "100%2f", "/%\\"])
def test_names_survive_the_way_to_vsphere_and_back(name: str) -> None:
    assert translation.decode_name(translation.encode_name(name)) == name
