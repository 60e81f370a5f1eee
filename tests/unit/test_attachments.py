"""What hangs on a proxy and may be taken off: what this repository attached and nobody uses any more, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from vrepl.app.attachments import Attachments
from vrepl.app.probes import process_name
from vrepl.errors import CbtError, DiskError, MoverError, VsphereError
from vrepl.extents import Extent
from vrepl.model import ChangedAreas
from vrepl.ports import AllocatedExtents, AttachedDisk, DiskRequest
from vrepl.proxy.facts import product_uuid
from vrepl.vsphere.attachments import Hanging, Mark

BIOS = "4210f9a5-1b2c-3d4e-5f60-718293a4b5c6"
REQUEST = DiskRequest("prod", "vm-1", "snapshot-1", "[a] web/web.vmdk", False)
ENDED = process_name().rpartition("/")[0] + "/1"
"""A process of this machine with this one's number, which began at another time."""
ELSEWHERE = "other-host/1234abcd/4026531836/17/99"


@dataclass
class FakeProxyDisks:
    """A proxy VM's disks in memory."""

    found: list[Hanging] = field(default_factory=list)
    proxies: list[str] = field(default_factory=lambda: ["vm-9"])
    detached: list[str] = field(default_factory=list)
    failing: set[str] = field(default_factory=set)
    asked: int = 0

    def find_proxy(self, spellings: list[str]) -> str:
        self.asked += 1
        assert spellings == [BIOS, "a5f91042-2c1b-4e3d-5f60-718293a4b5c6"]
        if len(self.proxies) != 1:
            raise DiskError(f"{len(self.proxies)} VMs have it")
        return self.proxies[0]

    def attach(self, proxy_ref: str, request: DiskRequest, mark: Mark) -> AttachedDisk:
        disk = AttachedDisk(request.site, request.vm_ref, request.path, proxy_ref, 2001, 1, "uuid", 1 << 20)
        self.found.append(Hanging(disk, mark))
        return disk

    def hanging(self, proxy_ref: str) -> list[Hanging]:
        return list(self.found)

    def detach(self, disk: AttachedDisk) -> None:
        if disk.path in self.failing:
            raise VsphereError(f"{disk.path} stays")
        self.found = [one for one in self.found if one.disk != disk]
        self.detached.append(disk.path)


@dataclass
class Case:
    root: Path
    disks: FakeProxyDisks = field(default_factory=FakeProxyDisks)
    pages: dict[int, ChangedAreas] = field(default_factory=dict)

    def attachments(self, repository: str = "mine") -> Attachments:
        snapshot = SimpleNamespace(disks=[SimpleNamespace(path=REQUEST.path, key=2000, capacity=1 << 20)])

        def changed(vm: str, ref: str, key: int, start: int, change_id: str) -> ChangedAreas:
            assert (vm, ref, key, change_id) == ("vm-1", "snapshot-1", 2000, "*")
            return self.pages[start]

        site = SimpleNamespace(proxy_disks=self.disks, read_snapshot=lambda ref: snapshot, changed_areas=changed)
        return Attachments(
            cast(Callable[[str], Any], lambda name: site), lambda name: product_uuid(self.root),
            lambda name: product_uuid(self.root / name),
            lambda: repository,
        )  # fmt: skip

    def hang(self, path: str, mark: Mark, key: int = 2001) -> None:
        self.disks.found.append(Hanging(AttachedDisk("prod", mark.vm_ref, path, "vm-9", key, 1, "uuid", 1 << 20), mark))


@pytest.fixture
def case(tmp_path: Path) -> Case:
    file = tmp_path / "sys/class/dmi/id/product_uuid"
    file.parent.mkdir(parents=True)
    file.write_text(BIOS + "\n")
    return Case(tmp_path)


def alive() -> bool:
    return True


def dead() -> bool:
    return False


def test_a_disk_is_marked_with_repository_process_and_vm(case: Case) -> None:
    disk = case.attachments().desk(alive).attach(REQUEST)
    [hanging] = case.disks.found
    assert hanging == Hanging(disk, Mark("mine", process_name(), "vm-1", REQUEST.path))
    assert Mark.parse(hanging.mark.text()) == hanging.mark


