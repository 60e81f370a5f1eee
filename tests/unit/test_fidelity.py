"""docs/fidelity.md says of everything that vrepl knows of a VM what a replica has of it, and says it truly."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest

from tests.support.fidelity_page import fates, section
from tests.support.memory_site import MemorySite, MemoryVm
from tests.support.world import World, source
from vrepl.errors import VsphereError
from vrepl.model import Allocation, Carry, Controller, Disk, Hardware, NetworkAdapter, Resources, VirtualMachine
from vrepl.report.model import Result
from vrepl.vsphere import translation
from vrepl.vsphere.reconcile import _PLAIN

FATES = {"copied", "changed", "choice", "dropped", "refused"}


@pytest.mark.parametrize(
    ("title", "kind"),
    [("Hardware", Hardware), ("Controllers", Controller), ("Network adapters", NetworkAdapter), ("Disks", Disk)],
)
def test_every_attribute_has_its_row(title: str, kind: type) -> None:
    told = fates(title)
    assert set(told) == {field.name for field in fields(kind)}
    assert set(told.values()) <= FATES


def test_what_is_copied_of_the_hardware_is_what_a_run_brings_over() -> None:
    plain = {attribute for attribute, _, _ in _PLAIN}
    guards = {"io_mmu", "virtualisation_based_security"}
    others = {"version", "secure_boot", "controllers", "network_adapters"} | guards
    assert {name for name, fate in fates("Hardware").items() if fate == "copied"} == plain | others


def pattern_keys() -> list[str]:
    return [
        key
        for row in re.findall(r"^\| (`.*?) \|", section("extraConfig"), re.M)
        for key in re.findall(r"`([^`]+)`", row)
    ]


def test_the_keys_of_extra_config_are_those_that_are_carried() -> None:
    """Both ways: what the page names is carried, and the pattern holds no key that the page does not name."""
    named = pattern_keys()
    carried = translation.guest_settings({key.replace("*", "x.y"): "1" for key in named})
    assert len(carried) == len(named) > 10
    whole = _alternatives(translation._MATTERS.pattern.strip("^$"))
    assert {one.replace("\\.", ".").replace(".+", "*") for one in whole} == set(named)
    assert translation.guest_settings({"sched.swap.derivedName": "x", "uuid.action": "x", "numa": "x"}) == {}


def _alternatives(pattern: str) -> list[str]:
    """Every text that a pattern of groups, alternatives and optional groups stands for; `.+` stays."""
    if pattern.startswith("(") and _closing(pattern, 0) == len(pattern) - 1:
        pattern = pattern[1:-1]
    parts = _split(pattern)
    if len(parts) > 1:
        return [text for part in parts for text in _alternatives(part)]
    start = pattern.find("(")
    if start < 0:
        return [pattern]
    end = _closing(pattern, start)
    optional = pattern[end + 1 : end + 2] == "?"
    rest = pattern[end + 1 + optional :]
    inner = [text for part in _split(pattern[start + 1 : end]) for text in _alternatives(part)]
    middles = [*inner, *([""] if optional else [])]
    return [pattern[:start] + middle + tail for middle in middles for tail in _alternatives(rest)]


def _closing(pattern: str, start: int) -> int:
    depth = 0
    for position in range(start, len(pattern)):
        depth += (pattern[position] == "(") - (pattern[position] == ")")
        if depth == 0:
            return position
    raise AssertionError(pattern)


def _split(pattern: str) -> list[str]:
    parts, depth = [""], 0
    for character in pattern:
        depth += (character == "(") - (character == ")")
        if character == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def test_devices_that_stay_behind_are_on_the_page() -> None:
    rest = section("The rest").lower()
    for words in translation.LEFT_BEHIND.values():
        assert words.lower().removesuffix(" device").removesuffix(" port") in rest, words


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path / "repository")
    made.source.add_vm("web-01", [1 << 20])
    return made


def seeing(world: World, monkeypatch: pytest.MonkeyPatch, edit: Callable[[VirtualMachine], VirtualMachine]) -> None:
    """The source shows its VM as `edit` has it."""
    view = MemorySite._view
    monkeypatch.setattr(world.source, "_view", lambda vm: edit(view(world.source, vm)))


def test_a_virtual_tpm_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seeing(world, monkeypatch, lambda vm: replace(vm, virtual_tpm=True))
    report = world.run_vm()
    assert report.result is Result.FAILED
    assert report.error is not None
    assert "virtual TPM" in report.error.message
    assert not world.target.vms


def test_devices_that_stay_behind_are_named_by_the_first_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seeing(world, monkeypatch, lambda vm: replace(vm, devices_left_behind=("USB device",)))
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert [note for note in report.notes if "USB device" in note]
    assert not [note for note in world.run_vm().notes if "USB device" in note]


def test_an_encrypted_disk_is_said_to_be_stored_as_the_target_stores_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeing(world, monkeypatch, lambda vm: replace(vm, disks=tuple(replace(one, encrypted=True) for one in vm.disks)))
    assert [note for note in world.run_vm().notes if note.startswith("encrypted at the source, and not by vrepl")]


def efi(vm: VirtualMachine) -> VirtualMachine:
    return replace(vm, nvram=f"{vm.name}.nvram", hardware=replace(vm.hardware, firmware="efi"))


def with_nvram(world: World, monkeypatch: pytest.MonkeyPatch, content: bytes = b"boot entries") -> MemoryVm:
    view = MemorySite._view
    for site in (world.source, world.target):
        monkeypatch.setattr(site, "_view", lambda vm, site=site: efi(view(site, vm)))
    vm = source(world)
    vm.files["web-01.nvram"] = content
    return vm


def nvram_of_the_replica(world: World) -> bytes | None:
    return world.replica().files.get("web-01-replica.nvram")


def test_the_nvram_file_of_an_efi_guest_is_carried_and_looked_at_once_a_day(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = with_nvram(world, monkeypatch)
    assert [note for note in world.run_vm().notes if "NVRAM" in note]
    assert nvram_of_the_replica(world) == b"boot entries"
    vm.files["web-01.nvram"] = b"another entry"
    assert not [note for note in world.run_vm().notes if "NVRAM" in note]
    assert nvram_of_the_replica(world) == b"boot entries"
    world.clock.now += dt.timedelta(hours=24)
    assert [note for note in world.run_vm().notes if "NVRAM" in note]
    assert nvram_of_the_replica(world) == b"another entry"


def test_an_nvram_file_that_cannot_be_had_is_said_and_fails_no_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_nvram(world, monkeypatch)
    before = world.source.before_call

    def refused(method: str) -> None:
        if method == "read_vm_file":
            raise VsphereError("HTTP 500")
        before(method)

    world.source.before_call = refused
    report = world.run_vm()
    assert report.result is Result.SUCCESS, report.error
    assert [note for note in report.notes if "NVRAM file was not brought over" in note]
    world.source.before_call = before
    world.run_vm()
    assert nvram_of_the_replica(world) == b"boot entries"


def test_a_bios_guest_and_one_that_was_never_started_have_none(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = with_nvram(world, monkeypatch)
    del vm.files["web-01.nvram"]
    assert world.run_vm().result is Result.SUCCESS
    assert nvram_of_the_replica(world) is None


def test_notes_and_reservations_follow_where_the_job_says_so(world: World) -> None:
    promised = Resources(cpu=Allocation(reservation=500))
    vm = source(world)
    vm.notes, vm.hardware = "Owner: the accountants", replace(vm.hardware, resources=promised)
    world.run_vm()
    assert "accountants" not in world.replica().notes
    assert world.replica().hardware.resources is None
    world.job = replace(world.job, carry=(Carry.NOTES, Carry.RESERVATIONS))
    world.run_vm()
    assert world.replica().notes.endswith("Owner: the accountants")
    assert "kept by vrepl" in world.replica().notes
    assert world.replica().hardware.resources == promised
