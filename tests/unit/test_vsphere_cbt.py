"""Change tracking is a property of each disk: switched on for all of them, and repaired where one lacks it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from vrepl.errors import CbtError, PermissionDeniedError
from vrepl.vsphere import cbt, collector
from vrepl.vsphere.api import vim


def disk(key: int, controller: int, unit: int, mode: str = "persistent") -> Any:
    backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName=f"[a] b/{key}.vmdk", diskMode=mode)
    return vim.vm.device.VirtualDisk(
        key=key, controllerKey=controller, unitNumber=unit, backing=backing, capacityInKB=1024
    )


DEVICES = [
    vim.vm.device.ParaVirtualSCSIController(key=1000, busNumber=0, sharedBus="noSharing"),
    vim.vm.device.VirtualAHCIController(key=15000, busNumber=1),
    vim.vm.device.VirtualNVMEController(key=31000, busNumber=0),
    disk(2000, 1000, 0),
    disk(2001, 1000, 3),
    disk(2002, 15000, 2),
    disk(2003, 31000, 0),
    disk(2004, 1000, 4, "independent_persistent"),
]
ON = ["scsi0:0.ctkEnabled", "scsi0:3.ctkEnabled", "sata1:2.ctkEnabled", "nvme0:0.ctkEnabled"]


def test_each_disk_has_a_key_of_its_own() -> None:
    assert cbt.untracked(DEVICES, {}) == ON
    assert cbt.untracked(DEVICES, {"ctkEnabled": "TRUE", "SCSI0:0.CTKENABLED": "true", ON[2]: "TRUE"}) == [ON[1], ON[3]]
    assert cbt.untracked(DEVICES, dict.fromkeys(ON, "TRUE") | {ON[3]: "FALSE"}) == [ON[3]]


class Site:
    """A session, tasks and a VM in one, which notes what is reconfigured."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, enabled: bool, tracked: Sequence[str]) -> None:
        self.specs: list[Any] = []
        self.error: Exception | None = None
        values = {
            "config.hardware.device": DEVICES,
            "config.extraConfig": [vim.option.OptionValue(key=key, value="TRUE") for key in tracked],
            "config.changeTrackingEnabled": enabled,
        }
        monkeypatch.setattr(collector, "these", lambda *_: [collector.Found(self, values)])

    def object(self, kind: Any, ref: str) -> Any:
        return self

    def ReconfigVM_Task(self, spec: Any) -> None:
        if self.error is not None:
            raise self.error
        self.specs.append(spec)

    def run(self, start: Callable[[], Any], *, what: str) -> None:
        start()

    def enable(self) -> None:
        cbt.enable(self, self, "vm-1")  # type: ignore[arg-type]


def test_a_vm_without_tracking_gets_it_by_the_switch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(monkeypatch, enabled=False, tracked=[])
    site.enable()
    assert [(spec.changeTrackingEnabled, list(spec.extraConfig)) for spec in site.specs] == [(True, [])]


def test_a_disk_that_lacks_tracking_is_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(monkeypatch, enabled=True, tracked=[ON[0], ON[2], ON[3]])
    site.enable()
    assert [[(one.key, one.value) for one in spec.extraConfig] for spec in site.specs] == [[(ON[1], "TRUE")]]


def test_where_all_are_tracked_nothing_is_reconfigured(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(monkeypatch, enabled=True, tracked=ON)
    site.enable()
    assert site.specs == []


def test_a_repair_that_is_not_allowed_is_no_reason_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs compare such a disk instead, and say why; to switch tracking on for the first time is another matter."""
    denied = PermissionDeniedError("no", privilege="VirtualMachine.Config.AdvancedConfig")
    site = Site(monkeypatch, enabled=True, tracked=[])
    site.error = denied
    with pytest.raises(CbtError, match="tracking of some disks is off"):
        site.enable()
    site = Site(monkeypatch, enabled=False, tracked=[])
    site.error = denied
    with pytest.raises(PermissionDeniedError):
        site.enable()
