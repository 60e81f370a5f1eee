"""`vrepl lab set`: what reaches settings.bin and what the simulator is told."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from vrepl_lab.errors import LabError
from vrepl_lab.settings import RULES, SettingsFile, parse_assignments

SITES = ("prod", "dr")


@pytest.fixture
def settings(tmp_path: Path) -> SettingsFile:
    file = SettingsFile(tmp_path / "settings.bin")
    file.create()
    return file


@pytest.mark.parametrize(
    ("assignment", "library", "simulator"),
    [
        ("latency_us=1000", {"latency_us": 1000}, {}),
        ("bandwidth_mib_s=500", {"bandwidth_bytes_s": 500 << 20}, {}),
        ("bandwidth_mib_s=0", {"bandwidth_bytes_s": 0}, {}),
        ("write_buffer_mib=0.5", {"write_buffer_bytes": 1 << 19}, {}),
        ("allocated_supported=no", {"allocated_supported": 0}, {}),
        ("allocated_supported=any-thread", {"allocated_supported": 2}, {}),
        ("lock_linger_s=1.5", {}, {"lock_linger_s": 1.5}),
        ("cbt_block_kib=256", {}, {"cbt_block_size": 262144}),
        ("cbt_page=3", {}, {"cbt_page": 3}),
        ("cbt_empty_page=yes", {}, {"cbt_empty_page": True}),
        ("nfc_limit_mib=8", {}, {"nfc_limit_mib": {"*": 8}}),
        ("nfc_limit_mib=127.1.2.11:8,127.1.2.12:16", {}, {"nfc_limit_mib": {"127.1.2.11": 8, "127.1.2.12": 16}}),
        ("nfc_closed=127.1.2.11", {}, {"nfc_closed": ["127.1.2.11"]}),
        ("nfc_closed=none", {}, {"nfc_closed": []}),
        ("quiesce=fail", {}, {"quiesce": "fail"}),
        ("clock_offset_s=-300", {}, {"clock_offset_s": -300}),
        ("datastore_free_mib=dr-vmfs-01:10", {}, {"free_bytes": {"dr-vmfs-01": 10 << 20}}),
        ("datastore_free_mib=none", {}, {"free_bytes": {}}),
        ("missing_privileges=A.B,C.D", {}, {"missing_privileges": ["A.B", "C.D"]}),
    ],
)
def test_one_assignment(assignment: str, library: dict[str, int], simulator: dict[str, Any]) -> None:
    for change in parse_assignments([assignment], SITES).values():
        assert (change.library, change.simulator) == (library, simulator)


def test_a_prefix_narrows_to_one_site() -> None:
    changes = parse_assignments(["dr.latency_us=5", "prod.fault=read:crash"], SITES)
    assert changes["dr"].library == {"latency_us": 5}
    assert not changes["prod"].library
    assert [len(changes[site].disk_faults) for site in SITES] == [1, 0]


def test_one_host_may_differ_from_all() -> None:
    change = parse_assignments(["nfc_limit_mib=8", "nfc_limit_mib=127.1.2.11:16"], SITES)["prod"]
    assert change.simulator == {"nfc_limit_mib": {"*": 8, "127.1.2.11": 16}}


def test_what_stands_after_faults_none_stays() -> None:
    change = parse_assignments(["fault=read:crash", "faults=none", "fault=write:crash"], SITES)["prod"]
    assert change.clear_faults
    assert [fault.operation for fault in change.disk_faults] == ["write"]


@pytest.mark.parametrize(
    ("assignment", "complaint"),
    [
        ("latency_us", "expected KEY=VALUE"),
        ("latency=1", "no setting latency"),
        ("far.latency_us=1", "no site far"),
        ("latency_us=-1", "from 0 on"),
        ("latency_us=fast", "whole number"),
        ("bandwidth_mib_s=-2", "from 0 on"),
        ("cbt_block_kib=100", "power of two"),
        ("cbt_block_kib=32", "power of two"),
        ("quiesce=maybe", "ok or fail"),
        ("allocated_supported=perhaps", "yes, no or any-thread"),
        ("datastore_free_mib=10", "NAME:N"),
        ("faults=some", "faults=none"),
    ],
)
def test_refused(assignment: str, complaint: str) -> None:
    with pytest.raises(LabError, match=complaint):
        parse_assignments([assignment], SITES)


def test_fields_stand_where_the_contract_says(settings: SettingsFile, tmp_path: Path) -> None:
    settings.write(
        parse_assignments(["latency_us=7", "bandwidth_mib_s=1", "write_buffer_mib=2", "allocated_supported=no"], SITES)[
            "prod"
        ]
    )
    content = (tmp_path / "settings.bin").read_bytes()
    assert len(content) == 4096
    assert struct.unpack_from("<8sIIQQQQQ", content) == (b"VRLABSET", 1, 2, 7, 1 << 20, 2 << 20, 0, 0)


def test_changes_happen_in_place(settings: SettingsFile, tmp_path: Path) -> None:
    inode = (tmp_path / "settings.bin").stat().st_ino
    settings.write(parse_assignments(["latency_us=7"], SITES)["prod"])
    assert (tmp_path / "settings.bin").stat().st_ino == inode
    assert settings.read()["generation"] == 2


def test_rules_add_up_and_clear(settings: SettingsFile) -> None:
    settings.write(parse_assignments(["fault=read:crash", "fault=write:lost"], SITES)["prod"])
    settings.write(parse_assignments(["fault=open:error:13"], SITES)["prod"])
    assert settings.read()["faults"] == 3
    settings.write(parse_assignments(["faults=none"], SITES)["prod"])
    assert settings.read()["faults"] == 0


def test_a_rule_that_has_fired_makes_room(settings: SettingsFile, tmp_path: Path) -> None:
    settings.write(parse_assignments(["fault=read:error:1@2x3"] * RULES, SITES)["prod"])
    with pytest.raises(LabError, match="at most 32"):
        settings.write(parse_assignments(["fault=read:crash"], SITES)["prod"])
    content = bytearray((tmp_path / "settings.bin").read_bytes())
    struct.pack_into("<Q", content, 128 + 40, 4)  # calls 2, 3 and 4 were to fire: it is spent
    (tmp_path / "settings.bin").write_bytes(content)
    settings.write(parse_assignments(["fault=read:crash"], SITES)["prod"])
    assert settings.read()["faults"] == RULES
