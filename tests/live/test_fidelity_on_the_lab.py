"""docs/fidelity.md, row by row: a rich VM is replicated, and both are read again and compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from tests.support import plain_api
from tests.support.fidelity_page import fates
from tests.support.plain_api import vm_named, wait
from tests.support.site_access import settings_of
from tests.support.vrepl_runs import Runs
from vrepl.model import Controller, Disk, Hardware, NetworkAdapter, VirtualMachine
from vrepl.vsphere.site import VsphereSite
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

pytestmark = pytest.mark.slow

RICH = VmSpec(
    "rich-01",
    disks=(
        DiskSpec(MIB, content="random", controller="pvscsi", unit=3),
        DiskSpec(2 * MIB, content="random", controller="pvscsi", bus=1, unit=9, thin=False),
        DiskSpec(MIB, content="random", controller="nvme", unit=2),
        DiskSpec(MIB, content="random", controller="sata", unit=4),
    ),
    power="poweredOff",
    cpus=4,
    memory_mib=1024,
    networks=("VM Network", "dv-net-01", "nsx-segment-01"),
    adapter_kinds=("vmxnet3", "e1000e", "e1000"),
    extra_config={"disk.enableUUID": "TRUE", "sched.swap.derivedName": "/vmfs/volumes/x.vswp"},
)
JOB = ('carry = ["reservations", "notes"]', 'networks = { "VM Network" = "isolated" }')


@dataclass
class Pair:
    """Source and replica as vrepl reads them."""

    source: VirtualMachine
    replica: VirtualMachine


@pytest.fixture(scope="module")
def lab(start_shared_lab: Callable[[LabSpec], Lab]) -> Lab:
    return start_shared_lab(LabSpec.of_vms(RICH, job_vms=["rich-01"]))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fidelity")


def enrich(lab: Lab) -> None:
    """What the lab's own description of a VM has no word for."""
    with plain_api.session(lab) as prod:
        vm = vm_named(prod, "rich-01")
        [*_, last] = [one for one in vm.config.hardware.device if isinstance(one, vim.vm.device.VirtualEthernetCard)]
        last.connectable = vim.vm.device.VirtualDevice.ConnectInfo(
            startConnected=False, allowGuestControl=True, connected=False
        )
        edit = vim.vm.device.VirtualDeviceSpec(operation="edit", device=last)
        wait(
            vm.ReconfigVM_Task(
                vim.vm.ConfigSpec(
                    deviceChange=[edit],
                    numCoresPerSocket=2,
                    cpuHotAddEnabled=True,
                    memoryHotAddEnabled=True,
                    nestedHVEnabled=True,
                    vPMCEnabled=True,
                    flags=vim.vm.FlagInfo(vvtdEnabled=True, vbsEnabled=True),
                    bootOptions=vim.vm.BootOptions(efiSecureBootEnabled=True),
                    cpuAllocation=allocation(500, 2000, "high"),
                    memoryAllocation=allocation(256, -1, "custom", 777),
                    latencySensitivity=vim.LatencySensitivity(level="high"),
                    annotation="Owner: the accountants",
                )
            )
        )


def allocation(reservation: int, limit: int, level: str, shares: int = 0) -> Any:
    return vim.ResourceAllocationInfo(
        reservation=reservation, limit=limit, shares=vim.SharesInfo(level=level, shares=shares)
    )


def read(lab: Lab, site: str, name: str) -> VirtualMachine:
    with VsphereSite(settings_of(lab, site)) as opened:
        [vm] = opened.find_vms([name])
        return vm


@pytest.fixture(scope="module")
def pair(lab: Lab, scratch: Path) -> Pair:
    enrich(lab)
    runs = Runs(lab, scratch, vm="rich-01")
    runs.set_in_job(*JOB)
    [nvram] = (lab.folder / "prod" / "datastores").glob("*/rich-01/rich-01.nvram")
    nvram.write_bytes(b"boot entries and keys" * 1000)
    report = runs.replicate()
    assert any("NVRAM" in note for note in report["notes"]), report["notes"]
    return Pair(read(lab, "prod", "rich-01"), read(lab, "dr", "rich-01-replica"))


def expected(section: str, fate: str) -> set[str]:
    return {name for name, told in fates(section).items() if told == fate}


def test_the_source_is_as_rich_as_the_test_means(pair: Pair) -> None:
    """Else the comparison would be one of defaults."""
    plain = {field.name: field.default for field in fields(Hardware)}
    hardware = pair.source.hardware
    for name in expected("Hardware", "copied") | expected("Hardware", "choice"):
        assert getattr(hardware, name) not in (plain[name], None, ()), name
    assert {one.kind for one in hardware.controllers} >= {"pvscsi", "nvme", "sata"}
    assert [one.kind for one in hardware.network_adapters] == ["vmxnet3", "e1000e", "e1000"]
    assert {one.thin for one in pair.source.disks} == {True, False}