def test_only_what_is_left_of_this_vm_by_this_repository_is_taken_off(case: Case) -> None:
    mine = Mark("mine", ENDED, "vm-1", "")
    case.hang("dead", mine)
    case.hang("of another machine, where nobody can look", replace(mine, process=ELSEWHERE))
    case.hang("of another VM", replace(mine, vm_ref="vm-2"))
    case.hang("of another repository", replace(mine, repository="theirs"))
    case.hang("of a process that lives", replace(mine, process=process_name(1)))
    assert case.attachments().clean_up("prod", "vm-1", None) == 2
    assert case.disks.detached == ["dead", "of another machine, where nobody can look"]


def test_within_one_process_a_disk_is_left_once_its_data_mover_has_died(case: Case) -> None:
    attachments = case.attachments()
    lives = True
    attachments.desk(lambda: lives).attach(REQUEST)
    assert attachments.clean_up("prod", "vm-1", None) == 0
    lives = False
    assert attachments.clean_up("prod", "vm-1", None) == 1
    assert case.disks.detached == [REQUEST.path]


def test_a_data_mover_that_died_meanwhile_leaves_nothing(case: Case) -> None:
    with pytest.raises(MoverError):
        case.attachments().desk(dead).attach(REQUEST)
    assert case.disks.detached == [REQUEST.path]


def test_a_disk_that_could_not_be_detached_is_tried_again_by_the_clean_up(case: Case) -> None:
    attachments = case.attachments()
    desk = attachments.desk(alive)
    disk = desk.attach(REQUEST)
    case.disks.failing = {disk.path}
    with pytest.raises(VsphereError):
        desk.detach(disk)
    with pytest.raises(VsphereError, match="stays"):
        attachments.clean_up("prod", "vm-1", None)
    case.disks.failing = set()
    assert attachments.clean_up("prod", "vm-1", None) == 1


def test_a_mark_whose_disk_somebody_took_off_goes_and_is_no_disk(case: Case) -> None:
    case.hang("gone", Mark("mine", ENDED, "vm-1", "gone"), key=0)
    assert case.attachments().clean_up("prod", "vm-1", None) == 0
    assert case.disks.detached == ["gone"]


@pytest.mark.parametrize("proxies", [[], ["vm-9", "vm-10"]])
def test_a_machine_that_is_no_vm_of_the_site_has_nothing_to_take_off_and_attaches_nothing(
    case: Case, proxies: list[str]
) -> None:
    case.disks.proxies = proxies
    case.hang("dead", Mark("mine", ENDED, "vm-1", ""))
    assert case.attachments().clean_up("prod", "vm-1", None) == 0
    with pytest.raises(DiskError):
        case.attachments().desk(alive).attach(REQUEST)
    assert case.disks.detached == []


def test_a_machine_that_does_not_tell_what_it_is_attaches_nothing(case: Case) -> None:
    (case.root / "sys/class/dmi/id/product_uuid").unlink()
    assert case.attachments().clean_up("prod", "vm-1", None) == 0
    with pytest.raises(DiskError, match="only root may"):
        case.attachments().desk(alive).attach(REQUEST)


def test_the_proxy_of_a_dead_run_is_asked_by_its_name_and_each_vm_looked_for_once(case: Case) -> None:
    attachments = case.attachments()
    assert attachments.clean_up("prod", "vm-1", "elsewhere") == 0, "that proxy tells no uuid"
    assert case.disks.asked == 0
    case.hang("dead", Mark("mine", ENDED, "vm-1", ""))
    assert attachments.clean_up("prod", "vm-1", "") == 1
    attachments.desk(alive).attach(REQUEST)
    assert case.disks.asked == 1


def test_what_is_allocated_is_asked_of_change_tracking_in_pages(case: Case) -> None:
    half = 1 << 19
    case.pages = {
        0: ChangedAreas(0, half, (Extent(0, 65536),)),
        half: ChangedAreas(half, half, (Extent(half, 65536), Extent(half + 131072, 512))),
    }
    found = case.attachments().desk(alive).allocated(REQUEST)
    assert found == AllocatedExtents((Extent(0, 65536), Extent(half, 65536), Extent(half + 131072, 512)))
    with pytest.raises(CbtError):
        case.attachments().desk(alive).allocated(replace(REQUEST, snapshot_ref=None))
    with pytest.raises(CbtError, match="no disk of the snapshot"):
        case.attachments().desk(alive).allocated(replace(REQUEST, path="[a] other.vmdk"))
