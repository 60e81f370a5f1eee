"""VMs that are moved while vrepl's own engines have their disks open: to another host, another datastore, or both."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from tests.support import plain_api, proxy_vm
from tests.support.plain_api import vm_named, wait
from tests.support.vrepl_runs import Runs, kinds, until
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

pytestmark = [pytest.mark.slow, pytest.mark.long]

StartRuns = Callable[..., Runs]
REPLICA = "web-01-replica"


@pytest.fixture
def start_runs(start_lab: Callable[[LabSpec], Lab], tmp_path: Path) -> StartRuns:
    def start(*, hotadd: bool) -> Runs:
        disk = DiskSpec(32 * MIB, content="random", fill=0.7)
        spec = LabSpec.of_vms(VmSpec("web-01", disks=(disk,)), job_vms=["web-01"])
        spec = replace(spec, vddk=False, prod=replace(spec.prod, hosts=2), dr=replace(spec.dr, hosts=2))
        runs = Runs(start_lab(spec), tmp_path)
        runs.track_exactly()
        runs.lab.set("lock_linger_s=1")
        runs.set_in_job('bandwidth = "6 MiB/s"', *(['proxy = "hotadd"'] if hotadd else []))
        return runs

    return start


def begun(runs: Runs, *, hotadd: bool) -> Any:
    """A run that is in the middle of its copy."""
    process = runs.start()
    if hotadd:
        until(lambda: bool(proxy_vm.hanging(runs.lab, "prod") and proxy_vm.hanging(runs.lab, "dr")), process)
    else:
        until(lambda: all(runs.lab.status()[site]["locks"] for site in ("prod", "dr")), process)
    time.sleep(1.0)
    return process


def ends_well(runs: Runs, process: Any) -> tuple[Any, str]:
    """The run's report, and what it said meanwhile; everything is as it should be, and the next run is, too."""
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, output + errors
    [report] = runs.json("report")["vms"]
    assert_sealed(runs, report)
    runs.set_in_job('bandwidth = "unlimited"')
    runs.write(3, 5)
    assert_sealed(runs, runs.replicate())
    return report, errors


def assert_sealed(runs: Runs, report: Any) -> None:
    assert report["result"] == "success", report
    assert runs.restore_point(report["restore_point"]) == runs.source()
    proxy_vm.assert_bare(runs.lab)
    for site in ("prod", "dr"):
        assert [lock for lock in runs.lab.status()[site]["locks"] if not lock["lingering"]] == []
    [vm] = [vm for vm in runs.json("vms", "prod")["vms"] if vm["name"] == runs.vm]
    assert vm["snapshots"] == []


def move(runs: Runs, site: str, name: str, *, host: bool = False, datastore: str = "") -> None:
    """vMotion, Storage vMotion, or both. Raises the task's fault."""
    with plain_api.session(runs.lab, site) as api:
        vm = vm_named(api, name)
        was = vm.runtime.host
        spec = vim.vm.RelocateSpec()
        if host:
            [spec.host] = [one for one in was.parent.host if one.name != was.name]
        if datastore:
            [spec.datastore] = [one for one in was.datastore if one.name == f"{site}-{datastore}"]
        wait(vm.RelocateVM_Task(spec=spec))
        assert not host or vm.runtime.host.name != was.name
        assert not datastore or f"{site}-{datastore}" in plain_api.disk_path(vm.config)


def moved_while_nothing_is_open(runs: Runs, interrupt: Callable[[], None], *, host: bool) -> None:
    """Both VMs, to another datastore: `interrupt` has the run let go of their disks, and no host lets it in again.

    A real vSphere may move what is open; the lab never does.
    """
    runs.lab.set("nfc_closed=all")
    interrupt()
    deadline = time.monotonic() + 60
    for site, name in (("prod", "web-01"), ("dr", REPLICA)):
        while True:
            try:
                move(runs, site, name, host=host, datastore="vmfs-02")
                break
            except vim.fault.FileLocked:
                assert time.monotonic() < deadline
                time.sleep(0.1)
    runs.lab.set("nfc_closed=none")


@pytest.mark.parametrize("hotadd", [False, True], ids=["nbdssl", "hotadd"])
def test_vmotion_of_both_vms(start_runs: StartRuns, hotadd: bool) -> None:
    """Open sessions and attached disks live on; who loses a session goes on at the other host (`test_engines_...`)."""
    runs = start_runs(hotadd=hotadd)
    process = begun(runs, hotadd=hotadd)
    move(runs, "prod", "web-01", host=True)
    move(runs, "dr", REPLICA, host=True)
    report, _ = ends_well(runs, process)
    assert report["disks"][0]["attempts"] == 1


@pytest.mark.parametrize("host", [False, True], ids=["storage", "storage and host"])
def test_storage_vmotion_of_both_vms_over_nbdssl(start_runs: StartRuns, host: bool) -> None:
    runs = start_runs(hotadd=False)
    process = begun(runs, hotadd=False)
    moved_while_nothing_is_open(runs, lambda: runs.lab.set("prod.fault=read:lost", "dr.fault=write:lost"), host=host)
    report, said = ends_well(runs, process)
    assert report["disks"][0]["attempts"] > 1
    for site in ("prod", "dr"):
        assert f"was moved meanwhile, to [{site}-vmfs-02]" in said


def test_storage_vmotion_of_both_vms_over_hotadd(start_runs: StartRuns) -> None:
    """Refused while their disks hang on a proxy; done once somebody has pulled them from it."""
    runs = start_runs(hotadd=True)
    process = begun(runs, hotadd=True)
    for site, name in (("prod", "web-01"), ("dr", REPLICA)):
        with pytest.raises(vim.fault.FileLocked):
            move(runs, site, name, datastore="vmfs-02")

    moved_while_nothing_is_open(runs, lambda: proxy_vm.pull(runs.lab, "prod"), host=False)
    report, said = ends_well(runs, process)
    assert kinds(report) == ["full"]
    assert "was moved meanwhile, to [prod-vmfs-02]" in said
