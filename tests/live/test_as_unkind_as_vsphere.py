"""Runs against sites that are as unkind as real ones: cut descriptions, hosts that know less, useless hints."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyVmomi import vim

from tests.support import plain_api
from tests.support.plain_api import vm_named, wait
from tests.support.vrepl_runs import Runs, kinds, moved
from vrepl_lab.lab import Lab
from vrepl_lab.spec import MIB, DiskSpec, LabSpec, VmSpec

GRAIN = 65536
FEW = 8 * GRAIN
"""Bytes: one grain was written, and the source's change tracking may name a few that were not (`nasty=on`)."""
MANY = 60


def numbered_disk(number: int) -> DiskSpec:
    """15 disks to a SCSI controller; unit 7 is its own."""
    unit = number % 15
    return DiskSpec(MIB, content="random", fill=0.5, bus=number // 15, unit=unit + (unit >= 7))


@pytest.fixture(scope="module")
def lab(start_shared_lab: Callable[[LabSpec], Lab]) -> Lab:
    disk = DiskSpec(4 * MIB, content="random", fill=0.5)
    return start_shared_lab(LabSpec.of_vms(VmSpec("web-01", disks=(disk,)), job_vms=["web-01"]))


@pytest.fixture
def runs(lab: Lab, tmp_path: Path) -> Iterator[Runs]:
    yield Runs(lab, tmp_path)
    lab.set(
        "dr.cbt_whole_disk=off", "dr.description_limit=0", "dr.hardware_max=none", "dr.unknown_guest_ids=none",
        "quiesce=ok",
    )  # fmt: skip


def forget_the_repository(runs: Runs) -> None:
    """Lose it, and make it anew from the replicas."""
    path = Path(runs.json("config", "show")["config"]["repository"]["path"])
    shutil.rmtree(path)
    assert [one["problem"] for one in runs.json("repository", "rebuild")["replicas"]] == [None]


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["dr.hardware_max=13", "dr.unknown_guest_ids=debian12_64Guest"])
def test_a_replica_that_no_host_can_take_is_refused_before_anything_is_made(runs: Runs, setting: str) -> None:
    runs.lab.set(setting)
    report = runs.plan(code=1)
    assert "host" in report["error"], report
    with plain_api.session(runs.lab, "dr") as api, pytest.raises(ValueError, match="got 0"):
        vm_named(api, "web-01-replica")


@pytest.mark.slow
def test_a_record_that_is_cut_survives_in_extra_config_and_the_repository_is_rebuilt_from_it(runs: Runs) -> None:
    runs.track_exactly()  # without digests, false positives cross
    runs.lab.set("dr.description_limit=200")
    report = runs.replicate()
    assert any("was cut" in note for note in report["notes"])
    forget_the_repository(runs)
    runs.write(3)
    report = runs.replicate()
    assert kinds(report) == ["incremental"]
    assert GRAIN <= moved(report) <= FEW
    assert runs.restore_point(report["restore_point"]) == runs.source()
    with plain_api.session(runs.lab, "dr") as api:
        names = [one.name for one in vm_named(api, "web-01-replica").snapshot.rootSnapshotList]
    assert len(names) == 1, "one chain"


@pytest.mark.slow
def test_a_replica_whose_change_tracking_says_all_of_the_disk_accuses_nobody(runs: Runs) -> None:
    runs.replicate()
    runs.lab.set("dr.cbt_whole_disk=on")
    for grain in (1, 7):
        runs.write(grain)
        report = runs.replicate()
        assert kinds(report) == ["incremental"]
        assert GRAIN <= moved(report) <= FEW
        assert not any("something else" in note or "reverted" in note for note in report["notes"])
    assert runs.restore_point(report["restore_point"]) == runs.source()


@pytest.mark.slow
def test_a_wrapped_quiesce_fault_ends_in_a_crash_consistent_restore_point(runs: Runs) -> None:
    """As vSphere says it: GenericVmConfigFault, and the cause in a message key."""
    runs.replicate()
    runs.lab.set("prod.quiesce=fail")
    report = runs.replicate()
    assert report["consistency"] == "crash"
    assert any("could not be quiesced" in note for note in report["notes"])


@pytest.mark.slow
def test_a_clone_of_the_replica_is_passed_over_by_rebuild(runs: Runs) -> None:
    runs.replicate()
    with plain_api.session(runs.lab, "dr") as api:
        replica = vm_named(api, "web-01-replica")
        spec = vim.vm.CloneSpec(location=vim.vm.RelocateSpec(), powerOn=False, template=False)
        wait(replica.CloneVM_Task(folder=replica.parent, name="copy-of-web", spec=spec))
    path = Path(runs.json("config", "show")["config"]["repository"]["path"])
    shutil.rmtree(path)
    found = {one["vm"]: one["problem"] for one in runs.json("repository", "rebuild", code=3)["replicas"]}
    assert found["web-01-replica"] is None
    assert "clone" in found["copy-of-web"]
    assert runs.replicate()["result"] == "success"
    with plain_api.session(runs.lab, "dr") as api:
        wait(vm_named(api, "copy-of-web").Destroy_Task())


@pytest.mark.slow
def test_the_copy_that_a_test_of_a_failover_stands_on_is_passed_over_by_rebuild(runs: Runs) -> None:
    """It is made of the replica, and vSphere gives a clone all of the replica's extraConfig."""
    runs.replicate()
    runs.json("failover", "test", "web-01", "--keep", "--yes")
    try:
        path = Path(runs.json("config", "show")["config"]["repository"]["path"])
        with plain_api.session(runs.lab, "dr") as api:
            copy = vm_named(api, "web-01-replica-test")
            marks = {one.key for one in copy.config.extraConfig if one.key.startswith("vrepl.") and one.value}
        assert marks
        assert all(key.startswith("vrepl.test.") for key in marks)
        shutil.rmtree(path)
        rebuilt = runs.json("repository", "rebuild")["replicas"]
        assert [(one["vm"], one["problem"]) for one in rebuilt] == [("web-01-replica", None)]
        assert runs.replicate()["result"] == "success"
    finally:
        runs.json("failover", "test", "stop", "web-01", "--yes")
    with plain_api.session(runs.lab, "dr") as api, pytest.raises(ValueError, match="got 0"):
        vm_named(api, "web-01-replica-test")


@pytest.mark.long
def test_60_disks_on_one_vm_are_sealed_rebuilt_and_incremental(
    start_lab: Callable[[LabSpec], Lab], tmp_path: Path
) -> None:
    disks = tuple(numbered_disk(number) for number in range(MANY))
    runs = Runs(start_lab(LabSpec.of_vms(VmSpec("web-01", disks=disks), job_vms=["web-01"])), tmp_path)
    runs.lab.set("dr.description_limit=8192")
    report = runs.replicate()
    assert len(report["disks"]) == MANY
    forget_the_repository(runs)
    runs.write(3, index=42)
    report = runs.replicate()
    assert set(kinds(report)) == {"incremental"}
    assert GRAIN <= moved(report) <= FEW
    assert runs.restore_point(report["restore_point"], 42) == runs.source(42)