@pytest.mark.parametrize("row", sorted(expected("Hardware", "copied") - {"controllers", "network_adapters"}))
def test_hardware_that_is_copied(pair: Pair, row: str) -> None:
    assert getattr(pair.replica.hardware, row) == getattr(pair.source.hardware, row)


def test_what_is_carried_by_choice(pair: Pair) -> None:
    assert expected("Hardware", "choice") == {"resources"}
    assert pair.replica.hardware.resources == pair.source.hardware.resources
    assert "Owner: the accountants" in pair.replica.notes
    assert "kept by vrepl" in pair.replica.notes


def test_extra_config_that_matters_and_no_other(pair: Pair) -> None:
    keys = {key.lower() for key in pair.replica.hardware.extra_config}
    assert keys == {key.lower() for key in pair.source.hardware.extra_config} == {"disk.enableuuid"}


def compared(kind: type, section: str, ours: Any, theirs: Any, place: Mapping[int, Any]) -> None:
    """Every row of the section: equal where it says copied. `place`: what a controller's key stands for."""
    told = fates(section)
    assert set(told) == {field.name for field in fields(kind)}
    for name, fate in told.items():
        mine, other = getattr(ours, name), getattr(theirs, name)
        if name == "controller_key":
            mine, other = place[mine], place[other]
        if fate in {"copied", "refused"}:
            assert mine == other, f"{section}: {name}"


def test_controllers(pair: Pair) -> None:
    def used(vm: VirtualMachine) -> dict[tuple[str, int], Controller]:
        return {(one.kind, one.bus_number): one for one in vm.hardware.controllers if one.kind != "ide"}

    ours, theirs = used(pair.replica), used(pair.source)
    assert set(ours) == set(theirs)
    for position, controller in ours.items():
        compared(Controller, "Controllers", controller, theirs[position], {})


def test_network_adapters(pair: Pair) -> None:
    ours, theirs = pair.replica.hardware.network_adapters, pair.source.hardware.network_adapters
    assert len(ours) == len(theirs) == 3
    for mine, other in zip(ours, theirs, strict=True):
        compared(NetworkAdapter, "Network adapters", mine, other, {})
        assert mine.mac != other.mac, "changed: a new one"
    assert [one.network for one in ours] == ["isolated", "dv-net-01", "nsx-segment-01"]


def test_disks(pair: Pair) -> None:
    place = {
        one.key: (one.kind, one.bus_number)
        for vm in (pair.source, pair.replica)
        for one in vm.hardware.controllers
    }  # fmt: skip
    assert len(pair.replica.disks) == len(pair.source.disks) == 4
    for mine, other in zip(pair.replica.disks, pair.source.disks, strict=True):
        compared(Disk, "Disks", mine, other, place)
        assert mine.datastore == "dr-vmfs-01", "changed: the job's"
        assert (mine.uuid, mine.path) != (other.uuid, other.path), "changed: the replica's own"


def test_identity(pair: Pair) -> None:
    assert pair.replica.bios_uuid == pair.source.bios_uuid, "copied"
    assert pair.replica.instance_uuid != pair.source.instance_uuid, "changed"


def test_the_nvram_file(pair: Pair, lab: Lab) -> None:
    [nvram] = (lab.folder / "dr" / "datastores").glob("*/rich-01-replica/*.nvram")
    assert nvram.name == pair.replica.nvram
    assert nvram.read_bytes() == b"boot entries and keys" * 1000


def test_what_changes_at_the_source_is_followed(pair: Pair, lab: Lab, scratch: Path) -> None:
    with plain_api.session(lab) as prod:
        config = vim.vm.ConfigSpec(
            nestedHVEnabled=False,
            vPMCEnabled=False,
            flags=vim.vm.FlagInfo(vvtdEnabled=False, vbsEnabled=False),
            memoryAllocation=allocation(0, -1, "normal"),
            annotation="Owner: nobody",
        )
        wait(vm_named(prod, "rich-01").ReconfigVM_Task(config))
    report = Runs(lab, scratch, vm="rich-01").replicate()
    assert report["result"] == "success"
    source, replica = read(lab, "prod", "rich-01"), read(lab, "dr", "rich-01-replica")
    for row in (
        "nested_virtualisation",
        "performance_counters",
        "io_mmu",
        "virtualisation_based_security",
        "resources",
    ):
        assert getattr(replica.hardware, row) == getattr(source.hardware, row), row
    assert replica.hardware.nested_virtualisation is False
    assert "Owner: nobody" in replica.notes
    again = Runs(lab, scratch, vm="rich-01").replicate()
    assert not [note for note in again["notes"] if "->" in note or "reservations" in note], again["notes"]
