"""Promises of the check of HotAdd: which VM a proxy is, whether it can take disks, and what its user lacks on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from vrepl.checks.hotadd import check_hotadd
from vrepl.checks.result import CheckResult, Status
from vrepl.model import DataEngine, TransportMode, VirtualMachine
from vrepl.planner.modes import ProxyVm

ATTACH = "VirtualMachine.Config.AddExistingDisk"
PROXY = ProxyVm(ref="vm-9", name="proxy-9", host="esx-1", datacenter="dc", free_scsi_slots=14)


@dataclass(frozen=True)
class Lacked:
    privilege: str
    entity: str = "VirtualMachine proxy-9"
    why: str = "attach disks to the proxy"


@dataclass
class Case:
    machine: ProxyVm | None = PROXY
    lacking: Sequence[Lacked] = ()
    modes: tuple[TransportMode, ...] = (TransportMode.SAN, TransportMode.HOTADD, TransportMode.NBDSSL)
    engine: DataEngine = DataEngine.VDDK
    no_devices: str | None = None
    proxies: tuple[str, ...] = ("p",)
    asked: list[str] = field(default_factory=list)

    def _lacking(self, vm_ref: str, engine: DataEngine) -> Sequence[Lacked]:
        assert engine is self.engine
        self.asked.append(vm_ref)
        return self.lacking

    def results(self) -> list[CheckResult]:
        site = SimpleNamespace(lacking_as_hotadd_proxy=self._lacking)
        world = SimpleNamespace(
            proxy_vm=lambda _proxy, _vms: (self.machine, "the proxy is no VM of this site"),
            engine=lambda _proxy: (self.engine, ""),
            devices=lambda _proxy: self.no_devices,
        )
        job = SimpleNamespace(
            name="web",
            source="prod",
            target="dr",
            source_modes=self.modes,
            target_modes=(),
            proxies_at=lambda _site: self.proxies,
        )
        vms: list[VirtualMachine] = []
        return list(check_hotadd(cast(Any, world), cast(Any, job), (cast(Any, site), vms), (cast(Any, site), vms)))


ONLY = (TransportMode.HOTADD,)


@pytest.mark.parametrize(
    ("case", "status", "words"),
    [
        (Case(), Status.OK, "the proxy is VM proxy-9, 14 SCSI slots free"),
        (Case(machine=None), Status.OK, "the proxy is no VM of this site: other modes are used"),
        (Case(machine=None, modes=ONLY), Status.FAILED, "the proxy is no VM of this site"),
        (Case(lacking=[Lacked(ATTACH)]), Status.WARNING, f"{ATTACH} is missing on VirtualMachine proxy-9"),
        (Case(lacking=[Lacked(ATTACH)], modes=ONLY), Status.FAILED, f"{ATTACH} is missing on VirtualMachine proxy-9"),
        (Case(machine=replace(PROXY, free_scsi_slots=0)), Status.WARNING, "proxy-9 has no free SCSI slot"),
    ],
)
def test_what_is_said_of_a_proxy(case: Case, status: Status, words: str) -> None:
    (result,) = case.results()
    assert (result.name, result.status) == ("HotAdd at prod (job web)", status)
    assert words in result.detail
    assert case.asked == (["vm-9"] if case.machine else [])


OWN = Case(machine=replace(PROXY, disk_uuids=True), engine=DataEngine.OWN)


@pytest.mark.parametrize(
    ("case", "status", "words"),
    [
        (OWN, Status.OK, "14 SCSI slots free (vrepl's own engine)"),
        (replace(OWN, machine=PROXY), Status.WARNING, "set disk.EnableUUID = TRUE"),
        (
            replace(OWN, machine=replace(PROXY, disk_uuids=True, attached_by_vrepl=2)),
            Status.OK,
            "2 of vrepl's disks hang on it",
        ),
        (replace(OWN, machine=PROXY, modes=ONLY), Status.FAILED, "set disk.EnableUUID = TRUE"),
        (replace(OWN, machine=replace(PROXY, disk_uuids=True, has_snapshots=True)), Status.WARNING, "has snapshots"),
        (replace(OWN, no_devices="/dev/sda may not be read"), Status.WARNING, "/dev/sda may not be read"),
        (replace(OWN, lacking=[Lacked(ATTACH)]), Status.WARNING, f"{ATTACH} is missing"),
    ],
)
def test_what_vrepls_own_engine_wants_beside_that(case: Case, status: Status, words: str) -> None:
    (result,) = case.results()
    assert result.status is status
    assert words in result.detail


def test_a_job_without_hotadd_is_asked_nothing() -> None:
    assert Case(modes=(TransportMode.NBDSSL,)).results() == []


def test_each_proxy_of_a_side_is_looked_at() -> None:
    names = [result.name for result in Case(proxies=("p", "q")).results()]
    assert names == [f"HotAdd at prod from proxy {proxy} (job web)" for proxy in ("p", "q")]
    assert [result.name for result in Case(proxies=()).results()] == ["HotAdd at prod (job web)"]
